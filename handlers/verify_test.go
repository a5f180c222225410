package handlers_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

const accessCookie = "access_token"

// browsers is a fleet that also hands out access tokens by cookie.
func browsers(t *testing.T, replicas int) *fleet {
	t.Helper()
	return start(t, setup{replicas: replicas, settings: func(s *handlers.Settings) { s.AccessCookie = accessCookie }})
}

func byCookie(access string) option { return header("Cookie", accessCookie+"="+access) }

// names checks an acceptance.
func (a answer) names(access string) {
	a.f.Helper()
	a.is(http.StatusNoContent)
	a.hasHeader("X-Auth-Subject", a.f.claim(access, "sub"))
	a.hasHeader("X-Auth-Session", a.f.claim(access, "sid"))
	a.hasHeader("X-Auth-Scope", a.f.claim(access, "scope"))
	exp, _ := a.f.claims(access)["exp"].(float64)
	a.hasHeader("X-Auth-Expires", strconv.FormatInt(int64(exp), 10))
	if a.text != "" {
		a.f.Errorf("%s: a body: %q", a.what, a.text)
	}
}

// Some proxies ask with the method, and some append the path, of what they ask about.
func TestVerifyAnswersAboutEveryRequest(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) { s.AllowedOrigins = []string{"https://app.example.com"} }})
	s := f.login(0)
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "VERSION-CONTROL", "QUERY"} {
		for _, path := range []string{
			"/auth/verify", "/auth/verify/", "/auth/verify/orders/1", "/auth/verify/orders?scope=admin&x=%zz", "/auth/verify//auth/logout",
			"/auth/verify/../logout", "/auth/verify/%2e%2e/logout-all", "/auth/verify/a%2Fb%00", "/auth/verify?x=%zz;&y",
		} {
			a := f.do(0, method, path, bearer(s.access))
			a.names(s.access)
			if allow := a.header.Get("Allow"); allow != "" {
				t.Errorf("%s %s: Allow: %s", method, path, allow)
			}
			f.do(0, method, path).is(http.StatusUnauthorized)
			f.do(0, method, path, bearer("garbage")).is(http.StatusUnauthorized)
			// A preflight of the service behind the proxy is not ours to answer.
			f.do(0, method, path, header("Origin", "https://app.example.com"), header("Access-Control-Request-Method", "DELETE")).is(http.StatusUnauthorized)
		}
	}
	f.alive(s.access)
	for _, path := range []string{"/auth/verify*", "/auth/verifyx", "/auth/verif%79"} {
		if a := f.do(0, "OPTIONS", path, bearer(s.access), header("Origin", "https://app.example.com")); a.status < 400 {
			t.Errorf("OPTIONS %s: %d", path, a.status)
		}
		f.do(0, "PROPFIND", path, bearer(s.access)).is(http.StatusNotFound)
	}
	f.do(0, "PROPFIND", "/users/me", bearer(s.access)).is(http.StatusMethodNotAllowed)
}

// What is kept with one user's token is told of no other's.
func TestVerifyTellsWhoseTokenItIs(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	f.account(tokenstore.Account{Username: "bob"}, password)
	shown := []string{f.login(0).access, f.loginAs(0, "bob", password).access, f.login(0).access}
	for range 3 {
		for _, access := range shown {
			f.do(0, "GET", "/auth/verify", bearer(access)).names(access)
		}
	}
}

func TestVerifyDemandsScope(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	s := f.login(0) // read write
	for query, want := range map[string]int{
		"":                             204,
		"scope=read":                   204,
		"scope=read%20write":           204,
		"scope=write+read":             204,
		"scope=read&scope=write":       204,
		"scopes=admin":                 204, // another parameter
		"x=%zz&scope=read":             204,
		"scope=admin":                  403,
		"scope=read%20admin":           403,
		"scope=read&scope=admin":       403,
		"s%63ope=admin":                403, // the same name
		"scope=READ":                   403,
		"scope=rea":                    403,
		"scope=read;write":             403,
		"scope=":                       400,
		"scope":                        400,
		"scope=read%20%20write":        400,
		"scope=%20read":                400,
		"scope=%zz":                    400,
		"scope=a%22b":                  400,
		"scope=read%0d%0aX-Auth-X:%20": 400,
	} {
		a := f.get(0, "/auth/verify?"+query, bearer(s.access))
		switch a.is(want); want {
		case 204:
			a.names(s.access)
		case 403:
			a.fails(403, "insufficient_scope", "Insufficient scope")
			values, err := url.ParseQuery(strings.ReplaceAll(query, ";", "%3B"))
			f.check(err)
			names := strings.Join(values["scope"], " ")
			a.hasHeader("WWW-Authenticate", fmt.Sprintf(
				`Bearer realm="latchkey", error="insufficient_scope", error_description="The access token lacks a scope", scope=%q`, names))
		}
		f.get(0, "/auth/verify/?"+query, bearer(s.access)).is(want)
		f.get(0, "/auth/verify/orders?"+query, bearer(s.access)).is(204) // the client's own query
		if want != 400 {                                                 // who it is comes before what it may
			f.get(0, "/auth/verify?"+query).fails(401, "unauthorized", "Not authenticated")
			f.get(0, "/auth/verify?"+query, bearer("x")).fails(401, "invalid_token", "")
		}
	}
}

// A proxy may announce a body and keep it. The answer comes all the same, and the
// connection ends: what follows on it would be taken for that body.
func TestVerifyWaitsForNoBody(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	s := f.login(0)
	for name, headers := range map[string]string{
		"announced":           "Content-Length: 10\r\n",
		"announced, too long": "Content-Length: 1000000000\r\n",
		"chunked":             "Transfer-Encoding: chunked\r\n",
		"on request":          "Content-Length: 10\r\nExpect: 100-continue\r\n",
	} {
		for token, want := range map[string]string{s.access: "204 No Content", "x": "401 Unauthorized"} {
			conn, err := net.Dial("tcp", f.replicas[0].addr)
			f.check(err)
			f.check(conn.SetDeadline(time.Now().Add(5 * time.Second))) // the server itself would wait 15 s
			_, err = fmt.Fprintf(conn, "POST /auth/verify HTTP/1.1\r\nHost: x\r\n%sAuthorization: Bearer %s\r\n\r\n", headers, token)
			f.check(err)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else {
				_ = resp.Body.Close()
				if resp.Status != want || !resp.Close {
					t.Errorf("%s: %s, closes: %v", name, resp.Status, resp.Close)
				}
			}
			_ = conn.Close()
		}
	}
	// One that does come is no matter.
	f.post(0, "/auth/verify", bearer(s.access), body("text/plain", strings.Repeat("x", 100_000))).names(s.access)
}

func TestAccessCookie(t *testing.T) {
	t.Parallel()
	f := browsers(t, 3)
	in := f.post(0, "/auth/token", form("username", alice, "password", password)).is(http.StatusOK)
	s := in.tokens()
	check := func(a answer) {
		t.Helper()
		c := a.cookie(accessCookie)
		if c.Value != a.member("access_token") || !c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteLaxMode ||
			c.Path != "/" || c.MaxAge != int(f.life.Access/time.Second) || c.Domain != "" {
			t.Errorf("%s: %+v", a.what, c)
		}
	}
	check(in)
	again := f.post(1, "/auth/refresh", cookie(s.refresh)).is(http.StatusOK)
	check(again)
	// Who takes the refresh token in the body is no browser.
	inBody := f.post(0, "/auth/token", form("username", alice, "password", password, "refresh_delivery", "body")).is(http.StatusOK)
	if n := len(inBody.cookies(accessCookie)); n != 0 {
		t.Errorf("%d cookies beside a body", n)
	}

	f.get(2, "/auth/verify", byCookie(s.access)).names(s.access)
	f.get(2, "/users/me", byCookie(s.access)).is(http.StatusOK)
	f.get(2, "/auth/sessions", byCookie(s.access)).is(http.StatusOK)
	f.get(2, "/auth/verify", byCookie("")).fails(401, "unauthorized", "")
	f.get(2, "/auth/verify", header("Cookie", "other="+s.access)).fails(401, "unauthorized", "")
	// The header wins, be it good or not.
	other := f.login(0)
	f.get(2, "/auth/verify", bearer(other.access), byCookie(s.access)).names(other.access)
	f.get(2, "/auth/verify", bearer("x"), byCookie(s.access)).fails(401, "invalid_token", "")
	// Of two that differ, one was planted.
	f.get(2, "/auth/verify", byCookie(s.access), byCookie(other.access)).fails(401, "invalid_token", "")
	twice := byCookie(s.access)
	f.get(2, "/auth/verify", byCookie(s.access), twice).names(s.access)
	f.get(2, "/auth/verify?scope=admin", byCookie(s.access)).fails(403, "insufficient_scope", "")

	// A logout by this cookie alone ends its session, and the cookie.
	gone := f.post(1, "/auth/logout", byCookie(s.access)).is(http.StatusOK).cookie(accessCookie)
	if gone.Value != "" || gone.MaxAge >= 0 || gone.Path != "/" {
		t.Errorf("after the logout: %+v", gone)
	}
	f.dead(s)
	f.get(2, "/auth/verify", byCookie(s.access)).fails(401, "invalid_token", "")
	// As do all of them that are shown.
	a, b, c := f.login(0), f.login(1), f.login(2)
	f.post(1, "/auth/logout", bearer(a.access), byCookie(b.access), byCookie(c.access)).is(http.StatusOK)
	f.accessDead(a.access, b.access, c.access)

	all := f.login(0)
	if c := f.post(1, "/auth/logout-all", byCookie(all.access)).is(http.StatusOK).cookie(accessCookie); c.MaxAge >= 0 {
		t.Errorf("after logout-all: %+v", c)
	}
	one := f.login(0)
	if c := f.do(1, "DELETE", "/auth/sessions/"+f.claim(one.access, "sid"), byCookie(one.access)).is(http.StatusNoContent).cookie(accessCookie); c.MaxAge >= 0 {
		t.Errorf("after its session ended: %+v", c)
	}
}

// Off, there is no such cookie: none is set, and none is read.
func TestNoAccessCookieUnlessSet(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	in := f.post(0, "/auth/token", form("username", alice, "password", password)).is(http.StatusOK)
	out := f.post(0, "/auth/logout", byCookie(in.tokens().access)).is(http.StatusOK)
	for _, a := range []answer{in, out} {
		if n := len(a.cookies(accessCookie)) + len(a.cookies("")); n != 0 {
			t.Errorf("%s: %q", a.what, a.header.Values("Set-Cookie"))
		}
	}
	f.alive(in.tokens().access)
	for _, path := range []string{"/auth/verify", "/users/me", "/auth/sessions"} {
		f.get(0, path, byCookie(in.tokens().access)).fails(401, "unauthorized", "")
	}
}

// A cookie comes along with what another site's page has the browser send.
func TestAccessCookieAcrossSites(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) {
		s.AccessCookie, s.AllowedOrigins = accessCookie, []string{"https://app.example.com"}
	}})
	s := f.login(0)
	forwarded := func(method string) []option {
		return []option{header("X-Forwarded-Method", method), header("X-Forwarded-Host", "shop.example.com")}
	}
	refused := 0
	for _, c := range []struct {
		name    string
		options []option
		safe    int // GET and HEAD
		unsafe  int
	}{
		{"no browser", nil, 204, 204},
		{"its own page", []option{header("Sec-Fetch-Site", "same-origin"), header("Origin", "https://shop.example.com")}, 204, 204},
		{"its own page in an old browser", []option{header("Origin", "https://shop.example.com")}, 204, 204},
		{"an allowed origin", []option{header("Sec-Fetch-Site", "same-site"), header("Origin", "https://app.example.com")}, 204, 204},
		{"another site", []option{header("Sec-Fetch-Site", "cross-site"), header("Origin", "https://evil.example")}, 204, 403},
		{"a neighbour", []option{header("Sec-Fetch-Site", "same-site"), header("Origin", "https://blog.example.com")}, 204, 403},
		{"a neighbour of an old browser", []option{header("Origin", "https://blog.example.com")}, 204, 403},
		{"a sandbox", []option{header("Origin", "null")}, 204, 403},
	} {
		t.Run(c.name, func(*testing.T) {
			for method, want := range map[string]int{"GET": c.safe, "HEAD": c.safe, "POST": c.unsafe, "DELETE": c.unsafe, "PROPFIND": c.unsafe} {
				with := append(forwarded(method), c.options...)
				f.get(0, "/auth/verify", append(with, byCookie(s.access))...).is(want)
				f.do(0, method, "/auth/verify/orders", append([]option{header("X-Forwarded-Host", "shop.example.com"), byCookie(s.access)}, c.options...)...).is(want)
				f.get(0, "/auth/verify", append(with, bearer(s.access))...).is(http.StatusNoContent) // no page has that
				if want == 403 {
					refused += 2
				}
			}
		})
	}
	if n := f.events()["cross_site_refused"]; n != refused {
		t.Errorf("%d events, want %d", n, refused)
	}
	// What a proxy says it asks about is of no account elsewhere.
	cross := []option{header("Sec-Fetch-Site", "cross-site"), header("X-Forwarded-Method", "GET"), byCookie(s.access)}
	f.post(0, "/auth/logout-all", cross...).fails(403, "access_denied", "")
	f.alive(s.access)
}

// webSocketHeaders are what tells a WebSocket handshake from another GET, each on its
// own: proxies drop some of them.
func webSocketHeaders() [][2]string {
	return [][2]string{
		{"Sec-WebSocket-Version", "13"}, {"Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}, {"Sec-Fetch-Mode", "websocket"}, {"Upgrade", "websocket"},
	}
}

// A page of any origin may open a WebSocket and read what it brings: for that, a cookie
// counts only when the page is our own.
func TestAWebSocketFromAnotherOriginIsRefused(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) {
		s.AccessCookie, s.AllowedOrigins = accessCookie, []string{"https://app.example.com"}
	}})
	s := f.login(0)
	refused := 0
	for _, mark := range webSocketHeaders() {
		for _, c := range []struct {
			origin, site string
			want         int
		}{
			{"", "", 204}, // no browser
			{"https://shop.example.com", "same-origin", 204},
			{"https://shop.example.com", "", 204}, // Safari before 16.4 sends no Sec-Fetch-Site
			{"https://app.example.com", "same-site", 204},
			{"https://evil.example", "cross-site", 403},
			{"https://evil.example", "", 403},
			{"https://blog.example.com", "same-site", 403}, // SameSite=Lax sends the cookie there
			{"null", "", 403},
		} {
			options := []option{header("X-Forwarded-Host", "shop.example.com"), header(mark[0], mark[1])}
			if c.origin != "" {
				options = append(options, header("Origin", c.origin))
			}
			if c.site != "" {
				options = append(options, header("Sec-Fetch-Site", c.site))
			}
			cookie := slices.Concat(options, []option{byCookie(s.access)})
			f.get(0, "/auth/verify", append(cookie, header("X-Forwarded-Method", "GET"))...).is(c.want)
			f.get(0, "/auth/verify/chat", cookie...).is(c.want) // as Envoy asks over HTTP
			f.get(0, "/auth/verify", append(options, bearer(s.access))...).is(204)
			if c.want == 403 {
				refused += 2
			}
		}
		// The API itself has no WebSocket, and takes no such request either.
		f.get(0, "/users/me", header(mark[0], mark[1]), header("Origin", "https://evil.example"), byCookie(s.access)).fails(403, "access_denied", "")
		f.get(0, "/users/me", header(mark[0], mark[1]), byCookie(s.access)).is(200)
		refused++
	}
	// HTTP/2 and 3 open one by CONNECT (RFC 8441 section 4).
	f.get(0, "/auth/verify", header("X-Forwarded-Method", "CONNECT"), header("X-Forwarded-Host", "shop.example.com"),
		header("Origin", "https://evil.example"), byCookie(s.access)).is(403)
	refused++
	if n := f.events()["cross_site_refused"]; n != refused {
		t.Errorf("%d events, want %d", n, refused)
	}
}
