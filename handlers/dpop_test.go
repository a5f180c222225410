package handlers_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/internal/dpop"
	"github.com/latchkey-auth/latchkey/internal/dpop/dpoptest"
)

// proof is the header DPoP.
func proof(text string) option { return header("DPoP", text) }

// proven shows a token of k's with a proof for a request to the API itself.
func proven(k *dpoptest.Key, method, path, token string, changes ...dpoptest.Change) []option {
	path, _, _ = strings.Cut(path, "?")
	return []option{header("Authorization", "DPoP "+token), proof(k.Proof(method, issuer+path, token, changes...))}
}

// bound logs alice in with a key; the refresh token comes in the body.
func (f *fleet) bound(k *dpoptest.Key) tokens {
	f.Helper()
	a := f.post(0, "/auth/token", form("username", alice, "password", password, "refresh_delivery", "body"), proof(k.Proof("POST", issuer+"/auth/token", "")))
	if kind := a.is(http.StatusOK).member("token_type"); kind != "DPoP" {
		f.Errorf("token_type: %q", kind)
	}
	return a.tokens()
}

func (f *fleet) jkt(access string) any {
	f.Helper()
	cnf, _ := f.claims(access)["cnf"].(map[string]any)
	return cnf["jkt"]
}

// renews refreshes with a key.
func (f *fleet) renews(k *dpoptest.Key, refresh string) answer {
	f.Helper()
	return f.post(0, "/auth/refresh", form("refresh_token", refresh), proof(k.Proof("POST", issuer+"/auth/refresh", "")))
}

// RFC 9449 section 5: the tokens that are asked for with a proof are bound to its key.
func TestRFC9449Section5Binding(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fleet) {
		k, other := dpoptest.NewKey(t, "ES256"), dpoptest.NewKey(t, "EdDSA")
		s := f.bound(k)
		if got := f.jkt(s.access); got != k.JKT {
			t.Errorf("cnf.jkt: %v, want %s", got, k.JKT)
		}
		// Public clients: the refresh token is bound, too. Whoever lacks the key gets
		// nothing and ends nothing, however often.
		for range 3 {
			f.post(0, "/auth/refresh", form("refresh_token", s.refresh)).fails(http.StatusBadRequest, "invalid_dpop_proof", "")
			f.post(0, "/oauth2/token", form("client_id", clientID, "grant_type", "refresh_token", "refresh_token", s.refresh)).fails(http.StatusBadRequest, "invalid_dpop_proof", "")
			f.renews(other, s.refresh).fails(http.StatusUnauthorized, "invalid_grant", "")
			f.post(0, "/oauth2/token", form("client_id", clientID, "grant_type", "refresh_token", "refresh_token", s.refresh),
				proof(other.Proof("POST", issuer+"/oauth2/token", ""))).fails(http.StatusBadRequest, "invalid_grant", "")
		}
		next := f.renews(k, s.refresh)
		if kind := next.is(http.StatusOK).member("token_type"); kind != "DPoP" {
			t.Errorf("token_type: %q", kind)
		}
		second := next.tokens()
		if got := f.jkt(second.access); got != k.JKT {
			t.Errorf("cnf.jkt after a refresh: %v", got)
		}
		// Not even a spent token: only the holder of the key can be stolen from.
		f.age(s.access, 2*grace)
		f.renews(other, s.refresh).fails(http.StatusUnauthorized, "invalid_grant", "")
		third := f.post(1, "/oauth2/token", form("client_id", clientID, "grant_type", "refresh_token", "refresh_token", second.refresh),
			proof(k.Proof("POST", issuer+"/oauth2/token", ""))).tokens()
		f.age(s.access, 2*grace)
		f.renews(k, s.refresh).fails(http.StatusUnauthorized, "invalid_grant", "")
		if f.events()["refresh_reuse"] != 1 {
			t.Errorf("events: %v", f.events())
		}
		f.renews(k, third.refresh).fails(http.StatusUnauthorized, "invalid_grant", "")

		// A session that is bound to nothing is not bound by whoever shows its token.
		plain := f.post(0, "/auth/token", form("username", alice, "password", password, "refresh_delivery", "body")).tokens()
		if f.jkt(plain.access) != nil {
			t.Error("a bearer token has a cnf")
		}
		f.renews(k, plain.refresh).fails(http.StatusUnauthorized, "invalid_grant", "")
		f.post(0, "/auth/refresh", form("refresh_token", plain.refresh)).is(http.StatusOK)
	})
}

// RFC 9449 section 5: a registered client has its secret, so its refresh tokens go with
// any key of its own; what was bound is never had as a bearer token.
func TestRFC9449Section5ConfidentialClients(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	c := f.service("app")
	k, other := dpoptest.NewKey(t, "ES256"), dpoptest.NewKey(t, "ES256")
	ask := func(k *dpoptest.Key, pairs ...string) answer {
		options := []option{c.basic(), form(pairs...)}
		if k != nil {
			options = append(options, proof(k.Proof("POST", issuer+"/oauth2/token", "")))
		}
		return f.post(0, "/oauth2/token", options...)
	}
	machine := ask(k, "grant_type", "client_credentials").is(http.StatusOK)
	if machine.member("token_type") != "DPoP" || f.jkt(machine.member("access_token")) != k.JKT {
		t.Errorf("client credentials: %s", machine.text)
	}
	s := f.post(0, "/auth/token", c.post("username", alice, "password", password), proof(k.Proof("POST", issuer+"/auth/token", ""))).tokens()
	refresh := []string{"grant_type", "refresh_token", "refresh_token"}
	ask(nil, append(refresh, s.refresh)...).fails(http.StatusBadRequest, "invalid_dpop_proof", "")
	next := ask(other, append(refresh, s.refresh)...).tokens()
	if got := f.jkt(next.access); got != other.JKT {
		t.Errorf("cnf.jkt: %v, want that of the new key", got)
	}

	// Section 6.2: introspection says what a token is bound to.
	for _, token := range []string{machine.member("access_token"), next.access} {
		a := f.post(0, "/oauth2/introspect", c.basic(), form("token", token)).is(http.StatusOK).json()
		if diff := cmp.Diff(map[string]any{"jkt": f.jkt(token)}, a["cnf"]); diff != "" || fmt.Sprint(a["active"]) != "true" || a["token_type"] != "DPoP" {
			t.Errorf("introspection: %v", a)
		}
	}
	if a := f.post(0, "/oauth2/introspect", c.basic(), form("token", f.own(c))).json(); a["cnf"] != nil || a["token_type"] != "Bearer" {
		t.Errorf("introspection of a bearer token: %v", a)
	}
	// To revoke a token is not to show it.
	f.post(0, "/oauth2/revoke", c.basic(), form("token", next.access)).is(http.StatusOK)
	if a := f.post(0, "/oauth2/introspect", c.basic(), form("token", next.access)).json(); fmt.Sprint(a["active"]) != "false" {
		t.Errorf("introspection after revocation: %v", a)
	}
}

// RFC 9449 sections 4.3 and 5 at each endpoint that issues tokens.
func TestRFC9449Section5Refusals(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 2})
	k, c := dpoptest.NewKey(t, "ES256"), f.service("app")
	s := f.bound(k)
	for path, options := range map[string][]option{
		"/auth/token":    {form("username", alice, "password", password)},
		"/auth/refresh":  {form("refresh_token", s.refresh)},
		"/oauth2/token":  {c.basic(), form("grant_type", "client_credentials")},
		"/oauth2/token?": {form("client_id", clientID, "grant_type", "refresh_token", "refresh_token", s.refresh)},
	} {
		route := strings.TrimSuffix(path, "?")
		good := func(changes ...dpoptest.Change) option { return proof(k.Proof("POST", issuer+route, "", changes...)) }
		once := good()
		for name, with := range map[string][]option{
			"two headers":      {good(), good()},
			"no JWS":           {proof("x")},
			"empty":            {proof("")},
			"another method":   {good(dpoptest.With("htm", "GET"))},
			"another endpoint": {good(dpoptest.With("htu", issuer+"/users/me"))},
			"by Host": {
				func(r *http.Request) { r.Host = "evil.example" },
				good(dpoptest.With("htu", "http://evil.example"+route)),
			},
			"forwarded by nobody that is trusted": {header("X-Forwarded-Host", "evil.example"), good(dpoptest.With("htu", "https://evil.example"+route))},
			"too old":                             {good(dpoptest.With("iat", time.Now().Add(-2*time.Minute).Unix()))},
		} {
			a := f.post(0, path, append(with, options...)...)
			a.fails(http.StatusBadRequest, "invalid_dpop_proof", "DPoP proof refused")
			if t.Failed() {
				t.Fatal(path, name)
			}
		}
		if route != "/auth/token" {
			continue
		}
		// Section 11.1: once, on any replica.
		f.post(0, path, append(options, once)...).is(http.StatusOK)
		f.post(1, path, append(options, once)...).fails(http.StatusBadRequest, "invalid_dpop_proof", "")
		// What was refused for another reason has not used it up.
		again := good()
		f.post(0, path, form("username", alice, "password", "wrong"), again).fails(http.StatusUnauthorized, "invalid_grant", "")
		f.post(1, path, append(options, again)...).is(http.StatusOK)
	}
	if n := f.events()["proof_refused"]; n == 0 {
		t.Error("no event")
	}
}

// RFC 9449 sections 7.1 and 7.2: a token that is bound is of use to whoever holds the
// key, and to nobody as a bearer token.
func TestRFC9449Section7(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fleet) {
		k, other := dpoptest.NewKey(t, "ES256"), dpoptest.NewKey(t, "ES256")
		s, plain := f.bound(k), f.login(0)
		const algs = `, algs="ES256 ES384 ES512 EdDSA PS256 RS256"`
		const invalidToken = `DPoP realm="latchkey", error="invalid_token", error_description="The access token is not valid"` + algs
		for _, e := range []struct{ method, path string }{
			{"GET", "/users/me"},
			{"GET", "/auth/sessions"},
			{"POST", "/auth/logout-all?except_current=true"},
			{"DELETE", "/auth/sessions/" + f.claim(plain.access, "sid")},
			{"POST", "/users/me/password"},
			{"POST", "/auth/logout"},
		} {
			show := func(options ...option) answer { return f.do(1, e.method, e.path, options...) }
			refused := func(name, code, challenge string, options ...option) {
				t.Helper()
				a := show(options...)
				a.fails(http.StatusUnauthorized, code, "")
				if got := a.header.Get("WWW-Authenticate"); !strings.HasPrefix(got, challenge) {
					t.Errorf("%s %s: %s: challenge %q", e.method, e.path, name, got)
				}
			}
			refused("7.2: as a bearer token", "invalid_token", `Bearer realm="latchkey", error="invalid_token"`, bearer(s.access))
			refused("7.2: with a proof, as a bearer token", "invalid_token", "Bearer", bearer(s.access), proof(k.Proof(e.method, issuer+e.path, s.access)))
			refused("7.1: no proof", "invalid_dpop_proof", `DPoP realm="latchkey", error="invalid_dpop_proof"`, header("Authorization", "DPoP "+s.access))
			refused("4.3 item 12: another's key", "invalid_token", invalidToken, proven(other, e.method, e.path, s.access)...)
			refused("4.3 item 12: another token's hash", "invalid_dpop_proof", "DPoP", proven(k, e.method, e.path, s.access, dpoptest.With("ath", dpoptest.Hash(plain.access)))...)
			refused("4.3 item 12: no hash", "invalid_dpop_proof", "DPoP", proven(k, e.method, e.path, s.access, dpoptest.With("ath", ""))...)
			refused("4.3 item 8: another method", "invalid_dpop_proof", "DPoP", proven(k, "PUT", e.path, s.access)...)
			refused("4.3 item 9: another URL", "invalid_dpop_proof", "DPoP", proven(k, e.method, "/elsewhere", s.access)...)
			refused("7.1: a token that is not bound", "invalid_token", invalidToken, proven(k, e.method, e.path, plain.access)...)
			if e.method != "GET" {
				continue
			}
			good := proven(k, e.method, e.path, s.access)
			show(good...).is(http.StatusOK)
			refused("11.1: a proof used twice", "invalid_dpop_proof", "DPoP", good...)
			show(bearer(plain.access)).is(http.StatusOK)
		}
		// A logout is refused to whoever lacks the key, and does what it says for who has it.
		f.get(0, "/users/me", proven(k, "GET", "/users/me", s.access)...).is(http.StatusOK)
		f.post(0, "/auth/logout", proven(k, "POST", "/auth/logout", s.access)...).is(http.StatusOK)
		f.get(0, "/users/me", proven(k, "GET", "/users/me", s.access)...).fails(http.StatusUnauthorized, "invalid_token", "")
	})
}

// At /auth/verify the proof is of the request that a trusted proxy asks about.
func TestProofsAtVerify(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) { s.TrustedProxies = prefixes(t, "127.0.0.0/8") }})
	k := dpoptest.NewKey(t, "ES256")
	s := f.bound(k)
	const shop = "https://shop.example.com/orders"
	show := func(text string) []option {
		return []option{header("Authorization", "DPoP "+s.access), proof(text)}
	}
	about := func(method, proto, host, uri string) []option {
		return []option{
			header("X-Forwarded-Method", method), header("X-Forwarded-Proto", proto),
			header("X-Forwarded-Host", host), header("X-Forwarded-Uri", uri),
		}
	}
	order := about("POST", "https", "shop.example.com", "/orders?page=2")
	good := func() []option { return show(k.Proof("POST", shop, s.access)) }
	for _, c := range []struct {
		name    string
		path    string
		options []option
		status  int
		code    string
	}{
		{"the request that was asked about", "/auth/verify", append(good(), order...), 204, ""},
		{"the scope is still demanded", "/auth/verify?scope=admin", append(good(), order...), 403, "insufficient_scope"},
		{"as a bearer token", "/auth/verify", append(order, bearer(s.access), proof(k.Proof("POST", shop, s.access))), 401, "invalid_token"},
		{"a proof for another URL", "/auth/verify", append(show(k.Proof("POST", shop+"/1", s.access)), order...), 401, "invalid_dpop_proof"},
		{"a proof for verify itself", "/auth/verify", append(show(k.Proof("GET", issuer+"/auth/verify", s.access)), order...), 401, "invalid_dpop_proof"},
		{"nothing said of the request", "/auth/verify", show(k.Proof("GET", issuer+"/auth/verify", s.access)), 401, "invalid_dpop_proof"},
		{"no method", "/auth/verify", append(show(k.Proof("GET", shop, s.access)), order[1:]...), 401, "invalid_dpop_proof"},
		{"a chain of hosts", "/auth/verify", append(good(), about("POST", "https", "shop.example.com, evil.example", "/orders")...), 401, "invalid_dpop_proof"},
		{"two hosts", "/auth/verify", append(append(good(), order...), header("X-Forwarded-Host", "evil.example")), 401, "invalid_dpop_proof"},
		{"in the form of the request, as Envoy asks", "/auth/verify/orders?page=2", append(
			show(k.Proof("GET", shop, s.access)), header("X-Forwarded-Proto", "https"), header("X-Forwarded-Uri", "/elsewhere"),
			func(r *http.Request) { r.Host = "shop.example.com" }), 204, ""},
	} {
		a := f.get(0, c.path, c.options...)
		if a.status != c.status || (c.code != "" && a.member("error") != c.code) {
			t.Errorf("%s: %d %s", c.name, a.status, a.text)
		}
	}

	// Of others the headers are not believed: they may be the client's.
	stranger := start(t, setup{replicas: 1})
	s = stranger.bound(k)
	a := stranger.get(0, "/auth/verify", append(show(k.Proof("POST", shop, s.access)), order...)...)
	a.fails(http.StatusUnauthorized, "invalid_dpop_proof", "")
	if !strings.Contains(a.text, "no trusted proxy") {
		t.Errorf("the operator is not told why: %s", a.text)
	}
}

// Envoy itself says what the request is.
func TestExtAuthzProofs(t *testing.T) {
	t.Parallel()
	nonces := dpop.NewNonces([]byte(rootSecret))
	e := extAuthz(t, setup{})
	k := dpoptest.NewKey(t, "ES256")
	s := e.bound(k)
	show := func(scheme, text string) map[string]string {
		return map[string]string{"authorization": scheme + " " + s.access, "dpop": text}
	}
	const shop = "https://shop.example.com/orders"
	good := show("DPoP", k.Proof("PUT", shop, s.access))
	e.accepted(e.check(asks("PUT", good)), s.access)
	h := e.refused(e.check(asks("PUT", good)), 401, "invalid_dpop_proof")
	if !strings.HasPrefix(h["www-authenticate"], `DPoP realm="latchkey", error="invalid_dpop_proof"`) {
		t.Errorf("challenge %q", h["www-authenticate"])
	}
	e.refused(e.check(asks("PUT", show("Bearer", k.Proof("PUT", shop, s.access)))), 401, "invalid_token")
	e.refused(e.check(asks("PUT", show("DPoP", k.Proof("GET", shop, s.access)))), 401, "invalid_dpop_proof")
	e.refused(e.check(asks("PUT", show("DPoP", k.Proof("PUT", issuer, s.access)))), 401, "invalid_dpop_proof")
	e.refused(e.check(asks("PUT", show("DPoP", k.Proof("PUT", shop, s.access)), "scope", "admin")), 403, "insufficient_scope")

	// With nonces Envoy passes them on.
	e = extAuthz(t, setup{settings: func(s *handlers.Settings) { s.Nonces = nonces }})
	first := nonces.Current(time.Now())
	s = e.post(0, "/auth/token", form("username", alice, "password", password), proof(k.Proof("POST", issuer+"/auth/token", "", dpoptest.With("nonce", first)))).tokens()
	h = e.refused(e.check(asks("PUT", show("DPoP", k.Proof("PUT", shop, s.access)))), 401, "use_dpop_nonce")
	answer := e.check(asks("PUT", show("DPoP", k.Proof("PUT", shop, s.access, dpoptest.With("nonce", h["dpop-nonce"])))))
	e.accepted(answer, s.access)
	if setHeaders(e, answer.GetOkResponse().GetResponseHeadersToAdd())["dpop-nonce"] == "" {
		t.Error("no nonce for the client")
	}
}

// RFC 9449 sections 8 and 9: a nonce of the server's, by setting.
func TestRFC9449Section8Nonces(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 2, settings: func(s *handlers.Settings) {
		s.Nonces = dpop.NewNonces([]byte(rootSecret))
		s.AllowedOrigins = []string{"https://app.example.com"}
	}})
	k := dpoptest.NewKey(t, "ES256")
	login := form("username", alice, "password", password)
	ask := func(replica int, changes ...dpoptest.Change) answer {
		return f.post(replica, "/auth/token", login, proof(k.Proof("POST", issuer+"/auth/token", "", changes...)), header("Origin", "https://app.example.com"))
	}
	a := ask(0)
	a.fails(http.StatusBadRequest, "use_dpop_nonce", "")
	nonce := a.header.Get("DPoP-Nonce")
	if nonce == "" {
		t.Fatal("no nonce")
	}
	if exposed := a.header.Get("Access-Control-Expose-Headers"); !strings.Contains(strings.ToLower(exposed), "dpop-nonce") {
		t.Errorf("pages cannot read it: %q", exposed)
	}
	ask(0, dpoptest.With("nonce", "made up")).fails(http.StatusBadRequest, "use_dpop_nonce", "")
	ok := ask(1, dpoptest.With("nonce", nonce)) // section 8: any replica knows it
	s := ok.tokens()
	if ok.header.Get("DPoP-Nonce") == "" { // section 8.2
		t.Error("no nonce with the tokens")
	}
	a = f.get(0, "/users/me", proven(k, "GET", "/users/me", s.access)...)
	a.fails(http.StatusUnauthorized, "use_dpop_nonce", "") // section 9
	if got := a.header.Get("WWW-Authenticate"); !strings.HasPrefix(got, `DPoP realm="latchkey", error="use_dpop_nonce"`) {
		t.Errorf("challenge %q", got)
	}
	f.get(1, "/users/me", proven(k, "GET", "/users/me", s.access, dpoptest.With("nonce", a.header.Get("DPoP-Nonce")))...).is(http.StatusOK)
	// Whoever sends no proof is not told to.
	if a := f.post(0, "/auth/token", login); a.is(http.StatusOK).header.Get("DPoP-Nonce") != "" {
		t.Error("a nonce for who sent no proof")
	}
	if n := f.events()["proof_refused"]; n != 0 {
		t.Errorf("a nonce that is missing is no event: %d", n)
	}
	// A page may send the header.
	pre, err := f.try(0, http.MethodOptions, "/auth/token", header("Origin", "https://app.example.com"),
		header("Access-Control-Request-Method", "POST"), header("Access-Control-Request-Headers", "dpop"))
	f.check(err)
	if allowed := pre.header.Get("Access-Control-Allow-Headers"); !strings.Contains(strings.ToLower(allowed), "dpop") {
		t.Errorf("preflight allows %q", allowed)
	}
}

// No browser sends a proof with a cookie: a bound token is in none, and counts in none.
func TestABoundTokenIsNoCookie(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) { s.AccessCookie = accessCookie }})
	k := dpoptest.NewKey(t, "ES256")
	a := f.post(0, "/auth/token", form("username", alice, "password", password), proof(k.Proof("POST", issuer+"/auth/token", "")))
	if c := a.cookie(accessCookie); c.Value != "" || c.MaxAge >= 0 {
		t.Errorf("cookie: %v", c)
	}
	s := a.tokens()
	inCookie := header("Cookie", accessCookie+"="+s.access)
	f.get(0, "/users/me", inCookie).fails(http.StatusUnauthorized, "invalid_token", "")
	f.get(0, "/auth/verify", inCookie).fails(http.StatusUnauthorized, "invalid_token", "")
	f.post(0, "/auth/logout", inCookie).is(http.StatusOK) // passed over: see TestAPlantedCookieKeepsNobodyIn
	// The refresh cookie is bound as the token in a body is.
	f.post(0, "/auth/refresh", cookie(s.refresh)).fails(http.StatusBadRequest, "invalid_dpop_proof", "")
	f.post(0, "/auth/refresh", cookie(s.refresh), proof(k.Proof("POST", issuer+"/auth/refresh", ""))).is(http.StatusOK)
	// One that was left over does not keep the living one from being found.
	plain := f.login(0)
	f.post(0, "/auth/refresh", cookie(s.refresh), cookie(plain.refresh)).is(http.StatusOK)
}

// What a proof costs: one round trip, and nothing for those who send none.
func TestRoundTripsOfProofs(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	k, c := dpoptest.NewKey(t, "ES256"), f.service("app")
	var s tokens
	for range 2 { // the first time Redis learns the scripts
		s = f.bound(k)
		f.get(0, "/users/me", proven(k, "GET", "/users/me", s.access)...).is(http.StatusOK)
		s = f.renews(k, s.refresh).tokens()
		f.own(c)
	}
	to := func(path string) option { return proof(k.Proof("POST", issuer+path, "")) }
	for _, q := range []struct {
		name, method, path string
		options            []option
		status, want       int
	}{
		{"login", "POST", "/auth/token", []option{form("username", alice, "password", password), to("/auth/token")}, 200, 3},
		{"refresh", "POST", "/auth/refresh", []option{form("refresh_token", s.refresh), to("/auth/refresh")}, 200, 2},
		{"client credentials", "POST", "/oauth2/token", []option{c.basic(), form("grant_type", "client_credentials"), to("/oauth2/token")}, 200, 2},
		{"me", "GET", "/users/me", proven(k, "GET", "/users/me", s.access), 200, 4},
		{"a bad proof", "POST", "/auth/token", []option{form("username", alice, "password", password), proof("x")}, 400, 0},
		{"a bad token", "GET", "/users/me", proven(k, "GET", "/users/me", "x"), 401, 0},
	} {
		before := f.replicas[0].trips.n.Load()
		f.do(0, q.method, q.path, q.options...).is(q.status)
		if got := int(f.replicas[0].trips.n.Load() - before); got != q.want {
			t.Errorf("%s: %d round trips, want %d", q.name, got, q.want)
		}
	}
}

// A proof that cannot be remembered is not accepted.
func TestAProofDuringAnOutage(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, impatient: true})
	k := dpoptest.NewKey(t, "ES256")
	s := f.bound(k)
	f.redis.Pause(t)
	for path, method := range map[string]string{"/users/me": "GET", "/auth/logout": "POST"} {
		f.do(0, method, path, proven(k, method, path, s.access)...).fails(http.StatusServiceUnavailable, "temporarily_unavailable", "")
	}
	f.redis.Resume(t)
}

// RFC 9449 section 5.1.
func TestMetadataOfDPoP(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	a, err := f.try(0, http.MethodGet, "/.well-known/oauth-authorization-server")
	f.check(err)
	want := []any{"ES256", "ES384", "ES512", "EdDSA", "PS256", "RS256"}
	if diff := cmp.Diff(any(want), a.is(http.StatusOK).json()["dpop_signing_alg_values_supported"]); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// A key's thumbprint in the store is that of the token, and no proof is kept.
func TestWhatTheStoreKeepsOfAKey(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	k := dpoptest.NewKey(t, "ES256")
	s := f.bound(k)
	if got := f.session(s.access)["jkt"]; got != k.JKT {
		t.Errorf("jkt: %q", got)
	}
	keys, err := f.rdb.Keys(t.Context(), "lk:*:used:*").Result()
	f.check(err)
	if len(keys) != 1 {
		t.Fatalf("%d proofs are remembered", len(keys))
	}
	ttl, err := f.rdb.PTTL(t.Context(), keys[0]).Result()
	f.check(err)
	f.near(t, "remembered for", ttl, dpop.Window+pad, 5*time.Second)
}
