package handlers

import (
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// message is the answer of an endpoint that has nothing else to say.
type message struct {
	Message string `json:"message"`
}

// logout is POST /auth/logout: one round trip, and what the confirmation takes. It ends the session of whatever
// token of ours is shown: cookie, access token, or refresh token in the body; a
// token that has expired still names its session. Tokens that are not ours have
// nothing to end and are no error.
//
// A 200 means that it is done. What cannot be done is a 503, and the cookie
// stays, so that the next try can do it.
func (a *api) logout(c *gin.Context) error {
	p, err := bind(c)
	if err != nil {
		return err
	}
	ends, err := a.sessionsShown(c, p["refresh_token"])
	if err != nil {
		return err
	}
	for _, end := range ends {
		revoked, err := a.Store.Revoke(c.Request.Context(), end)
		if errors.Is(err, tokenstore.ErrNoSession) {
			continue // its ids are of shards that are no more: nothing accepts it
		}
		if err == nil {
			err = a.confirm(c, revoked)
		}
		if err != nil {
			return err
		}
		a.note(c, EventLogout, slog.String("sid", end.SID.String()))
	}
	a.clearRefreshCookie(c)
	a.clearAccessCookie(c)
	c.JSON(http.StatusOK, message{"Successfully logged out"})
	return nil
}

// sessionsShown are the sessions that the request's tokens name, each once.
func (a *api) sessionsShown(c *gin.Context, inBody string) ([]tokenstore.SessionEnd, error) {
	var ends []tokenstore.SessionEnd
	add := func(end tokenstore.SessionEnd) {
		if !slices.ContainsFunc(ends, func(e tokenstore.SessionEnd) bool { return e.SID == end.SID }) {
			ends = append(ends, end)
		}
	}
	inHeader, bound, err := edge.AuthorizationToken(c.Request)
	if errors.Is(err, edge.ErrTwoTokens) {
		return nil, badRequest("%v", err)
	}
	shownAccess := []shownToken{}
	if err == nil {
		shownAccess = append(shownAccess, shownToken{token: inHeader, bound: bound})
	}
	for _, access := range a.accessCookies(c.Request) { // all of them: to end too much is safer than too little
		shownAccess = append(shownAccess, shownToken{token: access, byCookie: true})
	}
	for _, shown := range shownAccess {
		claims, err := a.Verifier.Authentic(c.Request.Context(), shown.token)
		if errors.Is(err, edge.ErrInvalid) {
			continue // it is not ours
		}
		if err == nil {
			err = a.mayEnd(c, shown, claims)
		}
		if err != nil {
			return nil, err
		}
		add(a.endOf(claims))
	}
	shown := a.refreshCookies(c.Request)
	if inBody != "" {
		shown = append(shown, inBody)
	}
	for _, token := range a.families(shown) {
		add(tokenstore.SessionEnd{SID: token.SID, UID: token.UID})
	}
	return ends, nil
}

// mayEnd refuses a token that is bound to a key to whoever does not prove to hold it,
// as everywhere.
func (a *api) mayEnd(c *gin.Context, shown shownToken, claims edge.Claims) error {
	if !shown.bound && claims.JKT == "" {
		return nil
	}
	if !shown.bound {
		return edge.ErrInvalid
	}
	p, err := a.checkProof(c.Writer.Header(), c.Request.Header, a.itself(c.Request), shown.token)
	if err == nil && p.JKT() != claims.JKT {
		err = edge.ErrInvalid
	}
	if err == nil {
		err = a.useProof(c.Request.Context(), p, true)
	}
	a.noteProof(c, err)
	return err
}

// endOf names the session of an access token, and the token itself. The ids
// were read once already, when the token was found authentic.
func (a *api) endOf(claims edge.Claims) tokenstore.SessionEnd {
	sid, _ := tokenstore.ParseID(claims.SessionID)
	jti, _ := tokenstore.ParseID(claims.ID)
	return tokenstore.SessionEnd{
		SID: sid, UID: a.Store.UserID(claims.Subject), JTI: jti, Expires: time.Unix(claims.ExpiresAt, 0), Place: placeOf(claims),
	}
}
