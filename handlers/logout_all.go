package handlers

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/tokenstore"
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
	end := tokenstore.UserEnd{UID: caller.uid}
	if exceptCurrent {
		end.Except = &caller.sid
	}
	err = a.end(c, EventLogoutAll, func(ctx context.Context) (tokenstore.Revocation, error) {
		return a.Store.RevokeUser(ctx, end)
	}, slog.String("sub", caller.Subject), slog.Bool("except_current", exceptCurrent))
	if errors.Is(err, tokenstore.ErrNoSession) {
		return edge.ErrRevoked // this very session ended meanwhile
	}
	if err != nil {
		return err
	}
	if !exceptCurrent {
		a.clearRefreshCookie(c)
		a.clearAccessCookie(c)
	}
	c.JSON(http.StatusOK, message{"Successfully logged out everywhere"})
	return nil
}
