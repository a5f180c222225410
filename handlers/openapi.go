package handlers

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/openapi"
)

// openAPI is GET /openapi.json, the OpenAPI document of this API under its
// settings. It is made for the first who asks: few replicas are asked.
func (a *api) openAPI() gin.HandlerFunc {
	document := sync.OnceValues(func() ([]byte, error) { return openapi.Document(a.facts()) })
	return a.serve(func(c *gin.Context) error {
		text, err := document()
		if err != nil {
			return err
		}
		c.Header("Content-Type", "application/json; charset=utf-8")
		publish(c, text, "public, max-age=300")
		return nil
	})
}

// facts are what the settings say in the document.
func (a *api) facts() openapi.Facts {
	s := a.Settings
	return openapi.Facts{
		Version: s.Version, Issuer: s.Issuer, MetadataPath: s.metadataPath(), CookieName: s.CookieName, CookiePath: s.CookiePath, AccessCookie: s.AccessCookie,
		ExpiresIn: int(a.Store.Lifetimes().Access / time.Second), Secure: s.CookieSecure,
		Revocations: a.followable(), Docs: s.Docs, StatusLists: a.lists != nil,
	}
}

// publish answers with what anybody may keep, and If-None-Match with 304.
func publish(c *gin.Context, text []byte, caching string) {
	sum := sha256.Sum256(text)
	h := c.Writer.Header()
	h.Set("Cache-Control", caching)
	h.Set("ETag", `"`+base64.RawURLEncoding.EncodeToString(sum[:16])+`"`)
	http.ServeContent(c.Writer, c.Request, "", time.Time{}, bytes.NewReader(text))
}

// metadataPath is where the metadata of an issuer is looked for: with a path, at
// that path behind it (RFC 8414 section 3.1).
func (s Settings) metadataPath() string {
	u, err := url.Parse(strings.TrimSuffix(s.Issuer, "/"))
	if err != nil {
		return metadataPath
	}
	return metadataPath + u.EscapedPath()
}
