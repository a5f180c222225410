//go:build !race

package edge

import (
	"testing"
	"time"
)

// One goroutine plays a schedule: the race detector has nothing to find, at eight times the
// cost.

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
	default:
		count = 10_000
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
