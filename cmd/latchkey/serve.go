package main

import (
	"log/slog"
	"os"

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
			for _, warning := range cfg.Warnings() {
				logger.LogAttrs(cmd.Context(), slog.LevelWarn, warning)
			}
			r, err := newReplica(cmd.Context(), cfg, logger)
			if err != nil {
				return err
			}
			return r.run(cmd.Context())
		},
	}
}
