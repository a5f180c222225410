package handlers

import (
	"net/http"

	"github.com/gin-gonic/gin"
)

// logoutAll is POST /auth/logout-all: ends all sessions of the caller, or all
// but this one with except_current=true.
func (a *api) logoutAll(c *gin.Context) error {
	p, err := bind(c)
	if err != nil {
		return err
	}
	if q := c.QueryArray("except_current"); len(q) > 1 || (len(q) == 1 && p["except_current"] != "") {
		return badRequest("A parameter was sent twice")
	} else if len(q) == 1 {
		p["except_current"] = q[0]
	}
	exceptCurrent, err := p.flag("except_current")
	if err != nil {
		return err
	}
	caller, err := a.caller(c)
	if err != nil {
		return err
	}
	if err := a.sessions.LogoutAll(c.Request.Context(), originOf(c), caller, exceptCurrent); err != nil {
		return err
	}
	if !exceptCurrent {
		a.clearRefreshCookie(c)
		a.clearAccessCookie(c)
	}
	c.JSON(http.StatusOK, message{"Successfully logged out everywhere"})
	return nil
}
