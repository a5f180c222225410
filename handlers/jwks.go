package handlers

import (
	"encoding/json"
	"fmt"

	"github.com/gin-gonic/gin"
)

// keySet is GET /.well-known/jwks.json, the public keys under which access tokens
// verify (RFC 7517 section 5). A replica that has no keys yet does not say that
// there are none: the answer may be kept for LATCHKEY_JWKS_MAX_AGE. A key is in it for
// twice as long before it signs.
func (a *api) keySet(c *gin.Context) error {
	set, err := a.Signer.Public()
	if err != nil {
		return err
	}
	text, err := json.Marshal(set)
	if err != nil {
		return err
	}
	c.Header("Content-Type", "application/jwk-set+json")
	publish(c, text, a.cacheKeys())
	return nil
}

// cacheKeys lets others keep what is said of the keys for as long as a new key is
// certain not to sign.
func (a *api) cacheKeys() string {
	return fmt.Sprintf("public, max-age=%d", int(a.Settings.JWKSMaxAge.Seconds()))
}
