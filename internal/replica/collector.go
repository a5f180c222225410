package replica

import (
	"os"
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
)

const (
	// maxGCPercent is the highest GOGC that tuneCollector sets.
	maxGCPercent = 400
	// spareHeap is how much garbage a small heap may hold before it is collected, in bytes.
	spareHeap = 64 << 20
)

// gcPercent returns the GOGC for a heap of which live bytes were in use after the last collection. Garbage is then
// collected once there are 4 * live bytes of it, or spareHeap, or live bytes: the first two if they are more than live.
func gcPercent(live uint64) int {
	if live == 0 {
		return maxGCPercent
	}
	return int(min(max(spareHeap*100/live, 100), maxGCPercent))
}

// tuneCollector has the garbage collector run less often than Go's default while the heap is small: most of what a
// request allocates is garbage at once, and to find that out costs the same however much of it there is. After each
// collection it sets GOGC to gcPercent. GOMEMLIMIT still bounds the memory of the process. If the user sets GOGC,
// tuneCollector does nothing.
func tuneCollector() {
	if os.Getenv("GOGC") != "" {
		return
	}
	c := &collections{samples: []runtimemetrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"},
	}}
	c.tune()
	c.awaitNext()
}

// collections adapts GOGC after each garbage collection.
type collections struct {
	samples []runtimemetrics.Sample // of what the collector counts as live
	percent int                     // what GOGC is set to
}

// awaitNext has tune called after the next collection: it leaves an object for it with a finalizer.
func (c *collections) awaitNext() {
	runtime.SetFinalizer(&struct{ c *collections }{c}, func(next *struct{ c *collections }) {
		next.c.tune()
		next.c.awaitNext()
	})
}

func (c *collections) tune() {
	runtimemetrics.Read(c.samples)
	var live uint64
	for _, s := range c.samples {
		live += s.Value.Uint64()
	}
	// To set GOGC stops the program for a moment, so small changes are left out.
	if p := gcPercent(live); p >= c.percent+c.percent/8 || p <= c.percent-c.percent/8 {
		c.percent = p
		debug.SetGCPercent(p)
	}
}
