//go:build !race

// The tests of this file take long and have one goroutine to watch. The race detector has
// nothing to find in them, and costs three to eight times as much CPU.
package tokenstore_test

import (
	"errors"
	"slices"
	"strconv"
	"testing"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Each script that writes, then each other one, then a copy of the first. After its
// deadline a copy changes nothing. Before its deadline it changes nothing but what the table
// explains, and expiries: a copy may renew one.
func TestACopyChangesNothing(t *testing.T) {
	t.Parallel()
	all := mutations()
	server := redistest.Start(t, "--databases", strconv.Itoa(len(all)))
	for i, first := range all {
		t.Run("miniredis/"+first.String(), func(t *testing.T) {
			t.Parallel()
			mini := redistest.Mini(t)
			rdb := redis.NewClient(&redis.Options{Addr: mini.Addr()})
			t.Cleanup(func() { _ = rdb.Close() })
			newWorld(t, rdb, mini).copies(t, first)
		})
		t.Run("redis/"+first.String(), func(t *testing.T) {
			t.Parallel()
			rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), DB: i})
			t.Cleanup(func() { _ = rdb.Close() })
			newWorld(t, rdb, nil).copies(t, first)
		})
	}
}

// Whatever is not the reply that a script's header promises is an outage: nobody is
// accepted, refused, rotated or logged out by it.
func TestAReplyThatCannotBeReadIsAnOutage(t *testing.T) {
	t.Parallel()
	for name, ready := range operationsByMethod() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mini := redistest.Mini(t)
			rdb := redis.NewClient(&redis.Options{Addr: mini.Addr()})
			t.Cleanup(func() { _ = rdb.Close() })
			w := newWorld(t, rdb, mini)
			if _, err := w.Keys.Deny(t.Context(), "dead"); err != nil {
				t.Fatal(err)
			}
			var m mangler
			w.store.AddHook(&m)
			replies, err := m.watch(-1, nil, ready(w))
			if errors.Is(err, tokenstore.ErrUnavailable) {
				t.Fatalf("with nothing replaced: %v", err)
			}
			if len(replies) == 0 {
				t.Fatal("no reply was seen")
			}
			hmget := slices.Contains([]string{"AnyAlive", "Session", "Sessions", "Client", "ClientSessions"}, name)
			at := 0
			if name == "Preflight" {
				at = 16 // it looks twice at each shard, and goes by the second look
			}
			for ; at < len(replies); at++ {
				if at > 1 && name == "DenyKey" || at > 16 {
					break // one of many alike
				}
				for what, by := range mangled(replies[at], hmget) {
					op := ready(w)
					_, list := by.([]any)
					m.all = !list
					seen, err := m.watch(at, func([]any) any { return by }, op)
					if len(seen) <= at {
						t.Fatalf("reply %d did not come", at)
					}
					if !errors.Is(err, tokenstore.ErrUnavailable) {
						t.Errorf("reply %d %v, %s: got error %v, want ErrUnavailable", at, replies[at], what, err)
					}
				}
			}
		})
	}
}

// TestBackendsAgree sends one random history to miniredis and to a real Redis
// and compares every answer: what is proved on the one may be believed of the other.
func TestBackendsAgree(t *testing.T) {
	t.Parallel()
	stores := []*fixture{
		newFixtureWith(t, backends()["miniredis"](t), tokenstore.Options{Lifetimes: lifetimes(), StatusLists: true}),
		newFixtureWith(t, backends()["redis"](t), tokenstore.Options{Lifetimes: lifetimes(), StatusLists: true}),
	}
	rapid.Check(t, func(rt *rapid.T) {
		for _, f := range stores {
			if err := f.rdb.FlushAll(t.Context()).Err(); err != nil {
				rt.Fatal(err)
			}
		}
		h := &history{t: t, stores: stores}
		steps := rapid.IntRange(1, 40).Draw(rt, "steps")
		for i := range steps {
			var answers [2]string
			op := rapid.SampledFrom([]string{"login", "rotate", "rotate", "rotate", "wrong", "verify", "revoke", "revokeUser", "age", "failed"}).Draw(rt, "op")
			user := rapid.SampledFrom([]string{"alice", "bob"}).Draw(rt, "user")
			n := rapid.IntRange(0, 3).Draw(rt, "session")
			back := rapid.IntRange(-1, 2).Draw(rt, "back")
			for s := range stores {
				answers[s] = h.do(s, op, user, n, back)
			}
			h.commit(op, user, n, back, answers[0])
			if answers[0] != answers[1] {
				rt.Fatalf("step %d %s %s/%d back %d: miniredis says %q, Redis %q", i, op, user, n, back, answers[0], answers[1])
			}
		}
		for s := range stores {
			h.listed(rt, s)
		}
	})
}
