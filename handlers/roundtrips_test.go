package handlers_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// What each request costs in round trips to Redis, once the scripts are there.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) {
		limit := tokenstore.Limit{Burst: 1000, Period: time.Hour} // all three budgets are asked
		s.Limits = tokenstore.AttemptLimits{Client: limit, Account: limit, Address: limit}
	}})
	logins := form("username", alice, "password", password)
	fail := form("username", alice, "password", "wrong")
	for range 2 { // the first time Redis learns the scripts
		s := f.login(0)
		f.post(0, "/auth/token", fail)
		f.get(0, "/users/me", bearer(s.access))
		f.get(0, "/auth/sessions", bearer(s.access))
		s = f.refresh(0, s)
		f.post(0, "/auth/logout-all", bearer(s.access))
		f.post(0, "/auth/logout", bearer(s.access))
	}
	client := f.service("client")
	oauth := func(pairs ...string) []option { return []option{client.basic(), form(pairs...)} }
	for range 2 {
		f.post(0, "/oauth2/introspect", oauth("token", f.logs(client).refresh)...)
	}
	machine, user := f.own(client), f.logs(client)
	device := f.post(0, "/auth/token", logins).cookie("known_device").Value
	s, byCookie, byBearer, byBoth, two, three := f.login(0), f.login(0), f.login(0), f.login(0), f.login(0), f.login(0)
	for _, c := range []struct {
		name         string
		method, path string
		options      []option
		status, want int
	}{
		{"login", "POST", "/auth/token", []option{logins}, 200, 2},
		{"login from a known device", "POST", "/auth/token", []option{logins, known(device)}, 200, 2},
		{"failed login", "POST", "/auth/token", []option{fail}, 401, 1},
		{"failed login of nobody", "POST", "/auth/token", []option{form("username", "nobody", "password", "wrong")}, 401, 1},
		{"verify", "GET", "/auth/verify", []option{bearer(s.access)}, 204, 1},
		{"refresh", "POST", "/auth/refresh", []option{cookie(s.refresh)}, 200, 1},
		{"refresh with the parent", "POST", "/auth/refresh", []option{cookie(s.refresh)}, 200, 1},
		{"logout by cookie", "POST", "/auth/logout", []option{cookie(byCookie.refresh)}, 200, 1},
		{"logout by bearer", "POST", "/auth/logout", []option{bearer(byBearer.access)}, 200, 1},
		{"logout by both", "POST", "/auth/logout", []option{cookie(byBoth.refresh), bearer(byBoth.access)}, 200, 1},
		{"logout of two sessions", "POST", "/auth/logout", []option{cookie(two.refresh), bearer(three.access)}, 200, 2},
		{"logout that cannot be checked", "POST", "/auth/logout", []option{cookie(forge(t, s.refresh)), cookie(forge(t, reseal(t, s.refresh, func(raw []byte) { raw[1] ^= 1 })))}, 401, 2},
		{"verify of a dead token", "GET", "/auth/verify", []option{bearer(two.access)}, 401, 1},
		{"sessions", "GET", "/auth/sessions", []option{bearer(s.access)}, 200, 3},
		{"me", "GET", "/users/me", []option{bearer(s.access)}, 200, 3},
		{"a client's own token", "POST", "/oauth2/token", oauth("grant_type", "client_credentials"), 200, 1},
		{"refresh by a client", "POST", "/oauth2/token", oauth("grant_type", "refresh_token", "refresh_token", user.refresh), 200, 2},
		{"login by a client", "POST", "/auth/token", []option{client.post("username", alice, "password", password)}, 200, 4},
		{"introspect an access token", "POST", "/oauth2/introspect", oauth("token", machine), 200, 2},
		{"introspect a refresh token", "POST", "/oauth2/introspect", oauth("token", user.refresh), 200, 2},
		{"introspect garbage", "POST", "/oauth2/introspect", oauth("token", "garbage"), 200, 1},
		{"revoke", "POST", "/oauth2/revoke", oauth("token", machine), 200, 2},
		{"logout-all", "POST", "/auth/logout-all", []option{bearer(s.access)}, 200, 3},
		{"refresh with garbage", "POST", "/auth/refresh", []option{cookie("garbage")}, 401, 0},
		{"verify of garbage", "GET", "/auth/verify", []option{bearer("garbage")}, 401, 0},
	} {
		before := f.replicas[0].trips.n.Load()
		f.do(0, c.method, c.path, c.options...).is(c.status)
		if got := int(f.replicas[0].trips.n.Load() - before); got != c.want {
			t.Errorf("%s: %d round trips, want %d", c.name, got, c.want)
		}
	}
}

// The first login with an old hash stores a new one: one round trip more.
func TestRoundTripsOfAnUpgrade(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	f.login(0)
	f.account(tokenstore.Account{Username: "imported", Hash: bcryptHash}, bcryptPassword)
	f.check(f.rdb.ScriptFlush(t.Context()).Err())
	f.login(0)
	_, err := f.replicas[0].store.Accounts.SetPassword(t.Context(), alice, "", mustHash(f, password))
	f.check(err)
	for _, want := range []int64{3, 2} {
		before := f.replicas[0].trips.n.Load()
		f.loginAs(0, "imported", bcryptPassword)
		if got := f.replicas[0].trips.n.Load() - before; got != want {
			t.Errorf("%d round trips, want %d", got, want)
		}
	}
}

func mustHash(f *fleet, password string) string {
	f.Helper()
	hash, err := f.hasher.Hash(f.Context(), password)
	f.check(err)
	return hash
}

func BenchmarkVerifyHTTP(b *testing.B) {
	f := start(b, setup{replicas: 1})
	s := f.login(0)
	serve(b, f, func() *http.Request {
		return request(b, http.MethodGet, "/auth/verify", bearer(s.access))
	}, http.StatusNoContent, nil)
}

func BenchmarkRefreshHTTP(b *testing.B) {
	f := start(b, setup{replicas: 1, grace: -time.Millisecond})
	s := f.login(0)
	serve(b, f, func() *http.Request {
		return request(b, http.MethodPost, "/auth/refresh", cookie(s.refresh))
	}, http.StatusOK, func(h http.Header) {
		for _, c := range (&http.Response{Header: h}).Cookies() {
			s.refresh = c.Value
		}
	})
}

// BenchmarkVerifyHTTPParallel is many connections at once: what a replica does.
func BenchmarkVerifyHTTPParallel(b *testing.B) {
	f := start(b, setup{replicas: 1})
	s := f.login(0)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if w := record(f.replicas[0].handler, request(b, http.MethodGet, "/auth/verify", bearer(s.access))); w.Code != http.StatusNoContent {
				b.Errorf("%d %s", w.Code, w.Body)
				return
			}
		}
	})
}

func serve(b *testing.B, f *fleet, next func() *http.Request, status int, then func(http.Header)) {
	b.Helper()
	b.ReportAllocs()
	for b.Loop() {
		w := record(f.replicas[0].handler, next())
		if w.Code != status {
			b.Fatalf("%d %s", w.Code, w.Body)
		}
		if then != nil {
			then(w.Header())
		}
	}
}
