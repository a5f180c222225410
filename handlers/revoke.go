package handlers

import (
	"net/http"

	"github.com/gin-gonic/gin"
)

// revoke is POST /oauth2/revoke (RFC 7009).
func (a *api) revoke(c *gin.Context) error {
	p, err := bindForm(c)
	if err != nil {
		return err
	}
	client, err := p.credentials(c.Request)
	if err != nil {
		return err
	}
	if err := a.sessions.Revoke(c.Request.Context(), originOf(c), client, p["token"]); err != nil {
		return err
	}
	c.Status(http.StatusOK)
	return nil
}
