package handlers

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// The access cookie carries the access token for pages behind a proxy that asks
// verify: a browser sends it by itself, also for images, downloads and
// WebSockets, and no script can read it. It is off unless Settings.AccessCookie
// names it.
//
// A browser also sends it with requests that another site's page makes, though
// SameSite=Lax keeps it off some of them. So a token that came by cookie is
// accepted for a request of our own pages, and else only for a GET, HEAD or
// OPTIONS: those change nothing, and the other page cannot read the answer
// (caller, ownForwarded). A WebSocket handshake is a GET whose answers the other
// page can read, so it must come from our own pages, too.

// setAccessCookie hands out an access token of session sid for maxAge seconds. Its path is
// /, where the pages are. If other access cookies came along, they go.
func (a *api) setAccessCookie(c *gin.Context, sid tokenstore.ID, token string, maxAge int) {
	if a.Settings.AccessCookie != "" {
		if a.strayAccess(c.Request, sid) {
			a.expireElsewhere(c, a.Settings.AccessCookie, "/", accessPaths())
		}
		a.setCookie(c, a.Settings.AccessCookie, token, "/", maxAge)
	}
}

// clearAccessCookie takes the access token out of the browser.
func (a *api) clearAccessCookie(c *gin.Context) {
	if a.Settings.AccessCookie != "" {
		if len(c.Request.CookiesNamed(a.Settings.AccessCookie)) > 1 {
			a.expireElsewhere(c, a.Settings.AccessCookie, "/", accessPaths())
		}
		a.setCookie(c, a.Settings.AccessCookie, "", "/", -1)
	}
}

// accessPaths are where an access cookie may be that a browser sends to /auth/refresh.
func accessPaths() []string { return pathsAbove("/auth/refresh") }

// strayAccess reports whether an access cookie came along that is not, or not only, one of
// session sid. What it says is not checked: it decides only what else is expired.
func (a *api) strayAccess(r *http.Request, sid tokenstore.ID) bool {
	switch came := r.CookiesNamed(a.Settings.AccessCookie); len(came) {
	case 0:
		return false
	case 1:
		return claimedSession(came[0].Value) != sid.String()
	default:
		return true
	}
}

// claimedSession is the sid that an access token names, which may be a lie; "" for what is
// no token.
func claimedSession(token string) string {
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	raw, err := base64.RawURLEncoding.DecodeString(payload)
	var claims struct {
		SessionID string `json:"sid"`
	}
	if err != nil || json.Unmarshal(raw, &claims) != nil {
		return ""
	}
	return claims.SessionID
}

// maxAccessCookies bounds the access cookies of one request, since each may cost the check
// of a signature. A request with more is refused.
const maxAccessCookies = 8

// accessByCookie returns the valid token among several access cookies, of one session the
// one that expires last. A browser does not say which cookie Latchkey set: others may be
// left over, or set by another host of the domain or by a page under another path. Valid
// tokens of two sessions are refused, since nobody can tell which one is meant. Errors:
// those of [edge.Verifier.Verify]. If no token is valid: [edge.ErrExpired] or
// [edge.ErrRevoked] if one of them was that, else [edge.ErrInvalid].
func (a *api) accessByCookie(ctx context.Context, cookies []string) (string, error) {
	if len(cookies) > maxAccessCookies {
		return "", edge.ErrInvalid
	}
	var picked string
	var of edge.Claims
	refused := edge.ErrInvalid
	for _, token := range cookies {
		known, err := a.Verifier.VerifyKnown(ctx, token)
		switch {
		case errors.Is(err, edge.ErrInvalid):
			continue
		case errors.Is(err, edge.ErrExpired), errors.Is(err, edge.ErrRevoked):
			refused = err
			continue
		case err != nil:
			return "", err
		}
		claims := known.Claims
		switch {
		case picked == "" || (claims.SessionID == of.SessionID && claims.ExpiresAt > of.ExpiresAt):
			picked, of = token, claims
		case claims.SessionID != of.SessionID:
			return "", edge.ErrInvalid
		}
	}
	if picked == "" {
		return "", refused
	}
	return picked, nil
}

// accessCookies are the distinct values of the access cookie that came along.
func (a *api) accessCookies(r *http.Request) []string {
	if a.Settings.AccessCookie == "" {
		return nil
	}
	return cookieValues(r, a.Settings.AccessCookie)
}

// ownForwarded refuses with errCrossSite a request that a proxy asks about, if a
// browser made it for a page of another origin and it is not safe (ownRequest).
// The proxy's headers say which request it was; Envoy asks with the request's own
// method and host. It does not matter that a client could write those headers
// itself: a page cannot have a browser write them across origins.
func (a *api) ownForwarded(r *http.Request) error {
	return a.ownRequest(
		cmp.Or(r.Header.Get("X-Forwarded-Method"), r.Method),
		cmp.Or(r.Header.Get("X-Forwarded-Host"), r.Host), r.Header)
}

// ownRequest refuses with errCrossSite a request that a browser made for a page of
// another origin, unless it is safe: a GET, HEAD or OPTIONS that opens no WebSocket.
// Clients that are no browsers send neither Sec-Fetch-Site nor Origin, and pass.
func (a *api) ownRequest(method, host string, h http.Header) error {
	if opensWebSocket(h) {
		method = http.MethodPost // Check lets a GET pass from everywhere
	}
	if err := a.crossOrigin.Check(&http.Request{Method: method, Host: host, Header: h, URL: &url.URL{Path: "/"}}); err != nil {
		return errCrossSite
	}
	return nil
}

// opensWebSocket reports whether a request asks for another protocol on its
// connection, as a WebSocket handshake does. Every browser sends
// Sec-WebSocket-Version (RFC 6455 section 4.1, RFC 8441 section 5), and proxies pass
// it on; Upgrade is often dropped on the way here, as it belongs to one connection.
func opensWebSocket(h http.Header) bool {
	return h["Sec-Websocket-Version"] != nil || h["Sec-Websocket-Key"] != nil || h["Upgrade"] != nil ||
		strings.EqualFold(h.Get("Sec-Fetch-Mode"), "websocket")
}
