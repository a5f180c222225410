package tokenstore_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

func keySettings() tokenstore.KeySettings {
	return tokenstore.KeySettings{Publish: 10 * time.Minute, Rotation: 720 * time.Hour, Algorithm: "EdDSA"}
}

func sealed(kid string) tokenstore.SealedKey {
	return tokenstore.SealedKey{ID: kid, Algorithm: "EdDSA", Sealed: []byte("sealed " + kid), Public: []byte(`{"public of": "` + kid + `"}`)}
}

// ring is a fixture that keeps signing keys.
type ring struct {
	*fixture
	o tokenstore.KeySettings
}

func (r ring) must(got tokenstore.KeyRing, err error) tokenstore.KeyRing {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
	return got
}

func (r ring) sync() tokenstore.KeyRing {
	r.t.Helper()
	return r.must(r.Keys.Sync(r.t.Context(), r.o))
}

func (r ring) offer(kid string, why tokenstore.Offer) tokenstore.KeyRing {
	r.t.Helper()
	return r.must(r.Keys.Offer(r.t.Context(), r.o, sealed(kid), why))
}

func (r ring) revoke(kid, replacement string) (tokenstore.KeyRing, error) {
	other := tokenstore.SealedKey{}
	if replacement != "" {
		other = sealed(replacement)
	}
	return r.Keys.Revoke(r.t.Context(), r.o, kid, other)
}

// back makes all that was noted of the keys d older.
func (r ring) back(d time.Duration) {
	r.t.Helper()
	ctx := r.t.Context()
	for name, value := range r.rdb.HGetAll(ctx, "lk:keys").Val() {
		var alg string
		var at [4]int64
		if n, _ := fmt.Sscanf(value, "%s %d %d %d %d", &alg, &at[0], &at[1], &at[2], &at[3]); n != 5 || name[:2] != "m:" {
			continue
		}
		for i := range at {
			if at[i] > 0 {
				at[i] -= d.Milliseconds()
			}
		}
		text := fmt.Sprintf("%s %d %d %d %d", alg, at[0], at[1], at[2], at[3])
		if err := r.rdb.HSet(ctx, "lk:keys", name, text).Err(); err != nil {
			r.t.Fatal(err)
		}
	}
}

// states fails unless these keys are there, in these states, and no others.
func (r ring) states(what string, got tokenstore.KeyRing, want map[string]tokenstore.KeyState) {
	r.t.Helper()
	ok := len(got.Keys) == len(want)
	for kid, state := range want {
		if _, there := got.Keys[kid]; !there || got.State(kid) != state {
			ok = false
		}
	}
	if !ok {
		r.t.Errorf("%s: active %q, next %q, keys %v; want %v", what, got.Active, got.Next, got.Keys, want)
	}
}

type states = map[string]tokenstore.KeyState

const (
	next     = tokenstore.KeyNext
	active   = tokenstore.KeyActive
	retiring = tokenstore.KeyRetiring
)

func onEachRing(t *testing.T, test func(t *testing.T, r ring)) {
	t.Helper()
	onEach(t, func(t *testing.T, f *fixture) { test(t, ring{f, keySettings()}) })
}

func TestOneSigningKeyWinsTheFirstBoot(t *testing.T) {
	onEachRing(t, func(t *testing.T, r ring) {
		var wg sync.WaitGroup
		kept := make([]tokenstore.KeyRing, 20)
		for i := range kept {
			wg.Go(func() {
				var err error
				kept[i], err = r.Keys.Offer(t.Context(), r.o, sealed(fmt.Sprint("k", i)), tokenstore.OfferDue)
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, k := range kept {
			if k.Active == "" || k.Active != kept[0].Active || len(k.Keys) != 1 || string(k.Keys[k.Active].Sealed) != "sealed "+k.Active {
				t.Errorf("a replica got %+v, the first %+v", k, kept[0])
			}
		}
		read := r.must(r.Keys.Ring(t.Context()))
		r.states("read", read, states{kept[0].Active: active})
	})
}

// A key is published before it signs, verifies after it has signed, and goes when
// the last of its tokens has expired; whoever looks makes it so.
func TestASigningKeysLife(t *testing.T) {
	onEachRing(t, func(t *testing.T, r ring) {
		if !r.sync().Wanted {
			t.Error("an empty Redis wants no key")
		}
		a := r.offer("a", tokenstore.OfferDue)
		near(t, "until the rotation", a.Rotates.Sub(a.Now), r.o.Rotation, time.Second)
		if a.Wanted || r.offer("early", tokenstore.OfferDue).Next != "" {
			t.Error("a second key is wanted at once")
		}
		r.back(r.o.Rotation - r.o.Publish - time.Minute)
		if r.sync().Wanted {
			t.Error("the next key is wanted too early")
		}
		r.back(time.Minute)
		if !r.sync().Wanted {
			t.Error("no key is wanted one publishing time before the rotation")
		}
		b := r.offer("b", tokenstore.OfferDue)
		r.states("published", b, states{"a": active, "b": next})
		near(t, "until it signs", b.Rotates.Sub(b.Now), r.o.Publish, time.Second)
		r.states("another is dropped", r.offer("c", tokenstore.OfferDue), states{"a": active, "b": next})
		r.back(r.o.Publish - time.Minute)
		r.states("not yet", r.sync(), states{"a": active, "b": next})
		r.back(time.Minute)
		r.states("rotated", r.sync(), states{"a": retiring, "b": active})
		r.states("a retired key is not offered again", r.offer("a", tokenstore.OfferLost), states{"a": retiring, "b": active})

		keeps := r.Lifetimes().Access + r.o.Publish + 10*time.Second // with the pad for clocks
		r.back(keeps - time.Minute)
		s := r.sync()
		r.states("its tokens may be alive", s, states{"a": retiring, "b": active})
		near(t, "until it goes", s.Until(s.Keys["a"], r.o).Sub(s.Now), time.Minute, time.Second)
		r.back(time.Minute + time.Second)
		s = r.sync()
		r.states("gone", s, states{"b": active})
		if revoked, gone := s.Gone["a"]; !gone || revoked {
			t.Errorf("of the one that has gone is known: %v", s.Gone)
		}
		r.states("it does not come back", r.offer("a", tokenstore.OfferLost), states{"b": active})
	})
}

// Of a key that has gone by age the public half stays, for as long as a session can be
// alive of which it has signed a token.
func TestARetiredKeyIsRecognisedForAsLongAsSessionsLive(t *testing.T) {
	onEachRing(t, func(t *testing.T, r ring) {
		r.o.Rotation = 0
		recognised := func(what string, got tokenstore.KeyRing, want ...string) {
			t.Helper()
			ok := len(got.Retired) == len(want)
			for _, kid := range want {
				ok = ok && string(got.Retired[kid].Public) == string(sealed(kid).Public)
			}
			if !ok {
				t.Errorf("%s: recognised %v, want %q", what, got.Retired, want)
			}
		}
		r.offer("a", tokenstore.OfferDue)
		secret := sealed("secret") // HS256 has no public half
		secret.Public = nil
		r.must(r.Keys.Offer(t.Context(), r.o, secret, tokenstore.OfferNow))
		r.offer("stolen", tokenstore.OfferNow)
		r.offer("b", tokenstore.OfferNow)
		recognised("while they verify", r.sync())
		r.back(r.Lifetimes().Access + r.o.Publish + 11*time.Second)
		s := r.sync()
		r.states("gone", s, states{"b": active})
		recognised("gone", s, "a", "stolen")
		recognised("read", r.must(r.Keys.Ring(t.Context())), "a", "stolen")
		// The last session of which it has signed a token began as it was retired.
		near(t, "how long", s.Retired["a"].Until.Sub(s.Now), r.Lifetimes().Session-r.Lifetimes().Access, 5*time.Second)
		r.must(r.revoke("stolen", ""))
		recognised("revoked", r.sync(), "a")
		// Retired at the beginning of time: nothing of it can be alive.
		if err := r.rdb.HSet(t.Context(), "lk:keys", "r:a", fmt.Sprint(s.Now.UnixMilli()-1, " x")).Err(); err != nil {
			t.Fatal(err)
		}
		recognised("when sessions are over", r.sync())

		// However often keys change, only so many are kept: the latest.
		for i := range 120 {
			if err := r.rdb.HSet(t.Context(), "lk:keys", fmt.Sprint("r:k", i), fmt.Sprint(s.Now.Add(time.Hour).UnixMilli()+int64(i), " x")).Err(); err != nil {
				t.Fatal(err)
			}
		}
		s = r.sync()
		if _, oldest := s.Retired["k19"]; oldest || len(s.Retired) != 100 {
			t.Errorf("%d are recognised, the 101st %t", len(s.Retired), oldest)
		}
	})
}

// A shorter lifetime or publishing time does not shorten what was promised under
// the longer one.
func TestTheLongestSettingCounts(t *testing.T) {
	onEachRing(t, func(t *testing.T, r ring) {
		r.offer("a", tokenstore.OfferDue)
		r.offer("b", tokenstore.OfferAsked)
		short := lifetimes()
		short.Access = time.Minute
		other := ring{newFixture(t, r.rdb, short), r.o}
		other.o.Publish = time.Minute
		r.back(2 * time.Minute)
		r.states("published for the shorter time", other.sync(), states{"a": active, "b": next})
		r.back(8 * time.Minute)
		r.states("for the longer", other.sync(), states{"a": retiring, "b": active})
		r.back(5 * time.Minute)
		r.states("the longest lifetime is not over", other.sync(), states{"a": retiring, "b": active})
	})
}

func TestRotationByHand(t *testing.T) {
	onEachRing(t, func(t *testing.T, r ring) {
		r.o.Rotation = 0
		r.offer("a", tokenstore.OfferDue)
		r.back(10000 * time.Hour)
		if s := r.sync(); s.Wanted || !s.Rotates.IsZero() {
			t.Errorf("without a schedule: %+v", s)
		}
		r.states("asked", r.offer("b", tokenstore.OfferAsked), states{"a": active, "b": next})
		r.states("asked twice", r.offer("c", tokenstore.OfferAsked), states{"a": active, "b": next})
		for range 2 { // sent twice
			r.states("now, with a next", r.offer("d", tokenstore.OfferNow), states{"a": retiring, "b": active})
		}
		for range 2 {
			r.states("now, without", r.offer("e", tokenstore.OfferNow), states{"a": retiring, "b": retiring, "e": active})
		}
	})
}

func TestAnotherAlgorithmRotates(t *testing.T) {
	onEachRing(t, func(t *testing.T, r ring) {
		r.offer("a", tokenstore.OfferDue)
		r.o.Algorithm = "ES256"
		if !r.sync().Wanted {
			t.Error("no key of the new algorithm is wanted")
		}
		k := sealed("b")
		k.Algorithm = "ES256"
		r.states("offered", r.must(r.Keys.Offer(t.Context(), r.o, k, tokenstore.OfferDue)), states{"a": active, "b": next})
		r.back(r.o.Publish)
		if s := r.sync(); s.Wanted || s.Active != "b" || s.Keys["b"].Algorithm != "ES256" {
			t.Errorf("after the rotation: %+v", s)
		}
	})
}

func TestARevokedSigningKeyIsGone(t *testing.T) {
	onEachRing(t, func(t *testing.T, r ring) {
		r.offer("a", tokenstore.OfferDue)
		if _, err := r.revoke("a", ""); err == nil {
			t.Error("the only key was revoked without another to sign with")
		} else {
			is(t, "revoke", err, tokenstore.ErrKeyActive)
		}
		r.states("nothing has happened", r.sync(), states{"a": active})
		for range 2 { // sent twice
			r.states("replaced", r.must(r.revoke("a", "b")), states{"b": active})
		}
		r.offer("c", tokenstore.OfferAsked)
		r.states("the next takes over", r.must(r.revoke("b", "unused")), states{"c": active})
		r.offer("d", tokenstore.OfferAsked)
		r.states("the next itself", r.must(r.revoke("d", "")), states{"c": active})
		s := r.sync()
		for _, kid := range []string{"a", "b", "d"} {
			r.states("it does not come back", r.offer(kid, tokenstore.OfferLost), states{"c": active})
			if !s.Gone[kid] {
				t.Errorf("%s is not known to be revoked", kid)
			}
		}
	})
}

// Redis comes back empty: who has the keys puts them back, and the first signs.
func TestLostSigningKeysComeBack(t *testing.T) {
	onEachRing(t, func(_ *testing.T, r ring) {
		r.states("the first", r.offer("a", tokenstore.OfferLost), states{"a": active})
		r.states("the second", r.offer("b", tokenstore.OfferLost), states{"a": active, "b": retiring})
	})
}

func TestResealReplacesTheSameKeyOnly(t *testing.T) {
	onEachRing(t, func(t *testing.T, r ring) {
		r.offer("a", tokenstore.OfferDue)
		for _, step := range []struct{ before, anew, want string }{
			{"another", "x", "sealed a"}, {"sealed a", "anew", "anew"}, {"sealed a", "late", "anew"},
		} {
			if err := r.Keys.Reseal(t.Context(), "a", []byte(step.before), []byte(step.anew)); err != nil {
				t.Fatal(err)
			}
			if got := string(r.sync().Keys["a"].Sealed); got != step.want {
				t.Errorf("sealed %q, want %q", got, step.want)
			}
		}
		if err := r.Keys.Reseal(t.Context(), "gone", nil, []byte("x")); err != nil || len(r.sync().Keys) != 1 {
			t.Errorf("a key that is gone was sealed again: %v", err)
		}
	})
}

// Tokens of a revoked key are dead on every shard, those of others are not; the
// denial has no end, and asked again there is no second entry: the head is returned.
func TestDenyKeyDeniesItsTokensForEver(t *testing.T) {
	onEachRing(t, func(t *testing.T, r ring) {
		first, err := r.Keys.Deny(t.Context(), "stolen")
		if err != nil || len(first) != r.Shards() {
			t.Fatalf("%d revocations, %v", len(first), err)
		}
		head := r.login("alice").logout(false)
		again, err := r.Keys.Deny(t.Context(), "stolen")
		if err != nil {
			t.Fatal(err)
		}
		if i := head.Shard; again[i].Mark != head.Mark {
			t.Errorf("the head is %+v, asked again it returns %+v", head, again[i])
		}
		again[head.Shard] = first[head.Shard]
		for i := range first {
			if first[i].Shard != i || first[i].Mark.Seq == 0 || again[i].Mark != first[i].Mark {
				t.Errorf("shard %d: %+v, then %+v", i, first[i], again[i])
			}
		}
		for _, user := range []string{"alice", "bob", "carol"} {
			fam := r.login(user)
			token := fam.access(0)
			shard := token.SID.Shard()
			is(t, "without a key", r.Revocations.Verify(t.Context(), token), nil)
			token.Key = r.KeyID("sound", shard)
			is(t, "of a sound key", r.Revocations.Verify(t.Context(), token), nil)
			token.Key = r.KeyID("stolen", shard)
			is(t, "of the stolen key", r.Revocations.Verify(t.Context(), token), tokenstore.ErrRevoked)
			if ttl := r.ttl(fmt.Sprintf("lk:{%d}:dead", shard)); ttl != -1 {
				t.Errorf("the denial ends after %v", ttl)
			}
			views, err := r.Revocations.Renew(t.Context(), []tokenstore.Renewal{{Shard: shard}})
			if err != nil || len(views[0].Dead) != 1 || views[0].Dead[0] != token.Key {
				t.Errorf("a follower is told: %+v, %v", views, err)
			}
			if e := views[0].Entries; len(e) == 0 || len(e) > 2 || e[0].Kind != tokenstore.KindKey || e[0].ID != token.Key {
				t.Errorf("the log: %+v", e)
			}
		}
	})
}
