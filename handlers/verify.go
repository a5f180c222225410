package handlers

import (
	"net/http"
	"strconv"

	"github.com/gin-gonic/gin"
)

// verify is GET /auth/verify, which proxies ask before they let a request
// through: 204 and who it is, or 401 and why not.
func (a *api) verify(c *gin.Context) error {
	caller, err := a.authenticate(c)
	if err != nil {
		return err
	}
	h := c.Writer.Header()
	h.Set("X-Auth-Subject", caller.Subject)
	h.Set("X-Auth-Session", caller.SessionID)
	h.Set("X-Auth-Scope", caller.Scope)
	h.Set("X-Auth-Expires", strconv.FormatInt(caller.ExpiresAt, 10))
	c.Status(http.StatusNoContent)
	return nil
}
