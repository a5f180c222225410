package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/internal/tour"
)

func newDev() *cobra.Command {
	o := tour.Options{Version: buildVersion()}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run replicas on an embedded Redis and take a tour",
		Long: `Run replicas on an embedded Redis, with the user johndoe and the password secret,
and take a tour over HTTP: log in at one replica, refresh at another, log out at
a third, and see both tokens refused by all. Each step shows the curl command
that does the same.

It needs nothing, keeps nothing and reads no LATCHKEY_ setting. Its secret and its
password are published, so it listens on the loopback interface alone, and serve
refuses that secret.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out, o.Log = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return shown(tour.Run(cmd.Context(), o), tour.ErrFailed)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Addr, "addr", "127.0.0.1:8080", "where the first replica listens; the others take the ports after it; port 0: any free ports")
	f.IntVar(&o.Replicas, "replicas", 3, "how many replicas to run, 1 to "+strconv.Itoa(tour.MaxReplicas))
	f.BoolVar(&o.Exit, "exit", false, "end after the tour, with status 1 if a step failed")
	f.BoolVar(&o.Verbose, "verbose", false, "show what the replicas log during the tour")
	return cmd
}
