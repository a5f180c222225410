package handlers

import (
	"errors"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// bearer returns the token of the Authorization header, or "" if there is none.
// Two such headers are a fault of the request.
func bearer(r *http.Request) (string, error) {
	switch token, err := edge.BearerToken(r); {
	case errors.Is(err, edge.ErrNoToken):
		return "", nil
	case err != nil:
		return "", badRequest("%v", err)
	default:
		return token, nil
	}
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
