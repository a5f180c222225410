package handlers_test

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// registered is a client with its secret.
type registered struct{ id, secret string }

// register makes a client whose secret needs every escape.
func (f *fleet) register(c tokenstore.Client) registered {
	f.Helper()
	r := registered{c.ID, "canary-" + c.ID + "-s3cr3t:%+ &=é"}
	f.secrets.add(r.secret)
	f.check(f.replicas[0].store.Clients.Create(f.Context(), c, sha256.Sum256([]byte(r.secret))))
	return r
}

// service is a client of every kind that the tests need.
func (f *fleet) service(name string) registered {
	f.Helper()
	return f.register(tokenstore.Client{
		ID: "lkc_" + name, Grants: "client_credentials refresh_token", Scopes: "read write", Introspect: true,
	})
}

// basic is client_secret_basic (RFC 6749 section 2.3.1): both halves form-urlencoded.
func (r registered) basic() option {
	return header("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(r.id)+":"+url.QueryEscape(r.secret))))
}

// post is client_secret_post.
func (r registered) post(pairs ...string) option {
	return form(append([]string{"client_id", r.id, "client_secret", r.secret}, pairs...)...)
}

// own gets the client a token for itself.
func (f *fleet) own(r registered) string {
	f.Helper()
	return f.post(0, "/oauth2/token", r.basic(), form("grant_type", "client_credentials")).is(http.StatusOK).member("access_token")
}

// logs has a client log alice in.
func (f *fleet) logs(r registered, pairs ...string) tokens {
	f.Helper()
	return f.post(0, "/auth/token", r.post(append([]string{"username", alice, "password", password}, pairs...)...)).tokens()
}

const (
	noCache = "Pragma: no-cache\n"
	granted = `{"access_token":"JWT","token_type":"bearer","expires_in":900`
)

func oauthProblem(status int, headers, code, description string) string {
	return fmt.Sprintf("%d\n"+noStore+inJSON+noCache+"%s"+`{"detail":%q,"error":%q,"error_description":%q}`, status, headers, description, code, description)
}

// The contract with clients of /oauth2, word for word. Each row names the section
// that it follows.
func TestOAuthAnswers(t *testing.T) {
	t.Parallel()
	f := start(t, setup{})
	full := f.service("full")
	bare := f.register(tokenstore.Client{ID: "lkc_bare"})
	forA := f.register(tokenstore.Client{ID: "lkc_for_a", Grants: "client_credentials", Audiences: "https://a.example"})
	first := f.login(0)
	others := f.logs(full)
	mine, narrow, twice := f.logs(full), f.logs(full), f.logs(full)
	dead := f.own(full)
	f.post(0, "/oauth2/revoke", full.post("token", dead)).is(http.StatusOK)

	grant := func(kind string, pairs ...string) option {
		return form(append([]string{"grant_type", kind}, pairs...)...)
	}
	public := func(pairs ...string) option { return form(append([]string{"client_id", clientID}, pairs...)...) }
	ok := "200\n" + noStore + inJSON + noCache
	unauthenticated := oauthProblem(401, "WWW-Authenticate: Basic realm=\"latchkey\"\n", "invalid_client", "Client authentication failed")
	invalid := func(description string) string { return oauthProblem(400, "", "invalid_request", description) }
	badGrant := oauthProblem(400, "", "invalid_grant", "The refresh token is not valid")
	twoMethods := invalid("The client was named twice: in Authorization and in the body")
	inactive := ok + `{"active":false}`
	revoked := "200\n" + noStore + noCache

	for _, c := range []struct {
		name, path string
		options    []option
		want       string
	}{
		// The token endpoint.
		{"RFC 6749 4.4.3 and 5.1: a client's own token, no refresh token", "/oauth2/token", []option{full.basic(), grant("client_credentials")}, ok + granted + `,"scope":"read write"}`},
		{"RFC 6749 2.3.1: client_secret_post", "/oauth2/token", []option{full.post("grant_type", "client_credentials", "scope", "write")}, ok + granted + `,"scope":"write"}`},
		{"RFC 6749 2.3.1: client_id also in the body", "/oauth2/token", []option{full.basic(), grant("client_credentials", "client_id", full.id, "scope", "write")}, ok + granted + `,"scope":"write"}`},
		{"RFC 6749 3.3: a client without scopes", "/oauth2/token", []option{forA.basic(), grant("client_credentials")}, ok + granted + `}`},
		{"RFC 6749 3.2: an unknown parameter is ignored", "/oauth2/token", []option{forA.basic(), grant("client_credentials", "resource", "https://a.example")}, ok + granted + `}`},
		{"RFC 6749 3.1: an empty parameter is none", "/oauth2/token", []option{full.basic(), grant("client_credentials", "scope", "")}, ok + granted + `,"scope":"read write"}`},
		{"RFC 6749 6: refresh", "/oauth2/token", []option{full.basic(), grant("refresh_token", "refresh_token", mine.refresh)}, ok + granted + `,"refresh_token":"REFRESH","scope":"read write"}`},
		{"RFC 6749 6: refresh with less scope", "/oauth2/token", []option{full.basic(), grant("refresh_token", "refresh_token", narrow.refresh, "scope", "read")}, ok + granted + `,"refresh_token":"REFRESH","scope":"read"}`},
		{"RFC 6749 3.2.1: the public client names itself", "/oauth2/token", []option{public("grant_type", "refresh_token", "refresh_token", first.refresh)}, ok + granted + `,"refresh_token":"REFRESH","scope":"read write"}`},

		{"RFC 6749 5.2 invalid_request: no grant_type", "/oauth2/token", []option{full.basic(), form("scope", "read")}, invalid("grant_type is required")},
		{"RFC 6749 5.2 invalid_request: no refresh_token", "/oauth2/token", []option{full.basic(), grant("refresh_token")}, invalid("refresh_token is required")},
		{"RFC 6749 5.2 invalid_request: a parameter twice", "/oauth2/token", []option{full.basic(), body("application/x-www-form-urlencoded", "grant_type=client_credentials&grant_type=client_credentials")}, invalid("A parameter was sent twice")},
		{"RFC 6749 5.2 invalid_request: two methods", "/oauth2/token", []option{full.basic(), full.post("grant_type", "client_credentials")}, twoMethods},
		{"RFC 6749 5.2 invalid_request: two clients", "/oauth2/token", []option{full.basic(), grant("client_credentials", "client_id", bare.id)}, twoMethods},
		{"RFC 6749 5.2 invalid_request: two Authorization headers", "/oauth2/token", []option{full.basic(), full.basic(), grant("client_credentials")}, invalid("Authorization was sent twice")},
		{"RFC 6749 3.2: JSON is no form", "/oauth2/token", []option{full.basic(), jsonBody(`{"grant_type":"client_credentials"}`)}, invalid("Send the parameters as application/x-www-form-urlencoded")},
		{"RFC 6749 3.2: no body", "/oauth2/token", []option{full.basic()}, invalid("Send the parameters as application/x-www-form-urlencoded")},
		{"RFC 6749 3.2: parameters in the query", "/oauth2/token?grant_type=client_credentials", []option{full.basic(), form("scope", "read")}, invalid("grant_type is required")},

		{"RFC 6749 5.2 invalid_client: none", "/oauth2/token", []option{grant("client_credentials")}, unauthenticated},
		{"RFC 6749 5.2 invalid_client: unknown", "/oauth2/token", []option{registered{"lkc_nobody", "x"}.basic(), grant("client_credentials")}, unauthenticated},
		{"RFC 6749 5.2 invalid_client: wrong secret", "/oauth2/token", []option{registered{full.id, "wrong"}.basic(), grant("client_credentials")}, unauthenticated},
		{"RFC 6749 5.2 invalid_client: wrong secret in the body", "/oauth2/token", []option{registered{full.id, "wrong"}.post("grant_type", "client_credentials")}, unauthenticated},
		{"RFC 6749 5.2 invalid_client: no secret", "/oauth2/token", []option{grant("client_credentials", "client_id", full.id)}, unauthenticated},
		{"RFC 6749 5.2 invalid_client: another method", "/oauth2/token", []option{bearer(others.access), grant("client_credentials")}, unauthenticated},
		{"RFC 6749 5.2 invalid_client: the public client has no secret", "/oauth2/token", []option{registered{clientID, "x"}.basic(), grant("refresh_token", "refresh_token", first.refresh)}, unauthenticated},
		{"RFC 6749 5.2 invalid_client: an empty secret", "/oauth2/token", []option{registered{clientID, ""}.basic(), grant("refresh_token", "refresh_token", first.refresh)}, unauthenticated},
		{"RFC 6749 2.3.1: a secret that is not encoded", "/oauth2/token", []option{header("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(full.id+":"+full.secret))), grant("client_credentials")}, unauthenticated},
		{"RFC 7617 2: no base64", "/oauth2/token", []option{header("Authorization", "Basic ????"), grant("client_credentials")}, unauthenticated},
		{"RFC 7617 2: no colon", "/oauth2/token", []option{header("Authorization", "Basic "+b64("ab")), grant("client_credentials")}, unauthenticated},

		{"RFC 6749 5.2 invalid_grant: no token of ours", "/oauth2/token", []option{full.basic(), grant("refresh_token", "refresh_token", "garbage")}, badGrant},
		{"RFC 6749 5.2 invalid_grant: an access token", "/oauth2/token", []option{full.basic(), grant("refresh_token", "refresh_token", others.access)}, badGrant},
		{"RFC 6749 5.2 invalid_grant: another client's", "/oauth2/token", []option{public("grant_type", "refresh_token", "refresh_token", others.refresh)}, badGrant},
		{"RFC 6749 5.2 unauthorized_client: client_credentials", "/oauth2/token", []option{bare.basic(), grant("client_credentials")}, oauthProblem(400, "", "unauthorized_client", "The client is not registered for the grant client_credentials")},
		{"RFC 6749 5.2 unauthorized_client: refresh_token", "/oauth2/token", []option{forA.basic(), grant("refresh_token", "refresh_token", others.refresh)}, oauthProblem(400, "", "unauthorized_client", "The client is not registered for the grant refresh_token")},
		{"RFC 6749 4.4: client_credentials is for confidential clients", "/oauth2/token", []option{public("grant_type", "client_credentials")}, oauthProblem(400, "", "unauthorized_client", "The client is not registered for the grant client_credentials")},
		{"RFC 6749 5.2 unsupported_grant_type: password", "/oauth2/token", []option{full.basic(), grant("password", "username", alice, "password", password)}, oauthProblem(400, "", "unsupported_grant_type", "grant_type is client_credentials or refresh_token")},
		{"RFC 6749 5.2 unsupported_grant_type: authorization_code", "/oauth2/token", []option{full.basic(), grant("authorization_code", "code", "x")}, oauthProblem(400, "", "unsupported_grant_type", "grant_type is client_credentials or refresh_token")},
		{"RFC 6749 5.2 invalid_scope: more than is allowed", "/oauth2/token", []option{full.basic(), grant("client_credentials", "scope", "read admin")}, oauthProblem(400, "", "invalid_scope", "The scope exceeds what the client is allowed")},
		{"RFC 6749 5.2 invalid_scope: malformed", "/oauth2/token", []option{full.basic(), grant("client_credentials", "scope", `re"ad`)}, oauthProblem(400, "", "invalid_scope", "scope is one or more names with one space between them")},
		{"RFC 6749 6 invalid_scope: more than was granted", "/oauth2/token", []option{full.basic(), grant("refresh_token", "refresh_token", twice.refresh, "scope", "read admin")}, oauthProblem(400, "", "invalid_scope", "The scope exceeds what was granted")},
		{"RFC 6749 6: which has not spent the token", "/oauth2/token", []option{full.basic(), grant("refresh_token", "refresh_token", twice.refresh)}, ok + granted + `,"refresh_token":"REFRESH","scope":"read write"}`},

		// Introspection.
		{"RFC 7662 2.1: the caller authenticates", "/oauth2/introspect", []option{form("token", first.access)}, unauthenticated},
		{"RFC 7662 2.1: the public client does not", "/oauth2/introspect", []option{public("token", first.access)}, unauthenticated},
		{"RFC 7662 2.1: a bearer token is no client", "/oauth2/introspect", []option{bearer(first.access), form("token", first.access)}, unauthenticated},
		{"RFC 7662 2.3: who may not ask", "/oauth2/introspect", []option{bare.basic(), form("token", first.access)}, oauthProblem(403, "", "unauthorized_client", "The client may not introspect")},
		{"RFC 7662 2.1: no token", "/oauth2/introspect", []option{full.basic(), form("token_type_hint", "access_token")}, invalid("token is required")},
		{"RFC 7662 2.1: token twice", "/oauth2/introspect", []option{full.basic(), body("application/x-www-form-urlencoded", "token=a&token=b")}, invalid("A parameter was sent twice")},
		{"RFC 7662 2.2: no token of ours", "/oauth2/introspect", []option{full.basic(), form("token", "garbage")}, inactive},
		{"RFC 7662 2.2: revoked", "/oauth2/introspect", []option{full.basic(), form("token", dead)}, inactive},
		{"RFC 7662 2.2: a refresh token that is spent", "/oauth2/introspect", []option{full.basic(), form("token", mine.refresh)}, inactive},
		{"RFC 7662 4: another's refresh token", "/oauth2/introspect", []option{full.basic(), form("token", f.login(0).refresh)}, inactive},
		{"RFC 7662 4: a token that is for others", "/oauth2/introspect", []option{full.basic(), form("token", f.own(forA))}, inactive},

		// Revocation.
		{"RFC 7009 2.1: the client authenticates", "/oauth2/revoke", []option{form("token", others.refresh)}, unauthenticated},
		{"RFC 7009 2.1: no token", "/oauth2/revoke", []option{full.basic(), form("token_type_hint", "access_token")}, invalid("token is required")},
		{"RFC 7009 2.1: another client's refresh token", "/oauth2/revoke", []option{bare.basic(), form("token", others.refresh)}, oauthProblem(400, "", "invalid_grant", "The token was issued to another client")},
		{"RFC 7009 2.1: another client's access token", "/oauth2/revoke", []option{public("token", others.access)}, oauthProblem(400, "", "invalid_grant", "The token was issued to another client")},
		{"RFC 7009 2.1: the public client's own, shown by another", "/oauth2/revoke", []option{full.basic(), form("token", first.access)}, oauthProblem(400, "", "invalid_grant", "The token was issued to another client")},
		{"RFC 7009 2.2: no token of ours", "/oauth2/revoke", []option{full.basic(), form("token", "garbage")}, revoked},
		{"RFC 7009 2.2: an unknown hint is ignored", "/oauth2/revoke", []option{full.basic(), form("token", others.refresh, "token_type_hint", "id_token")}, revoked},
		{"RFC 7009 2.2: revoked already", "/oauth2/revoke", []option{full.basic(), form("token", others.refresh)}, revoked},
		{"RFC 7009 2.1: a wrong hint", "/oauth2/revoke", []option{public("token", first.access, "token_type_hint", "refresh_token")}, revoked},
	} {
		a := f.post(0, c.path, c.options...)
		if diff := cmp.Diff(strings.TrimSuffix(c.want, "\n"), strings.TrimSuffix(a.golden(), "\n")); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.name, diff)
		}
	}
	f.dead(first)
	f.accessDead(others.access)
	for _, path := range []string{"/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"} { // RFC 6749 section 3.2: POST
		f.get(0, path).fails(http.StatusMethodNotAllowed, "method_not_allowed", "")
	}
}

// RFC 6749 section 5.2: error_description has no quote, no backslash, nothing that is
// not ASCII.
func TestRFC6749Section52Descriptions(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	full := f.service("full")
	plain := regexp.MustCompile(`^[\x20-\x21\x23-\x5b\x5d-\x7e]+$`)
	for _, nasty := range []string{`"`, `\`, "é", "\n", "\x00", "\xff", "%"} {
		for _, options := range [][]option{
			{full.basic(), form("grant_type", nasty)},
			{full.basic(), form("grant_type", "client_credentials", "scope", nasty)},
			{full.basic(), form("grant_type", "refresh_token", "refresh_token", nasty)},
			{registered{nasty, nasty}.basic(), form("grant_type", "client_credentials")},
			{registered{"lkc_" + nasty, nasty}.post("grant_type", "client_credentials")},
		} {
			a := f.post(0, "/oauth2/token", options...)
			if a.status != 400 && a.status != 401 || !plain.MatchString(a.member("error_description")) || !plain.MatchString(a.member("error")) {
				t.Errorf("%q: %d %s", nasty, a.status, a.text)
			}
		}
	}
}

// RFC 9068 section 2.2 and 3, RFC 6749 section 4.4: what a client's own token says.
func TestClaimsOfAClientsOwnToken(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fleet) {
		full := f.service("full")
		forTwo := f.register(tokenstore.Client{ID: "lkc_two", Grants: "client_credentials", Audiences: "https://a.example https://b.example"})
		token := f.own(full)
		c := f.claims(token)
		for name, want := range map[string]any{
			"iss": issuer, "sub": full.id, "client_id": full.id, "aud": audience, "scope": "read write", "ue": 0.0,
			"auth_time": nil, // RFC 9068 section 2.2.1: nobody has logged in
		} {
			if c[name] != want {
				t.Errorf("%s: got %v, want %v", name, c[name], want)
			}
		}
		if c["exp"].(float64)-c["iat"].(float64) != 900 || c["jti"] == c["sid"] {
			t.Errorf("%v", c)
		}
		if head := mustDecode(t, strings.Split(token, ".")[0]); head != f.header() { // RFC 9068 section 2.1: at+jwt
			t.Errorf("header: %s", head)
		}
		if got := fmt.Sprint(f.claims(f.own(forTwo))["aud"]); got != "[https://a.example https://b.example]" {
			t.Errorf("aud: %s", got)
		}
		// RFC 9068 section 4: who is not in aud refuses it.
		f.get(0, "/auth/verify", bearer(f.own(forTwo))).fails(http.StatusUnauthorized, "invalid_token", "")
		f.get(1, "/auth/verify", bearer(token)).is(http.StatusNoContent).hasHeader("X-Auth-Subject", full.id)
	})
}

// RFC 9068 section 5: a client is no user.
func TestAClientIsNoUser(t *testing.T) {
	t.Parallel()
	f := start(t, setup{})
	token := f.own(f.service("full"))
	for _, r := range []struct{ method, path string }{
		{"GET", "/users/me"},
		{"POST", "/users/me/password"},
		{"GET", "/auth/sessions"},
		{"DELETE", "/auth/sessions/" + f.claim(token, "sid")},
		{"POST", "/auth/logout-all"},
	} {
		f.do(0, r.method, r.path, bearer(token)).fails(http.StatusForbidden, "access_denied", "Not a user")
	}
	f.get(0, "/auth/verify", bearer(token)).is(http.StatusNoContent)
}

// What a user grants to a registered client does not let it manage the account, unless
// that is what was granted.
func TestAClientsTokenManagesNoAccount(t *testing.T) {
	t.Parallel()
	f := start(t, setup{})
	f.account(tokenstore.Account{Username: "bob", Scopes: "read latchkey:account"}, password)
	app := f.register(tokenstore.Client{ID: "lkc_app", Grants: "refresh_token", Scopes: "read latchkey:account"})
	granted := func(scope string) tokens {
		return f.post(0, "/auth/token", app.post("username", "bob", "password", password, "scope", scope)).tokens()
	}
	const next = "another-canary-password"
	f.secrets.add(next)
	own, narrow := f.loginAs(1, "bob", password), granted("read")
	for _, r := range []struct {
		method, path string
		options      []option
	}{
		{"GET", "/users/me", nil},
		{"POST", "/users/me/password", []option{form("current_password", password, "new_password", next)}},
		{"GET", "/auth/sessions", nil},
		{"DELETE", "/auth/sessions/" + f.claim(own.access, "sid"), nil},
		{"DELETE", "/auth/sessions/" + f.claim(narrow.access, "sid"), nil},
		{"POST", "/auth/logout-all", nil},
	} {
		a := f.do(0, r.method, r.path, append(r.options, bearer(narrow.access))...)
		a.fails(http.StatusForbidden, "insufficient_scope", "Insufficient scope")
		a.hasHeader("WWW-Authenticate", `Bearer realm="latchkey", error="insufficient_scope", error_description="The access token lacks a scope", scope="latchkey:account"`)
	}
	f.alive(own.access)
	f.loginAs(0, "bob", password)
	// It may still end its own session.
	f.post(2, "/auth/logout", bearer(narrow.access)).is(http.StatusOK)
	f.accessDead(narrow.access)

	wide := granted("latchkey:account")
	f.get(0, "/users/me", bearer(wide.access)).is(http.StatusOK)
	f.get(1, "/auth/sessions", bearer(wide.access)).is(http.StatusOK)
	f.post(2, "/users/me/password", bearer(wide.access), form("current_password", password, "new_password", next)).is(http.StatusOK)
	f.accessDead(own.access)
	// The service's own logins need no scope for it, whatever they asked for.
	plain := f.post(0, "/auth/token", form("username", "bob", "password", next, "scope", "read")).tokens()
	f.do(1, http.MethodDelete, "/auth/sessions/"+f.claim(wide.access, "sid"), bearer(plain.access)).is(http.StatusNoContent)
	f.post(1, "/auth/logout-all", bearer(plain.access)).is(http.StatusOK)
}

// RFC 6750 section 3.1 insufficient_scope; RFC 6749 section 3.3: /auth/token grants
// what is asked for and allowed, and says so.
func TestGrantedScopes(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fleet) {
		ask := func(scope string) (tokens, any) {
			t.Helper()
			a := f.post(0, "/auth/token", form("username", alice, "password", password, "scope", scope))
			return a.tokens(), a.json()["scope"]
		}
		for asked, want := range map[string]any{"": "read write", "read": "read", "write read": "write read", "read admin": "read", "read read": "read"} {
			s, says := ask(asked)
			if got := f.claim(s.access, "scope"); got != want || says != want {
				t.Errorf("asked %q: the token has %q, the answer %q, want %q", asked, got, says, want)
			}
		}
		s, _ := ask("read")
		for i := range 3 { // it does not grow, whatever the account is allowed
			if got := f.claim(s.access, "scope"); got != "read" {
				t.Errorf("after %d refreshes: %q", i, got)
			}
			f.get(i, "/auth/verify?scope=read", bearer(s.access)).is(http.StatusNoContent)
			a := f.get(i, "/auth/verify?scope=read+write", bearer(s.access))
			a.fails(http.StatusForbidden, "insufficient_scope", "Insufficient scope")
			a.hasHeader("WWW-Authenticate", `Bearer realm="latchkey", error="insufficient_scope", error_description="The access token lacks a scope", scope="read write"`)
			s = f.rotate(i, s)
		}
	})
}

// RFC 6749 section 6: less may be asked for at a refresh, and more again later, as
// the refresh token keeps its scope; never more than was granted.
func TestRFC6749Section6Scope(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fleet) {
		full := f.service("full")
		s := f.logs(full)
		for _, c := range []struct{ asked, want string }{{"read", "read"}, {"", "read write"}, {"write", "write"}, {"read write", "read write"}} {
			s = f.post(1, "/oauth2/token", full.basic(), form("grant_type", "refresh_token", "refresh_token", s.refresh, "scope", c.asked)).tokens()
			if got := f.claim(s.access, "scope"); got != c.want {
				t.Errorf("asked %q: %q", c.asked, got)
			}
		}
		// A client narrows what a user may grant.
		f.account(tokenstore.Account{Username: "dora", Scopes: "read admin"}, password)
		dora := f.post(0, "/auth/token", full.post("username", "dora", "password", password)).tokens()
		if got := f.claim(dora.access, "scope"); got != "read" {
			t.Errorf("dora by way of the client: %q", got)
		}
	})
}

// RFC 6749 section 6 and 10.4: a refresh token works for the client that it was issued
// to, and who shows it to another endpoint, or as another client, ends nothing.
func TestRFC6749Section6Binding(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fleet) {
		full, other := f.service("full"), f.service("other")
		s := f.logs(full)
		if f.claim(s.access, "client_id") != full.id || f.claim(s.access, "sub") != alice {
			t.Errorf("%v", f.claims(s.access))
		}
		for range 3 {
			f.post(0, "/oauth2/token", other.basic(), form("grant_type", "refresh_token", "refresh_token", s.refresh)).fails(http.StatusBadRequest, "invalid_grant", "")
			f.post(0, "/oauth2/token", form("client_id", clientID, "grant_type", "refresh_token", "refresh_token", s.refresh)).fails(http.StatusBadRequest, "invalid_grant", "")
			f.post(0, "/auth/refresh", form("refresh_token", s.refresh)).fails(http.StatusUnauthorized, "invalid_grant", "")
			f.post(0, "/auth/refresh", cookie(s.refresh)).fails(http.StatusUnauthorized, "invalid_grant", "")
		}
		next := f.post(2, "/oauth2/token", full.basic(), form("grant_type", "refresh_token", "refresh_token", s.refresh)).tokens()
		f.alive(next.access)
		if f.events()["refresh_reuse"] != 0 {
			t.Error("another client's attempt counts as theft")
		}
		// The retry whose answer was lost gets the same successor; a theft ends the family.
		again := f.post(1, "/oauth2/token", full.basic(), form("grant_type", "refresh_token", "refresh_token", s.refresh)).tokens()
		if again.refresh != next.refresh {
			t.Error("the retry got another successor")
		}
		f.age(s.access, 2*grace)
		f.post(0, "/oauth2/token", full.basic(), form("grant_type", "refresh_token", "refresh_token", s.refresh)).fails(http.StatusBadRequest, "invalid_grant", "")
		f.accessDead(s.access, next.access)
		// A session of the service's own is refreshed at either endpoint.
		own := f.login(0)
		own = f.post(1, "/oauth2/token", form("client_id", clientID, "grant_type", "refresh_token", "refresh_token", own.refresh)).tokens()
		f.refresh(2, own)
	})
}

// Who logs users in by way of a client.
func TestLoginByAClient(t *testing.T) {
	t.Parallel()
	f := start(t, setup{})
	full, bare := f.service("full"), f.register(tokenstore.Client{ID: "lkc_bare", Grants: "client_credentials"})
	login := []string{"username", alice, "password", password}
	f.post(0, "/auth/token", full.basic(), form(login...)).is(http.StatusOK)
	f.post(0, "/auth/token", registered{full.id, "wrong"}.post(login...)).fails(http.StatusUnauthorized, "invalid_client", "")
	f.post(0, "/auth/token", registered{full.id, ""}.post(login...)).fails(http.StatusUnauthorized, "invalid_client", "")
	f.post(0, "/auth/token", full.basic(), full.post(login...)).fails(http.StatusBadRequest, "invalid_request", "")
	f.post(0, "/auth/token", bare.post(login...)).fails(http.StatusBadRequest, "unauthorized_client", "")
	f.post(0, "/auth/token", full.post(append(login, "refresh_delivery", "cookie")...)).fails(http.StatusBadRequest, "invalid_request", "")
	f.post(0, "/auth/token", full.post("username", alice, "password", "wrong")).fails(http.StatusUnauthorized, "invalid_grant", "Incorrect username or password")
	// What clients of other services send means nothing here.
	for _, o := range []option{
		form(append(login, "client_id", "string", "client_secret", "string", "scope", "")...),
		form(append(login, "client_id", "", "client_secret", "")...),
	} {
		a := f.post(0, "/auth/token", o, header("Authorization", "Basic Og=="))
		if got := f.claim(a.tokens().access, "client_id"); got != clientID {
			t.Errorf("client_id: %q", got)
		}
	}
}

// A client that is deleted while it logs a user in gets no tokens: whoever deletes it
// ends the sessions that are there, and this one was not yet.
func TestLoginByAClientThatIsDeletedMeanwhile(t *testing.T) {
	t.Parallel()
	h := newHook(t)
	f := start(t, setup{claims: h.Webhook})
	full := f.service("full")
	h.meanwhile(func() { f.check(f.replicas[1].store.Clients.Delete(t.Context(), full.id)) })
	f.post(0, "/auth/token", full.post("username", alice, "password", password)).fails(http.StatusUnauthorized, "invalid_client", "")
	if len(h.requests()) != 1 {
		t.Error("the webhook was not asked: the test does not test it")
	}
}

// Rotation and deletion of a client kill its tokens everywhere, at once.
func TestAClientsTokensEndWithIt(t *testing.T) {
	t.Parallel()
	f := usual(t)
	full, other := f.service("full"), f.service("other")
	dead, stays := f.own(full), f.own(other)
	store := f.replicas[0].store
	_, err := store.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: store.UserID(full.id)})
	f.check(err)
	for i := range f.replicas {
		f.get(i, "/auth/verify", bearer(dead)).fails(http.StatusUnauthorized, "invalid_token", "")
		f.get(i, "/auth/verify", bearer(stays)).is(http.StatusNoContent)
	}
	f.get(1, "/auth/verify", bearer(f.own(full))).is(http.StatusNoContent)
	f.check(store.Clients.Delete(t.Context(), full.id))
	f.post(1, "/oauth2/token", full.basic(), form("grant_type", "client_credentials")).fails(http.StatusUnauthorized, "invalid_client", "")
}

// A revocation is answered when every follower has it, or can have no lease any more:
// one that shows no life is waited for.
func TestARevocationIsConfirmed(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	full := f.service("full")
	revoke := func(token string) time.Duration {
		began := time.Now()
		f.post(0, "/oauth2/revoke", full.basic(), form("token", token)).is(http.StatusOK)
		return time.Since(began)
	}
	revoke(f.own(full)) // the first in a shard may take one lease, whoever follows
	token := f.own(full)
	members := strings.Replace(f.rtKey(token), ":rt:"+f.claim(token, "sid"), ":members", 1)
	f.check(f.rdb.HSet(t.Context(), members, "silent", "0:"+f.claim(token, "le")+":1").Err())
	if took := revoke(token); took < lease {
		t.Errorf("answered after %v, while a follower may still accept the token", took)
	}
}

func active(introspection map[string]any) bool {
	a, _ := introspection["active"].(bool)
	return a
}

// RFC 7662 section 2.2: what is said of a living token, and nothing of any other.
func TestRFC7662Introspection(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fleet) {
		full := f.service("full")
		api := f.register(tokenstore.Client{ID: "lkc_api", Introspect: true})
		forA := f.register(tokenstore.Client{ID: "lkc_for_a", Introspect: true, Audiences: "https://a.example"})
		ask := func(asker registered, token string) map[string]any {
			t.Helper()
			return f.post(1, "/oauth2/introspect", asker.basic(), form("token", token)).is(http.StatusOK).json()
		}
		inactive := func(what string, asker registered, token string) {
			t.Helper()
			if a := f.post(2, "/oauth2/introspect", asker.basic(), form("token", token)).is(http.StatusOK); a.text != `{"active":false}` {
				t.Errorf("%s: %s", what, a.text)
			}
		}
		user, first, own := f.logs(full, "scope", "read"), f.login(0), f.own(full)

		c := f.claims(user.access)
		want := map[string]any{
			"active": true, "token_type": "Bearer", "client_id": full.id, "scope": "read", "sub": alice, "iss": issuer,
			"aud": []any{audience}, "exp": c["exp"], "iat": c["iat"], "jti": c["jti"], "sid": c["sid"], "auth_time": c["auth_time"],
		}
		for _, asker := range []registered{full, api} {
			if diff := cmp.Diff(want, ask(asker, user.access)); diff != "" {
				t.Errorf("an access token, asked by %s: -want +got\n%s", asker.id, diff)
			}
		}
		refresh := ask(full, user.refresh)
		exp, _ := refresh["exp"].(float64)
		f.near(t, "exp of a refresh token", time.Until(time.Unix(int64(exp), 0)), f.life.Refresh, 5*time.Second)
		delete(refresh, "exp")
		// No token_type: a refresh token is not to be taken for an access token.
		if diff := cmp.Diff(map[string]any{
			"active": true, "client_id": full.id, "scope": "read", "sub": alice, "username": alice, "iss": issuer, "sid": c["sid"], "auth_time": c["auth_time"],
		}, refresh); diff != "" {
			t.Errorf("a refresh token: -want +got\n%s", diff)
		}
		if got := ask(api, first.access); !active(got) {
			t.Errorf("a token for the service's audience: %v", got)
		}
		if got := ask(full, own); !active(got) || got["sub"] != full.id || got["auth_time"] != nil {
			t.Errorf("a client's own: %v", got)
		}

		inactive("for another audience", forA, user.access)
		inactive("another's refresh token", api, user.refresh)
		inactive("the service's own refresh token", full, first.refresh)
		for name, token := range f.hostileTokens(first) {
			if name == "another audience" || name == "no audience" {
				continue // below: it is a true token of another audience
			}
			inactive(name, api, token)
		}
		other := f.sign(f.header(), f.payload(first.access, map[string]any{"aud": "https://a.example"}))
		inactive("another audience", api, other)
		if got := ask(forA, other); !active(got) {
			t.Errorf("for its own audience: %v", got)
		}
		inactive("expired", api, f.sign(f.header(), f.payload(first.access, map[string]any{"iat": time.Now().Unix() - 1000, "exp": time.Now().Unix() - 1})))

		next := f.post(0, "/oauth2/token", full.basic(), form("grant_type", "refresh_token", "refresh_token", user.refresh)).tokens()
		inactive("a spent refresh token", full, user.refresh)
		if got := ask(full, next.refresh); !active(got) {
			t.Errorf("its successor: %v", got)
		}
		f.post(0, "/auth/logout", bearer(next.access)).is(http.StatusOK)
		inactive("after the logout", api, next.access)
		inactive("its refresh token", full, next.refresh)
		f.post(0, "/auth/logout-all", bearer(first.access)).is(http.StatusOK)
		inactive("after the logout everywhere", api, first.access)
		// Asking has ended nothing.
		f.get(0, "/auth/verify", bearer(own)).is(http.StatusNoContent)
	})
}

// RFC 7009 section 2: what a revocation ends, on every replica, when it is answered.
func TestRFC7009Revocation(t *testing.T) {
	onBoth(t, func(_ *testing.T, f *fleet) {
		full := f.service("full")
		revoke := func(token string) { f.post(1, "/oauth2/revoke", full.basic(), form("token", token)).is(http.StatusOK) }

		// Section 2.1: a refresh token, and all access tokens of its grant with it.
		s := f.logs(full)
		next := f.post(0, "/oauth2/token", full.basic(), form("grant_type", "refresh_token", "refresh_token", s.refresh)).tokens()
		revoke(next.refresh)
		f.accessDead(s.access, next.access)
		f.post(0, "/oauth2/token", full.basic(), form("grant_type", "refresh_token", "refresh_token", next.refresh)).fails(http.StatusBadRequest, "invalid_grant", "")
		revoke(next.refresh)

		// An access token, and the refresh token of its grant with it.
		s = f.logs(full)
		revoke(s.access)
		f.accessDead(s.access)
		f.post(0, "/oauth2/token", full.basic(), form("grant_type", "refresh_token", "refresh_token", s.refresh)).fails(http.StatusBadRequest, "invalid_grant", "")

		// One that has expired still names its session.
		s = f.logs(full)
		revoke(f.sign(f.header(), f.payload(s.access, map[string]any{"iat": time.Now().Unix() - 1000, "exp": time.Now().Unix() - 1})))
		f.accessDead(s.access)

		// A client's own token ends alone.
		one, two := f.own(full), f.own(full)
		revoke(one)
		for i := range f.replicas {
			f.get(i, "/auth/verify", bearer(one)).fails(http.StatusUnauthorized, "invalid_token", "")
			f.get(i, "/auth/verify", bearer(two)).is(http.StatusNoContent)
		}

		// The public client ends the sessions of the service's own logins.
		own := f.login(0)
		f.post(2, "/oauth2/revoke", form("client_id", clientID, "token", own.refresh)).is(http.StatusOK)
		f.dead(own)

		// What is shown to the wrong client, or is none of ours, ends nothing.
		own, s = f.login(0), f.logs(full)
		for name, token := range f.hostileTokens(own) {
			if strings.HasPrefix(name, "expire") || strings.HasPrefix(name, "not yet") || strings.HasSuffix(name, "history") || name == "another audience" || name == "a token of the other kind" ||
				name == "another issuer" || name == "the issuer with a slash" {
				continue // true tokens of ours
			}
			// One whose key nobody has is no 200: it names a session that is alive.
			if a := f.post(0, "/oauth2/revoke", form("client_id", clientID, "token", token)); a.status != http.StatusOK {
				a.fails(http.StatusBadRequest, "invalid_grant", "")
			}
		}
		for _, token := range []string{own.access, own.refresh} {
			f.post(0, "/oauth2/revoke", full.basic(), form("token", token)).fails(http.StatusBadRequest, "invalid_grant", "")
		}
		for _, token := range []string{s.access, s.refresh} {
			f.post(0, "/oauth2/revoke", form("client_id", clientID, "token", token)).fails(http.StatusBadRequest, "invalid_grant", "")
		}
		f.alive(own.access)
		f.alive(s.access)
		f.refresh(0, own)
	})
}

// Two clients of one replica that is asked by what is no client, many times.
func TestClientEvents(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	full := f.service("full")
	f.post(0, "/oauth2/revoke", full.basic(), form("token", f.own(full))).is(http.StatusOK)
	f.post(0, "/oauth2/token", registered{full.id, "wrong-secret-canary"}.basic(), form("grant_type", "client_credentials")).is(http.StatusUnauthorized)
	f.post(0, "/oauth2/token", registered{"secret-as-id-canary", "wrong-secret-canary"}.basic(), form("grant_type", "client_credentials")).is(http.StatusUnauthorized)
	f.post(0, "/oauth2/token", form("client_id", full.id, "grant_type", "client_credentials")).is(http.StatusUnauthorized)
	s := f.login(0)
	f.post(0, "/oauth2/token", full.basic(), form("grant_type", "refresh_token", "refresh_token", s.refresh)).is(http.StatusBadRequest)
	f.secrets.add("wrong-secret-canary", "secret-as-id-canary")
	for event, want := range map[string]int{"client_token": 1, "client_refused": 3, "token_revoked": 1, "refresh_refused": 1} {
		if got := f.events()[event]; got != want {
			t.Errorf("%s: %d, want %d", event, got, want)
		}
	}
	metrics := f.metrics(0)
	for _, line := range []string{
		`latchkey_security_events_total{event="client_refused"} 3`, `latchkey_refreshes_total{outcome="foreign"} 1`,
		`latchkey_http_requests_total{code="401",method="POST",route="/oauth2/token"} 3`,
	} {
		if !strings.Contains(metrics, line) {
			t.Errorf("no %s", line)
		}
	}
}

// New refuses claims of scopes that are Latchkey's own.
func TestReservedScopeClaims(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	_, err := handlers.New(handlers.Dependencies{Store: f.replicas[0].store, Settings: handlers.Settings{
		ScopeClaims: claimsOf(`{"read":{"sub":"root"}}`),
	}})
	if err == nil || !strings.Contains(err.Error(), "sets sub itself") {
		t.Error(err)
	}
}
