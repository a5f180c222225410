package tokenstore_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/latchkey-auth/latchkey/internal/redistest"
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
		if _, _, err := f.Rotate(t.Context(), own); err != nil {
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
			_, _, err := f.Rotate(t.Context(), r)
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
		if g, err := short.Peek(t.Context(), s.rotation(1)); err != nil || g.Current {
			t.Errorf("its parent, looked at under 2 s: %+v, %v", g, err)
		}
		s.age(time.Minute)
		must("it rotates under 2 s", short, 2, false)
		s.age(30 * time.Second)
		must("its parent, under a minute", long, 2, true)
		if _, err := short.Peek(t.Context(), s.rotation(2)); !errors.Is(err, tokenstore.ErrNoSession) {
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
