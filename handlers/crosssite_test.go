package handlers_test

import (
	"net/http"
	"testing"

	"github.com/latchkey-auth/latchkey/handlers"
)

// cookieEndpoints are those on which a browser's cookie acts, with a request
// that would succeed.
func cookieEndpoints(f *fleet) []struct {
	method, path string
	options      []option
	ok           int
} {
	s := f.login(0)
	other := f.login(0)
	return []struct {
		method, path string
		options      []option
		ok           int
	}{
		{"POST", "/auth/token", []option{form("username", alice, "password", password)}, 200},
		{"POST", "/auth/refresh", []option{cookie(s.refresh)}, 200},
		{"DELETE", "/auth/sessions/" + f.claim(other.access, "sid"), []option{bearer(s.access)}, 204},
		{"POST", "/users/me/password", []option{bearer(s.access), form("current_password", password, "new_password", password)}, 200},
		{"POST", "/auth/logout-all", []option{bearer(s.access), form("except_current", "true")}, 200},
		{"POST", "/auth/logout", []option{cookie(s.refresh)}, 200},
	}
}

func TestCrossSiteRequestsAreRefused(t *testing.T) {
	t.Parallel()
	for name, headers := range map[string][]option{
		"cross-site":                    {header("Sec-Fetch-Site", "cross-site")},
		"same-site":                     {header("Sec-Fetch-Site", "same-site")},
		"something new":                 {header("Sec-Fetch-Site", "moon")},
		"cross-site with a true origin": {header("Sec-Fetch-Site", "cross-site"), header("Origin", "https://latchkey")},
		"another origin":                {header("Origin", "https://evil.example")},
		"another port":                  {header("Origin", "http://127.0.0.1:1")},
		"null":                          {header("Origin", "null")},
		"not allowed":                   {header("Origin", "https://app.example.com.evil.example"), header("Sec-Fetch-Site", "cross-site")},
		"allowed in another scheme":     {header("Origin", "http://app.example.com"), header("Sec-Fetch-Site", "cross-site")},
		"garbage":                       {header("Origin", "{}")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, allowed := range [][]string{nil, {"https://app.example.com"}} {
				f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) { s.AllowedOrigins = allowed }})
				list := cookieEndpoints(f)
				for _, c := range list {
					a := f.do(0, c.method, c.path, append(headers, c.options...)...)
					a.fails(http.StatusForbidden, "access_denied", "Cross-site request refused")
					if got := a.header.Get("Access-Control-Allow-Origin"); got != "" {
						t.Errorf("%s: a page of that origin may read the answer: %q", c.path, got)
					}
				}
				if n := f.events()["cross_site_refused"]; n != len(list) {
					t.Errorf("%d events, want %d", n, len(list))
				}
				// Nothing happened: the same requests succeed now.
				for _, c := range list {
					f.do(0, c.method, c.path, c.options...).is(c.ok)
				}
			}
		})
	}
}

func TestRequestsOfOurOwnPass(t *testing.T) {
	t.Parallel()
	const app = "https://app.example.com"
	for name, c := range map[string]struct {
		headers []option
		cors    bool
	}{
		"curl":                                {nil, false},
		"same-origin":                         {[]option{header("Sec-Fetch-Site", "same-origin")}, false},
		"typed in":                            {[]option{header("Sec-Fetch-Site", "none")}, false},
		"an allowed origin":                   {[]option{header("Origin", app), header("Sec-Fetch-Site", "cross-site")}, true},
		"an allowed origin of an old browser": {[]option{header("Origin", app)}, true},
		"an allowed sibling":                  {[]option{header("Origin", app), header("Sec-Fetch-Site", "same-site")}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) { s.AllowedOrigins = []string{app, "https://other.example.com"} }})
			for _, e := range cookieEndpoints(f) {
				a := f.do(0, e.method, e.path, append(e.options, c.headers...)...).is(e.ok)
				if got := a.header.Get("Access-Control-Allow-Origin"); c.cors != (got == app) {
					t.Errorf("%s: Access-Control-Allow-Origin: %q", e.path, got)
				}
				if got := a.header.Get("Access-Control-Allow-Credentials"); c.cors != (got == "true") {
					t.Errorf("%s: Access-Control-Allow-Credentials: %q", e.path, got)
				}
			}
		})
	}
	t.Run("a page of the API itself", func(t *testing.T) {
		t.Parallel()
		f := start(t, setup{replicas: 1})
		for _, e := range cookieEndpoints(f) {
			f.do(0, e.method, e.path, append(e.options, header("Origin", f.replicas[0].url))...).is(e.ok)
		}
	})
}

func TestPreflight(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) { s.AllowedOrigins = []string{"https://app.example.com"} }})
	ask := []option{header("Access-Control-Request-Method", "POST"), header("Access-Control-Request-Headers", "authorization")}
	a := f.do(0, http.MethodOptions, "/auth/refresh", append(ask, header("Origin", "https://app.example.com"))...).is(http.StatusNoContent)
	for name, want := range map[string]string{
		"Access-Control-Allow-Origin": "https://app.example.com", "Access-Control-Allow-Credentials": "true",
		"Access-Control-Allow-Methods": "GET,POST,DELETE", "Access-Control-Allow-Headers": "Authorization,Content-Type,Dpop,X-Request-Id",
		"Access-Control-Max-Age": "3600",
	} {
		a.hasHeader(name, want)
	}
	for _, origin := range []string{"https://evil.example", "null", "https://app.example.com:8443"} {
		a := f.do(0, http.MethodOptions, "/auth/refresh", append(ask, header("Origin", origin))...)
		if got := a.header.Get("Access-Control-Allow-Origin"); a.status < 400 || got != "" {
			t.Errorf("%s: %d, allowed %q", origin, a.status, got)
		}
	}
}

// Reading with a bearer token is no matter of cookies: a proxy that asks on
// behalf of a browser passes on whatever Origin that sent.
func TestVerifyIsNoMatterOfOrigins(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) { s.AllowedOrigins = []string{"https://app.example.com"} }})
	s := f.login(0)
	for _, origin := range []string{"https://app.example.com", "https://shop.example.com", "null"} {
		a := f.get(0, "/auth/verify", bearer(s.access), header("Origin", origin), header("Sec-Fetch-Site", "cross-site")).is(http.StatusNoContent)
		if got, want := a.header.Get("Access-Control-Allow-Origin"), origin; (got == want) != (origin == "https://app.example.com") {
			t.Errorf("%s: Access-Control-Allow-Origin: %q", origin, got)
		}
	}
}
