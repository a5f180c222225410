package main

import (
	"errors"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/internal/replica"
	"github.com/latchkey-auth/latchkey/internal/terminal"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

func newDoctor() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check that Redis is fit to hold tokens",
		Long: `Look at everything that Redis must be for a logout to hold, on every primary, and
print it. It exits with 1 if a replica would refuse to start. docs/redis.md explains
each check. What serve warns of at start, such as a file of a secret that every user of
this machine can read, is logged to standard error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			cfg, err := config.Load(os.Environ())
			if err != nil {
				return err
			}
			logger := replica.NewLogger(cfg, cmd.ErrOrStderr()) // which also takes the Redis client's messages
			replica.LogWarnings(cmd.Context(), logger, cfg.Warnings())
			var keysErr error
			if cfg.KeysDir != "" {
				var keys *replica.KeySet
				if keys, keysErr = replica.ReadKeysDir(cfg); keysErr == nil {
					replica.LogWarnings(cmd.Context(), logger, keys.Exposed)
				}
			}
			rdb, store, err := replica.OpenStore(cfg, 0)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, rdb.Close()) }()
			findings, err := replica.Preflight(cmd.Context(), store)
			if errors.Is(err, tokenstore.ErrUnavailable) {
				err = fmt.Errorf("no answer from Redis (%s): %w", replica.DialOptions(cfg).Describe(), err)
			}
			return errors.Join(printFindings(cmd, replica.DialOptions(cfg).Describe(), findings, asJSON), err, keysErr)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write a JSON array")
	return cmd
}

// findingView is a finding as JSON.
type findingView struct {
	Check  string `json:"check"`
	Server string `json:"server"`
	Result string `json:"result"`
	Detail string `json:"detail"`
	See    string `json:"see"`
}

// printFindings returns replica.ErrPreflight if one of them forbids to start.
func printFindings(cmd *cobra.Command, redis string, findings []tokenstore.Finding, asJSON bool) error {
	var refused error
	views := make([]findingView, len(findings))
	for i, f := range findings {
		views[i] = findingView{f.Check, f.Server, f.Severity.String(), f.Text, replica.Section(f)}
		if f.Severity == tokenstore.Forbidden {
			refused = replica.ErrPreflight
		}
	}
	if asJSON {
		return errors.Join(printJSON(cmd.OutOrStdout(), views), refused)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "redis\t\t\t%s\n", redis)
	for _, v := range views {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", v.Check, v.Server, v.Result, terminal.Printable(v.Detail))
	}
	return errors.Join(w.Flush(), refused)
}
