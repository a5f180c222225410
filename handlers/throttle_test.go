package handlers_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// limited is a fleet in which each budget has the given burst; 0 is none.
func limited(t *testing.T, client, account, address int, proxies ...string) *fleet {
	t.Helper()
	trusted := []netip.Prefix{}
	if len(proxies) > 0 {
		trusted = prefixes(t, proxies...)
	}
	return start(t, setup{settings: func(s *handlers.Settings) {
		of := func(burst int) tokenstore.Limit { return tokenstore.Limit{Burst: burst, Period: time.Hour} }
		s.Limits = tokenstore.AttemptLimits{Client: of(client), Account: of(account), Address: of(address)}
		s.TrustedProxies = trusted
	}})
}

func (f *fleet) attempt(replica int, username, password string, options ...option) answer {
	f.Helper()
	f.secrets.add(password)
	return f.post(replica, "/auth/token", append(options, form("username", username, "password", password))...)
}

// throttled fails unless an answer says so, with a wait that is kept.
func (a answer) throttled(longest time.Duration) {
	a.f.Helper()
	a.fails(http.StatusTooManyRequests, "too_many_requests", "Too many failed attempts")
	wait, _ := strconv.Atoi(a.header.Get("Retry-After"))
	if d := time.Duration(wait) * time.Second; d <= 0 || d > longest {
		a.f.Errorf("Retry-After %v, want up to %v", d, longest)
	}
}

// Only failures spend the budget, and replicas share it.
func TestThrottleCountsFailures(t *testing.T) {
	t.Parallel()
	f := limited(t, 3, 0, 0)
	for i := range 10 {
		f.login(i % 3)
	}
	for i := range 2 {
		f.attempt(i, alice, "wrong-password").is(http.StatusUnauthorized)
	}
	f.login(2) // restores nothing, and costs nothing
	f.attempt(2, alice, "wrong-password").is(http.StatusUnauthorized)
	for i := range 3 {
		f.attempt(i, alice, "wrong-password").throttled(20 * time.Minute)
		f.attempt(i, alice, password).throttled(20 * time.Minute)
	}
	// Being throttled costs nothing more: the wait does not grow.
	f.attempt(0, alice, password).throttled(20 * time.Minute)
	if n := f.events(); n["login_throttled"] != 7 || n["login_failed"] != 3 {
		t.Errorf("events: %v", n)
	}
	// Another account is another budget.
	f.account(tokenstore.Account{Username: "bob"}, password)
	f.loginAs(0, "bob", password)
}

// No more guesses are tried than the budget has, however many come at once: of a name
// that no account has as of one that has. What is right costs nothing.
func TestParallelGuessesShareTheBudget(t *testing.T) {
	t.Parallel()
	f := limited(t, 10, 0, 0)
	for range 20 {
		f.login(0) // each takes its charge back
	}
	for _, username := range []string{alice, "nobody"} {
		var wg sync.WaitGroup
		answers := make([]answer, 70)
		errs := make([]error, len(answers))
		for i := range answers {
			wg.Go(func() {
				answers[i], errs[i] = f.try(i%3, http.MethodPost, "/auth/token", form("username", username, "password", "wrong-password"))
			})
		}
		wg.Wait()
		n := map[int]int{}
		for i, a := range answers {
			f.check(errs[i])
			n[a.status]++
		}
		if n[http.StatusUnauthorized] != 10 || n[http.StatusTooManyRequests] != 60 {
			t.Errorf("%s: %v, want 10 guesses and 60 that wait", username, n)
		}
	}
}

// Whoever's password is right pays nothing, whatever else is wrong with the login; nor
// does whose password was not looked at.
func TestOnlyWrongGuessesAreCharged(t *testing.T) {
	t.Parallel()
	h := newHook(t)
	f := start(t, setup{claims: h.Webhook, settings: func(s *handlers.Settings) {
		l := tokenstore.Limit{Burst: 2, Period: time.Hour}
		s.Limits = tokenstore.AttemptLimits{Client: l, Account: tokenstore.Limit{Burst: 8, Period: time.Hour}, Address: l}
	}})
	for range 4 {
		f.attempt(0, alice, password, header("DPoP", "garbage")).is(http.StatusBadRequest)
		f.post(0, "/auth/token", form("username", alice, "password", password, "scope", "admin")).is(http.StatusBadRequest)
	}
	h.says(http.StatusInternalServerError, "")
	for range 4 {
		f.attempt(1, alice, password).is(http.StatusServiceUnavailable)
	}
	h.says(http.StatusNoContent, "")
	s := f.login(2)
	// Nor does a right current password of a password change.
	for i := range 4 {
		current, next := password, "another-password"
		if i%2 == 1 {
			current, next = next, current
		}
		f.secrets.add(next)
		f.post(0, "/users/me/password", bearer(s.access), form("current_password", current, "new_password", next)).is(http.StatusOK)
	}
	f.login(0)
	for range 2 {
		f.attempt(0, alice, "wrong-password").is(http.StatusUnauthorized)
	}
	f.attempt(0, alice, password).throttled(time.Hour)
}

// A name that no account has is throttled like one that has: the answers tell nothing.
func TestThrottleOfUnknownUsers(t *testing.T) {
	t.Parallel()
	f := limited(t, 3, 20, 0)
	for range 5 {
		known := f.attempt(0, alice, "wrong-password")
		unknown := f.attempt(1, "nobody", "wrong-password")
		first, _ := strconv.Atoi(known.header.Get("Retry-After"))
		second, _ := strconv.Atoi(unknown.header.Get("Retry-After"))
		wait := regexp.MustCompile(`Retry-After: \d+`)
		// Time goes by between the two.
		if wait.ReplaceAllString(known.golden(), "") != wait.ReplaceAllString(unknown.golden(), "") || max(first-second, second-first) > 10 {
			t.Errorf("the answers differ:\n%s\n%s", known.golden(), unknown.golden())
		}
	}
	f.attempt(2, "nobody", "wrong-password").throttled(time.Hour)
}

// One address cannot try one password on every account.
func TestThrottleByAddress(t *testing.T) {
	t.Parallel()
	f := limited(t, 0, 0, 4)
	for i := range 4 {
		f.attempt(i%3, "user"+strconv.Itoa(i), "wrong-password").is(http.StatusUnauthorized)
	}
	f.attempt(0, "user9", "wrong-password").throttled(15 * time.Minute)
	f.attempt(1, alice, password).throttled(15 * time.Minute)
}

// Without trusted proxies nobody chooses an address.
func TestForwardedForIsIgnoredUnlessTrusted(t *testing.T) {
	t.Parallel()
	f := limited(t, 0, 0, 3)
	for i := range 3 {
		f.attempt(0, alice, "wrong-password", header("X-Forwarded-For", "192.0.2."+strconv.Itoa(i))).is(http.StatusUnauthorized)
	}
	f.attempt(0, alice, password, header("X-Forwarded-For", "192.0.2.200")).throttled(time.Hour)
	f.attempt(0, alice, password, header("X-Real-Ip", "192.0.2.200")).throttled(time.Hour)
	f.attempt(0, alice, password, header("Forwarded", "for=192.0.2.200")).throttled(time.Hour)
}

// With a trusted proxy its word counts: the last address that is not a proxy's,
// and no other header.
func TestForwardedForOfATrustedProxy(t *testing.T) {
	t.Parallel()
	f := limited(t, 0, 0, 2, "127.0.0.0/8", "10.0.0.0/8")
	forwarded := func(list ...string) []option {
		var options []option
		for _, v := range list {
			options = append(options, header("X-Forwarded-For", v))
		}
		return options
	}
	fail := func(o []option) { f.attempt(0, alice, "wrong-password", o...).is(http.StatusUnauthorized) }
	fail(forwarded("192.0.2.1"))
	fail(forwarded("192.0.2.1"))
	f.attempt(0, alice, password, forwarded("192.0.2.1")...).throttled(time.Hour)
	// What the client wrote in front does not count, in one line or in two.
	f.attempt(0, alice, password, forwarded("198.51.100.7, 192.0.2.1")...).throttled(time.Hour)
	f.attempt(0, alice, password, forwarded("garbage, 192.0.2.1, 10.1.2.3")...).throttled(time.Hour)
	f.attempt(0, alice, password, forwarded("198.51.100.7", "192.0.2.1")...).throttled(time.Hour)
	// Another client is another budget.
	f.attempt(0, alice, password, forwarded("192.0.2.2")...).is(http.StatusOK)
	// All of one IPv6 customer is one.
	fail(forwarded("2001:db8:1:2::1"))
	fail(forwarded("2001:db8:1:2:ffff::2"))
	f.attempt(0, alice, password, forwarded("2001:db8:1:2:3:4:5:6")...).throttled(time.Hour)
	f.attempt(0, alice, password, forwarded("2001:db8:1:3::1")...).is(http.StatusOK)
	// An IPv4 address in IPv6 clothes is itself.
	f.attempt(0, alice, password, forwarded("::ffff:192.0.2.1")...).throttled(time.Hour)
	// X-Real-Ip is what any client may send through a proxy that does not know it.
	fail(nil)
	fail([]option{header("X-Real-Ip", "192.0.2.77")})
	f.attempt(0, alice, password, header("X-Real-Ip", "192.0.2.78")).throttled(time.Hour)
	f.attempt(0, alice, password, header("X-Forwarded-For", "garbage"), header("X-Real-Ip", "192.0.2.78")).throttled(time.Hour)
}

// Strangers who spend an account's whole budget do not keep its owner out: the
// owner's browser is known.
func TestKnownDeviceKeepsTheOwnerIn(t *testing.T) {
	t.Parallel()
	f := limited(t, 1000, 12, 0) // of which this network has 3
	f.account(tokenstore.Account{Username: "mallory"}, "mallory-password")
	device := f.attempt(0, alice, password).cookie("known_device").Value
	mallory := f.attempt(0, "mallory", "mallory-password").cookie("known_device").Value
	for range 3 {
		f.attempt(1, alice, "wrong-password").is(http.StatusUnauthorized)
	}
	f.attempt(2, alice, password).throttled(time.Hour)
	a := f.attempt(2, alice, password, known(device)).is(http.StatusOK)
	if len(a.cookies("known_device")) != 0 {
		t.Error("a known device was made known again")
	}
	// The owner mistypes.
	f.attempt(0, alice, "wrong-password", known(device)).is(http.StatusUnauthorized)
	f.attempt(0, alice, password, known(device)).is(http.StatusOK)
	// The cookie of a device is of one user, and nobody can make one.
	forgeries := map[string]string{
		"another user's": mallory, "changed": flipLast(device), "longer": device + "AAAA", "shorter": device[:len(device)-2],
		"no code": device[:22], "empty": "", "garbage": "garbage", "zeros": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
	}
	for name, forged := range forgeries {
		a := f.attempt(1, alice, password, known(forged))
		if a.status != http.StatusTooManyRequests {
			t.Errorf("%s: got %d, want 429", name, a.status)
		}
	}
	// Of several, one that is right is enough.
	f.attempt(1, alice, password, known(mallory), known(device)).is(http.StatusOK)
}

// A known device has a budget too: it is no licence to guess.
func TestKnownDeviceIsThrottled(t *testing.T) {
	t.Parallel()
	f := limited(t, 3, 100, 0)
	device := f.attempt(0, alice, password).cookie("known_device").Value
	for range 3 {
		f.attempt(1, alice, "wrong-password", known(device)).is(http.StatusUnauthorized)
	}
	f.attempt(2, alice, password, known(device)).throttled(time.Hour)
	// And its guesses are its own.
	f.attempt(2, alice, password).is(http.StatusOK)
}

// Whoever holds an access token may not try passwords with it.
func TestPasswordChangeIsThrottled(t *testing.T) {
	t.Parallel()
	f := limited(t, 3, 0, 0)
	s := f.login(0)
	change := func(current string) answer {
		f.secrets.add(current, "another-password")
		return f.post(1, "/users/me/password", bearer(s.access), form("current_password", current, "new_password", "another-password"))
	}
	for range 3 {
		change("wrong-password").fails(http.StatusForbidden, "access_denied", "Incorrect password")
	}
	change("wrong-password").throttled(time.Hour)
	change(password).throttled(time.Hour)
	f.attempt(2, alice, password).is(http.StatusOK) // its guesses are its own
}

// from is a client's address as a trusted proxy tells it.
func from(address string) option { return header("X-Forwarded-For", address) }

// strangers fail to log in to an account from so many networks that its budget for unknown
// devices is spent.
func (f *fleet) strangers(username string) {
	f.Helper()
	for i := range 250 {
		if f.attempt(i%3, username, "wrong-password", from("198.18."+strconv.Itoa(i)+".1")).status == http.StatusTooManyRequests {
			return
		}
	}
	f.Fatal("the budget is not spent")
}

// Whoever is no browser has the token of a known device in the body, and keeps out no
// more than a browser does when strangers spend the account's budget.
func TestDeviceTokenKeepsTheOwnerIn(t *testing.T) {
	t.Parallel()
	for name, loginAt := range map[string]func(f *fleet, app registered, username, password string, pairs ...string) answer{
		"in the body": func(f *fleet, _ registered, username, password string, pairs ...string) answer {
			return f.post(0, "/auth/token", form(append(pairs, "username", username, "password", password, "refresh_delivery", "body")...))
		},
		"of a client": func(f *fleet, app registered, username, password string, pairs ...string) answer {
			return f.post(1, "/auth/token", app.post(append(pairs, "username", username, "password", password)...), from("192.0.2.1"))
		},
	} {
		// A fleet each: strangers use up alice's budget in both.
		f := limited(t, 1000, 12, 1000, "127.0.0.0/8")
		f.account(tokenstore.Account{Username: "mallory"}, "mallory-password")
		app := f.register(tokenstore.Client{ID: "lkc_app", Grants: "refresh_token", Scopes: scopes})
		login := func(username, password string, pairs ...string) answer {
			return loginAt(f, app, username, password, pairs...)
		}
		first := login(alice, password).is(http.StatusOK)
		device := first.member("device_token")
		if len(device) != 43 || len(first.header.Values("Set-Cookie")) != 0 {
			t.Fatalf("%s: device_token %q, cookies %q", name, device, first.header.Values("Set-Cookie"))
		}
		mallory := login("mallory", "mallory-password").member("device_token")
		f.strangers(alice)
		for range 12 {
			login(alice, "wrong-password") // strangers by way of the client
		}
		login(alice, password).throttled(time.Hour)
		for what, forged := range map[string]string{"another user's": mallory, "changed": flipLast(device), "longer": device + "AAAA", "garbage": "garbage"} {
			if a := login(alice, password, "device_token", forged); a.status != http.StatusTooManyRequests {
				t.Errorf("%s, %s: %d", name, what, a.status)
			}
		}
		a := login(alice, password, "device_token", device).is(http.StatusOK)
		if a.member("device_token") != "" {
			t.Errorf("%s: a known device was made known again", name)
		}
		// It is of no use in a refresh, and none comes with it.
		if a := f.post(0, "/auth/refresh", form("refresh_token", f.loginBody(device).refresh)); a.member("device_token") != "" {
			t.Errorf("%s: a refresh has a device", name)
		}
	}
}

// loginBody logs alice in from a known device that is no browser.
func (f *fleet) loginBody(device string) tokens {
	f.Helper()
	return f.post(0, "/auth/token", form("username", alice, "password", password, "refresh_delivery", "body", "device_token", device)).tokens()
}

// Strangers who fail elsewhere do not keep the users of a registered client out.
func TestAClientsUsersHaveABudgetOfTheirOwn(t *testing.T) {
	t.Parallel()
	f := limited(t, 1000, 12, 1000, "127.0.0.0/8")
	app := f.register(tokenstore.Client{ID: "lkc_app", Grants: "refresh_token", Scopes: scopes})
	f.strangers(alice)
	f.attempt(0, alice, password, from("192.0.2.1")).throttled(time.Hour)
	f.post(0, "/auth/token", app.post("username", alice, "password", password), from("192.0.2.1")).is(http.StatusOK)
	// Who only says to be the client has no part of it.
	f.post(0, "/auth/token", registered{app.id, "wrong"}.post("username", alice, "password", password), from("192.0.2.1")).is(http.StatusUnauthorized)
	f.post(0, "/auth/token", form("username", alice, "password", password, "client_id", "app"), from("192.0.2.1")).throttled(time.Hour)
}

// One network does not spend what an account has for all unknown devices, from however
// many addresses it fails.
func TestOneNetworkSpendsAQuarter(t *testing.T) {
	t.Parallel()
	f := limited(t, 1000, 12, 1000, "127.0.0.0/8")
	for name, address := range map[string]func(i int) string{
		"a /48": func(i int) string { return "2001:db8:1:" + strconv.Itoa(i) + "::1" },
		"a /24": func(i int) string { return "203.0.113." + strconv.Itoa(i) },
	} {
		tried := 0
		for i := range 40 {
			if f.attempt(i%3, alice, "wrong-password", from(address(i))).status == http.StatusUnauthorized {
				tried++
			}
		}
		if tried != 3 {
			t.Errorf("%s: %d guesses were tried, want 3", name, tried)
		}
		f.attempt(0, alice, password, from("192.0.2.1")).is(http.StatusOK)
		f.attempt(0, alice, password, from("2001:db8:2::1")).is(http.StatusOK)
	}
}

// The limit of an address is that of its /64; a /56 has four of it, and a /48 sixteen.
func TestThrottleOfIPv6Networks(t *testing.T) {
	t.Parallel()
	f := limited(t, 0, 0, 1, "127.0.0.0/8")
	tried := func(address func(i int) string) int {
		n := 0
		for i := range 40 {
			if f.attempt(i%3, "user"+strconv.Itoa(i), "wrong-password", from(address(i))).status == http.StatusUnauthorized {
				n++
			}
		}
		return n
	}
	for _, c := range []struct {
		name    string
		address func(i int) string
		want    int
	}{
		{"a /64", func(i int) string { return fmt.Sprintf("2001:db8:1::%x", i) }, 1},
		{"a /56", func(i int) string { return fmt.Sprintf("2001:db8:2:%x::1", i) }, 4},
		{"a /48", func(i int) string { return fmt.Sprintf("2001:db8:3:%x::1", i<<8) }, 16},
		{"many", func(i int) string { return fmt.Sprintf("2001:db8:%x::1", 0x100+i) }, 40},
	} {
		if got := tried(c.address); got != c.want {
			t.Errorf("%s: %d guesses were tried, want %d", c.name, got, c.want)
		}
	}
}

// A known device is not held up by what others fail from its address, nor a session by
// what strangers fail at its account.
func TestNeighboursDoNotLockTheOwnerOut(t *testing.T) {
	t.Parallel()
	f := limited(t, 1000, 12, 5, "127.0.0.0/8")
	here := from("192.0.2.1")
	first := f.attempt(0, alice, password, here)
	device, s := first.cookie("known_device").Value, first.tokens()
	for i := range 5 {
		f.attempt(0, "user"+strconv.Itoa(i), "wrong-password", here).is(http.StatusUnauthorized)
	}
	f.attempt(1, alice, password, here).throttled(time.Hour)
	f.attempt(1, alice, password, here, known(device)).is(http.StatusOK)
	f.strangers(alice)
	const next = "another-canary-password"
	f.secrets.add(next)
	f.post(2, "/users/me/password", here, bearer(s.access), form("current_password", password, "new_password", next)).is(http.StatusOK)
}

func flipLast(s string) string { return s[:len(s)-1] + string(other(s[len(s)-1])) }
