package handlers

import (
	"crypto/sha256"
	"crypto/subtle"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
)

// revocations is GET /revocations, the log of revocations as Server-Sent Events
// for APIs that cannot reach Redis: see [edge.Feed].
func (a *api) revocations(c *gin.Context) error {
	token, err := bearer(c.Request)
	if err != nil {
		return err
	}
	if token == "" {
		return errNoToken
	}
	// Of hashes, so that the time tells nothing of the length either.
	shown, wanted := sha256.Sum256([]byte(token)), sha256.Sum256(a.Settings.RevocationsToken)
	if subtle.ConstantTimeCompare(shown[:], wanted[:]) != 1 {
		return edge.ErrInvalid
	}
	return a.Revocations.Stream(c.Writer, c.Request)
}
