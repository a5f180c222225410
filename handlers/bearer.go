package handlers

import (
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// bearer returns the token of the Authorization header, or "" if there is none
// (RFC 6750 section 2.1; the scheme's case does not matter, RFC 9110 section
// 11.1). Two such headers are a fault of the request.
func bearer(r *http.Request) (string, error) {
	values := r.Header.Values("Authorization")
	switch len(values) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", badRequest("Authorization was sent twice")
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return "", nil
	}
	return strings.TrimLeft(token, " "), nil
}

// caller is who an accepted access token speaks for.
type caller struct {
	edge.Claims
	sid tokenstore.ID
	uid tokenstore.ID
}

// authenticate accepts the request's access token. Errors: errNoToken and
// those of [edge.Verifier.Verify].
func (a *api) authenticate(c *gin.Context) (caller, error) {
	token, err := bearer(c.Request)
	if err != nil {
		return caller{}, err
	}
	if token == "" {
		return caller{}, errNoToken
	}
	claims, err := a.Verifier.Verify(c.Request.Context(), token)
	if err != nil {
		return caller{}, err
	}
	sid, err := tokenstore.ParseID(claims.SessionID)
	if err != nil {
		return caller{}, edge.ErrInvalid
	}
	return caller{Claims: claims, sid: sid, uid: a.Store.UserID(claims.Subject)}, nil
}
