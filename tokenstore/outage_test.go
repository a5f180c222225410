package tokenstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// dial connects as the product does.
func dial(t *testing.T, url string) redis.UniversalClient {
	t.Helper()
	c, err := tokenstore.Dial(tokenstore.DialOptions{URL: url, Timeout: 250 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// operations are all that a request may call, on one session.
func operations(s *family, charged tokenstore.Lookup) map[string]func() error {
	ctx := s.f.t.Context()
	return map[string]func() error{
		"login":       func() error { _, err := s.f.tryLogin("alice", time.Now().Add(time.Hour)); return err },
		"rotate":      func() error { _, err := s.show(1); return err },
		"verify":      func() error { return s.verify(0) },
		"lookup":      func() error { _, err := s.f.Attempts.Lookup(ctx, attempt("alice", "192.0.2.1")); return err },
		"refund":      func() error { return s.f.Attempts.Refund(ctx, charged.Charge) },
		"sessions":    func() error { _, _, err := s.f.Sessions.List(ctx, s.uid, "", 100); return err },
		"session":     func() error { _, err := s.f.Sessions.Get(ctx, s.sid); return err },
		"keys":        func() error { _, err := s.f.Keys.Ring(ctx); return err },
		"keys_sync":   func() error { _, err := s.f.Keys.Sync(ctx, keySettings()); return err },
		"deny_key":    func() error { _, err := s.f.Keys.Deny(ctx, "k"); return err },
		"ping":        func() error { return s.f.Ping(ctx) },
		"open":        func() error { return s.f.Open(ctx) },
		"account":     func() error { _, _, err := s.f.Accounts.Get(ctx, "alice"); return err },
		"password":    func() error { _, err := s.f.Accounts.SetPassword(ctx, "alice", "", "h"); return err },
		"replace":     func() error { _, err := s.f.Accounts.ReplacePassword(ctx, "alice", "h", "h"); return err },
		"replaced":    func() error { _, err := s.f.Accounts.ReplacedPassword(ctx, "alice"); return err },
		"create":      func() error { return s.f.Accounts.Create(ctx, tokenstore.Account{Username: "bob", Hash: "h"}) },
		"delete":      func() error { _, err := s.f.Accounts.Delete(ctx, "bob"); return err },
		"usernames":   func() error { _, err := s.f.Accounts.Usernames(ctx); return err },
		"revoke user": func() error { _, err := s.f.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: s.uid}); return err },
		"client":      func() error { _, err := s.f.Clients.Get(ctx, "lkc_a"); return err },
		"clients":     func() error { _, err := s.f.Clients.IDs(ctx); return err },
		"client's sessions": func() error {
			return s.f.Clients.Sessions(ctx, "lkc_a", func(tokenstore.SessionEnd) error { return nil })
		},
		"create client":       func() error { return s.f.Clients.Create(ctx, tokenstore.Client{ID: "lkc_a"}, [32]byte{}) },
		"rotate client":       func() error { return s.f.Clients.RotateSecret(ctx, "lkc_a", [32]byte{}, 0) },
		"delete client":       func() error { return s.f.Clients.Delete(ctx, "lkc_a") },
		"authenticate client": func() error { _, err := s.f.Clients.Authenticate(ctx, "lkc_a", [32]byte{}); return err },
		"issue to client":     func() error { _, err := s.f.Clients.IssueToken(ctx, "lkc_a", [32]byte{}); return err },
		"first use":           func() error { _, err := s.f.Proofs.FirstUse(ctx, [32]byte{}, time.Now().Add(time.Minute)); return err },
		"peek":                func() error { _, err := s.f.Sessions.Peek(ctx, s.rotation(1)); return err },
		"status view":         func() error { _, err := s.f.Revocations.StatusView(ctx, s.sid.Shard()); return err },
		"revoke": func() error {
			_, err := s.f.Sessions.Revoke(ctx, tokenstore.SessionEnd{SID: s.sid, UID: s.uid})
			return err
		},
	}
}

func TestAnOutageIsNotAbsence(t *testing.T) {
	outages := map[string]struct {
		begin, end func(*redistest.Server, testing.TB)
		keeps      bool
	}{
		"paused": {func(s *redistest.Server, t testing.TB) { s.Pause(t) }, func(s *redistest.Server, t testing.TB) { s.Resume(t) }, true},
		"killed": {func(s *redistest.Server, t testing.TB) { s.Kill(t) }, func(s *redistest.Server, t testing.TB) { s.Restart(t) }, true},
	}
	for name, o := range outages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
			s, err := tokenstore.New(dial(t, server.URL()), tokenstore.Options{Shards: 16, Lifetimes: lifetimes()})
			if err != nil {
				t.Fatal(err)
			}
			f := &fixture{Store: s, t: t, rdb: server.Client()}
			eventually(t, func() error { return s.Open(t.Context()) })
			fam, charged := f.login("alice"), f.try(attempt("alice", "192.0.2.1"))

			o.begin(server, t)
			for op, call := range operations(fam, charged) {
				start := time.Now()
				err := call()
				if !errors.Is(err, tokenstore.ErrUnavailable) {
					t.Errorf("%s: got %v, want ErrUnavailable", op, err)
				}
				if took := time.Since(start); took > 5*time.Second {
					t.Errorf("%s took %v", op, took)
				}
			}
			o.end(server, t)
			eventually(t, func() error { return s.Ping(t.Context()) })
			// What was sent to a paused server may have run when it woke: a logout
			// whose answer was lost may well have happened. So only a new session tells.
			s2 := f.login("alice")
			if _, err := s2.show(1); err != nil {
				t.Error(err)
			}
			is(t, "verify", s2.verify(1), nil)
		})
	}
}

func TestASessionOutlivesAnOutage(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	s, err := tokenstore.New(dial(t, server.URL()), tokenstore.Options{Shards: 16, Lifetimes: lifetimes()})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Store: s, t: t, rdb: server.Client()}
	eventually(t, func() error { return s.Open(t.Context()) })
	fam := f.login("alice")
	server.Kill(t)
	_, err = fam.show(1)
	is(t, "refresh without Redis", err, tokenstore.ErrUnavailable)
	server.Restart(t)
	eventually(t, func() error { return s.Ping(t.Context()) })
	if _, err := fam.show(1); err != nil {
		t.Errorf("the same refresh token afterwards: %v", err)
	}
	is(t, "the access token from before", fam.verify(0), nil)
}

// What waits before a Redis that stands still is carried out when it goes on. A
// rotation must then not be: its token would be a parent, and after the grace a theft.
func TestARotationNobodyWaitsForChangesNothing(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	const timeout = 300 * time.Millisecond
	s, err := tokenstore.New(dial(t, server.URL()), tokenstore.Options{Shards: 16, Lifetimes: lifetimes(), Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Store: s, t: t, rdb: server.Client()}
	eventually(t, func() error { return s.Open(t.Context()) })
	fam := f.login("alice")
	if _, err := fam.show(1); err != nil { // Redis knows the script from here on
		t.Fatal(err)
	}
	fam.age(2 * lifetimes().Grace)
	server.Pause(t)
	asked := s.Now()
	_, err = fam.show(2)
	is(t, "refresh at a Redis that stands still", err, tokenstore.ErrUnavailable)
	for s.Now().Sub(asked) < 2*timeout { // until the last of its attempts is late
		time.Sleep(timeout / 10)
	}
	server.Resume(t)
	eventually(t, func() error { return s.Ping(t.Context()) })
	g, err := fam.show(2)
	if err != nil || g.Same {
		t.Errorf("the same refresh token afterwards: same %v, %v", g.Same, err)
	}
}

func TestACancelledCallerIsNotAbsence(t *testing.T) {
	t.Parallel()
	f := newFixtureOn(t, backends()["redis"](t), lifetimes())
	s := f.login("alice")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := f.Revocations.Verify(ctx, s.access(0))
	is(t, "cancelled", err, tokenstore.ErrUnavailable)
	is(t, "cancelled", err, context.Canceled)
}

// With noeviction a full Redis refuses writes: logins and refreshes are
// unavailable and change nothing; a logout frees memory and is let through, and
// means what it says.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	f := newFixture(t, server.Client(), lifetimes())
	s, kept := f.login("alice"), f.login("alice")
	if err := f.rdb.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	_, err := f.tryLogin("alice", time.Now().Add(time.Hour))
	is(t, "login", err, tokenstore.ErrUnavailable)
	if err == nil || !strings.Contains(err.Error(), "OOM") {
		t.Errorf("the cause is not in the error: %v", err)
	}
	_, err = kept.show(1)
	is(t, "refresh", err, tokenstore.ErrUnavailable)
	is(t, "verify", kept.verify(0), nil)
	s.logout(true)
	is(t, "after the logout", s.verify(0), tokenstore.ErrRevoked)
	if err := f.rdb.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := kept.show(1); err != nil {
		t.Errorf("the refused refresh token afterwards: %v", err)
	}
	is(t, "after the logout, with memory", s.verify(0), tokenstore.ErrRevoked)
}

// Evicting nothing is the contract; a reuse must end the family even then.
func TestReuseIsAnsweredOutOfMemory(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	f := newFixture(t, server.Client(), lifetimes())
	s := f.login("alice")
	for gen := 1; gen <= 3; gen++ {
		if _, err := s.rotate(gen); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.rdb.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	_, err := s.show(1)
	is(t, "reuse", err, tokenstore.ErrReuse)
	is(t, "the family", s.verify(3), tokenstore.ErrRevoked)
}

func TestDialRefusesWhatItCannotReadWithoutRepeatingIt(t *testing.T) {
	_, err := tokenstore.Dial(tokenstore.DialOptions{URL: "redis//user:hunter2@host"})
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}

func TestNothingListens(t *testing.T) {
	s, err := tokenstore.New(dial(t, "redis://"+deafAddr(t)), tokenstore.Options{Shards: 16, Lifetimes: lifetimes()})
	if err != nil {
		t.Fatal(err)
	}
	is(t, "open", s.Open(t.Context()), tokenstore.ErrUnavailable)
}

// eventually waits for Redis to answer again.
func eventually(t testing.TB, ready func() error) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := ready()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still not: %v", err)
		}
		time.Sleep(10 * time.Millisecond) // a poll of another process's state, not a timing
	}
}
