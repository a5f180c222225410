package handlers

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
)

const (
	// verifyPath is what proxies ask before they let a request through.
	verifyPath = "/auth/verify"
	// verifyUnder is the same for those that append the path of the request they
	// ask about (Envoy's ext_authz over HTTP).
	verifyUnder = verifyPath + "/*path"
)

// verify answers a proxy that asks about a request of its own: 204 and who it
// is, or 401, 403 or 503 and why not. It answers every method alike, since some
// proxies ask with the method of the request they ask about.
//
// The query's scope, "a b" or given repeatedly, names what the token must have
// been granted. What a proxy appends to the path is the client's, query and all,
// and demands nothing. /auth/verify/ with nothing behind it may be either, the setting of a
// proxy or a question about the client's path /; its scope is demanded, since a demand that
// got lost would let everybody through.
//
// The request's body is never read: a proxy may announce one that it keeps to
// itself.
func (a *api) verify(c *gin.Context) error {
	h := c.Writer.Header()
	if c.Request.ContentLength != 0 {
		// A body that never comes would have the server wait for it before the
		// answer, and then take the connection's next request for it.
		h.Set("Connection", "close")
	}
	var demanded []string
	if q := c.Request.URL.RawQuery; q != "" && (c.Request.URL.Path == verifyPath || c.Request.URL.Path == verifyPath+"/") {
		var err error
		if demanded, err = demandedScope(q); err != nil {
			return err
		}
	}
	shown, err := a.shownToken(c.Request.Context(), c.Request)
	if err != nil {
		return err
	}
	if shown.byCookie {
		if err := a.ownForwarded(c.Request); err != nil {
			a.note(c, EventCrossSite)
			return err
		}
	}
	v, err := a.whose(c.Request.Context(), shown, demanded, func() (edge.Claims, error) { return a.verifyBound(c, shown.token) })
	if err != nil {
		return err
	}
	// The names are in their canonical form: this is the path that every request of a
	// protected API takes. All four are always set, be it to nothing: what is not, a
	// proxy might leave as the client sent it.
	h[headerSubject], h[headerSession] = v[0:1:1], v[1:2:2]
	h[headerScope], h[headerExpires] = v[2:3:3], v[3:4:4]
	c.Status(http.StatusNoContent)
	return nil
}

// whose accepts a token to which the demanded scopes were granted; bound accepts one that
// is bound to a key. It returns what the service behind a proxy is told.
func (a *api) whose(ctx context.Context, shown shownToken, demanded []string, bound func() (edge.Claims, error)) (*identity, error) {
	if shown.bound {
		claims, err := bound()
		if err != nil {
			return nil, err
		}
		if !claims.HasScope(demanded...) {
			return nil, &scopeError{demanded}
		}
		return identityOf(&claims), nil
	}
	known, err := a.Verifier.VerifyKnown(ctx, shown.token)
	if err != nil {
		return nil, err
	}
	if !known.HasScope(demanded...) {
		return nil, &scopeError{demanded}
	}
	return known.Memo(func(claims *edge.Claims) any { return identityOf(claims) }).(*identity), nil
}

// verifyBound accepts a token that is bound to a key, with the proof of the request
// that a trusted proxy asks about (RFC 9449 section 7.1): one round trip.
func (a *api) verifyBound(c *gin.Context, token string) (edge.Claims, error) {
	q, err := a.forwarded(c)
	if err != nil {
		a.noteProof(c, err)
		return edge.Claims{}, &proofError{err, true}
	}
	claims, err := a.admitBound(c.Request.Context(), c.Writer.Header(), c.Request.Header, q, token)
	a.noteProof(c, err)
	return claims, err
}

// otherMethod answers methods that no endpoint has: verify has them all.
func (a *api) otherMethod(c *gin.Context) error {
	path := c.Request.URL.Path
	if path != verifyPath && !strings.HasPrefix(path, verifyPath+"/") {
		return errMethod
	}
	c.Writer.Header().Del("Allow")
	return a.verify(c)
}

// The headers that tell a service behind a proxy whose request it is.
const (
	headerSubject = "X-Auth-Subject"
	headerSession = "X-Auth-Session"
	headerScope   = "X-Auth-Scope"
	headerExpires = "X-Auth-Expires" // Unix seconds
)

// identity is what those headers say, in that order. Those who show the same token share
// it.
type identity [4]string

func identityOf(claims *edge.Claims) *identity {
	return &identity{claims.Subject, claims.SessionID, claims.Scope, strconv.FormatInt(claims.ExpiresAt, 10)}
}

// scopeError says that the token is good but lacks a scope.
type scopeError struct{ demanded []string }

func (e *scopeError) Error() string { return "the access token lacks a scope" }

// challenge is the rest of WWW-Authenticate (RFC 6750 section 3.1). The names
// are scope-tokens, which need no escape in a quoted string.
func (e *scopeError) challenge() string {
	return fmt.Sprintf(`error="insufficient_scope", error_description="The access token lacks a scope", scope=%q`, strings.Join(e.demanded, " "))
}

// demandedScope reads the scope parameters of a query. Others are of no
// interest, and may be the client's; but one that cannot be read, or is empty, is
// an error: a demand that got lost must not let anybody through.
func demandedScope(query string) ([]string, error) {
	var list []string
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if name, err := url.QueryUnescape(name); err != nil || name != "scope" {
			continue
		}
		value, err := url.QueryUnescape(value)
		if err != nil {
			return nil, badRequest("scope is malformed")
		}
		names, err := scopeNames(value)
		if err != nil {
			return nil, err
		}
		list = append(list, names...)
	}
	return list, nil
}

// scopeNames splits a scope, which must not be empty (RFC 6749 section 3.3).
func scopeNames(scope string) ([]string, error) {
	names := strings.Split(scope, " ")
	for _, name := range names {
		if name == "" || slices.ContainsFunc([]byte(name), func(b byte) bool { return b <= ' ' || b >= 0x7f || b == '"' || b == '\\' }) {
			return nil, badRequest("scope is one or more names with one space between them")
		}
	}
	return names, nil
}
