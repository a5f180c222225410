package session

import (
	"cmp"
	"context"
	"errors"
	"log/slog"

	"github.com/latchkey-auth/latchkey/internal/dpop"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// maxFamilies is how many families of refresh tokens one refresh may try: a browser with a
// cookie left over from an earlier path has two. A logout and a login, which must end what
// they are shown, have the bound MaxShown.
const maxFamilies = 4

// RefreshRequest asks for a new access token.
type RefreshRequest struct {
	Shown []string // refresh tokens: one, or those of all cookies that came along
	Proof Proof
}

// Refresh exchanges a refresh token for the current one and an access token: one round trip,
// and one for a DPoP proof. If tokens of several sessions are shown, each costs one more.
// Errors: ErrRefreshToken; ErrAmbiguous, after which the browser should forget all refresh
// tokens; ErrStalled; a [ProofError]; [tokenstore.ErrUnavailable].
func (s *Service) Refresh(ctx context.Context, from Origin, r RefreshRequest) (Tokens, error) {
	families := s.families(r.Shown)
	if len(families) == 0 {
		s.Record(ctx, from, EventRefreshRefused, slog.String("reason", "invalid"))
		return Tokens{}, ErrRefreshToken
	}
	if err := s.canSign(); err != nil {
		return Tokens{}, err
	}
	proof, err := s.offeredProof(ctx, from, r.Proof)
	if err == nil {
		err = s.spendProof(ctx, from, proof)
	}
	if err != nil {
		return Tokens{}, err
	}
	if len(families) > 1 {
		if families, err = s.pickFamily(ctx, from, families, proof.JKT()); err != nil {
			return Tokens{}, err
		}
	}
	refused := ErrRefreshToken
	for _, token := range families {
		tokens, err := s.renew(ctx, from, token, renewal{jkt: proof.JKT()})
		if errors.Is(err, ErrRefreshToken) || errors.Is(err, dpop.ErrMissing) {
			refused = err
			continue // show the others too: each may be a stolen copy, whose session must end
		}
		return tokens, err
	}
	return Tokens{}, refused
}

// pickFamily returns the one of several families whose token would be accepted from a
// browser that has proven the key with the thumbprint jkt. If there is none, it returns
// all of them. If there are several, nobody knows which one the user means: none is
// picked, and no session ends. The same goes for more families than maxFamilies. Errors: ErrAmbiguous; [tokenstore.ErrUnavailable].
func (s *Service) pickFamily(ctx context.Context, from Origin, families []refreshtoken.Token, jkt string) ([]refreshtoken.Token, error) {
	var living []refreshtoken.Token
	for _, token := range families[:min(len(families), maxFamilies)] {
		grant, err := s.Store.Sessions.Peek(ctx, shownRefresh(token))
		if errors.Is(err, tokenstore.ErrNoSession) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if grant.JKT == jkt && !tokenstore.IsClient(grant.ClientID) {
			living = append(living, token)
		}
	}
	if len(living) > 1 || len(families) > maxFamilies {
		s.Record(ctx, from, EventRefreshAmbiguous)
		return nil, ErrAmbiguous
	}
	if len(living) == 1 {
		return living, nil
	}
	return families, nil
}

// families reads the tokens that are ours, one for each session: the newest, as
// to show an older one beside it would be to report a theft.
func (s *Service) families(shown []string) []refreshtoken.Token {
	var list []refreshtoken.Token
	for _, text := range shown {
		token, err := s.RefreshTokens.Parse(text)
		if err != nil {
			continue
		}
		known := false
		for i := range list {
			if list[i].SID == token.SID {
				known = true
				if token.Gen > list[i].Gen {
					list[i] = token
				}
			}
		}
		if !known {
			list = append(list, token)
		}
	}
	return list
}

// renewal says who shows a refresh token, and what for.
type renewal struct {
	client tokenstore.Client // zero for the service's own logins
	scope  string            // asked for; "" is all that was granted
	jkt    string            // thumbprint of the key that was proven; "" is none
	fits   bool              // the access token is known to be short enough
}

// renew exchanges a refresh token for the current one and an access token. The requested
// scope narrows the access token only; the refresh token keeps the full grant (RFC 6749
// section 6).
func (s *Service) renew(ctx context.Context, from Origin, token refreshtoken.Token, r renewal) (Tokens, error) {
	var asked extraClaims
	var err error
	if s.Claims != nil {
		asked, err = s.prepareRenewal(ctx, from, token, r)
		r.fits = true
	}
	if err != nil {
		return Tokens{}, err
	}
	next, grant, err := s.rotate(ctx, from, token, r)
	if errors.Is(err, tokenstore.ErrTooLarge) {
		if _, err := s.prepareRenewal(ctx, from, token, r); err != nil {
			return Tokens{}, err
		}
		r.fits = true
		next, grant, err = s.rotate(ctx, from, token, r)
	}
	if err != nil {
		return Tokens{}, err
	}
	grant.Scope = cmp.Or(r.scope, grant.Scope)
	tokens, err := s.issue(draftOf(next, grant, r.client, asked))
	if err != nil {
		return Tokens{}, err
	}
	return tokens.with(s.RefreshTokens.Encode(next), grant), nil
}

// prepareRenewal reads the session, asks the webhook, if there is one, and checks that
// the access token can be made: all before the refresh token is spent, since a retry might
// find it too old and take it for stolen. A token that would not be accepted is no error:
// the rotation says why. Errors: those of askClaims and fits; [tokenstore.ErrUnavailable].
func (s *Service) prepareRenewal(ctx context.Context, from Origin, token refreshtoken.Token, r renewal) (extraClaims, error) {
	grant, err := s.Store.Sessions.Peek(ctx, shownRefresh(token))
	if errors.Is(err, tokenstore.ErrNoSession) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	grant.Scope, grant.JKT = cmp.Or(r.scope, grant.Scope), r.jkt
	d := draftOf(token, grant, r.client, nil)
	if d.asked, err = s.askClaims(ctx, from, hookRefresh, d); err != nil {
		return nil, err
	}
	return d.asked, s.fits(d)
}

// shownRefresh is a refresh token as the store knows it.
func shownRefresh(t refreshtoken.Token) tokenstore.Rotation {
	return tokenstore.Rotation{SID: t.SID, UID: t.UID, Gen: t.Gen, Hash: t.Hash()}
}

// rotate exchanges a refresh token for the current one: its successor, or itself if the
// session has rotated within the grace already. Every way in which a
// token is not valid is ErrRefreshToken outside; log and metric tell them apart.
// One who asks for more than was granted gets [tokenstore.ErrScope]. After
// [tokenstore.ErrTooLarge] nothing has changed.
func (s *Service) rotate(ctx context.Context, from Origin, token refreshtoken.Token, r renewal) (refreshtoken.Token, tokenstore.Grant, error) {
	// Fails without a signing key. That must be known before the rotation: a retry after a
	// rotation that was not answered may come too late and look like theft.
	room, members, err := s.sessionRoom(r.client)
	if err != nil {
		return token, tokenstore.Grant{}, err
	}
	if s.Stalled != nil && s.Stalled() {
		return token, tokenstore.Grant{}, ErrStalled
	}
	next, err := s.RefreshTokens.Next(token)
	if err != nil {
		return next, tokenstore.Grant{}, ErrRefreshToken
	}
	rotation := shownRefresh(token)
	if !r.fits {
		rotation.Room, rotation.Members = room, members
	}
	rotation.Next, rotation.IssuedTo, rotation.Scope, rotation.JKT = next.Hash(), r.client.ID, r.scope, r.jkt
	// A client that goes away does not interrupt this: what came of it is recorded.
	grant, ended, err := s.Store.Sessions.Rotate(context.WithoutCancel(ctx), rotation)
	if grant.Current {
		next = token
	}
	sid := slog.String("sid", tokenstore.ID(token.SID).String())
	refused := func(reason string) error {
		s.Record(ctx, from, EventRefreshRefused, sid, slog.String("reason", reason))
		return ErrRefreshToken
	}
	switch {
	case err == nil && grant.Same:
		s.Record(ctx, from, EventRefreshSame, sid, slog.String("sub", grant.Subject))
	case err == nil:
		s.Record(ctx, from, EventRefresh, sid, slog.String("sub", grant.Subject))
	case errors.Is(err, tokenstore.ErrReuse):
		err = s.endFamily(ctx, from, EventRefreshReuse, ended, err, sid)
	case errors.Is(err, tokenstore.ErrRollback):
		err = s.endFamily(ctx, from, EventRefreshRollback, ended, err, sid)
	case errors.Is(err, tokenstore.ErrNoSession):
		err = refused("expired")
	case errors.Is(err, tokenstore.ErrRevoked):
		// Perhaps by this very request: a client library repeats what is not answered.
		err = cmp.Or(s.confirm(ctx, ended), refused("revoked"))
	case errors.Is(err, tokenstore.ErrSuperseded):
		err = refused("superseded")
	case errors.Is(err, tokenstore.ErrForeign):
		err = refused("foreign")
	case errors.Is(err, tokenstore.ErrKeyBinding):
		if err = refused("key"); r.jkt == "" {
			err = &ProofError{Cause: dpop.ErrMissing}
		}
	}
	return next, grant, err
}

// endFamily records that a rotation has ended its session, which Redis did as it refused
// the token with why, and returns ErrRefreshToken once no replica accepts the session.
// Error: [tokenstore.ErrUnavailable].
func (s *Service) endFamily(ctx context.Context, from Origin, e Event, ended tokenstore.Revocation, why error, sid slog.Attr) error {
	err := s.end(ctx, from, e, func(context.Context) (tokenstore.Revocation, error) {
		if errors.Is(why, tokenstore.ErrUnavailable) { // not on as many replicas as it has to be
			return ended, why
		}
		return ended, nil
	}, sid)
	return cmp.Or(err, ErrRefreshToken)
}

// ClientRefresh asks for a new access token for a client (RFC 6749 section 6).
type ClientRefresh struct {
	Client Credentials
	Token  string
	Scope  string // "" for all that was granted
	Proof  Proof
}

// RefreshForClient is Refresh for a client that got its refresh token in a body: two round
// trips, or one for the public client, and one for a DPoP proof. Errors: those of Refresh,
// ErrClient, a [RequestError].
func (s *Service) RefreshForClient(ctx context.Context, from Origin, r ClientRefresh) (Tokens, error) {
	if err := s.canSign(); err != nil {
		return Tokens{}, err
	}
	proof, err := s.offeredProof(ctx, from, r.Proof)
	if err != nil {
		return Tokens{}, err
	}
	client, err := s.client(ctx, from, r.Client, s.Store.Clients.Authenticate)
	if err != nil {
		return Tokens{}, err
	}
	if client.ID != "" {
		if err := allow(client.Client, GrantRefreshToken); err != nil {
			return Tokens{}, err
		}
	}
	if r.Token == "" {
		return Tokens{}, BadRequest("refresh_token is required")
	}
	if r.Scope != "" {
		if _, err := ScopeNames(r.Scope); err != nil {
			return Tokens{}, errScopeMalformed
		}
	}
	token, err := s.RefreshTokens.Parse(r.Token)
	if err != nil {
		s.Record(ctx, from, EventRefreshRefused, slog.String("reason", "invalid"))
		return Tokens{}, ErrRefreshToken
	}
	if err := s.spendProof(ctx, from, proof); err != nil {
		return Tokens{}, err
	}
	tokens, err := s.renew(ctx, from, token, renewal{client: client.Client, scope: r.Scope, jkt: proof.JKT()})
	if errors.Is(err, tokenstore.ErrScope) {
		err = &RequestError{Code: "invalid_scope", Description: "The scope exceeds what was granted"}
	}
	return tokens, err
}
