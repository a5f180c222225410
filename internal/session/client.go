package session

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"slices"
	"strings"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// The grants that a registered client may be allowed.
const (
	GrantClientCredentials = "client_credentials"
	GrantRefreshToken      = "refresh_token"
)

// Credentials are who a request says that it comes from (RFC 6749 section 2.3.1).
type Credentials struct {
	ID, Secret string
	// Named says that the client only says its name, in the body: there is no Authorization
	// header.
	Named bool
}

// client authenticates the request's client: a registered one by its secret, or the public
// client of the service's own logins, which has none and only says its name (RFC 6749
// section 3.2.1): then the answer is the zero value. Errors: ErrClient,
// [tokenstore.ErrUnavailable].
func (s *Service) client(ctx context.Context, from Origin, c Credentials, check secretCheck) (tokenstore.ClientGrant, error) {
	if c.Named && c.ID == s.ClientID && c.Secret == "" {
		return tokenstore.ClientGrant{}, nil
	}
	return s.authenticate(ctx, from, c, check)
}

// secretCheck is the store's AuthenticateClient or IssueToClient.
type secretCheck func(ctx context.Context, id string, secret [32]byte) (tokenstore.ClientGrant, error)

// authenticate checks a registered client's secret.
func (s *Service) authenticate(ctx context.Context, from Origin, c Credentials, check secretCheck) (tokenstore.ClientGrant, error) {
	if c.Secret == "" {
		s.Record(ctx, from, EventClientRefused, slog.String("reason", "no_secret"))
		return tokenstore.ClientGrant{}, ErrClient
	}
	client, err := check(ctx, c.ID, sha256.Sum256([]byte(c.Secret)))
	switch {
	case errors.Is(err, tokenstore.ErrNoClient):
		// What was typed for an id that does not exist may be a secret.
		s.Record(ctx, from, EventClientRefused, slog.String("reason", "unknown"))
		return client, ErrClient
	case errors.Is(err, tokenstore.ErrClientSecret):
		s.Record(ctx, from, EventClientRefused, slog.String("client_id", c.ID), slog.String("reason", "secret"))
		return client, ErrClient
	}
	return client, err
}

// allow refuses a client a grant that it was not registered for.
func allow(client tokenstore.Client, grant string) error {
	if !slices.Contains(strings.Fields(client.Grants), grant) {
		return &RequestError{Code: "unauthorized_client", Description: "The client is not registered for the grant " + grant}
	}
	return nil
}
