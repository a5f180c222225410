package main

import (
	"context"
	"log/slog"
	"os"
	"runtime"

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
			tuneCollector()
			warn(cmd.Context(), logger, cfg.Warnings())
			r, err := newReplica(cmd.Context(), cfg, logger)
			if err != nil {
				return err
			}
			addHashingThreads(r.passwords.Workers() * int(cfg.PasswordParallelism))
			return r.run(cmd.Context())
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

func warn(ctx context.Context, logger *slog.Logger, warnings []string) {
	for _, w := range warnings {
		logger.LogAttrs(ctx, slog.LevelWarn, w)
	}
}
