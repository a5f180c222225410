package handlers

import (
	"cmp"
	"context"
	"errors"
	"log/slog"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/dpop"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// maxFamilies is how many families of refresh tokens one refresh may try: a
// browser with a cookie left over from an earlier path has two. A logout and a login, which
// must end what they are shown, have the bound maxShown.
const maxFamilies = 4

// refresh is POST /auth/refresh: one round trip, and one for a DPoP proof. If cookies of
// several sessions come along, each costs one more.
func (a *api) refresh(c *gin.Context) error {
	p, err := bind(c)
	if err != nil {
		return err
	}
	shown := a.refreshCookies(c.Request)
	inBody := p["refresh_token"] != ""
	if inBody {
		if len(shown) > 0 {
			return badRequest("The refresh token was sent twice: as a cookie and in the body")
		}
		shown = []string{p["refresh_token"]}
	}
	if len(shown) == 0 {
		return errNoRefreshToken
	}
	families := a.families(shown)
	if len(families) == 0 {
		a.note(c, EventRefreshRefused, slog.String("reason", "invalid"))
		return errRefreshToken
	}
	if err := a.canSign(); err != nil {
		return err
	}
	proof, err := a.offeredProof(c)
	if err == nil {
		err = a.spend(c, proof)
	}
	if err != nil {
		return err
	}
	if len(families) > 1 {
		if families, err = a.pickFamily(c, families, proof.JKT()); err != nil {
			return err
		}
	}
	refused := errRefreshToken
	for _, token := range families {
		answer, err := a.renew(c, token, renewal{inBody: inBody, jkt: proof.JKT()})
		if errors.Is(err, errRefreshToken) || errors.Is(err, dpop.ErrMissing) {
			refused = err
			continue // show the others too: each may be a stolen copy, whose session must end
		}
		if err != nil {
			return err
		}
		answer.send(c)
		return nil
	}
	return refused
}

// pickFamily returns the one of several families whose token would be accepted from a
// browser that has proven the key with the thumbprint jkt. If there is none, it returns
// all of them. If there are several, nobody knows which one the user means: none is
// picked, no session ends, and the browser forgets all of them. The same goes for more
// families than are looked at. Errors: errAmbiguous; [tokenstore.ErrUnavailable].
func (a *api) pickFamily(c *gin.Context, families []refreshtoken.Token, jkt string) ([]refreshtoken.Token, error) {
	var living []refreshtoken.Token
	for _, token := range families[:min(len(families), maxFamilies)] {
		grant, err := a.Store.Peek(c.Request.Context(), shownRefresh(token))
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
		a.note(c, EventRefreshAmbiguous)
		a.clearRefreshCookie(c)
		a.clearAccessCookie(c)
		return nil, errAmbiguous
	}
	if len(living) == 1 {
		return living, nil
	}
	return families, nil
}

// families reads the tokens that are ours, one for each session: the newest, as
// to show an older one beside it would be to report a theft.
func (a *api) families(shown []string) []refreshtoken.Token {
	var list []refreshtoken.Token
	for _, text := range shown {
		token, err := a.Refresh.Parse(text)
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
	inBody bool
	fits   bool // the access token is known to be short enough
}

// renew exchanges a refresh token for the current one and an access token. The requested
// scope narrows the access token only; the refresh token keeps the full grant (RFC 6749
// section 6).
func (a *api) renew(c *gin.Context, token refreshtoken.Token, r renewal) (tokenResponse, error) {
	var asked extraClaims
	var err error
	if a.Claims != nil {
		asked, err = a.prepareRenewal(c, token, r)
		r.fits = true
	}
	if err != nil {
		return tokenResponse{}, err
	}
	next, grant, err := a.rotate(c, token, r)
	if errors.Is(err, tokenstore.ErrTooLarge) {
		if _, err := a.prepareRenewal(c, token, r); err != nil {
			return tokenResponse{}, err
		}
		r.fits = true
		next, grant, err = a.rotate(c, token, r)
	}
	if err != nil {
		return tokenResponse{}, err
	}
	grant.Scope = cmp.Or(r.scope, grant.Scope)
	return a.issue(c, mintedBy(next, grant, r.client, asked), next, r.inBody)
}

// prepareRenewal reads the session, asks the webhook, if there is one, and checks that
// the access token can be made: all before the refresh token is spent, since a retry might
// find it too old and take it for stolen. A token that would not be accepted is no error:
// the rotation says why. Errors: those of askClaims and fits; [tokenstore.ErrUnavailable].
func (a *api) prepareRenewal(c *gin.Context, token refreshtoken.Token, r renewal) (extraClaims, error) {
	grant, err := a.Store.Peek(c.Request.Context(), shownRefresh(token))
	if errors.Is(err, tokenstore.ErrNoSession) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	grant.Scope, grant.JKT = cmp.Or(r.scope, grant.Scope), r.jkt
	m := mintedBy(token, grant, r.client, nil)
	if m.asked, err = a.askClaims(c, hookRefresh, m); err != nil {
		return nil, err
	}
	return m.asked, a.fits(m)
}

// shownRefresh is a refresh token as the store knows it.
func shownRefresh(t refreshtoken.Token) tokenstore.Rotation {
	return tokenstore.Rotation{SID: t.SID, UID: t.UID, Gen: t.Gen, Hash: t.Hash()}
}

// rotate exchanges a refresh token for the current one: its successor, or itself if the
// session has rotated within the grace already. Every way in which a
// token is not valid is errRefreshToken outside; log and metric tell them apart.
// One who asks for more than was granted gets [tokenstore.ErrScope]. After
// [tokenstore.ErrTooLarge] nothing has changed.
func (a *api) rotate(c *gin.Context, token refreshtoken.Token, r renewal) (refreshtoken.Token, tokenstore.Grant, error) {
	// Fails without a signing key. That must be known before the rotation: a retry after a
	// rotation that was not answered may come too late and look like theft.
	room, members, err := a.sessionRoom(r.client)
	if err != nil {
		return token, tokenstore.Grant{}, err
	}
	if a.Stalled != nil && a.Stalled() {
		return token, tokenstore.Grant{}, errStalled
	}
	next, err := a.Refresh.Next(token)
	if err != nil {
		return next, tokenstore.Grant{}, errRefreshToken
	}
	rotation := shownRefresh(token)
	if !r.fits {
		rotation.Room, rotation.Members = room, members
	}
	rotation.Next, rotation.IssuedTo, rotation.Scope, rotation.JKT = next.Hash(), r.client.ID, r.scope, r.jkt
	// A client that goes away does not interrupt this: what came of it is recorded.
	grant, ended, err := a.Store.Rotate(context.WithoutCancel(c.Request.Context()), rotation)
	if grant.Current {
		next = token
	}
	sid := slog.String("sid", tokenstore.ID(token.SID).String())
	refused := func(reason string) error {
		a.note(c, EventRefreshRefused, sid, slog.String("reason", reason))
		return errRefreshToken
	}
	switch {
	case err == nil && grant.Same:
		a.note(c, EventRefreshSame, sid, slog.String("sub", grant.Subject))
	case err == nil:
		a.note(c, EventRefresh, sid, slog.String("sub", grant.Subject))
	case errors.Is(err, tokenstore.ErrReuse):
		err = a.endFamily(c, EventRefreshReuse, ended, err, sid)
	case errors.Is(err, tokenstore.ErrRollback):
		err = a.endFamily(c, EventRefreshRollback, ended, err, sid)
	case errors.Is(err, tokenstore.ErrNoSession):
		err = refused("expired")
	case errors.Is(err, tokenstore.ErrRevoked):
		// Perhaps by this very request: a client library repeats what is not answered.
		err = cmp.Or(a.confirm(c, ended), refused("revoked"))
	case errors.Is(err, tokenstore.ErrSuperseded):
		err = refused("superseded")
	case errors.Is(err, tokenstore.ErrForeign):
		err = refused("foreign")
	case errors.Is(err, tokenstore.ErrKeyBinding):
		if err = refused("key"); r.jkt == "" {
			err = &proofError{cause: dpop.ErrMissing}
		}
	}
	return next, grant, err
}

// endFamily records that a rotation has ended its session, which Redis did as it refused
// the token with why, and returns errRefreshToken once no replica accepts the session.
// Error: [tokenstore.ErrUnavailable].
func (a *api) endFamily(c *gin.Context, e Event, ended tokenstore.Revocation, why error, sid slog.Attr) error {
	err := a.end(c, e, func(context.Context) (tokenstore.Revocation, error) {
		if errors.Is(why, tokenstore.ErrUnavailable) { // not on as many replicas as it has to be
			return ended, why
		}
		return ended, nil
	}, sid)
	return cmp.Or(err, errRefreshToken)
}
