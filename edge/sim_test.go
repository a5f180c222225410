package edge

import (
	"flag"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
)

// How to replay a schedule, and how to play more of them.
var (
	simSeed      = flag.Uint64("seed", 0, "replay one schedule of the simulation, with its trace")
	simSchedules = flag.Uint64("schedules", 0, "how many schedules to simulate; 0 is 10,000, 5,000 with -short")
)

// simulate plays the schedules of the seeds from 1 to count, on all CPUs, and
// returns the first violation and its seed.
func simulate(count uint64, f faults, adjust func(*plan)) (violation string, seed uint64, total tally) {
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // the schedules are small and many
	var mu sync.Mutex
	var wg sync.WaitGroup
	var next atomic.Uint64
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			var mine tally
			for {
				s := next.Add(1)
				if s > count {
					break
				}
				w := newWorld(s, f, adjust, false)
				v := w.run()
				mine.add(w.tally)
				if v != "" {
					next.Store(count)
					mu.Lock()
					if violation == "" || s < seed {
						violation, seed = v, s
					}
					mu.Unlock()
				}
			}
			mu.Lock()
			total.add(mine)
			mu.Unlock()
		})
	}
	wg.Wait()
	return violation, seed, total
}

// replay plays one schedule with its trace.
func replay(seed uint64) (violation, trace string) {
	w := newWorld(seed, faults{}, nil, true)
	v := w.run()
	return v, fmt.Sprintf("plan: %+v\n%s", w.plan, strings.Join(w.trace, "\n"))
}
