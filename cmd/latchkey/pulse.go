package main

import (
	"context"
	"sync/atomic"
	"time"
)

// afterglow is for how long after a stall a replica may be reading requests that
// had come before its end.
const afterglow = 500 * time.Millisecond

// pulse tells when this process has not run for a while: frozen, suspended, starved.
//
// Requests wait in its sockets meanwhile. Whoever sent a refresh has given up and
// sent it to another replica; carried out here after all, when the grace is over, it
// would be taken for the theft that it looks like, and end the session.
type pulse struct {
	limit time.Duration // what counts as a stall
	last  atomic.Pointer[time.Time]
	over  atomic.Pointer[time.Time] // when the last stall was noticed
}

// newPulse takes half of the grace for a stall: of one that is shorter than the
// grace, what was sent elsewhere meanwhile still has the same answer.
func newPulse(grace time.Duration) *pulse {
	p := &pulse{limit: grace / 2}
	p.beat(time.Now())
	return p
}

// run beats until ctx ends.
func (p *pulse) run(ctx context.Context) {
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

func (p *pulse) beat(now time.Time) {
	if last := p.last.Load(); last != nil && since(*last, now) > p.limit {
		p.over.Store(&now)
	}
	p.last.Store(&now)
}

// stalled tells whether a request that is being read now may be from before a stall.
func (p *pulse) stalled(now time.Time) bool {
	if since(*p.last.Load(), now) > p.limit {
		return true
	}
	over := p.over.Load()
	return over != nil && now.Sub(*over) < afterglow
}

// since is the time that has passed by the clock that says more: the monotonic one
// may stand still while the machine is suspended.
func since(t, now time.Time) time.Duration {
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0)))
}
