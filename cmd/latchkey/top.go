package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/internal/top"
)

func newTop() *cobra.Command {
	var o top.Options
	cmd := &cobra.Command{
		Use:   "top [ADDRESS...]",
		Short: "Watch the replicas of a running deployment in the terminal",
		Long: `Show what the replicas of a deployment are doing, from the metrics of their admin
listeners: requests and how long they take, how long revocations take to arrive, the
leases under which tokens are checked in memory, refreshes, the password queue.

An address is host or host:port; without a port it is 9090, and without an address
127.0.0.1. A name stands for all of its addresses, looked up anew each time: the
headless Service of the admin listeners shows every replica there is.

Rates and percentiles are of the last interval. Without a terminal, or with --once,
plain text is printed; --once ends with status 1 if a replica did not answer.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Addrs, o.Out = args, cmd.OutOrStdout()
			if len(args) == 0 {
				o.Addrs = []string{"127.0.0.1"}
			}
			if o.Interval < 100*time.Millisecond || o.Interval > time.Minute {
				return fmt.Errorf("--interval %s: from 100ms to 1m", o.Interval)
			}
			return shown(top.Run(cmd.Context(), o), top.ErrDown)
		},
	}
	cmd.Flags().DurationVar(&o.Interval, "interval", 2*time.Second, "how often to look, 100ms to 1m")
	cmd.Flags().BoolVar(&o.Once, "once", false, "look for one interval, print, and end")
	return cmd
}
