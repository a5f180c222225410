package handlers

import (
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

const (
	// defaultCookieName is Settings.CookieName, unless that is set.
	defaultCookieName = "refresh_token"
	// deviceCookie marks a browser in which an account has logged in before.
	deviceCookie    = "known_device"
	deviceCookieAge = 180 * 24 * time.Hour
)

// setRefreshCookie hands out the refresh token of a session. maxAge is the time that its
// key in Redis has left. If other refresh cookies came along, they go.
func (a *api) setRefreshCookie(c *gin.Context, sid tokenstore.ID, token string, maxAge time.Duration) {
	if a.strayRefresh(c.Request, sid) {
		a.expireElsewhere(c, a.Settings.CookieName, a.Settings.CookiePath, a.refreshPaths())
	}
	a.setCookie(c, a.Settings.CookieName, token, a.Settings.CookiePath, int(maxAge/time.Second))
}

// clearRefreshCookie takes the refresh token out of the browser.
func (a *api) clearRefreshCookie(c *gin.Context) {
	if len(c.Request.CookiesNamed(a.Settings.CookieName)) > 1 {
		a.expireElsewhere(c, a.Settings.CookieName, a.Settings.CookiePath, a.refreshPaths())
	}
	a.setCookie(c, a.Settings.CookieName, "", a.Settings.CookiePath, -1)
}

// strayRefresh reports whether a refresh cookie came along that is not, or not only, that
// of session sid.
func (a *api) strayRefresh(r *http.Request, sid tokenstore.ID) bool {
	switch came := r.CookiesNamed(a.Settings.CookieName); len(came) {
	case 0:
		return false
	case 1:
		t, err := a.Refresh.Parse(came[0].Value)
		return err != nil || t.SID != sid
	default:
		return true
	}
}

// refreshPaths returns the paths of refresh cookies that a browser can send to
// /auth/refresh: that path and those above it, and, for proxies that serve Latchkey below
// another path, LATCHKEY_COOKIE_PATH and those above it.
func (a *api) refreshPaths() []string {
	return slices.Concat(pathsAbove("/auth/refresh"), pathsAbove(a.Settings.CookiePath))
}

// pathsAbove are the cookie paths that match a path, with and without a slash at the end
// (RFC 6265 section 5.1.4).
func pathsAbove(path string) []string {
	list := []string{"/"}
	for i := 1; i < len(path); i++ {
		if path[i] == '/' {
			list = append(list, path[:i], path[:i+1])
		}
	}
	return append(list, path)
}

// expireElsewhere deletes cookies called name that an earlier setting or another host of
// the domain may have set: for each path and each of cookieDomains, except for the service's
// own cookie, whose path is own. A browser sends such cookies too and does not say where
// they are from.
//
// The caller must set its own cookie afterwards: in some cases a browser treats a Domain
// that is the host itself as none (RFC 6265 section 5.3, step 5), and would delete it.
func (a *api) expireElsewhere(c *gin.Context, name, own string, paths []string) {
	if hasHostPrefix(name) {
		return
	}
	seen := map[string]bool{}
	for _, domain := range a.cookieDomains(c.Request) {
		for _, path := range paths {
			place := domain + path
			if seen[place] || (domain == a.Settings.CookieDomain && path == own) {
				continue
			}
			seen[place] = true
			// As short as it may be: a proxy has 4 or 8 KiB for all headers of an answer.
			http.SetCookie(c.Writer, &http.Cookie{Name: name, Path: path, Domain: domain, MaxAge: -1, Secure: a.Settings.CookieSecure})
		}
	}
}

// hasHostPrefix reports whether browsers keep cookies of a name only as those of one host
// and of the path / (RFC 6265bis section 4.1.3.2): there are none elsewhere.
func hasHostPrefix(name string) bool {
	const prefix = "__Host-"
	return len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
}

// maxCookieDomains bounds for how many domains cookies are expired.
const maxCookieDomains = 5

// cookieDomains are the domains at which a cookie can be that comes to the service: none,
// the configured one, and its host with the domains above it. A browser refuses those that
// are not its own to set.
func (a *api) cookieDomains(r *http.Request) []string {
	list := []string{""}
	add := func(domain string) {
		if len(list) < maxCookieDomains && !slices.Contains(list, domain) {
			list = append(list, domain)
		}
	}
	if a.Settings.CookieDomain != "" {
		add(a.Settings.CookieDomain)
	}
	for _, host := range []string{a.issuerHost, hostname(r.Host)} {
		for domain := host; strings.Contains(domain, "."); _, domain, _ = strings.Cut(domain, ".") {
			add(domain)
		}
	}
	return list
}

// hostname is the name in a Host header in lower case, or "" if it is an address, or no
// name that a cookie's Domain may be.
func hostname(host string) string {
	name := strings.ToLower(strings.TrimSuffix((&url.URL{Host: host}).Hostname(), "."))
	if _, err := netip.ParseAddr(name); err == nil {
		return ""
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return ""
		}
	}
	return name
}

// setCookie sets a cookie for maxAge seconds, or deletes it if maxAge is negative. The value
// must need no escape: all are base64url, with dots.
func (a *api) setCookie(c *gin.Context, name, value, path string, maxAge int) {
	form := a.cookieForms[[2]string{name, path}]
	c.Writer.Header().Add("Set-Cookie", form.start+value+form.middle+strconv.Itoa(max(maxAge, 0))+form.end)
}

// cookieForm is what surrounds a cookie's value and its Max-Age.
type cookieForm struct{ start, middle, end string }

// newCookieForms returns the forms of all cookies that setCookie sets, by name and path.
func newCookieForms(s Settings) map[[2]string]cookieForm {
	forms := map[[2]string]cookieForm{}
	for _, key := range [][2]string{{s.CookieName, s.CookiePath}, {s.AccessCookie, "/"}, {deviceCookie, "/"}} {
		text := (&http.Cookie{
			Name: key[0], Value: "value", Path: key[1], Domain: s.CookieDomain, MaxAge: 1,
			HttpOnly: true, Secure: s.CookieSecure, SameSite: http.SameSiteLaxMode,
		}).String()
		var f cookieForm
		f.start, text, _ = strings.Cut(text, "=value")
		f.middle, f.end, _ = strings.Cut(text, "; Max-Age=1")
		f.start, f.middle = f.start+"=", f.middle+"; Max-Age="
		forms[key] = f
	}
	return forms
}

// refreshCookies are the distinct values of the refresh cookie that came along.
func (a *api) refreshCookies(r *http.Request) []string {
	return cookieValues(r, a.Settings.CookieName)
}

// endingCookies are the tokens in cookies of which a login or a logout ends the sessions:
// those of the refresh cookie, and refresh tokens of ours in cookies of other names. Other
// replicas may have another LATCHKEY_COOKIE_NAME during a rollout.
func (a *api) endingCookies(r *http.Request) []string {
	values := a.refreshCookies(r)
	for _, cookie := range r.Cookies() {
		if cookie.Name == a.Settings.CookieName {
			continue
		}
		if _, err := a.Refresh.Parse(cookie.Value); err == nil {
			values = append(values, cookie.Value)
		}
	}
	return values
}

// cookieValues are the distinct values of a cookie that came along.
func cookieValues(r *http.Request, name string) []string {
	cookies := r.CookiesNamed(name)
	if len(cookies) == 1 && cookies[0].Value != "" {
		return []string{cookies[0].Value}
	}
	var values []string
	seen := map[string]bool{}
	for _, cookie := range cookies {
		if cookie.Value != "" && !seen[cookie.Value] {
			seen[cookie.Value] = true
			values = append(values, cookie.Value)
		}
	}
	return values
}

// setDeviceCookie makes the browser a known device of a user. Its path is /, whatever
// LATCHKEY_COOKIE_PATH is.
func (a *api) setDeviceCookie(c *gin.Context, token string) {
	a.setCookie(c, deviceCookie, token, "/", int(deviceCookieAge/time.Second))
}
