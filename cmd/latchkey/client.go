package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/terminal"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// maxClientName is the longest name of a client, without its prefix.
const maxClientName = 64

// maxKeep is how long a replaced secret may go on working.
const maxKeep = 30 * 24 * time.Hour

// secretPrefix makes a client secret recognisable, to people and to scanners.
const secretPrefix = "lks_"

func newClient() *cobra.Command {
	return group("client", "Manage the programs that ask for tokens, or about them",
		newClientAdd(), newClientList(), newClientRotate(), newClientDelete())
}

func newClientAdd() *cobra.Command {
	var grants, audiences []string
	var scope, claims string
	var introspect bool
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Register a client; its secret is shown once",
		Long: `Register a client and show its id and its secret, which is made here, kept nowhere and
not shown again. The id is the name after lkc_, so that no user's subject can be it.

    latchkey client add billing --grant client_credentials --scope "read write"
    latchkey client add orders-api --introspect

A client with the grant refresh_token may log users in at POST /auth/token, with its
own id and secret, and refresh their tokens at POST /oauth2/token.`,
		Args: oneClient,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := newClientOf(args[0], grants, strings.Fields(scope), audiences, []byte(claims))
			if err != nil {
				return err
			}
			client.Introspect = introspect
			return operate(cmd, func(ctx context.Context, op operator) error {
				secret := newSecret()
				err := op.Clients.Create(ctx, client, sha256.Sum256([]byte(secret)))
				if errors.Is(err, tokenstore.ErrClientExists) {
					return fmt.Errorf("the client %s is there already, and stays as it was; give it another secret with: latchkey client rotate-secret %s", client.ID, client.ID)
				}
				if err != nil {
					return err
				}
				return sayClient(cmd, client.ID, secret)
			})
		},
	}
	cmd.Flags().StringSliceVar(&grants, "grant", nil, "what the client may ask tokens by: client_credentials, refresh_token; may be given twice")
	cmd.Flags().StringVar(&scope, "scope", "", "what the client may be granted, separated by spaces")
	cmd.Flags().StringSliceVar(&audiences, "audience", nil, "whom the client's tokens are for, may be given repeatedly (default: LATCHKEY_AUDIENCE)")
	cmd.Flags().StringVar(&claims, "claims", "", "further claims of the client's tokens, as a JSON object")
	cmd.Flags().BoolVar(&introspect, "introspect", false, "let the client ask about tokens that were issued to it or are for its audiences")
	return cmd
}

// sayClient shows a client's credentials, one a line, as a program reads them too.
func sayClient(cmd *cobra.Command, id, secret string) error {
	return say(cmd, "client_id=%s\nclient_secret=%s", id, secret)
}

// newSecret makes a secret of 256 bits.
func newSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // it does not fail: the program would end
	return secretPrefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// newClientOf checks and normalises what an operator says of a client.
func newClientOf(name string, grants, scopes, audiences []string, claims []byte) (tokenstore.Client, error) {
	c := tokenstore.Client{}
	var err error
	if c.ID, err = clientID(name); err != nil {
		return c, err
	}
	for _, g := range grants {
		if g != "client_credentials" && g != "refresh_token" {
			return c, fmt.Errorf("%s is no grant that a client can have; write client_credentials or refresh_token", terminal.Printable(g))
		}
	}
	slices.Sort(grants)
	c.Grants = strings.Join(slices.Compact(grants), " ")
	if c.Scopes, err = joinScopes(scopes); err != nil {
		return c, err
	}
	for _, a := range audiences {
		if u, err := url.Parse(a); err != nil || u.Fragment != "" || a == "" || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			return c, errors.New(`an audience is not usable; write a URL or a name in printable ASCII, without spaces, ", \ and fragment`)
		}
	}
	c.Audiences = strings.Join(audiences, " ")
	if c.Claims, err = compactClaims(claims); err != nil {
		return c, err
	}
	if over := c.Size() - accesstoken.MaxClient; over > 0 {
		return c, fmt.Errorf("the client would not fit into a token: its id, audiences and claims are %d bytes more than %d; give fewer, or shorter ones", over, accesstoken.MaxClient)
	}
	// In a token of its own it takes an account's place.
	if over := (tokenstore.Account{Subject: c.ID, Scopes: c.Scopes}).Size() - accesstoken.MaxAccount; over > 0 {
		return c, fmt.Errorf("the client's scopes are %d bytes too long for a token; give fewer", over)
	}
	return c, nil
}

// clientID returns the id of the client of a name; the id itself names it, too.
func clientID(name string) (string, error) {
	plain := strings.TrimPrefix(name, tokenstore.ClientPrefix)
	if plain == "" || len(plain) > maxClientName || strings.ContainsFunc(plain, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	}) {
		return "", fmt.Errorf("the client's name is not usable; write letters, digits, -, _ and ., at most %d of them", maxClientName)
	}
	return tokenstore.ClientPrefix + plain, nil
}

func newClientRotate() *cobra.Command {
	var keep time.Duration
	var revoke bool
	cmd := &cobra.Command{
		Use:   "rotate-secret NAME",
		Short: "Give a client a new secret, which is shown once",
		Long: `Give a client a new secret. The old one is refused from then on, or after --keep. What
was issued before stays good, unless --revoke ends it: then no replica accepts the
client's own tokens any more, nor those of the users that it logged in.`,
		Args: oneClient,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := clientID(args[0])
			switch {
			case err != nil:
				return err
			case keep < 0 || keep > maxKeep:
				return fmt.Errorf("--keep is from 0 to %s", maxKeep)
			case revoke && keep > 0:
				return errors.New("--revoke is for a secret that others may have; it does not go with --keep")
			}
			return operate(cmd, func(ctx context.Context, op operator) error {
				secret := newSecret()
				err := op.Clients.RotateSecret(ctx, id, sha256.Sum256([]byte(secret)), keep)
				if errors.Is(err, tokenstore.ErrNoClient) {
					return fmt.Errorf("there is no client %s; list them with: latchkey client list", id)
				}
				if err != nil {
					return err
				}
				if err := sayClient(cmd, id, secret); err != nil || !revoke {
					return err
				}
				return op.endTokens(ctx, id)
			})
		},
	}
	cmd.Flags().DurationVar(&keep, "keep", 0, "how long the old secret still works, such as 24h (default: not at all)")
	cmd.Flags().BoolVar(&revoke, "revoke", false, "end every token that was issued to the client")
	return cmd
}

func newClientDelete() *cobra.Command {
	return &cobra.Command{
		Use:     "delete NAME",
		Aliases: []string{"rm"},
		Short:   "Delete a client; every token that was issued to it ends",
		Args:    oneClient,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := clientID(args[0])
			if err != nil {
				return err
			}
			return operate(cmd, func(ctx context.Context, op operator) error {
				_, err := op.Clients.Get(ctx, id)
				known := err == nil
				if !known && !errors.Is(err, tokenstore.ErrNoClient) {
					return err
				}
				// The client first: what it is issued afterwards is nothing. One that is
				// gone is ended again: that completes a command that was cut off.
				if err := op.Clients.Delete(ctx, id); err != nil {
					return err
				}
				if err := op.endTokens(ctx, id); err != nil {
					return err
				}
				if !known {
					return fmt.Errorf("there is no client %s, so there is nothing to delete; list them with: latchkey client list", id)
				}
				return say(cmd, "deleted %s; every token that was issued to it has ended", id)
			})
		},
	}
}

// endTokens ends the tokens that a client got for itself, and the sessions of the
// users that it logged in. It returns nil once every replica knows.
func (op operator) endTokens(ctx context.Context, id string) error {
	err := op.confirmed(ctx)(op.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: op.UserID(id)}))
	if err != nil {
		return fmt.Errorf("end the tokens of %s: %w", id, err)
	}
	ends := map[tokenstore.ID]tokenstore.SessionEnd{}
	err = op.Clients.Sessions(ctx, id, func(e tokenstore.SessionEnd) error {
		ends[e.SID] = e
		return nil
	})
	if err != nil {
		return fmt.Errorf("find the sessions of %s: %w", id, err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(op.parallel)
	for _, e := range ends {
		g.Go(func() error { return op.confirmed(ctx)(op.Sessions.Revoke(ctx, e)) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("end the sessions of %s: %w", id, err)
	}
	return nil
}

// oneClient checks the arguments of a command on one client.
func oneClient(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("which client? write: %s NAME", cmd.CommandPath())
	}
	return nil
}
