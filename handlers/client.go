package handlers

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"

	"github.com/latchkey-auth/latchkey/internal/session"
)

// credentials reads the client's credentials, from Authorization: Basic or from the
// body, and never from both (RFC 6749 section 2.3). It returns what id it saw even
// with an error. Errors: a [session.RequestError]; [session.ErrClient].
func (p params) credentials(r *http.Request) (session.Credentials, error) {
	inBody := session.Credentials{ID: p["client_id"], Secret: p["client_secret"]}
	values := r.Header.Values("Authorization")
	switch len(values) {
	case 0:
		inBody.Named = true
		return inBody, nil
	case 1:
	default:
		return inBody, badRequest("Authorization was sent twice")
	}
	scheme, encoded, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Basic") {
		return inBody, session.ErrClient
	}
	text, err := base64.StdEncoding.DecodeString(strings.TrimLeft(encoded, " "))
	id, secret, colon := strings.Cut(string(text), ":")
	if err != nil || !colon {
		return inBody, session.ErrClient
	}
	// Both halves are form-urlencoded before they are joined (RFC 6749 section 2.3.1).
	var c session.Credentials
	if c.ID, err = url.QueryUnescape(id); err != nil {
		return inBody, session.ErrClient
	}
	if c.Secret, err = url.QueryUnescape(secret); err != nil {
		return c, session.ErrClient
	}
	if inBody.Secret != "" || inBody.ID != "" && inBody.ID != c.ID {
		return c, badRequest("The client was named twice: in Authorization and in the body")
	}
	return c, nil
}
