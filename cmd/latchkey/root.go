package main

import (
	"github.com/spf13/cobra"
)

// newRoot returns the command line: one subcommand in each file.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "latchkey",
		Short: "A token service: log in, refresh, log out, on every replica at once",
		Long: `Latchkey logs users in with a password, keeps them logged in with refresh tokens,
and logs them out so that no replica accepts their tokens again.

Start with:  latchkey dev      a tour on an embedded Redis; needs nothing
Run it with: latchkey serve    settings come from LATCHKEY_* (see latchkey config)`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newServe(), newDev(), newUser(), newClient(), newSession(), newKey(), newConfig(), newDoctor(), newBench(), newTop(), newHealthcheck(), newVersion())
	return root
}
