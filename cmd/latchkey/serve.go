package main

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/internal/replica"
)

func newServe() *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Run one replica of the service",
		Long: `Run one replica. Settings come from the environment: see latchkey config.

SIGTERM finishes the requests under way and exits. A Redis outage does not stop
the replica: what needs Redis is answered 503 until Redis is back.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(os.Environ())
			if err != nil {
				return err
			}
			logger := replica.NewLogger(cfg, cmd.ErrOrStderr())
			collectLess()
			replica.LogWarnings(cmd.Context(), logger, cfg.Warnings())
			r, err := replica.New(cmd.Context(), replica.Options{Config: cfg, Log: logger, Version: buildVersion()})
			if err != nil {
				return err
			}
			addHashingThreads(r.MaxHashingThreads())
			return r.Run(cmd.Context())
		},
	}
}

// addHashingThreads gives Go one more thread for each password hash that runs at the same time, at most one per CPU.
// A hash does not yield: without these threads, a check of a token waits until Go's time slice of 10 ms ends. The kernel
// divides CPUs more finely. Under a CPU quota, for which Go runs fewer threads than there are CPUs, nothing changes,
// because the kernel stops the whole process when the quota is used up. GOMAXPROCS has the last word.
func addHashingThreads(hashes int) {
	cpus := runtime.NumCPU()
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) == cpus {
		runtime.GOMAXPROCS(cpus + min(hashes, cpus))
	}
}

// collectLess lets the heap grow to five times what is live before it is
// collected, where GOMEMLIMIT bounds it: near the limit the collector works as
// often as it must. GOGC has the last word.
func collectLess() {
	if os.Getenv("GOGC") == "" && debug.SetMemoryLimit(-1) != math.MaxInt64 {
		debug.SetGCPercent(400)
	}
}
