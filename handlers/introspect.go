package handlers

import (
	"net/http"

	"github.com/gin-gonic/gin"
)

// introspect is POST /oauth2/introspect (RFC 7662): is this token good now, and what does it
// say?
func (a *api) introspect(c *gin.Context) error {
	p, err := bindForm(c)
	if err != nil {
		return err
	}
	client, err := p.credentials(c.Request)
	if err != nil {
		return err
	}
	answer, err := a.sessions.Introspect(c.Request.Context(), originOf(c), client, p["token"])
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, answer)
	return nil
}
