package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/internal/terminal"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

func newSession() *cobra.Command {
	return group("session", "See and end the sessions of a user", newSessionList(), newSessionRevoke())
}

func newSessionList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list USER",
		Short: "List a user's sessions",
		Long: `List a user's sessions, those that expire last first. Times are UTC. A session expires
at the time shown unless it is refreshed before.`,
		Args: oneUsername(nil),
		RunE: func(cmd *cobra.Command, args []string) error {
			return operate(cmd, func(ctx context.Context, op operator) error {
				account, err := op.mustAccount(ctx, args[0])
				if err != nil {
					return err
				}
				list, err := op.allSessions(ctx, account)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), sessionViews(list))
				}
				return printSessions(cmd.OutOrStdout(), list)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write a JSON array")
	return cmd
}

// allSessions reads the list of a user's sessions page by page. One that is refreshed
// meanwhile is shown once, or not at all.
func (op operator) allSessions(ctx context.Context, a tokenstore.Account) ([]tokenstore.Session, error) {
	var all []tokenstore.Session
	for cursor := ""; ; {
		page, next, err := op.Sessions.List(ctx, op.UserID(a.Subject), cursor, tokenstore.MaxSessionPage)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		if cursor = next; cursor == "" {
			return all, nil
		}
	}
}

// sessionView has the names of GET /auth/sessions.
type sessionView struct {
	ID        string    `json:"id"` // sid
	CreatedAt time.Time `json:"created_at"`
	LastUsed  time.Time `json:"last_used_at"`
	ExpiresAt time.Time `json:"expires_at"` // unless it is refreshed before
	Device    string    `json:"device"`
	Address   string    `json:"address"`
	ClientID  string    `json:"client_id"`
	Scope     string    `json:"scope"`
}

func sessionViews(list []tokenstore.Session) []sessionView {
	views := make([]sessionView, len(list))
	for i, s := range list {
		views[i] = sessionView{
			ID: s.SID.String(), CreatedAt: s.Created.UTC(), LastUsed: s.LastUsed.UTC(), ExpiresAt: s.Expires.UTC(),
			Device: s.Device, Address: s.Address, ClientID: s.ClientID, Scope: s.Scope,
		}
	}
	return views
}

func printSessions(w io.Writer, list []tokenstore.Session) error {
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	t := table(w, "SESSION", "CREATED", "LAST USED", "EXPIRES", "DEVICE", "ADDRESS")
	for _, s := range list {
		t.row(s.SID.String(), stamp(s.Created), stamp(s.LastUsed), stamp(s.Expires), s.Device, s.Address)
	}
	return t.Flush()
}

func newSessionRevoke() *cobra.Command {
	var session string
	cmd := &cobra.Command{
		Use:   "revoke USER",
		Short: "End all sessions of a user, or one of them",
		Long: `End all sessions of a user, or one of them. Their refresh tokens and access tokens are
refused from then on. The user can log in again: see latchkey user disable.`,
		Args: oneUsername(nil),
		RunE: func(cmd *cobra.Command, args []string) error {
			var sid tokenstore.ID
			one := cmd.Flags().Changed("session")
			if one {
				var err error
				if sid, err = tokenstore.ParseID(session); err != nil {
					return fmt.Errorf("--session is not a session's id; list them with: latchkey session list %s", shellWord(args[0]))
				}
			}
			return operate(cmd, func(ctx context.Context, op operator) error {
				account, err := op.mustAccount(ctx, args[0])
				if err != nil {
					return err
				}
				if one {
					return op.revokeSession(ctx, cmd, account, sid)
				}
				if err := op.endSessions(ctx, account, time.Time{}); err != nil {
					return err
				}
				return say(cmd, "all sessions of %s have ended", terminal.Printable(args[0]))
			})
		},
	}
	cmd.Flags().StringVar(&session, "session", "", "the id of the one session to end (default: all)")
	return cmd
}

// revokeSession ends one session of a user. One that was ended lately is ended again: that
// is how a command that was cut off before every replica knew is completed.
func (op operator) revokeSession(ctx context.Context, cmd *cobra.Command, a tokenstore.Account, sid tokenstore.ID) error {
	err := op.confirmed(ctx)(op.Sessions.Revoke(ctx, tokenstore.SessionEnd{SID: sid, UID: op.UserID(a.Subject), Owner: a.Subject}))
	if errors.Is(err, tokenstore.ErrNoSession) {
		return fmt.Errorf("%s has no session %s, so there is nothing to end; list those there are with: latchkey session list %s",
			terminal.Printable(a.Username), sid, shellWord(a.Username))
	}
	if err != nil {
		return fmt.Errorf("end the session %s: %w", sid, err)
	}
	return say(cmd, "the session %s of %s has ended", sid, terminal.Printable(a.Username))
}
