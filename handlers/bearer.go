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

// authenticate accepts the request's access token. Errors: errNoToken and
// those of [edge.Verifier.Verify].
func (a *api) authenticate(c *gin.Context) (edge.Claims, error) {
	token, err := bearer(c.Request)
	if err != nil {
		return edge.Claims{}, err
	}
	if token == "" {
		return edge.Claims{}, errNoToken
	}
	return a.Verifier.Verify(c.Request.Context(), token)
}

// caller is who an accepted access token speaks for, with the ids that the store
// knows them by.
type caller struct {
	edge.Claims
	sid tokenstore.ID
	uid tokenstore.ID
}

// caller accepts the request's access token, for an endpoint that acts on its
// session. Errors: those of authenticate.
func (a *api) caller(c *gin.Context) (caller, error) {
	claims, err := a.authenticate(c)
	if err != nil {
		return caller{}, err
	}
	sid, err := tokenstore.ParseID(claims.SessionID)
	if err != nil {
		return caller{}, edge.ErrInvalid
	}
	return caller{Claims: claims, sid: sid, uid: a.Store.UserID(claims.Subject)}, nil
}
