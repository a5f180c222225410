package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

func newClientList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the clients, sorted by id",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return operate(cmd, func(ctx context.Context, op operator) error {
				clients, err := op.clients(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), clientViews(clients))
				}
				return printClients(cmd.OutOrStdout(), clients)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write a JSON array")
	return cmd
}

// clients reads every client, sorted by id.
func (op operator) clients(ctx context.Context) ([]tokenstore.Client, error) {
	ids, err := op.Clients.IDs(ctx)
	if err != nil {
		return nil, err
	}
	var list []tokenstore.Client
	for _, id := range ids {
		c, err := op.Clients.Get(ctx, id)
		if errors.Is(err, tokenstore.ErrNoClient) {
			continue // deleted since
		}
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// clientView is a client as lists show it.
type clientView struct {
	ID         string          `json:"client_id"`
	Grants     []string        `json:"grants"`
	Scopes     []string        `json:"scopes"`
	Audiences  []string        `json:"audiences"`
	Claims     json.RawMessage `json:"claims,omitempty"`
	Introspect bool            `json:"introspect"`
	CreatedAt  time.Time       `json:"created_at"`
}

func clientViews(clients []tokenstore.Client) []clientView {
	list := make([]clientView, len(clients))
	words := func(s string) []string { return append([]string{}, strings.Fields(s)...) }
	for i, c := range clients {
		list[i] = clientView{
			ID: c.ID, Grants: words(c.Grants), Scopes: words(c.Scopes), Audiences: words(c.Audiences),
			Introspect: c.Introspect, CreatedAt: c.Created.UTC(),
		}
		if json.Valid([]byte(c.Claims)) {
			list[i].Claims = json.RawMessage(c.Claims)
		}
	}
	return list
}

func printClients(w io.Writer, clients []tokenstore.Client) error {
	t := table(w, "CLIENT", "GRANTS", "SCOPES", "AUDIENCES", "INTROSPECTS")
	for _, c := range clients {
		t.row(c.ID, c.Grants, c.Scopes, c.Audiences, map[bool]string{true: "yes"}[c.Introspect])
	}
	return t.Flush()
}
