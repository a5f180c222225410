package session

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Tokens are what a login, a refresh or a client gets (RFC 6749 section 5.1).
type Tokens struct {
	Access    string
	Type      string // bearer, or DPoP (RFC 9449 section 5)
	ExpiresIn int    // of the access token, in seconds
	Scope     string
	SID       tokenstore.ID

	// Refresh is the refresh token; "" for a client's own access token.
	Refresh string
	// RefreshLeft is how long the refresh token can be used, unless it is used before.
	RefreshLeft time.Duration
	// Device is a new token that makes whoever logged in a known device; "" for none.
	Device string
}

// draft is what an access token will be made of.
type draft struct {
	grant    tokenstore.Grant // Scope is that of this token
	sid, uid tokenstore.ID
	client   tokenstore.Client // zero for the service's own logins
	asked    extraClaims       // of the webhook
}

// draftOf is the part that a refresh token names.
func draftOf(t refreshtoken.Token, g tokenstore.Grant, client tokenstore.Client, asked extraClaims) draft {
	return draft{grant: g, sid: t.SID, uid: t.UID, client: client, asked: asked}
}

// canSign returns nil if there is a key to sign with. A request for tokens asks this before
// it takes effect or uses anything up: a password attempt, a DPoP proof, a refresh token.
// Error: [accesstoken.ErrNoKey].
func (s *Service) canSign() error {
	_, err := s.Signer.Room(s.room.limit)
	return err
}

// issue signs an access token.
func (s *Service) issue(d draft) (Tokens, error) {
	jti, err := s.Store.Sessions.NewID(d.uid)
	if err != nil {
		return Tokens{}, err
	}
	access, err := s.Signer.Sign(s.tokenClaims(d, jti))
	if err != nil {
		return Tokens{}, fmt.Errorf("sign the access token: %w", err)
	}
	kind := "bearer"
	if d.grant.JKT != "" {
		kind = "DPoP"
	}
	return Tokens{
		Access: access, Type: kind, ExpiresIn: int(s.accessExpiry(d.grant) - d.grant.Now.Unix()), Scope: d.grant.Scope, SID: d.sid,
	}, nil
}

// with adds the refresh token.
func (t Tokens) with(refresh string, g tokenstore.Grant) Tokens {
	t.Refresh, t.RefreshLeft = refresh, g.RefreshExpiry.Sub(g.Now)
	return t
}

// accessExpiry returns the exp of an access token. The token does not outlive its session:
// of a session that Redis has dropped, nobody could tell whether its tokens still live.
func (s *Service) accessExpiry(g tokenstore.Grant) int64 {
	exp := g.Now.Unix() + int64(s.Store.Lifetimes().Access/time.Second)
	if g.RefreshExpiry.IsZero() { // a client that speaks for itself has no session
		return exp
	}
	return min(exp, g.RefreshExpiry.Unix())
}

// tokenClaims is what the access token says. iat and exp are Redis time, as all that
// will judge the token.
func (s *Service) tokenClaims(d draft, jti tokenstore.ID) accesstoken.Claims {
	g, iat := d.grant, d.grant.Now.Unix()
	claims := accesstoken.Claims{
		Issuer: s.Issuer, Subject: g.Subject, Audience: s.audience(d.client),
		ID: jti.String(), SessionID: d.sid.String(), ClientID: g.ClientID, Scope: g.Scope,
		UserEpoch: g.UserEpoch, LogEpoch: g.LogEpoch,
		IssuedAt: iat, ExpiresAt: s.accessExpiry(g),
		Extra: s.extra(d), JKT: g.JKT,
	}
	if !g.AuthTime.IsZero() { // a client that speaks for itself has not logged in
		claims.AuthTime = g.AuthTime.Unix()
	}
	if s.StatusReference != nil && g.Place.N != 0 {
		claims.StatusURI, claims.StatusIndex = s.StatusReference(d.uid.Shard(), g.Place)
	}
	return claims
}

// grantedScope is what of the requested scope an account is allowed; all of it
// if nothing was requested (RFC 6749 section 3.3).
func grantedScope(requested, allowed string) (string, error) {
	if requested == "" {
		return allowed, nil
	}
	may := strings.Fields(allowed)
	var granted []string
	for _, s := range strings.Fields(requested) {
		if slices.Contains(may, s) && !slices.Contains(granted, s) {
			granted = append(granted, s)
		}
	}
	if len(granted) == 0 {
		return "", &RequestError{Code: "invalid_scope", Description: "None of the requested scope is allowed"}
	}
	return strings.Join(granted, " "), nil
}
