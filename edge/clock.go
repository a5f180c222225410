package edge

import "time"

// instant is one reading of both clocks of a machine. A lease ends by whichever
// says so first: the monotonic clock does not step, but it may stand still while
// the machine is suspended, and the wall clock then tells.
type instant struct {
	mono time.Duration // since some fixed moment of this process
	wall int64         // Unix nanoseconds
}

// add moves both clocks on.
func (i instant) add(d time.Duration) instant {
	return instant{mono: i.mono + d, wall: i.wall + int64(d)}
}

// before reports whether i is before j by both clocks.
func (i instant) before(j instant) bool { return i.mono < j.mono && i.wall < j.wall }

// systemClock reads the machine's clocks.
func systemClock() func() instant {
	base := time.Now()
	return func() instant {
		now := time.Now()
		return instant{mono: now.Sub(base), wall: now.UnixNano()}
	}
}
