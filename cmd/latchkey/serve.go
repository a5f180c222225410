package main

import (
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/config"
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
			logger := newLogger(cfg, cmd.ErrOrStderr())
			collectLess()
			for _, warning := range cfg.Warnings() {
				logger.LogAttrs(cmd.Context(), slog.LevelWarn, warning)
			}
			r, err := newReplica(cmd.Context(), cfg, logger)
			if err != nil {
				return err
			}
			threadsForHashes(r.hashes)
			return r.run(cmd.Context())
		},
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

// threadsForHashes lets Go run as many threads more as passwords are hashed at once, at
// most twice as many as there are CPUs. A hash does not yield, and what is ready beside it
// waits until Go's scheduler takes the thread away, after 10 ms; with a thread more the
// kernel's does, sooner. Under a quota of CPU, for which Go has fewer threads than there
// are CPUs, it stays as it is: the kernel would stop the process when the quota is used
// up. GOMAXPROCS has the last word.
func threadsForHashes(hashes int) {
	if cpus := runtime.NumCPU(); os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) == cpus {
		runtime.GOMAXPROCS(cpus + min(hashes, cpus))
	}
}
