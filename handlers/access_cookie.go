package handlers

import (
	"cmp"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
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

// setAccessCookie hands out an access token. Its path is /, where the pages are.
func (a *api) setAccessCookie(c *gin.Context, token string) {
	if a.Settings.AccessCookie != "" {
		a.setCookie(c, a.Settings.AccessCookie, token, "/", int(a.Store.Lifetimes().Access/time.Second))
	}
}

// clearAccessCookie takes the access token out of the browser.
func (a *api) clearAccessCookie(c *gin.Context) {
	if a.Settings.AccessCookie != "" {
		a.setCookie(c, a.Settings.AccessCookie, "", "/", -1)
	}
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
