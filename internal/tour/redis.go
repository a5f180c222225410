package tour

import (
	"fmt"

	"github.com/alicebob/miniredis/v2"
)

// startRedis starts the embedded Redis of `latchkey dev` on a free port of
// the loopback interface. It runs in this process, keeps nothing on disk and
// ends with Close. It is for looking at, not for measuring: every command walks
// over the keys to see which have expired.
func startRedis() (*miniredis.Miniredis, error) {
	m := miniredis.NewMiniRedis()
	// By default its TTLs stand still until a test moves them. Here they run by
	// the clock that TIME tells, so that tokens and sessions end when they should.
	m.ClockTTL(true)
	if err := m.StartAddr("127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("start the embedded Redis: %w", err)
	}
	return m, nil
}
