package edge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/latchkey-auth/latchkey/internal/dpop"
)

var (
	// ErrNoToken says that a request carries no bearer token.
	ErrNoToken = errors.New("no access token was sent")
	// ErrTwoTokens says that a request carries Authorization more than once: what
	// is in front of this server may have read the other one.
	ErrTwoTokens = errors.New("Authorization was sent twice") //nolint:staticcheck // the name of a header
	// ErrScope says that the token is good but does not allow this.
	ErrScope = errors.New("the access token lacks a scope")
)

// AuthorizationToken returns the token of the Authorization header, and whether the
// scheme is DPoP (RFC 9449 section 7.1) and not Bearer. Errors: [ErrNoToken],
// [ErrTwoTokens].
func AuthorizationToken(r *http.Request) (token string, dpop bool, err error) {
	values := r.Header["Authorization"] // its canonical form
	switch len(values) {
	case 0:
		return "", false, ErrNoToken
	case 1:
	default:
		return "", false, ErrTwoTokens
	}
	if token, ok := strings.CutPrefix(values[0], "Bearer "); ok && token != "" && token[0] != ' ' {
		return token, false, nil // as nearly all write it
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	token = strings.TrimLeft(token, " ")
	dpop = strings.EqualFold(scheme, "DPoP")
	if token == "" || (!dpop && !strings.EqualFold(scheme, "Bearer")) {
		return "", false, ErrNoToken
	}
	return token, dpop, nil
}

// BearerToken returns the token of the Authorization header (RFC 6750 section 2.1;
// the scheme's case does not matter, RFC 9110 section 11.1). Errors: [ErrNoToken],
// [ErrTwoTokens].
func BearerToken(r *http.Request) (string, error) {
	token, dpop, err := AuthorizationToken(r)
	if err == nil && dpop {
		return "", ErrNoToken
	}
	return token, err
}

// MiddlewareOption changes what a [Middleware] demands or tells.
type MiddlewareOption func(*guard)

// guard is one middleware's settings.
type guard struct {
	verifier *Verifier
	scopes   []string
	refused  func(*http.Request, error)
	dpop     *DPoPOptions // nil: bearer tokens only
}

// RequireScope lets only tokens through to which all these scopes were granted. It
// panics if a name can be no scope (RFC 6749 section 3.3).
func RequireScope(names ...string) MiddlewareOption {
	for _, name := range names {
		if !scopeName(name) {
			panic(fmt.Sprintf("edge: %q can be no scope", name))
		}
	}
	return func(g *guard) { g.scopes = append(g.scopes, names...) }
}

// OnRefusal has every refusal reported with its cause, which the client is not told
// in full: an error of [Verifier.Verify], [ErrNoToken], [ErrTwoTokens], [ErrScope],
// [ErrProof].
func OnRefusal(report func(*http.Request, error)) MiddlewareOption {
	return func(g *guard) { g.refused = report }
}

// Middleware lets a request through if it carries an access token that v accepts,
// with the token's claims in the request's context ([ClaimsFrom]). Otherwise it
// answers, as RFC 6750 section 3 says, with WWW-Authenticate and a JSON body:
//
//   - 401: no token; or error invalid_token: not valid, expired, revoked, or bound to a
//     key and shown without a proof of it
//   - 401: error invalid_dpop_proof, with [DPoP]
//   - 403: error insufficient_scope
//   - 400: error invalid_request: Authorization was sent twice
//   - 503 with Retry-After: nobody can tell now ([ErrUnavailable])
//
// The request's headers are passed on as they are, the token among them.
func Middleware(v *Verifier, options ...MiddlewareOption) func(http.Handler) http.Handler {
	g := &guard{verifier: v}
	for _, o := range options {
		o(g)
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			claims, err := g.admit(r)
			if err != nil {
				g.refuse(w, r, err)
				return
			}
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), claimsKey{}, &claims)))
		})
	}
}

// claimsKey is where the claims are in a context.
type claimsKey struct{}

// ClaimsFrom returns the claims of the token that [Middleware] accepted, and false
// if it was not there.
func ClaimsFrom(ctx context.Context) (Claims, bool) {
	c, ok := ctx.Value(claimsKey{}).(*Claims)
	if !ok {
		return Claims{}, false
	}
	return *c, true
}

func (g *guard) admit(r *http.Request) (Claims, error) {
	token, bound, err := AuthorizationToken(r)
	if err != nil {
		return Claims{}, err
	}
	var claims Claims
	switch {
	case !bound:
		claims, err = g.verifier.Verify(r.Context(), token)
	case g.dpop == nil:
		err = ErrNoToken
	default:
		claims, err = g.dpop.admit(r, g.verifier, token)
	}
	if err != nil {
		return Claims{}, err
	}
	if !claims.HasScope(g.scopes...) {
		return Claims{}, ErrScope
	}
	return claims, nil
}

// refusal is what a client is told.
type refusal struct {
	status int
	code   string // error of RFC 6750 section 3.1; not in the challenge if there was no token
	detail string
}

// refusalOf finds the answer to an error. What is no refusal is an outage: nothing
// was decided.
func refusalOf(err error) refusal {
	switch {
	case errors.Is(err, ErrNoToken):
		return refusal{http.StatusUnauthorized, "unauthorized", "Send the access token as Authorization: Bearer."}
	case errors.Is(err, ErrTwoTokens):
		return refusal{http.StatusBadRequest, "invalid_request", "Authorization was sent twice"}
	case errors.Is(err, ErrScope):
		return refusal{http.StatusForbidden, "insufficient_scope", "The access token lacks a scope"}
	case errors.Is(err, ErrUnavailable):
	case errors.Is(err, ErrProof):
		return refusal{http.StatusUnauthorized, "invalid_dpop_proof", err.Error()}
	case errors.Is(err, ErrExpired):
		return refusal{http.StatusUnauthorized, "invalid_token", "The access token has expired"}
	case errors.Is(err, ErrRevoked):
		return refusal{http.StatusUnauthorized, "invalid_token", "The access token was revoked"}
	case errors.Is(err, ErrInvalid):
		return refusal{http.StatusUnauthorized, "invalid_token", "The access token is not valid"}
	}
	return refusal{http.StatusServiceUnavailable, "temporarily_unavailable", "The access token cannot be checked now; retry the same request."}
}

func (g *guard) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if g.refused != nil {
		g.refused(r, err)
	}
	a := refusalOf(err)
	h := w.Header()
	switch {
	case a.status == http.StatusServiceUnavailable:
		h.Set("Retry-After", "1")
	case errors.Is(err, ErrNoToken):
		h.Set("WWW-Authenticate", "Bearer")
		if g.dpop != nil {
			h.Add("WWW-Authenticate", "DPoP "+dpop.Challenge()) // RFC 9449 section 7.2
		}
	default:
		challenge := fmt.Sprintf("error=%q, error_description=%q", a.code, a.detail)
		if a.status == http.StatusForbidden {
			challenge += fmt.Sprintf(", scope=%q", strings.Join(g.scopes, " "))
		}
		// The scheme is the one that was tried.
		if _, bound, _ := AuthorizationToken(r); bound {
			challenge = "DPoP " + challenge + ", " + dpop.Challenge()
		} else {
			challenge = "Bearer " + challenge
		}
		h.Set("WWW-Authenticate", challenge)
	}
	body, _ := json.Marshal(map[string]string{"error": a.code, "error_description": a.detail}) // two strings
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(a.status)
	_, _ = w.Write(body)
}
