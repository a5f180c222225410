package handlers

import (
	"context"
	"errors"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/session"
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

// shownToken finds the request's access token: in the Authorization header, or
// else, where the setting allows it, in a cookie. Errors: errNoToken; a
// [session.RequestError]; those of accessByCookie.
func (a *api) shownToken(ctx context.Context, r *http.Request) (session.Shown, error) {
	switch token, bound, err := edge.AuthorizationToken(r); {
	case errors.Is(err, edge.ErrNoToken):
	case err != nil:
		return session.Shown{}, badRequest("%v", err)
	default:
		return session.Shown{Token: token, Bound: bound}, nil
	}
	cookies := a.accessCookies(r)
	switch len(cookies) {
	case 0:
		return session.Shown{}, errNoToken
	case 1:
		return session.Shown{Token: cookies[0], ByCookie: true}, nil
	}
	token, err := a.accessByCookie(ctx, cookies)
	return session.Shown{Token: token, ByCookie: true}, err
}

// caller accepts the request's access token, for an endpoint that manages the user's account.
// Errors: those of shownToken and [session.Service.AdmitOwner]; errCrossSite.
func (a *api) caller(c *gin.Context) (session.Caller, error) {
	shown, err := a.shownToken(c.Request.Context(), c.Request)
	if err != nil {
		return session.Caller{}, err
	}
	if shown.ByCookie {
		// A cookie comes along with what another site's page had the browser send. Whoever
		// uses this gets that checked, also on a route that forgot sameOrigin; requests that
		// change nothing pass.
		if err := a.ownRequest(c.Request.Method, c.Request.Host, c.Request.Header); err != nil {
			a.note(c, session.EventCrossSite)
			return session.Caller{}, err
		}
	}
	var proof session.Proof
	if shown.Bound {
		proof = a.proof(c)
	}
	return a.sessions.AdmitOwner(c.Request.Context(), originOf(c), shown, proof)
}
