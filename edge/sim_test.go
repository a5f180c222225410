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
	simSchedules = flag.Uint64("schedules", 0, "how many schedules to simulate; 0 is 100,000, 2,000 with -race, 5,000 with -short")
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
		count = 2_000 // one goroutine plays a schedule: there is little to detect, at eight times the cost
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
