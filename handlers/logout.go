package handlers

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// message is the answer of an endpoint that has nothing else to say.
type message struct {
	Message string `json:"message"`
}

// maxShown is how many sessions the tokens of one logout may name, and the refresh cookies
// of one login. Each costs a round trip or two and an event; no browser comes by so many.
const maxShown = 16

// tooManyShown refuses a request with tokens of more than maxShown sessions. Nothing has
// ended. The cookies go, so that the browser can be used again.
func (a *api) tooManyShown(c *gin.Context) error {
	a.expireShown(c)
	return badRequest("Tokens of more than %d sessions were sent. Nothing has ended; the browser was told to delete the cookies", maxShown)
}

// logout is POST /auth/logout. It ends the session of each token that is shown: cookies,
// access token, and refresh token in the body. It costs one round trip a session and the
// confirmation, and one or two more if a token cannot be checked.
//
// The answer is 200 once everything shown that is ours has ended, except a key-bound token
// in a cookie (accessShown). A token that is not ours has nothing to end. If a token may
// not be ended, or cannot be checked, the others are ended all the same, and the answer is
// a 401 ([api.notEnded]). A 503 changes no cookie, so that the request can be sent again.
func (a *api) logout(c *gin.Context) error {
	p, err := bind(c)
	if err != nil {
		return err
	}
	shown, err := a.sessionsShown(c, p["refresh_token"])
	if err != nil {
		return err
	}
	if shown.count() > maxShown {
		return a.tooManyShown(c)
	}
	for _, end := range shown.ends {
		if err := a.endOne(c, EventLogout, end); err != nil {
			return err
		}
	}
	why, err := a.notEnded(c.Request.Context(), shown)
	if err != nil {
		return err
	}
	if why != nil {
		a.expireShown(c)
		a.noteLogoutRefused(c, why)
		return why
	}
	a.clearRefreshCookie(c)
	a.clearAccessCookie(c)
	c.JSON(http.StatusOK, message{"Successfully logged out"})
	return nil
}

// endOne ends a session that a token of ours names, and returns nil once no replica
// accepts it.
func (a *api) endOne(c *gin.Context, e Event, end tokenstore.SessionEnd) error {
	err := a.end(c, e, func(ctx context.Context) (tokenstore.Revocation, error) {
		return a.Store.Revoke(ctx, end)
	}, slog.String("sid", end.SID.String()))
	if errors.Is(err, tokenstore.ErrNoSession) {
		return nil // its ids are of shards that are no more: nothing accepts it
	}
	return err
}

// expireShown deletes the cookies that came with a logout that was refused. A cookie that
// did not come (the refresh cookie, if its path is not the logout's) stays: the client
// can refresh with it and log out again.
func (a *api) expireShown(c *gin.Context) {
	if came := len(c.Request.CookiesNamed(a.Settings.CookieName)); came > 0 {
		if came == 1 { // it may be from another path or domain, too
			a.expireElsewhere(c, a.Settings.CookieName, a.Settings.CookiePath, a.refreshPaths())
		}
		a.clearRefreshCookie(c)
	}
	if len(a.accessCookies(c.Request)) > 0 {
		a.clearAccessCookie(c)
	}
}

func (a *api) noteLogoutRefused(c *gin.Context, why error) {
	reason := "key"
	if errors.Is(why, errUnchecked) {
		reason = "unchecked"
	}
	a.note(c, EventLogoutRefused, slog.String("reason", reason))
}

// shownSessions are the sessions that the tokens of a logout name.
type shownSessions struct {
	ends []tokenstore.SessionEnd // each once
	left []leftToken
}

// leftToken is a token that is ours, or claims to be, and whose session the logout may not
// end.
type leftToken struct {
	sid tokenstore.ID
	why error // errUnchecked; or, for a token that is bound to a key, [edge.ErrInvalid] or a [proofError]
	// perhaps is set if the logout may still be a 200: if Redis has no live session sid.
	perhaps bool
}

func (s *shownSessions) end(e tokenstore.SessionEnd) {
	if !s.ended(e.SID) {
		s.ends = append(s.ends, e)
	}
}

func (s *shownSessions) ended(sid tokenstore.ID) bool {
	return slices.ContainsFunc(s.ends, func(e tokenstore.SessionEnd) bool { return e.SID == sid })
}

// count is how many sessions there are, those that may not be ended included.
func (s *shownSessions) count() int {
	sids := map[tokenstore.ID]bool{}
	for _, e := range s.ends {
		sids[e.SID] = true
	}
	for _, left := range s.left {
		sids[left.sid] = true
	}
	return len(sids)
}

// sessionsShown reads the tokens of a logout. Errors: a [requestError];
// [edge.ErrUnavailable].
func (a *api) sessionsShown(c *gin.Context, inBody string) (*shownSessions, error) {
	sessions := &shownSessions{}
	inHeader, bound, err := edge.AuthorizationToken(c.Request)
	if errors.Is(err, edge.ErrTwoTokens) {
		return nil, badRequest("%v", err)
	}
	if err == nil {
		if err := a.accessShown(c, sessions, shownToken{token: inHeader, bound: bound}); err != nil {
			return nil, err
		}
	}
	for _, access := range a.accessCookies(c.Request) { // all of them: to end too much is safer than too little
		if err := a.accessShown(c, sessions, shownToken{token: access, byCookie: true}); err != nil {
			return nil, err
		}
	}
	shown := a.endingCookies(c.Request)
	if inBody != "" {
		shown = append(shown, inBody)
	}
	for _, token := range a.families(shown) {
		sessions.end(tokenstore.SessionEnd{SID: token.SID, UID: token.UID})
	}
	for _, text := range shown {
		if left, ok := a.uncheckedRefresh(text); ok {
			sessions.left = append(sessions.left, left)
		}
	}
	return sessions, nil
}

// accessShown adds the session that an access token names. Error: [edge.ErrUnavailable].
func (a *api) accessShown(c *gin.Context, sessions *shownSessions, shown shownToken) error {
	claims, err := a.Verifier.Authentic(c.Request.Context(), shown.token)
	switch {
	case errors.Is(err, edge.ErrInvalid):
		if left, ok := a.uncheckedAccess(shown.token, err); ok {
			sessions.left = append(sessions.left, left)
		}
		return nil
	case err != nil:
		return err
	case shown.byCookie && claims.JKT != "":
		// A token that is bound to a key is never accepted from a cookie, and Latchkey never
		// sets one. Somebody else did, so ignore it.
		return nil
	}
	end := a.endOf(claims)
	switch err := a.mayEnd(c, shown, claims); {
	case errors.Is(err, edge.ErrUnavailable):
		return err
	case err != nil:
		sessions.left = append(sessions.left, leftToken{sid: end.SID, why: err})
	default:
		sessions.end(end)
	}
	return nil
}

// notEnded returns why the answer to a logout whose sessions have ended cannot be a 200:
// nil if they are all that the tokens name. Error: [tokenstore.ErrUnavailable].
func (a *api) notEnded(ctx context.Context, s *shownSessions) (why, err error) {
	var perhaps []tokenstore.ID
	for _, left := range s.left {
		switch {
		case s.ended(left.sid): // another token has ended its session
		case left.perhaps:
			perhaps = append(perhaps, left.sid)
		default:
			return left.why, nil
		}
	}
	alive, err := a.Store.AnyAlive(ctx, perhaps)
	if alive {
		why = errUnchecked
	}
	return why, err
}

// uncheckedRefresh reads what has the form of a refresh token and an authentication code
// under none of our root secrets: it may be of one that was taken out.
func (a *api) uncheckedRefresh(text string) (leftToken, bool) {
	if _, err := a.Refresh.Parse(text); !errors.Is(err, refreshtoken.ErrForged) {
		return leftToken{}, false
	}
	sid, err := a.Refresh.UnverifiedSession(text)
	return leftToken{sid: sid, why: errUnchecked, perhaps: true}, err == nil
}

// uncheckedAccess reads an access token that was refused with err because nobody here has
// its key: it was retired longer ago than sessions live, or revoked, or it is a stranger's.
func (a *api) uncheckedAccess(token string, err error) (leftToken, bool) {
	if !errors.Is(err, accesstoken.ErrUnknownKey) {
		return leftToken{}, false // it was checked, and is not ours
	}
	claims, err := accesstoken.Unverified(token)
	if err != nil {
		return leftToken{}, false
	}
	sid, err := tokenstore.ParseID(claims.SessionID)
	// An unexpired token of our issuer may be under a key that only another replica has
	// yet, and may be a client's own token, of whose session Redis knows nothing. So it
	// counts as not ended, whatever Redis says of its session.
	young := claims.Issuer == a.Settings.Issuer && a.Store.Now().Unix() < claims.ExpiresAt
	return leftToken{sid: sid, why: errUnchecked, perhaps: !young}, err == nil
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
