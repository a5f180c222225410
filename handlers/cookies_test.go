package handlers_test

import (
	"net/http"
	"slices"
	"testing"

	"github.com/latchkey-auth/latchkey/handlers"
)

// strays are the paths whose refresh cookie an answer expires, at whatever domains, and
// the path of the one it sets.
func (a answer) strays() (expired []string, set string) {
	a.f.Helper()
	for _, c := range a.cookies("refresh_token") {
		if c.Value == "" {
			expired = append(expired, c.Path)
		} else {
			set = c.Path
		}
	}
	slices.Sort(expired)
	return slices.Compact(expired), set
}

// A browser may hold a second refresh cookie, under another path, of a session
// that is long over. It cannot say which is which.
func TestStrayCookies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		cookie func(dead, living tokens) []option
	}{
		{"a dead session's before", func(dead, living tokens) []option { return []option{cookie(dead.refresh), cookie(living.refresh)} }},
		{"a dead session's behind", func(dead, living tokens) []option { return []option{cookie(living.refresh), cookie(dead.refresh)} }},
		{"garbage before", func(_, living tokens) []option { return []option{cookie("garbage"), cookie(living.refresh)} }},
		{"a forged one before", func(_, living tokens) []option {
			return []option{cookie(flipLast(living.refresh)), cookie(living.refresh)}
		}},
		{"in one header", func(dead, living tokens) []option {
			return []option{header("Cookie", "refresh_token="+dead.refresh+"; a=b; refresh_token="+living.refresh)}
		}},
		{"an empty one before", func(_, living tokens) []option { return []option{cookie(""), cookie(living.refresh)} }},
		{"the same twice", func(_, living tokens) []option { return []option{cookie(living.refresh), cookie(living.refresh)} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := usual(t)
			dead, living := f.login(0), f.login(1)
			f.post(2, "/auth/logout", cookie(dead.refresh)).is(http.StatusOK)
			a := f.post(0, "/auth/refresh", c.cookie(dead, living)...).is(http.StatusOK)
			expired, set := a.strays()
			if set != "/auth" {
				t.Errorf("the cookie was set at %q", set)
			}
			want := []string{"/", "/auth", "/auth/", "/auth/refresh"} // /auth at other domains
			if !slices.Equal(expired, want) {
				t.Errorf("expired at %q, want %q", expired, want)
			}
			f.alive(living.access)
			if e := f.events(); e["refresh_reuse"] != 0 {
				t.Errorf("events: %v", e)
			}
		})
	}
}

// Beside the current token, an older one of the same session is a leftover and
// no theft.
func TestOlderGenerationBesideTheCurrent(t *testing.T) {
	t.Parallel()
	f := usual(t)
	first := f.login(0)
	second := f.refresh(1, first)
	third := f.rotate(2, second)
	f.age(third.access, 2*grace)
	for i, order := range [][]option{
		{cookie(first.refresh), cookie(third.refresh)},
		{cookie(third.refresh), cookie(second.refresh), cookie(first.refresh)}, // the successor is the same
	} {
		f.post(i, "/auth/refresh", order...).is(http.StatusOK)
	}
	f.alive(first.access)
	f.alive(third.access)
	// Alone it is theft, as ever.
	f.post(0, "/auth/refresh", cookie(first.refresh)).is(http.StatusUnauthorized)
	f.dead(third)
}

// With only dead ones, the answer is that of one dead one.
func TestDeadCookiesOnly(t *testing.T) {
	t.Parallel()
	f := usual(t)
	a, b := f.login(0), f.login(1)
	f.post(2, "/auth/logout", cookie(a.refresh), cookie(b.refresh)).is(http.StatusOK)
	f.dead(a)
	f.dead(b)
	f.post(0, "/auth/refresh", cookie(a.refresh), cookie(b.refresh)).fails(http.StatusUnauthorized, "invalid_grant", "Invalid refresh token")
}

// The strays of a logout go, too: wherever the setting put the cookie before.
func TestLogoutExpiresStrays(t *testing.T) {
	t.Parallel()
	f := start(t, setup{settings: func(s *handlers.Settings) { s.CookiePath = "/" }})
	a, b := f.login(0), f.login(1)
	expired, set := f.post(2, "/auth/logout", cookie(a.refresh), cookie(b.refresh)).is(http.StatusOK).strays()
	if want := []string{"/", "/auth", "/auth/", "/auth/refresh"}; set != "" || !slices.Equal(expired, want) {
		t.Errorf("expired at %q, want %q; set at %q", expired, want, set)
	}
	f.dead(a)
	f.dead(b)
}

// A request may not make the service try tokens without end.
func TestManyCookiesAreBounded(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	var all []option
	for range 20 {
		s := f.login(0)
		f.post(0, "/auth/logout", cookie(s.refresh)).is(http.StatusOK)
		all = append(all, cookie(s.refresh))
	}
	f.post(0, "/auth/refresh", all[0], cookie(f.login(0).refresh)).is(http.StatusOK) // Redis learns the scripts
	before := f.replicas[0].trips.n.Load()
	f.post(0, "/auth/refresh", all...).is(http.StatusUnauthorized)
	if n := f.replicas[0].trips.n.Load() - before; n > 4 {
		t.Errorf("%d round trips for one request", n)
	}
}
