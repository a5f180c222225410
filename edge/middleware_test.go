package edge

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
)

func TestMiddleware(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	n := newNode(t, server.URL(), ring, nodeOptions{strict: true})
	live, ended, scoped := n.login("alice"), n.login("bob"), n.login("carol")
	if err := n.logout(ended); err != nil {
		t.Fatal(err)
	}
	sign := func(s session, change func(*accesstoken.Claims)) string {
		c, err := n.verifier.tokens.Authentic(s.token)
		if err != nil {
			t.Fatal(err)
		}
		change(&c)
		token, err := n.signer.Sign(c)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	good := sign(scoped, func(c *accesstoken.Claims) { c.Scope = "orders:read orders:write" })
	expired := sign(live, func(c *accesstoken.Claims) { c.IssuedAt, c.ExpiresAt = 1, 2 })

	var causes []error
	var reached int
	h := Middleware(n.verifier, RequireScope("orders:read"), RequireScope("orders:write"),
		OnRefusal(func(_ *http.Request, err error) { causes = append(causes, err) }),
	)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached++
		c, ok := ClaimsFrom(r.Context())
		if !ok || c.Subject != "carol" || r.Header.Get("Authorization") == "" || r.Header.Get("X-Other") != "kept" {
			t.Errorf("claims %+v %v, header %v", c, ok, r.Header)
		}
		w.WriteHeader(http.StatusTeapot)
	}))
	const lacks = `Bearer error="insufficient_scope", error_description="The access token lacks a scope", scope="orders:read orders:write"`
	const invalid = `Bearer error="invalid_token", error_description="The access token `
	for _, c := range []struct {
		name      string
		values    []string
		status    int
		challenge string
		cause     error
	}{
		{"good", []string{"Bearer " + good}, http.StatusTeapot, "", nil},
		{"the scheme's case does not matter", []string{"bEARER  " + good}, http.StatusTeapot, "", nil},
		{"none", nil, 401, "Bearer", ErrNoToken},
		{"another scheme", []string{"Basic YTpi"}, 401, "Bearer", ErrNoToken},
		{"empty", []string{"Bearer "}, 401, "Bearer", ErrNoToken},
		{"twice", []string{"Bearer " + good, "Bearer " + good}, 400, `Bearer error="invalid_request", error_description="Authorization was sent twice"`, ErrTwoTokens},
		{"nonsense", []string{"Bearer nonsense"}, 401, invalid + `is not valid"`, ErrInvalid},
		{"expired", []string{"Bearer " + expired}, 401, invalid + `has expired"`, ErrExpired},
		{"revoked", []string{"Bearer " + ended.token}, 401, invalid + `was revoked"`, ErrRevoked},
		{"without the scopes", []string{"Bearer " + live.token}, 403, lacks, ErrScope},
		{"with one of two", []string{"Bearer " + sign(scoped, func(c *accesstoken.Claims) { c.Scope = "orders:read" })}, 403, lacks, ErrScope},
	} {
		causes = nil
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
		r.Header["Authorization"] = c.values
		r.Header.Set("X-Other", "kept")
		if c.values == nil {
			r.Header.Del("Authorization")
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.status || w.Header().Get("WWW-Authenticate") != c.challenge {
			t.Errorf("%s: %d %q", c.name, w.Code, w.Header().Get("WWW-Authenticate"))
		}
		if c.cause != nil && (len(causes) != 1 || !errors.Is(causes[0], c.cause)) {
			t.Errorf("%s: reported %v", c.name, causes)
		}
	}
	if reached != 2 {
		t.Errorf("%d requests got through", reached)
	}
	server.Kill(t)
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
	r.Header.Set("Authorization", "Bearer "+good)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 503 || w.Header().Get("Retry-After") == "" || w.Header().Get("WWW-Authenticate") != "" {
		t.Errorf("without Redis: %d %v", w.Code, w.Header())
	}
}

func TestScopes(t *testing.T) {
	c := Claims{Scope: "read write:all"}
	for names, want := range map[string]bool{"read": true, "write:all": true, "write": false, "READ": false, "": false, "read write:all": false} {
		if c.HasScope(names) != want {
			t.Errorf("HasScope(%q) is %v", names, !want)
		}
	}
	if (Claims{}).HasScope("") || !c.HasScope() || !c.HasScope("write:all", "read") {
		t.Error("HasScope of none, both, empty")
	}
	defer func() {
		if recover() == nil {
			t.Error("RequireScope took a name that can be no scope")
		}
	}()
	RequireScope(`a"b`)
}
