package handlers

import (
	"errors"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/session"
)

// refresh is POST /auth/refresh.
func (a *api) refresh(c *gin.Context) error {
	p, err := bind(c)
	if err != nil {
		return err
	}
	shown := a.refreshCookies(c.Request)
	sent := p["refresh_token"]
	switch {
	case sent != "" && len(shown) > 0:
		return badRequest("The refresh token was sent twice: as a cookie and in the body")
	case sent != "":
		shown = []string{sent}
	case len(shown) == 0:
		return errNoRefreshToken
	}
	tokens, err := a.sessions.Refresh(c.Request.Context(), originOf(c), session.RefreshRequest{Shown: shown, Proof: a.proof(c)})
	if errors.Is(err, session.ErrAmbiguous) {
		a.clearRefreshCookie(c)
		a.clearAccessCookie(c)
	}
	if err != nil {
		return err
	}
	if sent != "" {
		inBody(tokens).send(c)
	} else {
		a.inCookies(c, tokens).send(c)
	}
	return nil
}
