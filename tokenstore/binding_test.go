package tokenstore_test

import (
	"crypto/sha256"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// RFC 9449 section 5: who may refresh what with which key. What is refused changes
// nothing and ends nothing.
func TestARefreshTokenIsBoundToItsKey(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		for _, c := range []struct {
			name, client, bound, shown string
			want                       error
		}{
			{"its key", "", "k1", "k1", nil},
			{"another key", "", "k1", "k2", tokenstore.ErrKeyBinding},
			{"no key", "", "k1", "", tokenstore.ErrKeyBinding},
			{"a key for what is bound to none", "", "", "k1", tokenstore.ErrKeyBinding},
			{"none for what is bound to none", "", "", "", nil},
			{"a client's key", "lkc_a", "k1", "k1", nil},
			{"a client's new key", "lkc_a", "k1", "k2", nil},
			{"a client's first key", "lkc_a", "", "k1", nil},
			{"a client without its key", "lkc_a", "k1", "", tokenstore.ErrKeyBinding},
		} {
			s, err := f.loginWith(tokenstore.NewSession{Subject: "alice", ClientID: c.client, JKT: c.bound, ReadAt: time.Now().Add(time.Hour)})
			if err != nil {
				t.Fatal(err)
			}
			r := s.rotation(1)
			r.IssuedTo, r.JKT = c.client, c.shown
			for range 2 { // the second time as its parent's
				g, _, err := f.Sessions.Rotate(t.Context(), r)
				is(t, c.name, err, c.want)
				if err == nil && g.JKT != c.shown {
					t.Errorf("%s: granted for %q", c.name, g.JKT)
				}
			}
			if c.want == nil {
				continue
			}
			// A spent token without the key is no theft.
			r.JKT = c.bound
			if _, _, err := f.Sessions.Rotate(t.Context(), r); err != nil {
				t.Fatalf("%s: the session is over: %v", c.name, err)
			}
			s.age(time.Minute)
			r.JKT = c.shown
			_, _, err = f.Sessions.Rotate(t.Context(), r)
			is(t, c.name+", long spent", err, tokenstore.ErrKeyBinding)
			r.JKT = c.bound
			_, _, err = f.Sessions.Rotate(t.Context(), r)
			is(t, c.name+", long spent, by the holder of the key", err, tokenstore.ErrReuse)
		}
	})
}

// Of all who use a thing at once, one is the first; it is forgotten in time.
func TestFirstUse(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		soon := time.Now().Add(time.Minute)
		for i := range 20 { // on several shards
			id := sha256.Sum256([]byte{byte(i)})
			var first atomic.Int32
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					ok, err := f.Proofs.FirstUse(t.Context(), id, soon)
					if err != nil {
						t.Error(err)
					}
					if ok {
						first.Add(1)
					}
				})
			}
			wg.Wait()
			if n := first.Load(); n != 1 {
				t.Errorf("%d were first", n)
			}
		}
		if ok, err := f.Proofs.FirstUse(t.Context(), sha256.Sum256([]byte("late")), time.Now().Add(-time.Hour)); ok || err != nil {
			t.Errorf("what can be remembered no more: %v, %v", ok, err)
		}
		for _, key := range f.allKeys() {
			if !strings.Contains(key, ":used:") {
				continue
			}
			if ttl := f.ttl(key); ttl <= 0 || ttl > 80*time.Second {
				t.Errorf("%s is kept for %v", key, ttl)
			}
		}
	})
}
