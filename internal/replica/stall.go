package replica

import (
	"context"
	"sync/atomic"
	"time"
)

// StallAftermath is how long after a stall a replica may still be reading requests that arrived before its end.
const StallAftermath = 500 * time.Millisecond

// stallDetector notices when this process did not run for a while, because it was frozen, suspended or starved.
//
// Requests wait in the sockets meanwhile. A client whose refresh waited here has given up and sent it to another
// replica. If it were carried out here when the grace is over, it would look like a stolen token and end the session.
type stallDetector struct {
	limit time.Duration // what counts as a stall
	last  atomic.Pointer[time.Time]
	over  atomic.Pointer[time.Time] // when the last stall was noticed
}

// newStallDetector takes for a stall whatever is longer than half of the grace. A refresh that waited for less gets,
// within the grace, the same answer as the one that was sent elsewhere.
func newStallDetector(grace time.Duration) *stallDetector {
	p := &stallDetector{limit: grace / 2}
	p.beat(time.Now())
	return p
}

// run beats until ctx ends.
func (p *stallDetector) run(ctx context.Context) {
	tick := time.NewTicker(p.limit / 8)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.beat(time.Now()) // the tick itself may be from before the stall
		}
	}
}

func (p *stallDetector) beat(now time.Time) {
	if last := p.last.Load(); last != nil && since(*last, now) > p.limit {
		p.over.Store(&now)
	}
	p.last.Store(&now)
}

// stalled reports whether a request that is being read now may have arrived before or during a stall.
func (p *stallDetector) stalled(now time.Time) bool {
	if since(*p.last.Load(), now) > p.limit {
		return true
	}
	over := p.over.Load()
	return over != nil && now.Sub(*over) < StallAftermath
}

// since is the time from t to now, by the monotonic or the wall clock, whichever says more: the monotonic clock may
// stand still while the machine is suspended.
func since(t, now time.Time) time.Duration {
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0)))
}
