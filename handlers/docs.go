package handlers

import (
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/docspage"
)

// docs is GET /docs and GET /docs/{file}: a page on which the API can be tried out,
// and what that page loads.
func (a *api) docs(c *gin.Context) error {
	file, ok := docspage.Find(c.Param("file"))
	if !ok {
		return errNotFound
	}
	text, compressed, err := file.Encoded(acceptsGzip(c.Request.Header.Values("Accept-Encoding")))
	if err != nil {
		return err
	}
	h := c.Writer.Header()
	h.Set("Content-Type", file.Type)
	h.Set("Content-Security-Policy", docspage.Policy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	if file.Compressed() {
		h.Add("Vary", "Accept-Encoding")
	}
	if compressed {
		h.Set("Content-Encoding", "gzip")
	}
	publish(c, text, "public, max-age=300")
	return nil
}

// acceptsGzip reads Accept-Encoding (RFC 9110 section 12.5.3).
func acceptsGzip(values []string) bool {
	accepted := map[string]bool{}
	for coding := range strings.SplitSeq(strings.Join(values, ","), ",") {
		name, weight, _ := strings.Cut(coding, ";")
		_, weight, _ = strings.Cut(weight, "=")
		q, err := strconv.ParseFloat(strings.TrimSpace(weight), 64)
		accepted[strings.ToLower(strings.TrimSpace(name))] = err != nil || q > 0
	}
	if gzip, named := accepted["gzip"]; named {
		return gzip
	}
	return accepted["*"]
}
