package session

import (
	"context"
	"log/slog"
	"slices"
	"strings"
)

// ClientCredentialsRequest asks for an access token of a client's own.
type ClientCredentialsRequest struct {
	Client Credentials
	Scope  string // "" for all that the client is allowed
	Proof  Proof
}

// ClientCredentials issues an access token to a client for itself (RFC 6749 section 4.4): one
// round trip, and one for a DPoP proof. There is no refresh token with it (section 4.4.3).
// Errors: ErrClient, a [RequestError], a [ProofError]; [accesstoken.ErrNoKey],
// [claimhook.ErrFailed], [tokenstore.ErrUnavailable].
func (s *Service) ClientCredentials(ctx context.Context, from Origin, r ClientCredentialsRequest) (Tokens, error) {
	if err := s.canSign(); err != nil {
		return Tokens{}, err
	}
	proof, err := s.offeredProof(ctx, from, r.Proof)
	if err != nil {
		return Tokens{}, err
	}
	client, err := s.client(ctx, from, r.Client, s.Store.Clients.IssueToken)
	if err != nil {
		return Tokens{}, err
	}
	if err := allow(client.Client, GrantClientCredentials); err != nil {
		return Tokens{}, err
	}
	g := client.Grant
	if g.Scope, err = exactScope(r.Scope, client.Scopes); err != nil {
		return Tokens{}, err
	}
	if err := s.spendProof(ctx, from, proof); err != nil {
		return Tokens{}, err
	}
	g.JKT = proof.JKT()
	uid := s.Store.UserID(client.ID)
	// A session of its own that nothing else belongs to: to revoke the token is to end it. To
	// end all of them is to raise the client's epoch.
	sid, err := s.Store.Sessions.NewID(uid)
	if err != nil {
		return Tokens{}, err
	}
	d := draft{grant: g, sid: sid, uid: uid, client: client.Client}
	if d.asked, err = s.askClaims(ctx, from, hookClientCredentials, d); err != nil {
		return Tokens{}, err
	}
	tokens, err := s.issue(d)
	if err != nil {
		return Tokens{}, err
	}
	s.Record(ctx, from, EventClientToken, slog.String("client_id", client.ID), slog.String("sid", sid.String()))
	return tokens, nil
}

// errScopeMalformed says that a scope is not as RFC 6749 section 3.3 writes it.
var errScopeMalformed = &RequestError{Code: "invalid_scope", Description: "scope is one or more names with one space between them"}

// exactScope is the requested scope, or all that is allowed if none was requested.
// A program that asks for more than it may have is not given less: it would fail
// later, and elsewhere.
func exactScope(requested, allowed string) (string, error) {
	if requested == "" {
		return allowed, nil
	}
	names, err := ScopeNames(requested)
	if err != nil {
		return "", errScopeMalformed
	}
	may := strings.Fields(allowed)
	for _, name := range names {
		if !slices.Contains(may, name) {
			return "", &RequestError{Code: "invalid_scope", Description: "The scope exceeds what the client is allowed"}
		}
	}
	return grantedScope(requested, allowed)
}

// ScopeNames splits a scope, which must not be empty (RFC 6749 section 3.3).
func ScopeNames(scope string) ([]string, error) {
	names := strings.Split(scope, " ")
	for _, name := range names {
		if name == "" || slices.ContainsFunc([]byte(name), func(b byte) bool { return b <= ' ' || b >= 0x7f || b == '"' || b == '\\' }) {
			return nil, BadRequest("scope is one or more names with one space between them")
		}
	}
	return names, nil
}
