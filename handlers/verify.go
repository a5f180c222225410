package handlers

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/session"
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
// proxy or a question about the client's path /; its scope is required, since a demand that
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
	var required []string
	if q := c.Request.URL.RawQuery; q != "" && (c.Request.URL.Path == verifyPath || c.Request.URL.Path == verifyPath+"/") {
		var err error
		if required, err = requiredScope(q); err != nil {
			return err
		}
	}
	shown, err := a.shownToken(c.Request.Context(), c.Request)
	if err != nil {
		return err
	}
	if shown.ByCookie {
		if err := a.ownForwarded(c.Request); err != nil {
			a.note(c, session.EventCrossSite)
			return err
		}
	}
	v, err := a.identify(c, shown, required)
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

// identify accepts a token that grants every scope in required, and returns what the service
// behind the proxy is told. A bound token needs the proof of the request that a trusted proxy
// asks about (RFC 9449 section 7.1): one round trip. Errors: those of
// [session.Service.Authorize] and AuthorizeBound.
func (a *api) identify(c *gin.Context, shown session.Shown, required []string) (*identity, error) {
	ctx := c.Request.Context()
	if !shown.Bound {
		return a.authorize(ctx, shown.Token, required)
	}
	from := originOf(c)
	method, address, err := a.forwarded(c)
	if err != nil {
		a.sessions.RecordProof(ctx, from, err)
		return nil, &session.ProofError{Cause: err, WithToken: true}
	}
	proof := a.proofFor(c.Writer.Header(), c.Request.Header, method, address)
	claims, err := a.sessions.AuthorizeBound(ctx, from, shown.Token, proof, required)
	if err != nil {
		return nil, err
	}
	return identityOf(&claims), nil
}

// authorize accepts a token that is bound to no key. What it returns is made once for a
// token, and kept with it.
func (a *api) authorize(ctx context.Context, token string, required []string) (*identity, error) {
	known, err := a.sessions.Authorize(ctx, token, required)
	if err != nil {
		return nil, err
	}
	return known.Memo(func(claims *edge.Claims) any { return identityOf(claims) }).(*identity), nil
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

// requiredScope reads the scope parameters of a query. Others are of no
// interest, and may be the client's; but one that cannot be read, or is empty, is
// an error: a demand that got lost must not let anybody through.
func requiredScope(query string) ([]string, error) {
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
		names, err := session.ScopeNames(value)
		if err != nil {
			return nil, err
		}
		list = append(list, names...)
	}
	return list, nil
}
