package replica

import (
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"testing"
	"time"
)

func TestGCPercentBoundsTheGarbage(t *testing.T) {
	const mib = 1 << 20
	for _, test := range []struct {
		live    uint64
		percent int
	}{
		{0, 400},
		{1, 400},
		{10 * mib, 400},
		{16 * mib, 400},
		{32 * mib, 200},
		{64 * mib, 100},
		{65 * mib, 100},
		{10_000 * mib, 100},
	} {
		if got := gcPercent(test.live); got != test.percent {
			t.Errorf("with %d bytes in use: GOGC %d, want %d", test.live, got, test.percent)
		}
	}
	for live := uint64(1); live < 1<<40; live += 1 + live/7 {
		garbage := live / 100 * uint64(gcPercent(live))
		if garbage > max(live, spareHeap) {
			t.Errorf("with %d bytes in use: %d bytes of garbage", live, garbage)
		}
	}
}

// GOGC follows what is in use, in both directions.
func TestTheCollectorIsTunedAfterEachCollection(t *testing.T) {
	t.Setenv("GOGC", "")
	defer debug.SetGCPercent(debug.SetGCPercent(maxGCPercent))
	current := func() uint64 {
		s := []runtimemetrics.Sample{{Name: "/gc/gogc:percent"}}
		runtimemetrics.Read(s)
		return s[0].Value.Uint64()
	}
	becomes := func(what string, ok func(uint64) bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !ok(current()); {
			runtime.GC() // the finalizer runs some time after it
			if time.Now().After(deadline) {
				t.Fatalf("%s: GOGC is %d", what, current())
			}
		}
	}
	tuneCollector()
	becomes("with a small heap", func(p uint64) bool { return p > 100 })
	big := make([]byte, 2*spareHeap)
	becomes("with a large heap", func(p uint64) bool { return p == 100 })
	runtime.KeepAlive(big)
	becomes("with a small heap again", func(p uint64) bool { return p > 100 })
}
