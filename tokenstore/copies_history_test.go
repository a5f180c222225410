package tokenstore_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// onCopies runs a test on miniredis and on Redis.
func onCopies(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	t.Parallel()
	t.Run("miniredis", func(t *testing.T) {
		t.Parallel()
		mini := redistest.Mini(t)
		rdb := redis.NewClient(&redis.Options{Addr: mini.Addr()})
		t.Cleanup(func() { _ = rdb.Close() })
		test(t, newWorld(t, rdb, mini))
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		test(t, newWorld(t, redistest.Start(t).Client(), nil))
	})
}

// copyOf does something, and returns how to have Redis do it once more.
func (w *world) copyOf(script string, do func() error) (again func()) {
	w.t.Helper()
	w.take(w.scripts[script].Hash)
	if err := do(); err != nil {
		w.t.Fatal(err)
	}
	copies := w.take(w.scripts[script].Hash)
	if len(copies) == 0 {
		w.t.Fatalf("%s was not called", script)
	}
	return func() {
		w.t.Helper()
		w.send(copies)
	}
}

func (w *world) copyOfLogin() (s *family, again func()) {
	w.t.Helper()
	again = w.copyOf("login", func() error {
		var err error
		s, err = w.tryLogin(subject, w.Now())
		return err
	})
	return s, again
}

func (w *world) revokeUser(e tokenstore.UserEnd) {
	w.t.Helper()
	if _, err := w.Sessions.RevokeUser(w.t.Context(), e); err != nil {
		w.t.Fatal(err)
	}
}

// over fails unless a session has ended.
func (w *world) over(s *family, want error) {
	w.t.Helper()
	_, err := s.show(1)
	is(w.t, "refresh", err, want)
	is(w.t, "access token", s.verify(0), tokenstore.ErrRevoked)
	list, _, err := w.Sessions.List(w.t.Context(), s.uid, "", 100)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, x := range list {
		if x.SID == s.sid {
			w.t.Error("the session is listed")
		}
	}
}

func TestACopyOfALoginAfterALogoutEverywhere(t *testing.T) {
	onCopies(t, func(_ *testing.T, w *world) {
		s, again := w.copyOfLogin()
		w.revokeUser(tokenstore.UserEnd{UID: s.uid})
		again()
		w.over(s, tokenstore.ErrSuperseded)
		// The refusal must not take away what tells that the session is over.
		again()
		w.over(s, tokenstore.ErrSuperseded)
	})
}

func TestACopyOfALoginAfterALogout(t *testing.T) {
	onCopies(t, func(_ *testing.T, w *world) {
		s, again := w.copyOfLogin()
		s.logout(false)
		again()
		w.over(s, tokenstore.ErrRevoked)
	})
}

func TestACopyOfALoginAfterTheDenialHasEnded(t *testing.T) {
	mini := redistest.Mini(t)
	rdb := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	w := newWorld(t, rdb, mini)
	s, again := w.copyOfLogin()
	s.logout(false)
	const ended = 16 * time.Minute // the default lifetime of an access token, and more
	mini.SetTime(time.Now().Add(ended))
	mini.FastForward(ended)
	if w.exists(s.key("deny", s.sid)) {
		t.Fatal("the session is denied still")
	}
	again()
	_, err := s.show(1)
	is(t, "refresh", err, tokenstore.ErrNoSession)
}

func TestACopyOfALoginAfterARefresh(t *testing.T) {
	onCopies(t, func(t *testing.T, w *world) {
		s, again := w.copyOfLogin()
		if _, err := s.show(1); err != nil {
			t.Fatal(err)
		}
		again()
		if _, err := s.show(2); err != nil {
			t.Errorf("the honest client's refresh: %v", err)
		}
		is(t, "access token", s.verify(0), nil)
	})
}

func TestACopyOfALoginIsTheSameLogin(t *testing.T) {
	onCopies(t, func(t *testing.T, w *world) {
		uid := w.UserID(subject)
		sid, err := w.Sessions.NewID(uid)
		if err != nil {
			t.Fatal(err)
		}
		n := tokenstore.NewSession{SID: sid, UID: uid, Hash: sha256.Sum256([]byte("s")), Subject: subject, ReadAt: w.Now().Add(time.Hour)}
		first, err := w.Sessions.Login(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		before := w.dump()
		second, err := w.Sessions.Login(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		if diff := changed(before, w.dump(), true); diff != "" {
			t.Errorf("it changed\n%s", diff)
		}
		if !second.AuthTime.Equal(first.AuthTime) || second.Place != first.Place || first.Place.N == 0 || second.UserEpoch != first.UserEpoch {
			t.Errorf("the second answer is %+v, not %+v", second, first)
		}
		near(t, "the expiry", second.RefreshExpiry.Sub(first.RefreshExpiry), 0, time.Minute) // miniredis does not count a TTL down
	})
}

func TestACopyOfAClientsOldSecret(t *testing.T) {
	onCopies(t, func(t *testing.T, w *world) {
		stolen, fresh := random32(t), random32(t)
		again := w.copyOf("client_rotate", func() error { return w.Clients.RotateSecret(t.Context(), client, stolen, 0) })
		if err := w.Clients.RotateSecret(t.Context(), client, fresh, 0); err != nil {
			t.Fatal(err)
		}
		again()
		_, err := w.Clients.Authenticate(t.Context(), client, stolen)
		is(t, "the secret that was replaced", err, tokenstore.ErrClientSecret)
		_, err = w.Clients.Authenticate(t.Context(), client, fresh)
		is(t, "the secret in force", err, nil)
	})
}

func TestACopyOfALogoutEverywhereEndsNoLaterLogin(t *testing.T) {
	onCopies(t, func(t *testing.T, w *world) {
		uid := w.UserID(subject)
		again := w.copyOf("revoke_user", func() error {
			_, err := w.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: uid})
			return err
		})
		w.revokeUser(tokenstore.UserEnd{UID: uid})
		s := w.login(subject)
		again()
		is(t, "access token", s.verify(0), nil)
		if _, err := s.show(1); err != nil {
			t.Errorf("refresh: %v", err)
		}
	})
}

func TestACopyOfADisabledAccount(t *testing.T) {
	onCopies(t, func(t *testing.T, w *world) {
		for _, disabled := range []bool{true, false} {
			set := func(v bool) func() error {
				return func() error { _, err := w.Accounts.SetDisabled(t.Context(), account, v); return err }
			}
			again := w.copyOf("account_update", set(!disabled))
			if err := set(disabled)(); err != nil {
				t.Fatal(err)
			}
			again()
			a, _, err := w.Accounts.Get(t.Context(), account)
			if err != nil || a.Disabled != disabled {
				t.Errorf("disabled is %v, %v; want %v", a.Disabled, err, disabled)
			}
		}
	})
}

func TestACopyOfADeletedAccountAndClient(t *testing.T) {
	onCopies(t, func(t *testing.T, w *world) {
		secret := random32(t)
		account := w.copyOf("account_create", func() error {
			return w.Accounts.Create(t.Context(), tokenstore.Account{Username: "dave", Hash: "h"})
		})
		client := w.copyOf("client_create", func() error {
			return w.Clients.Create(t.Context(), tokenstore.Client{ID: "lkc_b"}, secret)
		})
		if _, err := w.Accounts.Delete(t.Context(), "dave"); err != nil {
			t.Fatal(err)
		}
		if err := w.Clients.Delete(t.Context(), "lkc_b"); err != nil {
			t.Fatal(err)
		}
		account()
		client()
		_, _, err := w.Accounts.Get(t.Context(), "dave")
		is(t, "the account", err, tokenstore.ErrNoAccount)
		_, err = w.Clients.Authenticate(t.Context(), "lkc_b", secret)
		is(t, "the client", err, tokenstore.ErrNoClient)
	})
}

// A copy that finds Redis empty after another loss of data must not bring the history of
// before back, without its denials.
func TestALateCopyBringsNoHistoryBack(t *testing.T) {
	t.Parallel()
	mini := redistest.Mini(t)
	rdb := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	w := newWorld(t, rdb, mini)
	mini.FlushAll()
	s, again := w.copyOfLogin()
	mini.FlushAll()
	mini.SetTime(time.Now().Add(time.Minute))
	again()
	is(t, "a token of before the loss", s.verify(0), tokenstore.ErrRevoked)
}

// miniStore is a store on a miniredis whose clock the test sets.
func miniStore(t *testing.T, o tokenstore.Options) (*fixture, *miniredis.Miniredis) {
	t.Helper()
	mini := redistest.Mini(t)
	rdb := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	return newFixtureWith(t, backend{store: rdb, test: rdb}, o), mini
}

// A Redis whose clock is ahead of the estimate calls a request late that is not: the answer
// tells the time, and the request is sent once more.
func TestAnEstimateThatIsBehindCostsOneRoundTrip(t *testing.T) {
	t.Parallel()
	f, mini := miniStore(t, tokenstore.Options{Lifetimes: lifetimes()})
	s := f.login("alice")
	now := time.Now()
	for name, op := range operations(s, f.try(attempt("alice", "192.0.2.1"))) {
		now = now.Add(time.Hour)
		mini.SetTime(now)
		if err := op(); errors.Is(err, tokenstore.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var count trips
	f.store.AddHook(&count)
	mini.SetTime(now.Add(time.Hour))
	is(t, "late once", f.Clients.RotateSecret(t.Context(), "lkc_none", [32]byte{}, 0), tokenstore.ErrNoClient)
	if got := count.n.Load(); got != 2 {
		t.Errorf("%d round trips, want 2", got)
	}
}

// A copy of a refresh that runs after the grace would look like theft. So none may run
// later than half a grace after the first was sent, however long the store waits, and
// neither may what is sent again because it was late.
func TestNoCopyOfARotationRunsAfterHalfAGrace(t *testing.T) {
	t.Parallel()
	f, mini := miniStore(t, tokenstore.Options{Lifetimes: lifetimes()}) // waits for 10 s
	r := &recorder{sent: map[string][][]any{}}
	f.store.AddHook(r)
	s := f.login("alice")
	var rotate string
	for _, sc := range f.AllScripts() {
		if sc.Name == "rotate" {
			rotate = sc.Hash
		}
	}
	half := lifetimes().Grace / 2
	ran := func(what string, latest time.Time) {
		t.Helper()
		sent := r.take(rotate)
		if len(sent) == 0 {
			t.Fatalf("%s: nothing ran", what)
		}
		for _, args := range sent {
			deadline, _ := args[len(args)-1].(int64)
			if over := time.UnixMilli(deadline).Sub(latest); over > 0 {
				t.Errorf("%s: a copy may run %v after half a grace", what, over)
			}
		}
	}
	if _, err := s.show(1); err != nil {
		t.Fatal(err)
	}
	ran("in time", f.Now().Add(half))

	now := time.Now().Add(time.Hour).Truncate(time.Millisecond)
	mini.SetTime(now)
	if _, err := s.show(2); err != nil {
		t.Fatal(err)
	}
	ran("sent again", now.Add(half))
}

// runaway sets a clock ahead with each command.
type runaway struct {
	mini *miniredis.Miniredis
	now  time.Time
}

func (c *runaway) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *runaway) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.tick()
		return next(ctx, cmd)
	}
}

func (c *runaway) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.tick()
		return next(ctx, cmds)
	}
}

func (c *runaway) tick() {
	c.now = c.now.Add(time.Hour)
	c.mini.SetTime(c.now)
}

func TestLateTwiceIsAnOutage(t *testing.T) {
	t.Parallel()
	f, mini := miniStore(t, tokenstore.Options{Lifetimes: lifetimes()})
	s := f.login("alice")
	f.store.AddHook(&runaway{mini: mini, now: time.Now()})
	for name, op := range map[string]func() error{
		"one script":    func() error { return f.Clients.RotateSecret(t.Context(), client, [32]byte{}, 0) },
		"in a batch":    func() error { return s.verify(0) },
		"in a pipeline": func() error { _, err := f.Keys.Deny(t.Context(), "k"); return err },
	} {
		is(t, name, op(), tokenstore.ErrUnavailable)
	}
}

// A store that has not heard of Redis time does not go by its own clock, which may be
// ahead by more than a copy can be late.
func TestBeforeTheFirstAnswerTheDeadlineIsNotByTheLocalClock(t *testing.T) {
	t.Parallel()
	mini := redistest.Mini(t)
	mini.SetTime(time.Now().Add(-time.Hour))
	rdb := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	s, err := tokenstore.New(rdb, tokenstore.Options{Shards: 16, Lifetimes: lifetimes(), Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{sent: map[string][][]any{}}
	rdb.AddHook(r)
	if err := s.Clients.Create(t.Context(), tokenstore.Client{ID: client}, [32]byte{}); err != nil {
		t.Fatal(err)
	}
	for _, sent := range r.sent {
		for _, args := range sent {
			if deadline, _ := args[len(args)-1].(int64); deadline > time.Now().Add(-time.Hour+time.Minute).UnixMilli() {
				t.Errorf("the deadline is %v, and it is an hour ago at Redis", time.UnixMilli(deadline))
			}
		}
	}
}
