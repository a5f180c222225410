package replica

import (
	"testing"
	"time"
)

func TestStalls(t *testing.T) {
	start := time.Now()
	at := start.Add
	p := newStallDetector(10 * time.Second)
	p.beat(start)
	for _, tt := range []struct {
		what string
		beat bool
		at   time.Duration
		want bool
	}{
		{"at once", false, 0, false},
		{"a beat is late", false, 4 * time.Second, false},
		{"it comes", true, 4 * time.Second, false},
		{"none for more than half the grace", false, 9*time.Second + 1, true},
		{"the first after it", true, 30 * time.Second, true},
		{"the next", true, 30*time.Second + StallAftermath/2, true},
		{"when all that waited has been read", true, 30*time.Second + StallAftermath, false},
	} {
		if tt.beat {
			p.beat(at(tt.at))
		}
		if got := p.stalled(at(tt.at)); got != tt.want {
			t.Errorf("%s: stalled = %v", tt.what, got)
		}
	}
	// A suspended machine: the monotonic clock stood still, and the wall clock did not.
	if !p.stalled(at(31 * time.Second).Round(0).Add(time.Minute)) {
		t.Error("a suspension is not noticed")
	}
}
