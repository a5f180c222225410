//go:build !race

package edge

import (
	"strings"
	"testing"
	"time"
)

// TestSimulationFindsEachFault takes the guards of the protocol away, one at a
// time, and the simulation notices. Where a guard is for something rare, the
// schedules are made to have more of it. The race detector has nothing to find in one
// goroutine, and makes this eight times as slow: make test and make simulate run it without.
func TestSimulationFindsEachFault(t *testing.T) {
	if testing.Short() {
		t.Skip("left out by -short; make test and make simulate run it")
	}
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
		"followers are dead without having been silent":        {faults{silence: 300 * time.Millisecond}, "", nil},
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
		"what was not applied is acknowledged":                 {faults{ackHead: true}, "I1", nil},
		"an entry is applied before those that it follows":     {faults{outOfOrder: true}, "I1", nil},
		"others that follow are overlooked":                    {faults{alone: true}, "I1", nil},
		"who has the table is not asked":                       {faults{serverFromMemory: true}, "I1", lostRenewals},
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
