package handlers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/claimhook"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/dpop"
	"github.com/latchkey-auth/latchkey/internal/session"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// problem is a response that says what went wrong.
type problem struct {
	status      int
	code        string // error: the RFC's code where there is one
	detail      string // the short line
	description string // error_description; the detail if empty
	challenge   string // what follows the scheme in WWW-Authenticate, on a 401 or a 403 that a token brought about
}

var (
	errNotFound       = errors.New("no such path")
	errMethod         = errors.New("no such method on this path")
	errCrossSite      = errors.New("a request from another site")
	errNoToken        = errors.New("no access token was sent")
	errNoRefreshToken = errors.New("no refresh token was sent")
	errMedia          = errors.New("the body is of another type")
)

// badRequest is a fault of the request that the client can mend.
func badRequest(format string, args ...any) error { return session.BadRequest(format, args...) }

// problems is the one table of errors and their responses: the first row that
// matches counts. What no row matches is a 500.
var problems = []struct {
	is error
	problem
}{
	{errOverload, problem{http.StatusServiceUnavailable, "temporarily_unavailable", "Service temporarily unavailable", "As many requests of this kind are under way as the replica takes; retry in a moment.", ""}},
	{edge.ErrStreams, problem{http.StatusServiceUnavailable, "temporarily_unavailable", "Service temporarily unavailable", "The replica has as many readers as it takes; retry in a moment.", ""}},

	// We do not know: before all that claims to.
	{tokenstore.ErrUnavailable, problem{http.StatusServiceUnavailable, "temporarily_unavailable", "Service temporarily unavailable", "The token store did not answer. Whether the request took effect is not known; send the same request again.", ""}},
	{accesstoken.ErrNoKey, problem{http.StatusServiceUnavailable, "temporarily_unavailable", "Service temporarily unavailable", "The replica has no signing key yet; retry in a moment.", ""}},
	{credential.ErrBusy, problem{http.StatusServiceUnavailable, "temporarily_unavailable", "Service temporarily unavailable", "Too many logins are under way; retry in a moment.", ""}},
	{session.ErrStalled, problem{http.StatusServiceUnavailable, "temporarily_unavailable", "Service temporarily unavailable", "The replica did not run for a while; send the same request again.", ""}},

	{claimhook.ErrFailed, problem{http.StatusServiceUnavailable, "temporarily_unavailable", "Service temporarily unavailable", "The claims of the token could not be had; retry in a moment.", ""}},

	{session.ErrClient, problem{http.StatusUnauthorized, "invalid_client", "Client authentication failed", "", ""}},
	{session.ErrClientMayNot, problem{http.StatusForbidden, "unauthorized_client", "The client may not introspect", "", ""}},
	{session.ErrNotUser, problem{http.StatusForbidden, "access_denied", "Not a user", "The access token is a client's own; this is for users.", ""}},

	{errNoToken, problem{http.StatusUnauthorized, "unauthorized", "Not authenticated", "Send the access token as Authorization: Bearer.", ""}},
	{edge.ErrExpired, problem{http.StatusUnauthorized, "invalid_token", "Could not validate credentials", "The access token has expired", `error="invalid_token", error_description="The access token has expired"`}},
	{edge.ErrRevoked, problem{http.StatusUnauthorized, "invalid_token", "Could not validate credentials", "The access token was revoked", `error="invalid_token", error_description="The access token was revoked"`}},
	// The account was deleted while this request was under way. That ends its sessions.
	{tokenstore.ErrNoAccount, problem{http.StatusUnauthorized, "invalid_token", "Could not validate credentials", "The access token was revoked", `error="invalid_token", error_description="The access token was revoked"`}},
	{edge.ErrInvalid, problem{http.StatusUnauthorized, "invalid_token", "Could not validate credentials", "The access token is not valid", `error="invalid_token", error_description="The access token is not valid"`}},

	{session.ErrUnchecked, problem{http.StatusUnauthorized, "invalid_token", "Not everything has ended", "A token that was shown cannot be checked any more, so its session may live on; everything else that was shown has ended. Send the session's refresh token or a fresh access token, or log in and send POST /auth/logout-all.", `error="invalid_token", error_description="A token that was shown cannot be checked any more"`}},

	{session.ErrCredentials, problem{http.StatusUnauthorized, "invalid_grant", "Incorrect username or password", "", ""}},
	{errNoRefreshToken, problem{http.StatusUnauthorized, "invalid_grant", "Refresh token missing", "Send the refresh token as a cookie, or as refresh_token in the body.", ""}},
	{session.ErrRefreshToken, problem{http.StatusUnauthorized, "invalid_grant", "Invalid refresh token", "", ""}},
	{session.ErrAmbiguous, problem{http.StatusUnauthorized, "invalid_grant", "Invalid refresh token", "The refresh cookies of several sessions were sent, and nobody can tell which one is meant. The browser was told to delete them; log in again.", ""}},
	{session.ErrPassword, problem{http.StatusForbidden, "access_denied", "Incorrect password", "", ""}},
	{errCrossSite, problem{http.StatusForbidden, "access_denied", "Cross-site request refused", "The request comes from a page of another origin. List the origin in LATCHKEY_ALLOWED_ORIGINS if it is yours.", ""}},

	{session.ErrNoSession, problem{http.StatusNotFound, "not_found", "No such session", "", ""}},
	{errNotFound, problem{http.StatusNotFound, "not_found", "Not found", "", ""}},
	{errHistory, problem{http.StatusNotImplemented, "not_implemented", "Not implemented", "Lists of the past are not kept: leave time out.", ""}},
	{errMethod, problem{http.StatusMethodNotAllowed, "method_not_allowed", "Method not allowed", "", ""}},
	{tokenstore.ErrConflict, problem{http.StatusConflict, "conflict", "The account was changed meanwhile", "", ""}},
	{errMedia, problem{http.StatusUnsupportedMediaType, "invalid_request", "Unsupported media type", "Send application/x-www-form-urlencoded or application/json.", ""}},
}

// retryAfter is how long a client waits after a 503, in seconds.
const retryAfter = 1

// statusClientGone is what a request counts as whose client went away before there was an
// answer. No client ever receives it; nginx logs the same number.
const statusClientGone = 499

// clientGone reports whether a request failed with err because its client went away, which
// ended ctx, the request's context.
func clientGone(ctx context.Context, err error) bool {
	return errors.Is(err, context.Canceled) && errors.Is(ctx.Err(), context.Canceled)
}

// fail answers with the problem that an error is. If the client has gone, nothing went
// wrong here: no line is logged, and nothing is counted as an error of the service.
func (a *api) fail(c *gin.Context, err error) {
	if clientGone(c.Request.Context(), err) {
		c.AbortWithStatus(statusClientGone)
		return
	}
	p, known := problemOf(err)
	identify(c)
	noSniff(c)
	p.explain(err, c.Request.Header, c.Writer.Header())
	switch {
	case errors.Is(err, errOverload): // counted where it arose
	case errors.Is(err, edge.ErrStreams):
		a.shed(ShedStream)
	case errors.Is(err, credential.ErrBusy):
		a.shed(ShedPassword)
	case !known, p.status == http.StatusServiceUnavailable && a.loud():
		a.logger(c).LogAttrs(c.Request.Context(), slog.LevelError, "request failed",
			slog.String("route", c.FullPath()), slog.Int("status", p.status), slog.String("cause", err.Error()))
	}
	c.AbortWithStatusJSON(p.status, p.body())
}

// explain sets the headers that go with the problem that err is, in the answer to a
// request.
func (p problem) explain(err error, request, header http.Header) {
	var throttled *session.ThrottledError
	switch {
	case errors.As(err, &throttled):
		header.Set("Retry-After", strconv.Itoa(int(math.Ceil(throttled.Wait.Seconds()))))
	case p.status == http.StatusServiceUnavailable:
		header.Set("Retry-After", strconv.Itoa(retryAfter))
	case errors.Is(err, session.ErrClient):
		// RFC 6749 section 5.2, also for a client that did not try it (RFC 9110
		// section 15.5.2).
		header.Set("WWW-Authenticate", `Basic realm="latchkey"`)
	case p.status == http.StatusUnauthorized, p.challenge != "":
		header.Set("WWW-Authenticate", challenge(p.challenge, request))
	case p.status == http.StatusRequestEntityTooLarge:
		header.Set("Connection", "close") // the rest of the body is not wanted
	}
}

func (p problem) body() gin.H {
	return gin.H{"error": p.code, "error_description": cmp.Or(p.description, p.detail), "detail": p.detail}
}

func problemOf(err error) (p problem, known bool) {
	var request *session.RequestError
	var throttled *session.ThrottledError
	var large *http.MaxBytesError
	var scope *session.ScopeError
	var proof *session.ProofError
	for _, row := range problems {
		if errors.Is(err, row.is) {
			return row.problem, true
		}
	}
	switch {
	case errors.As(err, &request):
		return problem{http.StatusBadRequest, request.Code, request.Description, "", ""}, true
	case errors.As(err, &scope):
		return problem{http.StatusForbidden, "insufficient_scope", "Insufficient scope", "The access token lacks a scope", scopeChallenge(scope)}, true
	case errors.As(err, &proof):
		return proofProblem(proof), true
	case errors.As(err, &throttled):
		return problem{http.StatusTooManyRequests, "too_many_requests", "Too many failed attempts", "Wait as long as Retry-After says.", ""}, true
	case errors.As(err, &large):
		return problem{http.StatusRequestEntityTooLarge, "invalid_request", "Request body too large", "", ""}, true
	}
	return problem{http.StatusInternalServerError, "server_error", "Internal server error", "", ""}, false
}

// challenge is the WWW-Authenticate of a 401 (RFC 6750 section 3): no error
// code unless a token was shown. The scheme is the one that was tried (RFC 9449 section
// 7.1).
func challenge(params string, request http.Header) string {
	if params != "" {
		params = ", " + params
	}
	if _, bound, _ := edge.AuthorizationToken(&http.Request{Header: request}); bound {
		return `DPoP realm="latchkey"` + params + ", " + dpop.Challenge()
	}
	return `Bearer realm="latchkey"` + params
}

// scopeChallenge is the rest of WWW-Authenticate (RFC 6750 section 3.1). The names are
// scope-tokens, which need no escape in a quoted string.
func scopeChallenge(e *session.ScopeError) string {
	return fmt.Sprintf(`error="insufficient_scope", error_description="The access token lacks a scope", scope=%q`, strings.Join(e.Required, " "))
}

// proofProblem is what the client is told of a refused proof. The causes are fixed texts.
func proofProblem(e *session.ProofError) problem {
	p := problem{status: http.StatusBadRequest, code: "invalid_dpop_proof", detail: "DPoP proof refused", description: e.Error()}
	if errors.Is(e, dpop.ErrNonce) {
		p.code = "use_dpop_nonce"
	}
	if e.WithToken {
		p.status = http.StatusUnauthorized
		p.challenge = fmt.Sprintf("error=%q, error_description=%q", p.code, p.description)
	}
	return p
}
