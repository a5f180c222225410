package handlers

import (
	"errors"
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// meResponse is the caller's account.
type meResponse struct {
	Username string   `json:"username"`
	Subject  string   `json:"sub"`
	Scopes   []string `json:"scopes"` // that the account may be granted
	Disabled bool     `json:"disabled"`
}

// me is GET /users/me.
func (a *api) me(c *gin.Context) error {
	caller, err := a.caller(c)
	if err != nil {
		return err
	}
	username, err := a.username(c, caller)
	if err != nil {
		return err
	}
	account, _, err := a.Store.Account(c.Request.Context(), username)
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, meResponse{
		Username: account.Username, Subject: account.Subject,
		Scopes: append([]string{}, strings.Fields(account.Scopes)...), Disabled: account.Disabled,
	})
	return nil
}

// username is the name that the caller's session was opened with. The access
// token names the subject alone, which may be another.
func (a *api) username(c *gin.Context, caller caller) (string, error) {
	s, err := a.Store.Session(c.Request.Context(), caller.sid)
	if errors.Is(err, tokenstore.ErrNoSession) {
		return "", edge.ErrRevoked
	}
	return s.Username, err
}
