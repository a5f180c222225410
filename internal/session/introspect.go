package session

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Introspection is the answer about one token (RFC 7662 section 2.2).
type Introspection map[string]any

// inactive is the answer about whatever is not a living token that the caller may know of.
// It says nothing else, not even why.
func inactive() Introspection { return Introspection{"active": false} }

// Introspect tells whether a token is good now, and what it says (RFC 7662). The caller is a
// client that is registered to ask. Errors: ErrClient, ErrClientMayNot, a [RequestError];
// [tokenstore.ErrUnavailable].
func (s *Service) Introspect(ctx context.Context, from Origin, c Credentials, token string) (Introspection, error) {
	client, err := s.client(ctx, from, c, s.Store.Clients.Authenticate)
	if err != nil {
		return nil, err
	}
	if client.ID == "" {
		return nil, ErrClient
	}
	if !client.Introspect {
		return nil, ErrClientMayNot
	}
	if token == "" {
		return nil, BadRequest("token is required")
	}
	// Access and refresh tokens cannot be mistaken for one another, so token_type_hint has
	// nothing to tell (RFC 7662 section 2.1).
	if refresh, err := s.RefreshTokens.Parse(token); err == nil {
		return s.examineRefresh(ctx, client.Client, refresh)
	}
	return s.examineAccess(ctx, client.Client, token)
}

// examineAccess tells what an access token says, to the client that it was issued to
// and to those that it is for.
func (s *Service) examineAccess(ctx context.Context, asker tokenstore.Client, token string) (Introspection, error) {
	claims, err := s.Issued.Verify(ctx, token)
	switch {
	case errors.Is(err, edge.ErrUnavailable):
		return nil, err
	case errors.Is(err, edge.ErrInvalid), errors.Is(err, edge.ErrExpired), errors.Is(err, edge.ErrRevoked):
		return inactive(), nil
	case err != nil:
		return nil, err
	}
	if claims.ClientID != asker.ID && !overlap(claims.Audience, s.audience(asker)) {
		return inactive(), nil
	}
	answer := Introspection{}
	for name, value := range claims.Extra {
		answer[name] = value
	}
	for name, value := range map[string]any{
		"active": true, "token_type": "Bearer", "iss": claims.Issuer, "sub": claims.Subject, "aud": claims.Audience,
		"client_id": claims.ClientID, "jti": claims.ID, "sid": claims.SessionID, "iat": claims.IssuedAt, "exp": claims.ExpiresAt,
	} {
		answer[name] = value
	}
	if claims.Scope != "" {
		answer["scope"] = claims.Scope
	}
	if claims.JKT != "" { // RFC 9449 section 6.2
		answer["token_type"], answer["cnf"] = "DPoP", map[string]string{"jkt": claims.JKT}
	}
	if claims.AuthTime != 0 {
		answer["auth_time"] = claims.AuthTime
	}
	return answer, nil
}

// examineRefresh tells what a refresh token stands for, to the client that it was
// issued to and to no other: a resource server that is shown one must not take it
// for an access token.
func (s *Service) examineRefresh(ctx context.Context, asker tokenstore.Client, token refreshtoken.Token) (Introspection, error) {
	g, err := s.Store.Sessions.Peek(ctx, shownRefresh(token))
	if errors.Is(err, tokenstore.ErrNoSession) {
		return inactive(), nil
	}
	if err != nil {
		return nil, err
	}
	if !g.Current || g.ClientID != asker.ID { // spent, or another's
		return inactive(), nil
	}
	answer := Introspection{
		"active": true, "iss": s.Issuer, "sub": g.Subject, "username": g.Username, "client_id": g.ClientID,
		"sid": tokenstore.ID(token.SID).String(), "auth_time": g.AuthTime.Unix(), "exp": g.RefreshExpiry.Unix(),
	}
	if g.Scope != "" {
		answer["scope"] = g.Scope
	}
	return answer, nil
}

// audience is whom a client's tokens are for.
func (s *Service) audience(c tokenstore.Client) []string {
	if c.Audiences == "" {
		return []string{s.Audience}
	}
	return strings.Fields(c.Audiences)
}

func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}
