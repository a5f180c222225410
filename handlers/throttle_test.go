package handlers_test

import (
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
		s.Limits = tokenstore.AttemptLimits{Client: l, Account: l, Address: l}
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
	f := limited(t, 3, 5, 0)
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
	f := limited(t, 1000, 3, 0)
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
	f.attempt(2, alice, password).throttled(time.Hour)
}

func flipLast(s string) string { return s[:len(s)-1] + string(other(s[len(s)-1])) }
