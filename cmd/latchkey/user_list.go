package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

func newUserList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the users, sorted by name",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return operate(cmd, func(ctx context.Context, op operator) error {
				accounts, err := op.accounts(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), views(accounts))
				}
				return printUsers(cmd.OutOrStdout(), accounts)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write a JSON array")
	return cmd
}

// accounts reads every account, sorted by username.
func (op operator) accounts(ctx context.Context) ([]tokenstore.Account, error) {
	names, err := op.Accounts.Usernames(ctx)
	if err != nil {
		return nil, err
	}
	accounts := make([]tokenstore.Account, len(names))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(op.parallel)
	for i, name := range names {
		g.Go(func() error {
			var err error
			accounts[i], _, err = op.Accounts.Get(ctx, name)
			if errors.Is(err, tokenstore.ErrNoAccount) {
				return nil // deleted since
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(accounts, func(a tokenstore.Account) bool { return a.Username == "" }), nil
}

// userView is an account as lists show it, and but for the hash as an import
// reads it.
type userView struct {
	Username string          `json:"username"`
	Subject  string          `json:"sub"`
	Scopes   []string        `json:"scopes"`
	Claims   json.RawMessage `json:"claims,omitempty"`
	Disabled bool            `json:"disabled"`
}

func views(accounts []tokenstore.Account) []userView {
	list := make([]userView, len(accounts))
	for i, a := range accounts {
		list[i] = userView{Username: a.Username, Subject: a.Subject, Scopes: append([]string{}, strings.Fields(a.Scopes)...), Disabled: a.Disabled}
		if json.Valid([]byte(a.Claims)) {
			list[i].Claims = json.RawMessage(a.Claims)
		}
	}
	return list
}

func printUsers(w io.Writer, accounts []tokenstore.Account) error {
	t := table(w, "USERNAME", "SUBJECT", "STATE", "SCOPES")
	for _, a := range accounts {
		state := "enabled"
		if a.Disabled {
			state = "disabled"
		}
		t.row(a.Username, a.Subject, state, a.Scopes)
	}
	return t.Flush()
}
