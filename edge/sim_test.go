package edge

import (
	"flag"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// How to replay a schedule, and how to play more of them.
var (
	simSeed      = flag.Uint64("seed", 0, "replay one schedule of the simulation, with its trace")
	simSchedules = flag.Uint64("schedules", 0, "how many schedules to simulate; 0 is 100,000, 20,000 with -race, 5,000 with -short")
)

// simulate plays the schedules of the seeds from 1 to count, on all CPUs, and
// returns the first violation and its seed.
func simulate(count uint64, f faults, adjust func(*plan)) (violation string, seed uint64, total tally) {
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // the schedules are small and many
	var mu sync.Mutex
	var wg sync.WaitGroup
	var next atomic.Uint64
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			var mine tally
			for {
				s := next.Add(1)
				if s > count {
					break
				}
				w := newWorld(s, f, adjust, false)
				v := w.run()
				mine.add(w.tally)
				if v != "" {
					next.Store(count)
					mu.Lock()
					if violation == "" || s < seed {
						violation, seed = v, s
					}
					mu.Unlock()
				}
			}
			mu.Lock()
			total.add(mine)
			mu.Unlock()
		})
	}
	wg.Wait()
	return violation, seed, total
}

// replay plays one schedule with its trace.
func replay(seed uint64) (violation, trace string) {
	w := newWorld(seed, faults{}, nil, true)
	v := w.run()
	return v, fmt.Sprintf("plan: %+v\n%s", w.plan, strings.Join(w.trace, "\n"))
}

// TestSimulation plays random schedules of the protocol: messages lost, late, out
// of order and doubled; replicas paused, suspended, killed and added; Redis frozen
// and failed over, with losses. In each it holds that
//
//	I1  no acceptance begins after a logout's answer;
//	I2  a denial outlives every token it names (else I1 fails: lifetimes are short);
//	I3  epoch, seq and chain name one prefix of one history;
//	I4  once all is well, every live follower has a lease again, and a logout is
//	    confirmed in bounded time, also while revocations stream;
//	I8  what a failover has lost and a live replica knew is revoked again,
//
// and that nothing is refused which nobody revoked.
func TestSimulation(t *testing.T) {
	if *simSeed != 0 {
		v, trace := replay(*simSeed)
		t.Log(trace)
		if v != "" {
			t.Fatalf("seed %d: %s", *simSeed, v)
		}
		return
	}
	count := *simSchedules
	switch {
	case count != 0:
	case testing.Short():
		count = 5_000
	case raceDetector:
		count = 20_000 // one goroutine plays a schedule: there is nothing to detect, at eight times the cost
	default:
		count = 100_000
	}
	start := time.Now()
	violation, seed, total := simulate(count, faults{}, nil)
	took := time.Since(start)
	t.Logf("%d schedules, %.0f a second: %+v", total.schedules, float64(total.schedules)/took.Seconds(), total)
	if violation != "" {
		_, trace := replay(seed)
		t.Fatalf("%s\nseed %d: %s\nreplay: go test ./edge -run 'TestSimulation$' -seed %d -v", trace, seed, violation, seed)
	}
}

// TestSimulationFindsEachFault takes the guards of the protocol away, one at a
// time, and the simulation notices. Where a guard is for something rare, the
// schedules are made to have more of it.
func TestSimulationFindsEachFault(t *testing.T) {
	deposed := func(p *plan) { p.wait, p.lossy, p.total, p.deposed, p.failovers = true, true, false, true, 1 }
	partitioned := func(p *plan) {
		p.partitions, p.failovers, p.freezes, p.pauses, p.logouts, p.loss, p.slow, p.backlog = 6, 0, 0, 0, 12, 0, 0, 0
	}
	repeats := func(p *plan) {
		p.repeat, p.slow, p.loss, p.failovers, p.freezes, p.backlog, p.logouts, p.partitions = 0.5, 0.3, 0, 0, 0, 0, 12, 3
	}
	lostRenewals := func(p *plan) {
		p.wait, p.nameless, p.lossy, p.total, p.deposed, p.failovers, p.commands = false, false, true, false, false, 1+p.failovers, 2
	}
	longLog := func(p *plan) {
		p.page, p.slow, p.loss, p.limit = 3, 0.3, 0.03, 1000
		p.large, p.backlog = p.page, 30
		p.failovers, p.lossy, p.total, p.logouts = 2, true, false, 12
	}
	for name, tt := range map[string]struct {
		faults faults
		want   string // of the violation
		adjust func(*plan)
	}{
		"a logout is answered at once":                         {faults{skipWait: true}, "I1", nil},
		"the lease does not end":                               {faults{ignoreLease: true}, "I1", nil},
		"the lease counts from the reply":                      {faults{leaseFromReply: true}, "I1", nil},
		"the wall clock is not read":                           {faults{ignoreWall: true}, "I1", func(p *plan) { p.suspensions = 3 }},
		"the head is acknowledged before it is applied":        {faults{acknowledgeHead: true}, "I1", nil},
		"seq alone names a history":                            {faults{skipChain: true}, "", nil},
		"a gap forgets what was known":                         {faults{forgetAtGap: true}, "", nil},
		"what was lost is not put back":                        {faults{skipRestore: true}, "I8", nil},
		"followers are dead without having been silent":        {faults{silence: 300 * time.Millisecond}, "I1", nil},
		"the drift of clocks is not allowed for":               {faults{silence: simLease}, "I1", partitioned},
		"generations are dropped early":                        {faults{dropEarly: true}, "I1", nil},
		"a full denylist keeps its lease":                      {faults{acceptWhenFull: true}, "I1", nil},
		"a look from before the revocation counts":             {faults{earlyLook: true}, "", nil},
		"the dead stay in the table":                           {faults{neverStrike: true}, "a logout", nil},
		"one primary's word counts though WAIT is asked for":   {faults{strictWhenDurable: true}, "I1", deposed},
		"WAIT is not waited for":                               {faults{waitForNone: true}, "I1", deposed},
		"an older beat replaces a newer one":                   {faults{beatsFall: true}, "I1", repeats},
		"an empty table of followers is believed after a loss": {faults{believeTable: true}, "I1", nil},
		"a table that lacks the last renewals is believed":     {faults{anyServer: true}, "I1", lostRenewals},
		"a process without a follower believes any table":      {faults{strictBelieves: true}, "I1", lostRenewals},
		"the whole log is asked for at once":                   {faults{wholeLog: true}, "I4", nil},
		"a read from before a boot counts":                     {faults{staleReads: true}, "I1", longLog},
	} {
		t.Run(name, func(t *testing.T) {
			violation, seed, total := simulate(60_000, tt.faults, tt.adjust)
			switch {
			case violation == "":
				t.Errorf("not found in %d schedules", total.schedules)
			case !strings.HasPrefix(violation, tt.want):
				t.Errorf("seed %d: %s", seed, violation)
			default:
				t.Logf("seed %d: %s", seed, violation)
			}
		})
	}
}
