package handlers

import (
	"net/http"

	"github.com/gin-gonic/gin"
)

// changePassword is POST /users/me/password with current_password and new_password. All
// other sessions end.
func (a *api) changePassword(c *gin.Context) error {
	p, err := bind(c)
	if err != nil {
		return err
	}
	caller, err := a.caller(c)
	if err != nil {
		return err
	}
	if err := a.sessions.ChangePassword(c.Request.Context(), originOf(c), caller, p["current_password"], p["new_password"]); err != nil {
		return err
	}
	c.JSON(http.StatusOK, message{"Password changed; all other sessions have ended"})
	return nil
}
