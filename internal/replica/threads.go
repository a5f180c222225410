package replica

import (
	"os"
	"runtime"
)

// TuneRuntime sets Go's garbage collector and threads for a process that runs this replica and nothing else. GOGC and
// GOMAXPROCS have the last word.
func (r *Replica) TuneRuntime() {
	tuneCollector()
	addHashingThreads(r.passwords.Workers())
}

// addHashingThreads gives Go one more thread for each password hash that runs at the same time, at most one per CPU.
// A hash does not yield: without these threads, a check of a token waits until Go's time slice of 10 ms ends. The kernel
// divides CPUs more finely. Under a CPU quota, for which Go runs fewer threads than there are CPUs, nothing changes,
// because the kernel stops the whole process when the quota is used up.
func addHashingThreads(hashes int) {
	cpus := runtime.NumCPU()
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) == cpus {
		runtime.GOMAXPROCS(cpus + min(hashes, cpus))
	}
}
