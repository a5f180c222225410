package main

import (
	"os"

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
			replica.LogWarnings(cmd.Context(), logger, cfg.Warnings())
			r, err := replica.New(cmd.Context(), replica.Options{Config: cfg, Log: logger, Version: buildVersion()})
			if err != nil {
				return err
			}
			r.TuneRuntime()
			return r.Run(cmd.Context())
		},
	}
}
