//go:build unix

package redistest

import (
	"context"
	"errors"
	"testing"
	"time"
)

var errNotRunning = errors.New("killed or paused")

// await asks until the answer is nil, and fails the test with the last one after 90 s.
func await(t testing.TB, what string, ready func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	tick := time.NewTicker(5 * pollInterval)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("redistest: waited %v for %s: %v", settleTimeout, what, err)
		case <-tick.C:
		}
	}
}
