package tokenstore_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// A current token that was made by a rotation less than a grace ago stays current,
// however often it is shown.
func TestASessionRotatesOnceInAGrace(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		s := f.login("alice")
		first, err := s.show(1) // a login's first token rotates at once
		if err != nil || first.Same || first.Current {
			t.Fatalf("the first: %+v, %v", first, err)
		}
		before := f.rdb.HGetAll(t.Context(), s.key("rt", s.sid)).Val()
		for _, gen := range []int{2, 1, 2, 2, 1} {
			g, err := s.show(gen)
			if err != nil || !g.Same || g.Current != (gen == 2) {
				t.Fatalf("generation %d: %+v, %v", gen, g, err)
			}
			near(t, "expiry", g.RefreshExpiry.Sub(first.RefreshExpiry), 0, time.Minute) // miniredis does not count a TTL down
			if !g.AuthTime.Equal(s.grants[0].Now) || g.Subject != "alice" || g.Username != "alice" || g.ClientID != "latchkey" {
				t.Errorf("generation %d: grant %+v", gen, g)
			}
		}
		if diff := cmp.Diff(before, f.rdb.HGetAll(t.Context(), s.key("rt", s.sid)).Val()); diff != "" {
			t.Errorf("the session changed:\n%s", diff)
		}
		for n := range s.grants {
			is(t, "an access token", s.verify(n), nil)
		}
		if g, err := s.rotate(2); err != nil || g.Same || g.Current {
			t.Errorf("after the grace: %+v, %v", g, err)
		}
		if g, err := s.show(2); err != nil || !g.Same || g.Current {
			t.Errorf("its parent: %+v, %v", g, err)
		}
		_, err = s.show(1)
		is(t, "its grandparent", err, tokenstore.ErrReuse)
	})
}

// What is refused without a word about the family is refused of a current token that
// may not rotate yet, too.
func TestACurrentTokenIsCheckedWithinTheGrace(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		s, err := f.loginWith(tokenstore.NewSession{Subject: "alice", ClientID: "lkc_a", Scope: "read", JKT: "k", ReadAt: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		own := s.rotation(1)
		own.IssuedTo, own.JKT = "lkc_a", "k"
		if _, _, err := f.Sessions.Rotate(t.Context(), own); err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct {
			change func(r *tokenstore.Rotation)
			want   error
		}{
			"another client":   {func(r *tokenstore.Rotation) { r.IssuedTo = "lkc_b" }, tokenstore.ErrForeign},
			"no key":           {func(r *tokenstore.Rotation) { r.JKT = "" }, tokenstore.ErrKeyBinding},
			"a scope not had":  {func(r *tokenstore.Rotation) { r.Scope = "write" }, tokenstore.ErrScope},
			"nothing the like": {func(*tokenstore.Rotation) {}, nil},
		} {
			r := s.rotation(2)
			r.IssuedTo, r.JKT = "lkc_a", "k"
			c.change(&r)
			_, _, err := f.Sessions.Rotate(t.Context(), r)
			is(t, name, err, c.want)
		}
	})
}

// Replicas have different graces while a setting is rolled out. A rotation keeps the grace
// under which it was made, so that one with a shorter grace takes no honest client for a
// thief; one with a longer grace judges by its own.
func TestARotationKeepsItsGrace(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		with := func(grace time.Duration) *fixture {
			life := lifetimes()
			life.Grace = grace
			return newFixtureOn(t, backend{store: f.store, test: f.rdb}, life)
		}
		short, long := with(2*time.Second), with(time.Minute)
		s := f.login("alice")
		shown := func(at *fixture, gen int) (tokenstore.Grant, error) {
			t.Helper()
			s.f = at
			return s.show(gen)
		}
		must := func(what string, at *fixture, gen int, same bool) {
			t.Helper()
			if g, err := shown(at, gen); err != nil || g.Same != same {
				t.Errorf("%s: %+v, %v", what, g, err)
			}
		}
		must("it rotates under a minute", long, 1, false)
		s.age(30 * time.Second)
		must("its parent, under 2 s", short, 1, true)
		must("the current one, under 2 s", short, 2, true)
		if g, err := short.Sessions.Peek(t.Context(), s.rotation(1)); err != nil || g.Current {
			t.Errorf("its parent, looked at under 2 s: %+v, %v", g, err)
		}
		s.age(time.Minute)
		must("it rotates under 2 s", short, 2, false)
		s.age(30 * time.Second)
		must("its parent, under a minute", long, 2, true)
		if _, err := short.Sessions.Peek(t.Context(), s.rotation(2)); !errors.Is(err, tokenstore.ErrNoSession) {
			t.Errorf("its parent, looked at under 2 s after 30 s: %v", err)
		}
		_, err := shown(short, 2)
		is(t, "its parent, under 2 s after 30 s", err, tokenstore.ErrReuse)
	})
}

// Of the requests of one burst one writes.
func TestABurstWritesOnce(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	f := newFixture(t, server.Client(), lifetimes())
	s := f.login("alice")
	if _, err := s.show(1); err != nil {
		t.Fatal(err)
	}
	writes := func() string {
		for line := range strings.Lines(f.rdb.Info(t.Context(), "persistence").Val()) {
			if n, ok := strings.CutPrefix(strings.TrimSpace(line), "rdb_changes_since_last_save:"); ok {
				return n
			}
		}
		t.Fatal("INFO does not tell how many writes there were")
		return ""
	}
	before := writes()
	for _, gen := range []int{2, 1, 2, 1} {
		if g, err := s.show(gen); err != nil || !g.Same {
			t.Fatalf("generation %d: %+v, %v", gen, g, err)
		}
	}
	if after := writes(); after != before {
		t.Errorf("%s writes became %s", before, after)
	}
}

// TestWhateverWasCurrentWithinTheGraceConverges shows tokens of one session in any
// order, at exact moments. A token that was current at some moment of the last grace,
// bounds included, gets the current one; any older one ends the session.
func TestWhateverWasCurrentWithinTheGraceConverges(t *testing.T) {
	t.Parallel()
	mini := redistest.Mini(t)
	rdb := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	defer func() { _ = rdb.Close() }()
	now := time.Now().Truncate(time.Millisecond)
	mini.SetTime(now)
	f := newFixture(t, rdb, lifetimes())
	grace := lifetimes().Grace
	rapid.Check(t, func(rt *rapid.T) {
		s := f.login("alice")
		var until []time.Time // until[n] is when generation n+1 was replaced
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			now = now.Add(rapid.SampledFrom([]time.Duration{0, time.Millisecond, grace / 2, grace - time.Millisecond, grace, grace + time.Millisecond}).Draw(rt, "later"))
			mini.SetTime(now)
			current := len(until) + 1
			gen := max(1, current-rapid.IntRange(0, 3).Draw(rt, "back"))
			g, err := s.show(gen)
			if gen < current && now.Sub(until[gen-1]) > grace {
				if !errors.Is(err, tokenstore.ErrReuse) {
					rt.Fatalf("generation %d, current until %v ago: %v", gen, now.Sub(until[gen-1]), err)
				}
				return
			}
			if err != nil {
				rt.Fatalf("generation %d of %d: %v", gen, current, err)
			}
			if !g.Same {
				until = append(until, now)
			}
			switch {
			case g.Current && gen != len(until)+1, !g.Current && gen+1 != len(until)+1:
				rt.Fatalf("generation %d got another than %d, the current one: %+v", gen, len(until)+1, g)
			case len(until) > 2 && until[len(until)-1].Sub(until[len(until)-2]) <= grace:
				rt.Fatalf("it rotated twice in a grace: %v", until)
			}
		}
	})
}

// The access lifetime may be raised while a session lives: a token that a late rotation
// grants then outlives what the login has prepared for. Until it expires, neither the
// user's epoch nor the shard's head may be gone.
func TestATokenOfALateRotationIsKnownAsLongAsItLives(t *testing.T) {
	t.Parallel()
	for name, shown := range map[string][]int{"rotated": {1}, "kept": {1, 2}, "parent": {1, 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newRedisClock(t)
			life := lifetimes()
			life.Access, life.Refresh, life.Session = 15*time.Minute, time.Hour, time.Hour
			f := newFixture(t, w.rdb, life)
			if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: f.UserID("alice")}); err != nil {
				t.Fatal(err)
			}
			s := f.login("alice")
			w.pass(59 * time.Minute)
			life.Access = 2 * time.Hour
			raised := newFixture(t, w.rdb, life)
			for i, gen := range shown {
				if i == len(shown)-1 {
					s.f = raised
				}
				if _, err := s.show(gen); err != nil {
					t.Fatal(err)
				}
			}
			last := len(s.grants) - 1
			w.pass(110 * time.Minute)
			is(t, "the token", s.verify(last), nil)
			if _, err := s.f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: s.uid}); err != nil {
				t.Fatal(err)
			}
			is(t, "the token after log out everywhere", s.verify(last), tokenstore.ErrRevoked)
		})
	}
}

// Redis's clock is set back by an hour: the grace after a rotation lasts no longer for it.
func TestTheGraceEndsAfterTheClockWasSetBack(t *testing.T) {
	t.Parallel()
	w := newRedisClock(t)
	f := newFixture(t, w.rdb, lifetimes())
	s := f.login("alice")
	if _, err := s.show(1); err != nil {
		t.Fatal(err)
	}
	w.step(-time.Hour)
	if g, err := s.show(1); err != nil || !g.Same || g.Current {
		t.Errorf("the parent: %+v, %v", g, err)
	}
	w.step(f.Lifetimes().Grace)
	if g, err := s.show(1); err != nil || !g.Same || g.Current {
		t.Errorf("the parent at the end of the grace: %+v, %v", g, err)
	}
	w.step(time.Millisecond)
	if g, err := s.show(2); err != nil || g.Same {
		t.Errorf("after the grace: %+v, %v", g, err)
	}
	_, err := s.show(1)
	is(t, "the parent after the grace", err, tokenstore.ErrReuse)
}

// redisClock is a miniredis whose clock the test moves.
type redisClock struct {
	mini *miniredis.Miniredis
	rdb  *redis.Client
	now  time.Time
}

func newRedisClock(t *testing.T) *redisClock {
	t.Helper()
	w := &redisClock{mini: redistest.Mini(t), now: time.Now().Truncate(time.Millisecond)}
	w.mini.SetTime(w.now)
	w.rdb = redis.NewClient(&redis.Options{Addr: w.mini.Addr()})
	t.Cleanup(func() { _ = w.rdb.Close() })
	return w
}

// pass lets time pass: the clock goes on, and keys expire.
func (w *redisClock) pass(d time.Duration) {
	w.step(d)
	w.mini.FastForward(d)
}

// step sets the clock, forward or back. Keys live on for as long as they would have.
func (w *redisClock) step(d time.Duration) {
	w.now = w.now.Add(d)
	w.mini.SetTime(w.now)
}
