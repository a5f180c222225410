package handlers

import (
	"errors"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/session"
)

// message is the answer of an endpoint that has nothing else to say.
type message struct {
	Message string `json:"message"`
}

// tooManyShown refuses a request with tokens of more than [session.MaxShown] sessions. The
// browser is told to delete the cookies, so that it can be used again.
func (a *api) tooManyShown(c *gin.Context) error {
	a.expireShown(c)
	return badRequest("Tokens of more than %d sessions were sent. Nothing has ended; the browser was told to delete the cookies", session.MaxShown)
}

// logout is POST /auth/logout. It shows every token that came along: cookies, access token,
// and refresh token in the body. The answer is 200 once everything that is ours has ended. A
// 503 changes no cookie, so that the request can be sent again.
func (a *api) logout(c *gin.Context) error {
	p, err := bind(c)
	if err != nil {
		return err
	}
	req, err := a.shownToLogout(c, p["refresh_token"])
	if err != nil {
		return err
	}
	err = a.sessions.Logout(c.Request.Context(), originOf(c), req)
	var remains *session.RemainsError
	switch {
	case errors.Is(err, session.ErrTooMany):
		return a.tooManyShown(c)
	case errors.As(err, &remains):
		a.expireShown(c)
		return remains.Cause
	case err != nil:
		return err
	}
	a.clearRefreshCookie(c)
	a.clearAccessCookie(c)
	c.JSON(http.StatusOK, message{"Successfully logged out"})
	return nil
}

// shownToLogout collects the tokens of a logout. Errors: a [session.RequestError].
func (a *api) shownToLogout(c *gin.Context, inBody string) (session.LogoutRequest, error) {
	var req session.LogoutRequest
	inHeader, bound, err := edge.AuthorizationToken(c.Request)
	if errors.Is(err, edge.ErrTwoTokens) {
		return req, badRequest("%v", err)
	}
	if err == nil {
		req.Access = append(req.Access, session.Shown{Token: inHeader, Bound: bound})
		if bound {
			req.Proof = a.proof(c)
		}
	}
	for _, access := range a.accessCookies(c.Request) {
		req.Access = append(req.Access, session.Shown{Token: access, ByCookie: true})
	}
	req.Refresh = a.endingCookies(c.Request)
	if inBody != "" {
		req.Refresh = append(req.Refresh, inBody)
	}
	return req, nil
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
