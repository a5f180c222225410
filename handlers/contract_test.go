package handlers_test

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// golden writes down an answer: status, the headers that matter, body. What
// differs from run to run is replaced by what it is.
func (a answer) golden() string {
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "%d\n", a.status)
	for _, name := range []string{
		"Allow", "Cache-Control", "Content-Type", "Pragma", "Retry-After", "Set-Cookie", "WWW-Authenticate",
		"X-Auth-Expires", "X-Auth-Scope", "X-Auth-Session", "X-Auth-Subject",
	} {
		for _, value := range a.header.Values(name) {
			_, _ = fmt.Fprintf(&b, "%s: %s\n", name, value)
		}
	}
	if a.closes {
		b.WriteString("closes\n")
	}
	b.WriteString(a.text)
	text := b.String()
	for _, m := range []struct{ pattern, name string }{
		{`eyJ[\w-]+\.[\w-]+\.[\w-]+`, "JWT"},
		{`lkr1_[\w-]{112}`, "REFRESH"},
		{`known_device=[\w-]{43}`, "known_device=DEVICE"},
		{`X-Auth-Session: [\w-]{22}\n`, "X-Auth-Session: SID\n"},
		{`"device_token":"[\w-]{43}"`, `"device_token":"DEVICE"`},
		{`"id":"[\w-]{22}"`, `"id":"SID"`},
		{`X-Auth-Expires: \d{10}\n`, "X-Auth-Expires: UNIX\n"},
		{`"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"`, `"TIME"`},
		{`Max-Age=6047\d\d`, "Max-Age=604800"},           // SAME counts down
		{`Retry-After: 35\d\d\n`, "Retry-After: 3600\n"}, // so does a limit
	} {
		text = regexp.MustCompile(m.pattern).ReplaceAllString(text, m.name)
	}
	return text
}

const (
	noStore = "Cache-Control: no-store\n"
	inJSON  = "Content-Type: application/json; charset=utf-8\n"
	taken   = "Set-Cookie: refresh_token=; Path=/auth; Max-Age=0; HttpOnly; Secure; SameSite=Lax\n"
	given   = "Set-Cookie: refresh_token=REFRESH; Path=/auth; Max-Age=604800; HttpOnly; Secure; SameSite=Lax\n"
	device  = "Set-Cookie: known_device=DEVICE; Path=/; Max-Age=15552000; HttpOnly; Secure; SameSite=Lax\n"
)

func problem(status int, headers, code, detail, description string) string {
	return fmt.Sprintf("%d\n"+noStore+inJSON+"%s"+`{"detail":%q,"error":%q,"error_description":%q}`, status, headers, detail, code, description)
}

func unauthorized(params, code, detail, description string) string {
	return problem(401, `WWW-Authenticate: Bearer realm="latchkey"`+params+"\n", code, detail, description)
}

func badToken(description string) string {
	return unauthorized(`, error="invalid_token", error_description="`+description+`"`,
		"invalid_token", "Could not validate credentials", description)
}

func badRequest(description string) string {
	return problem(400, "", "invalid_request", description, description)
}

// The contract with clients, word for word.
func TestAnswers(t *testing.T) {
	t.Parallel()
	f := start(t, setup{settings: func(s *handlers.Settings) {
		s.Limits = tokenstore.AttemptLimits{Client: tokenstore.Limit{Burst: 3, Period: 3 * time.Hour}}
	}})
	f.account(tokenstore.Account{Username: "bob", Subject: "subject-of-bob"}, password)
	f.account(tokenstore.Account{Username: "carol"}, password)
	f.account(tokenstore.Account{Username: "dora"}, password)
	s, bob := f.login(0), f.loginAs(0, "bob", password)
	dead := f.login(0)
	f.post(0, "/auth/logout", cookie(dead.refresh)).is(http.StatusOK)
	parent := f.login(0)
	f.refresh(0, parent)
	reused := f.login(0)
	f.rotate(0, f.refresh(0, reused))
	for range 3 {
		f.post(0, "/auth/token", form("username", "carol", "password", "wrong")).is(http.StatusUnauthorized)
	}
	expired := f.sign(f.header(), f.payload(s.access, map[string]any{"iat": time.Now().Unix() - 1000, "exp": time.Now().Unix() - 100}))

	invalidRefresh := unauthorized("", "invalid_grant", "Invalid refresh token", "Invalid refresh token")
	wrongPassword := unauthorized("", "invalid_grant", "Incorrect username or password", "Incorrect username or password")
	noToken := unauthorized("", "unauthorized", "Not authenticated", "Send the access token as Authorization: Bearer.")
	notFound := problem(404, "", "not_found", "Not found", "Not found")
	crossSite := problem(403, "", "access_denied", "Cross-site request refused",
		"The request comes from a page of another origin. List the origin in LATCHKEY_ALLOWED_ORIGINS if it is yours.")
	method := func(allow string) string {
		return strings.Replace(problem(405, "", "method_not_allowed", "Method not allowed", "Method not allowed"),
			"405\n", "405\nAllow: "+allow+"\n", 1)
	}
	grant := `{"access_token":"JWT","token_type":"bearer","expires_in":900`

	for _, c := range []struct {
		name, method, path string
		options            []option
		want               string
	}{
		{"login", "POST", "/auth/token", []option{form("username", alice, "password", password)}, "200\n" + noStore + inJSON + given + device + grant + `,"scope":"read write"}`},
		{"login in JSON", "POST", "/auth/token", []option{jsonBody(`{"username":"alice","password":"` + password + `","scope":"write","grant_type":"password"}`)}, "200\n" + noStore + inJSON + given + device + grant + `,"scope":"write"}`},
		{"login without scopes", "POST", "/auth/token", []option{form("username", "bob", "password", password)}, "200\n" + noStore + inJSON + given + device + grant + `}`},
		{"login for a client that is no browser", "POST", "/auth/token", []option{form("username", alice, "password", password, "refresh_delivery", "body")}, "200\n" + noStore + inJSON + grant + `,"refresh_token":"REFRESH","scope":"read write","device_token":"DEVICE"}`},
		{"login, wrong password", "POST", "/auth/token", []option{form("username", alice, "password", "wrong")}, wrongPassword},
		{"login, unknown user", "POST", "/auth/token", []option{form("username", "nobody", "password", "wrong")}, wrongPassword},
		{"login, throttled", "POST", "/auth/token", []option{form("username", "carol", "password", password)}, problem(429, "Retry-After: 3600\n", "too_many_requests", "Too many failed attempts", "Wait as long as Retry-After says.")},
		{"login, no password", "POST", "/auth/token", []option{form("username", alice)}, badRequest("username and password are required")},
		{"login, no body", "POST", "/auth/token", nil, badRequest("username and password are required")},
		{"login, other grant", "POST", "/auth/token", []option{form("username", alice, "password", password, "grant_type", "refresh_token")}, problem(400, "", "unsupported_grant_type", "grant_type is password, or absent", "grant_type is password, or absent")},
		{"login, other delivery", "POST", "/auth/token", []option{form("username", alice, "password", password, "refresh_delivery", "pigeon")}, badRequest("refresh_delivery is cookie or body")},
		{"login, other scope", "POST", "/auth/token", []option{form("username", alice, "password", password, "scope", "admin")}, problem(400, "", "invalid_scope", "None of the requested scope is allowed", "None of the requested scope is allowed")},
		{"login, twice the same parameter", "POST", "/auth/token", []option{form("username", alice, "username", "bob", "password", password)}, badRequest("A parameter was sent twice")},
		{"login, other media type", "POST", "/auth/token", []option{body("text/plain", "username=alice")}, problem(415, "", "invalid_request", "Unsupported media type", "Send application/x-www-form-urlencoded or application/json.")},
		{"login, too large", "POST", "/auth/token", []option{body("application/json", strings.Repeat(" ", 16<<10+1))}, "413\n" + noStore + inJSON + "closes\n" + `{"detail":"Request body too large","error":"invalid_request","error_description":"Request body too large"}`},
		{"login, from another site", "POST", "/auth/token", []option{header("Sec-Fetch-Site", "cross-site"), form("username", alice, "password", password)}, crossSite},

		{"refresh, the parent again", "POST", "/auth/refresh", []option{cookie(parent.refresh)}, "200\n" + noStore + inJSON + given + grant + `,"scope":"read write"}`},
		{"refresh", "POST", "/auth/refresh", []option{cookie(bob.refresh)}, "200\n" + noStore + inJSON + given + grant + `}`},
		{"refresh in the body", "POST", "/auth/refresh", []option{form("refresh_token", f.loginAs(1, "dora", password).refresh)}, "200\n" + noStore + inJSON + grant + `,"refresh_token":"REFRESH"}`},
		{"refresh, none", "POST", "/auth/refresh", nil, unauthorized("", "invalid_grant", "Refresh token missing", "Send the refresh token as a cookie, or as refresh_token in the body.")},
		{"refresh, both", "POST", "/auth/refresh", []option{cookie(s.refresh), form("refresh_token", s.refresh)}, badRequest("The refresh token was sent twice: as a cookie and in the body")},
		{"refresh, garbage", "POST", "/auth/refresh", []option{cookie("garbage")}, invalidRefresh},
		{"refresh, revoked", "POST", "/auth/refresh", []option{cookie(dead.refresh)}, invalidRefresh},
		{"refresh, reused", "POST", "/auth/refresh", []option{cookie(reused.refresh)}, invalidRefresh},
		{"refresh, from another site", "POST", "/auth/refresh", []option{cookie(s.refresh), header("Origin", "https://evil.example")}, crossSite},

		{"verify", "GET", "/auth/verify", []option{bearer(s.access)}, "204\n" + noStore + "X-Auth-Expires: UNIX\nX-Auth-Scope: read write\nX-Auth-Session: SID\nX-Auth-Subject: alice\n"},
		{"verify by HEAD", "HEAD", "/auth/verify", []option{bearer(s.access)}, "204\n" + noStore + "X-Auth-Expires: UNIX\nX-Auth-Scope: read write\nX-Auth-Session: SID\nX-Auth-Subject: alice\n"},
		{"verify, none", "GET", "/auth/verify", nil, noToken},
		{"verify, other scheme", "GET", "/auth/verify", []option{header("Authorization", "Basic YTpi")}, noToken},
		{"verify, garbage", "GET", "/auth/verify", []option{bearer("garbage")}, badToken("The access token is not valid")},
		{"verify, expired", "GET", "/auth/verify", []option{bearer(expired)}, badToken("The access token has expired")},
		{"verify, revoked", "GET", "/auth/verify", []option{bearer(dead.access)}, badToken("The access token was revoked")},
		{"verify, twice", "GET", "/auth/verify", []option{bearer(s.access), bearer(s.access)}, badRequest("Authorization was sent twice")},

		{"me", "GET", "/users/me", []option{bearer(s.access)}, "200\n" + noStore + inJSON + `{"username":"alice","sub":"alice","scopes":["read","write"],"disabled":false}`},
		{"me, with another subject", "GET", "/users/me", []option{bearer(bob.access)}, "200\n" + noStore + inJSON + `{"username":"bob","sub":"subject-of-bob","scopes":[],"disabled":false}`},
		{"me, none", "GET", "/users/me", nil, noToken},
		{"me, revoked", "GET", "/users/me", []option{bearer(dead.access)}, badToken("The access token was revoked")},

		{"sessions", "GET", "/auth/sessions", []option{bearer(bob.access)}, ""}, // below: it changes
		{"sessions, none", "GET", "/auth/sessions", nil, noToken},
		{"end a session of nobody", "DELETE", "/auth/sessions/" + strings.Repeat("A", 22), []option{bearer(s.access)}, problem(404, "", "not_found", "No such session", "No such session")},
		{"end a session of another", "DELETE", "/auth/sessions/" + f.claim(bob.access, "sid"), []option{bearer(s.access)}, problem(404, "", "not_found", "No such session", "No such session")},
		{"end a session, none", "DELETE", "/auth/sessions/" + f.claim(bob.access, "sid"), nil, noToken},
		{"end the own session", "DELETE", "/auth/sessions/" + f.claim(bob.access, "sid"), []option{bearer(bob.access)}, "204\n" + noStore + taken},

		{"password, missing", "POST", "/users/me/password", []option{bearer(s.access), form("current_password", password)}, badRequest("current_password and new_password are required")},
		{"password, wrong", "POST", "/users/me/password", []option{bearer(s.access), form("current_password", "wrong", "new_password", "another-password")}, problem(403, "", "access_denied", "Incorrect password", "Incorrect password")},
		{"password, none", "POST", "/users/me/password", []option{form("current_password", password, "new_password", "another-password")}, noToken},
		{"password", "POST", "/users/me/password", []option{bearer(s.access), form("current_password", password, "new_password", "another-password")}, "200\n" + noStore + inJSON + `{"message":"Password changed; all other sessions have ended"}`},

		{"logout", "POST", "/auth/logout", []option{cookie(parent.refresh)}, "200\n" + noStore + inJSON + taken + `{"message":"Successfully logged out"}`},
		{"logout again", "POST", "/auth/logout", []option{cookie(parent.refresh), bearer(parent.access)}, "200\n" + noStore + inJSON + taken + `{"message":"Successfully logged out"}`},
		{"logout of nothing", "POST", "/auth/logout", nil, "200\n" + noStore + inJSON + taken + `{"message":"Successfully logged out"}`},
		{"logout, from another site", "POST", "/auth/logout", []option{cookie(parent.refresh), header("Sec-Fetch-Site", "same-site")}, crossSite},
		{"logout, twice a bearer", "POST", "/auth/logout", []option{bearer(s.access), bearer(s.access)}, badRequest("Authorization was sent twice")},

		{"logout-all but this", "POST", "/auth/logout-all", []option{bearer(s.access), form("except_current", "true")}, "200\n" + noStore + inJSON + `{"message":"Successfully logged out everywhere"}`},
		{"logout-all, perhaps", "POST", "/auth/logout-all", []option{bearer(s.access), form("except_current", "perhaps")}, badRequest("except_current is neither true nor false")},
		{"logout-all, none", "POST", "/auth/logout-all", nil, noToken},
		{"logout-all", "POST", "/auth/logout-all", []option{bearer(s.access)}, "200\n" + noStore + inJSON + taken + `{"message":"Successfully logged out everywhere"}`},
		{"logout-all again", "POST", "/auth/logout-all", []option{bearer(s.access)}, badToken("The access token was revoked")},

		{"no such path", "GET", "/nowhere", nil, notFound},
		{"a slash too many", "POST", "/auth/token/", nil, notFound},
		{"two slashes", "POST", "//auth/token", nil, notFound},
		{"the root", "GET", "/", nil, notFound},
		{"dots", "GET", "/auth/../users/me", nil, notFound},
		{"the admin's metrics", "GET", "/metrics", nil, notFound},
		{"GET of login", "GET", "/auth/token", nil, method("POST")},
		{"PUT of refresh", "PUT", "/auth/refresh", nil, method("POST")},
		{"DELETE of logout", "DELETE", "/auth/logout", nil, method("POST")},
		{"POST of the sessions", "POST", "/auth/sessions", nil, method("GET")},
		{"GET of a session", "GET", "/auth/sessions/x", nil, method("DELETE")},
		{"POST of me", "POST", "/users/me", nil, method("GET")},
		{"another method", "PROPFIND", "/users/me", nil, method("GET")},
		{"OPTIONS without allowed origins", "OPTIONS", "/auth/token", nil, method("POST")},
		{"HEAD of me", "HEAD", "/users/me", []option{bearer(s.access)}, "405\nAllow: GET\n" + noStore + inJSON},
	} {
		a := f.do(0, c.method, c.path, c.options...)
		if c.want == "" {
			continue
		}
		if diff := cmp.Diff(strings.TrimSuffix(c.want, "\n"), strings.TrimSuffix(a.golden(), "\n")); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.name, diff)
		}
	}
}

// payload is the claims of a token with some of them replaced; nil removes one.
func (f *fleet) payload(access string, edits map[string]any) string {
	f.Helper()
	c := f.claims(access)
	for name, value := range edits {
		if value == nil {
			delete(c, name)
		} else {
			c[name] = value
		}
	}
	return toJSON(f, c)
}

// What an access token says (RFC 9068 section 2.2).
func TestAccessTokenClaims(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fleet) {
		f.account(tokenstore.Account{Username: "bob", Subject: "subject-of-bob"}, password)
		a := f.loginAs(0, "bob", password)
		b := f.refresh(1, a)
		first, second := f.claims(a.access), f.claims(b.access)
		for name, want := range map[string]any{
			"iss": issuer, "sub": "subject-of-bob", "aud": audience, "client_id": clientID, "ue": 0.0,
			"sid": second["sid"], "auth_time": second["auth_time"], "le": second["le"],
		} {
			if first[name] != want {
				t.Errorf("%s: got %v, want %v", name, first[name], want)
			}
		}
		if first["jti"] == second["jti"] {
			t.Error("two tokens of one jti")
		}
		if _, ok := first["scope"]; ok {
			t.Error("a scope of nothing")
		}
		iat, exp := first["iat"].(float64), first["exp"].(float64)
		if exp-iat != 900 {
			t.Errorf("lifetime: %v s", exp-iat)
		}
		f.near(t, "iat", time.Since(time.Unix(int64(iat), 0)), 0, 5*time.Second)
		if head := mustDecode(t, strings.Split(a.access, ".")[0]); head != f.header() {
			t.Errorf("header: %s", head)
		}
	})
}

// A replica without a signing key does not know how to answer: nothing is
// touched, and the session goes on once it has one.
func TestNoSigningKeyYet(t *testing.T) {
	t.Parallel()
	f := usual(t)
	s, stray := f.login(0), f.login(1)
	f.post(0, "/auth/logout", cookie(stray.refresh)).is(http.StatusOK)
	f.ring.Remove(f.kid)
	unavailable := "temporarily_unavailable"
	f.post(0, "/auth/token", form("username", alice, "password", password)).fails(http.StatusServiceUnavailable, unavailable, "")
	f.post(0, "/auth/refresh", cookie(s.refresh)).fails(http.StatusServiceUnavailable, unavailable, "")
	f.post(1, "/auth/refresh", cookie(stray.refresh), cookie(s.refresh)).fails(http.StatusServiceUnavailable, unavailable, "")
	f.restoreKey()
	f.refresh(2, s)
}

// restoreKey puts the fleet's signing key back.
func (f *fleet) restoreKey() {
	f.Helper()
	key, err := accesstoken.Generate(accesstoken.EdDSA, strings.NewReader(string(f.key.Seed())))
	f.check(err)
	f.ring.Add(key)
	f.check(f.ring.Activate(key.ID()))
}

// A token under a key that this replica has not heard of: it asks, once a second
// at most, and takes an outage for an outage.
func TestUnknownKeyIsFetched(t *testing.T) {
	t.Parallel()
	var f *fleet
	asked := 0
	f = start(t, setup{replicas: 1, refetch: func(context.Context) error {
		asked++
		if asked == 1 {
			return tokenstore.ErrUnavailable
		}
		f.restoreKey()
		return nil
	}})
	s := f.login(0)
	f.ring.Remove(f.kid)
	f.get(0, "/auth/verify", bearer(s.access)).is(http.StatusServiceUnavailable)
	f.get(0, "/auth/verify", bearer(s.access)).is(http.StatusNoContent)
	made := strings.Replace(f.header(), f.kid, "made-up", 1)
	for range 5 {
		f.get(0, "/auth/verify", bearer(f.sign(made, `{}`))).is(http.StatusUnauthorized)
	}
	if asked != 2 {
		t.Errorf("asked %d times, want 2", asked)
	}
}

// The cookie's attributes follow the settings.
func TestCookieSettings(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) {
		s.CookieSecure, s.CookieDomain, s.CookiePath = false, "example.com", "/sso/auth"
	}})
	a := f.post(0, "/auth/token", form("username", alice, "password", password))
	want := []string{
		"refresh_token=REFRESH; Path=/sso/auth; Domain=example.com; Max-Age=604800; HttpOnly; SameSite=Lax",
		"known_device=DEVICE; Path=/; Domain=example.com; Max-Age=15552000; HttpOnly; SameSite=Lax",
	}
	got := slices.DeleteFunc(strings.Split(a.golden(), "\n"), func(l string) bool { return !strings.HasPrefix(l, "Set-Cookie: ") })
	for i := range got {
		got[i] = strings.TrimPrefix(got[i], "Set-Cookie: ")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// New refuses settings it cannot work with, and says which.
func TestSettingsThatCannotBe(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	for _, origin := range []string{"example.com", "https://example.com/path", "ftp://example.com", "*"} {
		_, err := handlers.New(handlers.Dependencies{
			Store: f.replicas[0].store, Settings: handlers.Settings{AllowedOrigins: []string{origin}},
		})
		if err == nil || !strings.Contains(err.Error(), "origin") {
			t.Errorf("%s: %v", origin, err)
		}
	}
}
