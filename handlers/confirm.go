package handlers

import (
	"time"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// confirm returns once no replica accepts what was revoked: the promise of a
// 200. Error: [tokenstore.ErrUnavailable]; the request may be sent again.
func (a *api) confirm(c *gin.Context, r tokenstore.Revocation) error {
	start := time.Now()
	err := a.Confirmer.Confirm(c.Request.Context(), r)
	a.Metrics.confirmed(time.Since(start), err)
	return err
}
