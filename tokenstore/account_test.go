package tokenstore_test

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// attempt is a try from an address, under limits small enough to count.
func attempt(username, address string) tokenstore.Attempt {
	return tokenstore.Attempt{
		Username: username, Address: netip.MustParseAddr(address),
		Limits: tokenstore.AttemptLimits{
			Client:  tokenstore.Limit{Burst: 3, Period: time.Hour},
			Account: tokenstore.Limit{Burst: 12, Period: time.Hour}, // a network has 3
			Address: tokenstore.Limit{Burst: 9, Period: time.Hour},
		},
	}
}

// try charges an attempt.
func (f *fixture) try(a tokenstore.Attempt) tokenstore.Lookup {
	f.t.Helper()
	l, err := f.Attempts.Lookup(f.t.Context(), a)
	if err != nil {
		f.t.Fatal(err)
	}
	return l
}

// wait tells how long an attempt would have to wait, and charges nothing.
func (f *fixture) wait(a tokenstore.Attempt) time.Duration {
	f.t.Helper()
	l := f.try(a)
	f.refund(l)
	return l.Wait
}

func (f *fixture) refund(l tokenstore.Lookup) {
	f.t.Helper()
	if err := f.Attempts.Refund(f.t.Context(), l.Charge); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) fail(a tokenstore.Attempt, times int) {
	f.t.Helper()
	for range times {
		f.try(a)
	}
}

func TestWhatIsRefundedSpendsNothing(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		a := attempt("alice", "192.0.2.1")
		for range 50 {
			if w := f.wait(a); w != 0 {
				t.Fatalf("asked to wait %v though nothing failed", w)
			}
		}
		f.fail(a, 3)
		near(t, "wait after the burst", f.wait(a), 20*time.Minute, 5*time.Second)
		// To be asked to wait costs nothing more.
		f.fail(a, 20)
		near(t, "wait after the burst", f.wait(a), 20*time.Minute, 5*time.Second)
	})
}

// However many attempts come at once, no more are let in than the budget has, and all
// of what they were charged can be had back, once.
func TestParallelAttemptsShareTheBudget(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		a := attempt("alice", "192.0.2.1")
		a.Limits.Address.Burst = 100 // what must wait elsewhere is charged here for a moment
		for round := range 2 {
			var wg sync.WaitGroup
			tries := make([]tokenstore.Lookup, 70)
			errs := make([]error, len(tries))
			for i := range tries {
				wg.Go(func() { tries[i], errs[i] = f.Attempts.Lookup(t.Context(), a) })
			}
			wg.Wait()
			in := 0
			for i, l := range tries {
				if errs[i] != nil {
					t.Fatal(errs[i])
				}
				if l.Wait == 0 {
					in++
				}
			}
			if in != 3 {
				t.Errorf("round %d: %d attempts were let in, want 3", round, in)
			}
			for range 3 { // as if each were sent again
				for _, l := range tries {
					f.refund(l)
				}
			}
		}
	})
}

// A refund that Redis gets twice, or late, takes nothing from what others were charged.
func TestARefundCountsOnce(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		a := attempt("alice", "192.0.2.1")
		owner := f.try(a)
		f.fail(a, 2) // a stranger's
		for range 3 {
			f.refund(owner)
		}
		if w := f.try(a).Wait; w != 0 {
			t.Errorf("the attempt that was refunded is missing: wait %v", w)
		}
		if w := f.wait(a); w == 0 {
			t.Error("a refund that was sent three times gave three attempts")
		}
	})
}

// Half of a charge is taken back if the other half has to wait: an address whose budget
// is spent does not spend those of accounts, nor the other way round.
func TestAnAttemptThatWaitsIsChargedNothing(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		for i := range 9 {
			f.fail(attempt(fmt.Sprintf("user%d", i), "198.51.100.1"), 1)
		}
		f.fail(attempt("alice", "198.51.100.1"), 20)
		if w := f.wait(attempt("alice", "198.51.100.2")); w != 0 {
			t.Errorf("the account waits %v for attempts that were not let in", w)
		}
		f.fail(attempt("bob", "203.0.113.1"), 20)
		near(t, "the client waits", f.wait(attempt("bob", "203.0.113.1")), 20*time.Minute, 5*time.Second)
		if w := f.wait(attempt("carol", "203.0.113.1")); w != 0 {
			t.Errorf("the address waits %v for attempts that were not let in", w)
		}
	})
}

func TestEachLimitHolds(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		// One account from many addresses.
		for i := range 12 {
			f.fail(attempt("alice", fmt.Sprintf("192.0.%d.1", i)), 1)
		}
		if f.wait(attempt("alice", "192.0.99.1")) == 0 {
			t.Error("the account's budget does not hold")
		}
		if w := f.wait(attempt("bob", "192.0.99.1")); w != 0 {
			t.Errorf("another account waits %v", w)
		}
		// One address over many accounts.
		for i := range 9 {
			f.fail(attempt(fmt.Sprintf("user%d", i), "198.51.100.1"), 1)
		}
		if f.wait(attempt("carol", "198.51.100.1")) == 0 {
			t.Error("the address's budget does not hold")
		}
		if w := f.wait(attempt("carol", "198.51.100.2")); w != 0 {
			t.Errorf("another address waits %v", w)
		}
	})
}

func TestAStrangerCannotLockTheOwnerOut(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		for i := range 250 { // the worst case: from everywhere
			f.fail(attempt("alice", fmt.Sprintf("203.%d.113.1", i)), 1)
		}
		owner := attempt("alice", "192.0.2.1")
		owner.Device = "the owner's browser"
		if w := f.wait(owner); w != 0 {
			t.Errorf("the owner waits %v on a known device", w)
		}
		// And from a new device no longer than one period and a slot, whatever the stranger does.
		if w := f.wait(attempt("alice", "192.0.2.1")); w == 0 || w > time.Hour+20*time.Minute {
			t.Errorf("the owner waits %v on a new device", w)
		}
	})
}

func TestLookup(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		want := tokenstore.Account{Username: "alice", Subject: "u-1", Hash: "h", Scopes: "read write", Claims: `{"team":"a"}`, Disabled: true}
		if err := f.Accounts.Create(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		l, err := f.Attempts.Lookup(t.Context(), attempt("alice", "192.0.2.1"))
		if err != nil || !l.Found || l.Account != want || l.ReadAt.IsZero() {
			t.Errorf("%+v, %v", l, err)
		}
		l, err = f.Attempts.Lookup(t.Context(), attempt("nobody", "192.0.2.1"))
		if err != nil || l.Found || l.ReadAt.IsZero() {
			t.Errorf("%+v, %v", l, err)
		}
	})
}

func TestAccountLifecycle(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		a := tokenstore.Account{Username: "alice", Hash: "h1"}
		for range 2 { // the second changes nothing
			if err := f.Accounts.Create(ctx, a); err != nil {
				t.Fatal(err)
			}
		}
		err := f.Accounts.Create(ctx, tokenstore.Account{Username: "alice", Hash: "other"})
		is(t, "the username is taken", err, tokenstore.ErrAccountExists)
		if _, err := f.Accounts.SetDisabled(ctx, "alice", true); err != nil {
			t.Fatal(err)
		}
		is(t, "the same hash does not enable again", f.Accounts.Create(ctx, a), tokenstore.ErrAccountExists)
		if _, err := f.Accounts.SetDisabled(ctx, "alice", false); err != nil {
			t.Fatal(err)
		}

		if _, err := f.Accounts.SetPassword(ctx, "alice", "h1", "h2"); err != nil {
			t.Fatal(err)
		}
		for _, hash := range []string{"h2", "h3"} {
			_, err = f.Accounts.SetPassword(ctx, "alice", "h1", hash)
			is(t, "the password changed meanwhile", err, tokenstore.ErrConflict)
		}
		if _, err := f.Accounts.SetDisabled(ctx, "alice", true); err != nil {
			t.Fatal(err)
		}
		got, _, err := f.Accounts.Get(ctx, "alice")
		if err != nil || got.Hash != "h2" || !got.Disabled || got.Subject != "alice" {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err := f.Accounts.SetDisabled(ctx, "alice", false); err != nil {
			t.Fatal(err)
		}
		if got, _, _ := f.Accounts.Get(ctx, "alice"); got.Disabled {
			t.Error("still disabled")
		}
		for range 2 {
			if _, err := f.Accounts.Delete(ctx, "alice"); err != nil {
				t.Fatal(err)
			}
		}
		_, _, err = f.Accounts.Get(ctx, "alice")
		is(t, "deleted", err, tokenstore.ErrNoAccount)
		_, err = f.Accounts.SetPassword(ctx, "alice", "", "h")
		is(t, "password of nobody", err, tokenstore.ErrNoAccount)
		_, err = f.Accounts.SetDisabled(ctx, "alice", true)
		is(t, "disable nobody", err, tokenstore.ErrNoAccount)
	})
}

// What a user replaced is known for a while, and what somebody else set is not.
func TestReplacedPassword(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		replaced := func(want string) {
			t.Helper()
			if got, err := f.Accounts.ReplacedPassword(ctx, "alice"); err != nil || got != want {
				t.Errorf("%q, %v; want %q", got, err, want)
			}
		}
		if err := f.Accounts.Create(ctx, tokenstore.Account{Username: "alice", Hash: "h1"}); err != nil {
			t.Fatal(err)
		}
		replaced("")
		if _, err := f.Accounts.ReplacePassword(ctx, "alice", "h1", "h2"); err != nil {
			t.Fatal(err)
		}
		replaced("h1")
		if _, err := f.Accounts.SetPassword(ctx, "alice", "h2", "h3"); err != nil {
			t.Fatal(err)
		}
		replaced("h1")
		_, err := f.Accounts.ReplacePassword(ctx, "alice", "h2", "h4")
		is(t, "the password changed meanwhile", err, tokenstore.ErrConflict)
		replaced("h1")
	})
}

func TestUsernamesListsEveryAccount(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		var want []string
		for _, name := range []string{"alice", "we{ird}", "a:acct:b", "söngül", "x*?[y]"} {
			want = append(want, name)
			if err := f.Accounts.Create(t.Context(), tokenstore.Account{Username: name, Hash: "h"}); err != nil {
				t.Fatal(err)
			}
		}
		got, err := f.Accounts.Usernames(t.Context())
		slices.Sort(want)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	})
}

// Redis's clock is set back by ten hours: whoever had used up a budget waits no longer than
// for the next attempt of a full one.
func TestABudgetAfterTheClockWasSetBack(t *testing.T) {
	t.Parallel()
	w := newRedisClock(t)
	f := newFixture(t, w.rdb, lifetimes())
	wait := func() time.Duration {
		t.Helper()
		l, err := f.Attempts.Lookup(t.Context(), attempt("alice", "192.0.2.1"))
		if err != nil {
			t.Fatal(err)
		}
		return l.Wait
	}
	for wait() == 0 {
		continue // until the budget is used up
	}
	w.step(-10 * time.Hour)
	first := wait()
	if first > 20*time.Minute {
		t.Errorf("it has to wait %v, three attempts an hour are allowed", first)
	}
	w.step(first)
	if d := wait(); d != 0 {
		t.Errorf("after that it has to wait %v more", d)
	}
}

// Redis's clock is set back by an hour after a password was changed: the new password logs
// in at once, and the old one does not.
func TestALoginAfterTheClockWasSetBack(t *testing.T) {
	t.Parallel()
	w := newRedisClock(t)
	f := newFixture(t, w.rdb, lifetimes())
	login := func(what string, readAt time.Time, want error) {
		t.Helper()
		_, err := f.tryLogin("alice", readAt)
		is(t, what, err, want)
	}
	change := func() {
		t.Helper()
		if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: f.UserID("alice"), ChangedAt: w.now}); err != nil {
			t.Fatal(err)
		}
	}
	old := w.now
	w.step(time.Second)
	change()
	w.step(-time.Minute) // a login that was read before the change may be under way
	login("read before the change, a small step back", old, tokenstore.ErrSuperseded)
	w.step(-time.Hour)
	login("read before the change", old, tokenstore.ErrSuperseded)
	login("read after the change", w.now, nil)

	old = w.now
	w.step(time.Second)
	change()
	login("read before the second change", old, tokenstore.ErrSuperseded)
	w.step(time.Second)
	login("read after the second change", w.now, nil)
}
