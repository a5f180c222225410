package handlers

import (
	"context"
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

// shownToken is an access token as a request shows it.
type shownToken struct {
	token    string
	byCookie bool
	bound    bool // shown as Authorization: DPoP
}

// shownToken finds the request's access token: in the Authorization header, or
// else, where the setting allows it, in a cookie. Errors: errNoToken; a
// [requestError]; those of accessByCookie.
func (a *api) shownToken(ctx context.Context, r *http.Request) (shownToken, error) {
	switch token, bound, err := edge.AuthorizationToken(r); {
	case errors.Is(err, edge.ErrNoToken):
	case err != nil:
		return shownToken{}, badRequest("%v", err)
	default:
		return shownToken{token: token, bound: bound}, nil
	}
	cookies := a.accessCookies(r)
	switch len(cookies) {
	case 0:
		return shownToken{}, errNoToken
	case 1:
		return shownToken{token: cookies[0], byCookie: true}, nil
	}
	token, err := a.accessByCookie(ctx, cookies)
	return shownToken{token: token, byCookie: true}, err
}

// caller is who an accepted access token speaks for, with the ids that the store
// knows them by.
type caller struct {
	edge.Claims
	sid tokenstore.ID
	uid tokenstore.ID
}

// scopeAccount is the scope with which a registered client may manage the account of
// its user: read it, list and end its sessions, change its password.
const scopeAccount = "latchkey:account"

// caller accepts the request's access token, for an endpoint that manages the user's
// account: one that the service's own login issued, or one with scopeAccount. Errors:
// those of shownToken and admitBound, errCrossSite, errNotUser and a [scopeError].
func (a *api) caller(c *gin.Context) (caller, error) {
	shown, err := a.shownToken(c.Request.Context(), c.Request)
	if err != nil {
		return caller{}, err
	}
	if shown.byCookie {
		// A cookie comes along with what another site's page had the browser
		// send. Whoever uses this gets that checked, also on a route that forgot
		// sameOrigin; requests that change nothing pass.
		if err := a.ownRequest(c.Request.Method, c.Request.Host, c.Request.Header); err != nil {
			a.note(c, EventCrossSite)
			return caller{}, err
		}
	}
	var claims edge.Claims
	if shown.bound {
		claims, err = a.admitBound(c.Request.Context(), c.Writer.Header(), c.Request.Header, a.itself(c.Request), shown.token)
		a.noteProof(c, err)
	} else {
		claims, err = a.Verifier.Verify(c.Request.Context(), shown.token)
	}
	if err != nil {
		return caller{}, err
	}
	if tokenstore.IsClient(claims.Subject) {
		return caller{}, errNotUser
	}
	if tokenstore.IsClient(claims.ClientID) && !claims.HasScope(scopeAccount) {
		return caller{}, &scopeError{[]string{scopeAccount}}
	}
	sid, err := tokenstore.ParseID(claims.SessionID)
	if err != nil {
		return caller{}, edge.ErrInvalid
	}
	return caller{Claims: claims, sid: sid, uid: a.Store.UserID(claims.Subject)}, nil
}
