package handlers

import (
	"cmp"
	"net/http"
	"net/url"
	"time"

	"github.com/gin-gonic/gin"
)

// The access cookie carries the access token for pages behind a proxy that asks
// verify: a browser sends it by itself, also for images, downloads and
// WebSockets, and no script can read it. It is off unless Settings.AccessCookie
// names it.
//
// A browser also sends it with what other sites' pages have it send, though with
// SameSite=Lax not all of that. So a token that came by cookie counts only on
// requests that change nothing, whose answers another site's page cannot read,
// and on those that a page of our own made (caller, ownForwarded).

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

// ownForwarded refuses with errCrossSite a request that a proxy asks about and a
// browser made for a page of another origin, unless its method changes nothing.
// What it was is in the headers that proxies add, or, with Envoy, in the request
// as it is. That a client could write those headers is no matter: a page cannot
// have a browser write them across origins.
func (a *api) ownForwarded(r *http.Request) error {
	return a.ownRequest(
		cmp.Or(r.Header.Get("X-Forwarded-Method"), r.Method),
		cmp.Or(r.Header.Get("X-Forwarded-Host"), r.Host), r.Header)
}

// ownRequest is the check of sameOrigin for a request that was made elsewhere.
func (a *api) ownRequest(method, host string, h http.Header) error {
	if err := a.crossOrigin.Check(&http.Request{Method: method, Host: host, Header: h, URL: &url.URL{Path: "/"}}); err != nil {
		return errCrossSite
	}
	return nil
}
