package handlers_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/claimhook"
	"github.com/latchkey-auth/latchkey/internal/session"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

func claimsOf(text string) (m map[string]map[string]json.RawMessage) {
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		panic(err)
	}
	return m
}

const hookKey = "canary-hook-key-0123456789abcdef"

// hooked is a claims webhook that a test can make fail.
type hooked struct {
	*claimhook.Webhook
	mu     sync.Mutex
	status int
	answer string
	asked  []claimhook.Request
	then   func()
}

func newHook(t *testing.T) *hooked {
	t.Helper()
	h := &hooked{status: http.StatusOK, answer: `{"claims":{"tier":"gold"}}`}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		if r.Header.Get(claimhook.HeaderSignature) != claimhook.Sign([]byte(hookKey), r.Header.Get(claimhook.HeaderTimestamp), text) {
			t.Error("the request is not signed")
		}
		var asked claimhook.Request
		_ = json.Unmarshal(text, &asked)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.asked = append(h.asked, asked)
		if h.then != nil {
			h.then()
		}
		w.WriteHeader(h.status)
		_, _ = io.WriteString(w, h.answer)
	}))
	h.Webhook = claimhook.New(claimhook.Options{URL: srv.URL, Key: []byte(hookKey), Timeout: 10 * time.Second})
	t.Cleanup(srv.Close)
	t.Cleanup(h.Close)
	return h
}

func (h *hooked) says(status int, answer string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status, h.answer, h.asked = status, answer, nil
}

// meanwhile has something happen while the webhook is asked.
func (h *hooked) meanwhile(do func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.then = do
}

func (h *hooked) requests() []claimhook.Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.asked
}

// extra is what of a token's claims is the operator's.
func (f *fleet) extra(access string) map[string]any {
	f.Helper()
	c := f.claims(access)
	for _, name := range []string{"iss", "sub", "aud", "exp", "iat", "auth_time", "jti", "sid", "client_id", "scope", "ue", "le"} {
		delete(c, name)
	}
	return c
}

// Claims of scopes, clients and accounts, in that order, and those of an account as
// they were at the login.
func TestStaticClaims(t *testing.T) {
	t.Parallel()
	f := start(t, setup{settings: func(s *handlers.Settings) {
		s.ScopeClaims = claimsOf(`{"read":{"from":"scope","department":"finance"},"write":{"may":"write"}}`)
	}})
	f.account(tokenstore.Account{Username: "bob", Scopes: "read write", Claims: `{"from":"account","roles":["a","b"]}`}, password)
	// What was stored before a name was reserved is left out.
	f.account(tokenstore.Account{Username: "old", Claims: `{"cnf":{"jkt":"x"},"fine":1}`}, password)
	client := f.register(tokenstore.Client{ID: "lkc_app", Grants: "client_credentials refresh_token", Scopes: "read", Claims: `{"from":"client","plan":2}`})

	for name, c := range map[string]struct {
		access string
		want   map[string]any
	}{
		"a user with nothing": {f.post(0, "/auth/token", form("username", alice, "password", password, "scope", "write")).tokens().access, map[string]any{"may": "write"}},
		"reserved":            {f.loginAs(0, "old", password).access, map[string]any{"fine": 1.0}},
		"a client":            {f.own(client), map[string]any{"from": "client", "plan": 2.0, "department": "finance"}},
	} {
		if diff := cmp.Diff(c.want, f.extra(c.access)); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
	want := map[string]any{"from": "account", "roles": []any{"a", "b"}, "department": "finance", "may": "write"}
	s := f.loginAs(0, "bob", password)
	for range 2 {
		if diff := cmp.Diff(want, f.extra(s.access)); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		s = f.rotate(1, s)
	}
	// The scope that a refresh leaves out takes its claims along.
	a := f.post(0, "/oauth2/token", form("client_id", clientID, "grant_type", "refresh_token", "refresh_token", s.refresh, "scope", "write"))
	if got := f.extra(a.tokens().access); got["department"] != nil {
		t.Errorf("%v", got)
	}
	by := f.post(0, "/auth/token", client.post("username", "bob", "password", password)).tokens()
	if diff := cmp.Diff(map[string]any{"from": "account", "roles": []any{"a", "b"}, "department": "finance", "plan": 2.0}, f.extra(by.access)); diff != "" {
		t.Errorf("by the client: -want +got\n%s", diff)
	}
	// An introspection says them, and cannot be made to say anything else by them.
	api := f.register(tokenstore.Client{ID: "lkc_api", Introspect: true})
	got := f.post(0, "/oauth2/introspect", api.basic(), form("token", by.access)).json()
	if got["plan"] != 2.0 || got["sub"] != "bob" {
		t.Errorf("%v", got)
	}
}

// The webhook is asked at a login, a refresh and for a client's own token.
func TestClaimsWebhook(t *testing.T) {
	t.Parallel()
	h := newHook(t)
	f := start(t, setup{claims: h.Webhook})
	f.account(tokenstore.Account{Username: "bob", Subject: "u-1", Scopes: "read", Claims: `{"tier":"iron","kept":1}`}, password)
	full := f.service("full")
	s := f.loginAs(0, "bob", password)
	if diff := cmp.Diff(map[string]any{"tier": "gold", "kept": 1.0}, f.extra(s.access)); diff != "" {
		t.Errorf("login: -want +got\n%s", diff)
	}
	h.mu.Lock()
	h.answer = `{"claims":{"tier":"platinum"}}`
	h.mu.Unlock()
	next := f.refresh(1, s)
	same := f.refresh(2, s)
	if diff := cmp.Diff(map[string]any{"tier": "platinum", "kept": 1.0}, f.extra(next.access)); diff != "" || same.refresh != next.refresh {
		t.Errorf("refresh: -want +got\n%s", diff)
	}
	if got := f.extra(f.own(full)); got["tier"] != "platinum" {
		t.Errorf("a client's own: %v", got)
	}
	if diff := cmp.Diff([]claimhook.Request{
		{Event: "login", Subject: "u-1", Username: "bob", ClientID: clientID, Scope: "read"},
		{Event: "refresh", Subject: "u-1", Username: "bob", ClientID: clientID, Scope: "read"},
		{Event: "refresh", Subject: "u-1", Username: "bob", ClientID: clientID, Scope: "read"},
		{Event: "client_credentials", Subject: full.id, ClientID: full.id, Scope: "read write"},
	}, h.requests()); diff != "" {
		t.Errorf("asked: -want +got\n%s", diff)
	}
	// Nobody is asked for a login that fails, or a token that is none.
	h.says(200, `{}`)
	f.post(0, "/auth/token", form("username", "bob", "password", "wrong")).is(http.StatusUnauthorized)
	f.post(0, "/auth/refresh", cookie("garbage")).is(http.StatusUnauthorized)
	f.post(0, "/oauth2/token", registered{full.id, "wrong"}.basic(), form("grant_type", "client_credentials")).is(http.StatusUnauthorized)
	if n := len(h.requests()); n != 0 {
		t.Errorf("asked %d times", n)
	}
}

// failures of a webhook, each of which leaves no claims to use.
func failures() map[string]struct {
	status int
	answer string
} {
	return map[string]struct {
		status int
		answer string
	}{
		"an error":      {500, ``},
		"no JSON":       {200, `<html>`},
		"reserved sub":  {200, `{"claims":{"tier":"gold","sub":"root"}}`},
		"reserved cnf":  {200, `{"claims":{"cnf":{}}}`},
		"too much":      {200, `{"claims":{"tier":"` + strings.Repeat("x", 3500) + `"}}`},
		"far too much":  {200, `{"claims":{"tier":"` + strings.Repeat("x", 9000) + `"}}`},
		"a redirection": {302, ``},
	}
}

// With deny, the default, a webhook that fails is a 503 that spends nothing: once it
// is back, the very same refresh token works, however long it took.
func TestClaimsWebhookDenies(t *testing.T) {
	t.Parallel()
	h := newHook(t)
	f := start(t, setup{claims: h.Webhook})
	full := f.service("full")
	s := f.login(0)
	for name, failure := range failures() {
		h.says(failure.status, failure.answer)
		before := f.session(s.access)
		for _, a := range []answer{
			f.post(0, "/auth/token", form("username", alice, "password", password)),
			f.post(1, "/auth/refresh", cookie(s.refresh)),
			f.post(2, "/oauth2/token", form("client_id", clientID, "grant_type", "refresh_token", "refresh_token", s.refresh)),
			f.post(2, "/oauth2/token", full.basic(), form("grant_type", "client_credentials")),
		} {
			a.fails(http.StatusServiceUnavailable, "temporarily_unavailable", "Service temporarily unavailable")
		}
		if diff := cmp.Diff(before, f.session(s.access)); diff != "" {
			t.Errorf("%s: the session changed\n%s", name, diff)
		}
	}
	if n := f.rdb.ZCard(t.Context(), strings.Replace(f.rtKey(s.access), ":rt:"+f.claim(s.access, "sid"), ":us:"+f.replicas[0].store.UserID(alice).String(), 1)).Val(); n != 1 {
		t.Errorf("%d sessions, want the first alone", n)
	}
	h.says(200, `{}`)
	f.age(s.access, time.Hour) // much later
	f.refresh(0, s)
	if strings.Contains(f.log.String(), "xxxx") {
		t.Error("the log holds the answer")
	}
	if !strings.Contains(f.metrics(0), `latchkey_claims_webhook_duration_seconds_count{outcome="failed"}`) {
		t.Error("no metric")
	}
}

// With omit, tokens are issued without the webhook's claims, and with all others.
func TestClaimsWebhookOmits(t *testing.T) {
	t.Parallel()
	h := newHook(t)
	f := start(t, setup{claims: h.Webhook, settings: func(s *handlers.Settings) { s.ClaimsOmit = true }})
	f.account(tokenstore.Account{Username: "bob", Claims: `{"tier":"iron"}`}, password)
	s := f.loginAs(0, "bob", password)
	for name, failure := range failures() {
		h.says(failure.status, failure.answer)
		s = f.rotate(1, s)
		if diff := cmp.Diff(map[string]any{"tier": "iron"}, f.extra(s.access)); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
	if !strings.Contains(f.log.String(), "issued without the webhook's claims") {
		t.Error("nobody is told")
	}
}

// An API sees the claims of the operator's own.
func TestTheEdgeExposesExtraClaims(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	f.account(tokenstore.Account{Username: "bob", Claims: `{"tier":"gold","roles":["a"]}`}, password)
	v, err := edge.New(edge.Options{Revocations: f.replicas[0].store.Revocations, Ring: f.ring, Issuer: issuer, Audience: audience})
	f.check(err)
	c, err := v.Verify(t.Context(), f.loginAs(0, "bob", password).access)
	f.check(err)
	if diff := cmp.Diff(map[string]json.RawMessage{"tier": json.RawMessage(`"gold"`), "roles": json.RawMessage(`["a"]`)}, c.Extra); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	c, err = v.Verify(t.Context(), f.login(0).access)
	f.check(err)
	if c.Extra != nil {
		t.Errorf("claims of nothing: %v", c.Extra)
	}
}

// differing is a fleet whose replicas have settings of their own, as while an operator
// changes them.
func differing(t *testing.T, settings ...func(*handlers.Settings)) *fleet {
	t.Helper()
	next := 0
	return start(t, setup{replicas: len(settings), settings: func(s *handlers.Settings) {
		settings[next](s)
		next++
	}})
}

// userSessions is how many sessions a user has.
func (f *fleet) userSessions(username string) int64 {
	f.Helper()
	uid := f.replicas[0].store.UserID(username)
	n, err := f.rdb.ZCard(f.Context(), fmt.Sprintf("lk:{%d}:us:%s", uid.Shard(), uid)).Result()
	f.check(err)
	return n
}

// What fits into no token is found out before anything is committed: a login leaves no
// session, and a refresh spends no token, whatever the settings became meanwhile.
func TestNothingIsCommittedForATokenThatDoesNotFit(t *testing.T) {
	t.Parallel()
	long := func(n int) string { return `{"a":"` + strings.Repeat("x", n) + `"}` }
	many := func(n int) string {
		var members []string
		for i := range n {
			members = append(members, fmt.Sprintf(`"c%d":1`, i))
		}
		return "{" + strings.Join(members, ",") + "}"
	}
	for name, c := range map[string]struct {
		account tokenstore.Account
		changed func(*handlers.Settings)
	}{
		"claims of scopes": {
			tokenstore.Account{Scopes: "read " + strings.Repeat("s", 800), Claims: long(1400)},
			func(s *handlers.Settings) {
				s.ScopeClaims = claimsOf(`{"read":` + `{"b":"` + strings.Repeat("y", 480) + `"}}`)
			},
		},
		"a longer issuer": {
			tokenstore.Account{Scopes: "read " + strings.Repeat("s", 1030), Claims: long(1400)},
			func(s *handlers.Settings) {
				s.Issuer += "/" + strings.Repeat("i", 300)
				s.SignatureSize = accesstoken.EdDSA.SignatureSize()
			},
		},
		"too many": {
			tokenstore.Account{Scopes: "read", Claims: many(accesstoken.MaxExtra)},
			func(s *handlers.Settings) { s.ScopeClaims = claimsOf(`{"read":{"b":1}}`) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := differing(t, func(*handlers.Settings) {}, c.changed)
			c.account.Username = "bob"
			f.account(c.account, password)
			s := f.loginAs(0, "bob", password)
			before := f.session(s.access)
			f.post(1, "/auth/token", form("username", "bob", "password", password)).fails(http.StatusInternalServerError, "server_error", "")
			if n := f.userSessions("bob"); n != 1 {
				t.Errorf("%d sessions, want the first alone", n)
			}
			for _, a := range []answer{
				f.post(1, "/auth/refresh", cookie(s.refresh)),
				f.post(1, "/oauth2/token", form("client_id", clientID, "grant_type", "refresh_token", "refresh_token", s.refresh)),
			} {
				a.fails(http.StatusInternalServerError, "server_error", "")
			}
			if diff := cmp.Diff(before, f.session(s.access)); diff != "" {
				t.Errorf("the session changed\n%s", diff)
			}
			if !strings.Contains(f.log.String(), "the access token would be too long") {
				t.Error("the log does not say why")
			}
			// Once the operator has mended it, however much later, it goes on.
			f.age(s.access, time.Hour)
			next := f.refresh(0, s)
			// A stolen token is found out by any replica.
			f.age(s.access, time.Hour)
			f.post(1, "/auth/refresh", cookie(s.refresh)).fails(http.StatusUnauthorized, "invalid_grant", "Invalid refresh token")
			f.post(0, "/auth/refresh", cookie(next.refresh)).is(http.StatusUnauthorized)
		})
	}
}

// What is near the bound costs two round trips more, and is let through if it does fit.
func TestATokenThatFitsExactlyIsIssued(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) {
		s.ScopeClaims = claimsOf(`{"other":{"b":"` + strings.Repeat("y", 480) + `"}}`)
	}})
	f.account(tokenstore.Account{Username: "bob", Scopes: strings.Repeat("s", 800), Claims: `{"a":"` + strings.Repeat("x", 1500) + `"}`}, password)
	s := f.refresh(0, f.loginAs(0, "bob", password)) // Redis learns the scripts
	before := f.replicas[0].trips.n.Load()
	next := f.refresh(0, s)
	if n := f.replicas[0].trips.n.Load() - before; n > 3 {
		t.Errorf("%d round trips", n)
	}
	f.alive(next.access)
	if len(next.access) > accesstoken.MaxLength {
		t.Errorf("a token of %d bytes", len(next.access))
	}
}

// Accounts, clients, scopes and settings that keep to their bounds fit into a token
// together, whatever of it changes later, and into a cookie; and that costs nothing.
func TestEverythingThatIsAcceptedFits(t *testing.T) {
	t.Parallel()
	padded := func(name string, size int) string {
		return fmt.Sprintf(`{%q:%q}`, name, strings.Repeat("x", size-len(name)-7))
	}
	const cookieName = "access_token"
	f := start(t, setup{replicas: 1, statusLists: true, settings: func(s *handlers.Settings) {
		s.AccessCookie = cookieName
		s.SignatureSize = accesstoken.EdDSA.SignatureSize()
		// As long as it may be: see below.
		s.Audience = audience
		s.Issuer = issuer + "/" + strings.Repeat("i", 201)
		s.ScopeClaims = claimsOf(`{"read":` + padded("b", accesstoken.MaxScopes) + `}`)
	}})
	const subject = `"""""""""""""""\\\<&>` // which JSON makes longer
	account := tokenstore.Account{Username: "bob", Subject: subject, Scopes: "read write"}
	account.Claims = padded("a", accesstoken.MaxAccount-account.Size())
	if account.Size() != accesstoken.MaxAccount {
		t.Fatalf("an account of %d bytes", account.Size())
	}
	f.account(account, password)
	client := tokenstore.Client{ID: "lkc_" + strings.Repeat("n", 64), Grants: "client_credentials refresh_token", Scopes: "read write", Audiences: audience + " https://b.example"}
	client.Claims = padded("c", accesstoken.MaxClient-client.Size())
	if client.Size() != accesstoken.MaxClient {
		t.Fatalf("a client of %d bytes", client.Size())
	}
	app := f.register(client)
	f.own(app)
	user := f.post(0, "/auth/token", app.post("username", "bob", "password", password)).tokens()
	f.post(0, "/oauth2/token", app.post("grant_type", "refresh_token", "refresh_token", user.refresh)).is(http.StatusOK)
	browser := f.post(0, "/auth/token", form("username", "bob", "password", password))
	if n := len(cookieName) + len(browser.cookie(cookieName).Value); n > 4096 {
		t.Errorf("name and value of the cookie have %d bytes", n)
	}
	before := f.replicas[0].trips.n.Load()
	f.post(0, "/auth/refresh", cookie(browser.tokens().refresh)).is(http.StatusOK)
	if n := f.replicas[0].trips.n.Load() - before; n != 1 {
		t.Errorf("%d round trips", n)
	}
}

// New refuses settings that leave accounts and clients too little of a token.
func TestSettingsThatLeaveNoRoom(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	for name, c := range map[string]struct {
		change func(*handlers.Settings)
		option session.Option
	}{
		"issuer": {func(s *handlers.Settings) { s.Issuer += strings.Repeat("i", 700) }, session.OptionTokenFrame},
		"cookie": {func(s *handlers.Settings) { s.AccessCookie = strings.Repeat("c", 700) }, session.OptionTokenFrame},
		"scope claims": {func(s *handlers.Settings) {
			s.ScopeClaims = claimsOf(`{"a":{"b":"` + strings.Repeat("x", 300) + `"},"c":{"d":"` + strings.Repeat("x", 300) + `"}}`)
		}, session.OptionScopeClaims},
		"not UTF-8": {func(s *handlers.Settings) {
			s.ScopeClaims = map[string]map[string]json.RawMessage{"a": {"b": json.RawMessage("\"\xff\"")}}
		}, session.OptionScopeClaims},
		"no name": {func(s *handlers.Settings) { s.ScopeClaims = claimsOf(`{"a":{"":1}}`) }, session.OptionScopeClaims},
	} {
		settings := handlers.Settings{Issuer: issuer, Audience: audience, ClientID: clientID}
		c.change(&settings)
		_, err := handlers.New(handlers.Dependencies{Store: f.replicas[0].store, Settings: settings})
		var bad *session.OptionError
		if !errors.As(err, &bad) || bad.Option != c.option {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Of one name in several scopes, one value is in a token.
	settings := handlers.Settings{Issuer: issuer, Audience: audience, ClientID: clientID}
	settings.ScopeClaims = claimsOf(`{"a":{"b":"` + strings.Repeat("x", 300) + `"},"c":{"b":"` + strings.Repeat("x", 300) + `"}}`)
	d := handlers.Dependencies{Store: f.replicas[0].store, Settings: settings, Passwords: f.hasher, Metrics: handlers.NewMetrics("test", "go", f.hasher.Depth)}
	if _, err := handlers.New(d); err != nil {
		t.Error(err)
	}
}
