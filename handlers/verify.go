package handlers

import (
	"net/http"
	"strconv"

	"github.com/gin-gonic/gin"
)

// verify is GET /auth/verify, which proxies ask before they let a request
// through: 204 and who it is, or 401 and why not.
func (a *api) verify(c *gin.Context) error {
	claims, err := a.authenticate(c)
	if err != nil {
		return err
	}
	// The names are in their canonical form and the values share one array: this
	// is the path that every request of a protected API takes.
	v := &[...]string{claims.Subject, claims.SessionID, claims.Scope, strconv.FormatInt(claims.ExpiresAt, 10)}
	h := c.Writer.Header()
	h["X-Auth-Subject"], h["X-Auth-Session"] = v[0:1:1], v[1:2:2]
	h["X-Auth-Scope"], h["X-Auth-Expires"] = v[2:3:3], v[3:4:4]
	c.Status(http.StatusNoContent)
	return nil
}
