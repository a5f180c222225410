package handlers

import (
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"
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
	account, err := a.sessions.Account(c.Request.Context(), caller)
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, meResponse{
		Username: account.Username, Subject: account.Subject,
		Scopes: append([]string{}, strings.Fields(account.Scopes)...), Disabled: account.Disabled,
	})
	return nil
}
