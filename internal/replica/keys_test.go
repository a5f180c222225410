package replica

import (
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// keeperOn is a replica's keeper on a Redis.
func keeperOn(t *testing.T, m *miniredis.Miniredis) *keyKeeper {
	t.Helper()
	cfg := config.Dev()
	cfg.RedisURL = config.RedisURL("redis://" + m.Addr())
	rdb, store, err := OpenStore(cfg, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rdb.Close() })
	sealer, err := accesstoken.NewSealer(rootSecrets(cfg)...)
	if err != nil {
		t.Fatal(err)
	}
	return newKeyKeeper(cfg, store.Keys, sealer, slog.New(slog.DiscardHandler))
}

func (k *keyKeeper) mustSync(t *testing.T) tokenstore.KeyRing {
	t.Helper()
	if err := k.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	have, err := k.stored.Ring(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return have
}

// It would else sign with a key that is gone everywhere else.
func TestAReplicaThatCannotLearnOfARotationStopsToSign(t *testing.T) {
	t.Parallel()
	m := redistest.Mini(t)
	k := keeperOn(t, m)
	k.mustSync(t)
	signs := k.ring.Active().ID()
	m.SetError("LOADING Redis is loading the dataset in memory")
	for _, step := range []struct {
		silent time.Duration
		signs  bool
	}{{k.settings.Publish - time.Minute, true}, {k.settings.Publish + time.Second, false}} {
		k.synced = time.Now().Add(-step.silent)
		if err := k.sync(t.Context()); !errors.Is(err, tokenstore.ErrUnavailable) {
			t.Fatalf("sync = %v, want ErrUnavailable", err)
		}
		if got := k.ring.Active() != nil; got != step.signs {
			t.Errorf("after %v without Redis: signs %t, want %t", step.silent, got, step.signs)
		}
		if !k.ring.Has(signs) {
			t.Error("it does not verify any more")
		}
	}
	m.SetError("")
	k.mustSync(t)
	if own := k.ring.Active(); own == nil || own.ID() != signs {
		t.Errorf("it signs with %v, want %s", own, signs)
	}
}

// Redis comes back empty. The keys come back with the same one signing, whoever
// is first; and one that was revoked does not.
func TestKeysComeBackAfterALossAndRevokedOnesDoNot(t *testing.T) {
	t.Parallel()
	m := redistest.Mini(t)
	a, b := keeperOn(t, m), keeperOn(t, m)
	a.mustSync(t)
	stolen := a.ring.Active().ID()
	sealed, err := freshKey(a.sealer, "EdDSA")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.stored.Revoke(t.Context(), a.settings, stolen, sealed); err != nil {
		t.Fatal(err)
	}
	next, err := freshKey(a.sealer, "EdDSA")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.stored.Offer(t.Context(), a.settings, next, tokenstore.OfferNow); err != nil {
		t.Fatal(err)
	}
	a.mustSync(t)
	before := b.mustSync(t)
	if a.ring.Has(stolen) || before.Active != next.ID || len(before.Keys) != 2 {
		t.Fatalf("before the loss: %+v", before)
	}
	m.FlushAll()
	b.mustSync(t)
	after := a.mustSync(t)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(before.Keys)), slices.Sorted(maps.Keys(after.Keys))); diff != "" || after.Active != next.ID {
		t.Errorf("after the loss %s signs, want %s; the keys (-before +after):\n%s", after.Active, next.ID, diff)
	}
	if !after.Gone[stolen] {
		t.Error("it was forgotten that a key was revoked")
	}
	for _, k := range []*keyKeeper{a, b} {
		if k.ring.Has(stolen) || k.ring.Active().ID() != next.ID {
			t.Errorf("the ring: %v, signs %v", k.ring.IDs(), k.ring.Active())
		}
	}
}

// A replica was asleep while its key was retired and went: it was not lost, and is
// not put back.
func TestAKeyThatHasGoneIsNotPutBack(t *testing.T) {
	t.Parallel()
	m := redistest.Mini(t)
	asleep, awake := keeperOn(t, m), keeperOn(t, m)
	asleep.mustSync(t)
	old := asleep.ring.Active().ID()
	next, err := freshKey(awake.sealer, "EdDSA")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := awake.stored.Offer(t.Context(), awake.settings, next, tokenstore.OfferNow); err != nil {
		t.Fatal(err)
	}
	m.SetTime(time.Now().Add(24 * time.Hour))
	awake.mustSync(t)
	have := asleep.mustSync(t)
	if _, there := have.Keys[old]; there || asleep.ring.Has(old) || asleep.ring.Active().ID() != next.ID {
		t.Errorf("in Redis: %v; in the ring: %v", slices.Sorted(maps.Keys(have.Keys)), asleep.ring.IDs())
	}
}

// The tokens of a key that has gone by age are recognised for as long as sessions live, also
// by a replica that comes later and under another root secret; those of a key that was
// revoked are not.
func TestAKeyThatHasGoneIsRecognised(t *testing.T) {
	t.Parallel()
	m := redistest.Mini(t)
	began := time.Now()
	m.SetTime(began)
	a := keeperOn(t, m)
	a.mustSync(t)
	old := a.ring.Active().ID()
	token, err := accesstoken.NewSigner(a.ring).Sign(accesstoken.Claims{
		Issuer: "i", Subject: "alice", Audience: []string{"a"}, ID: "j", SessionID: "s", ClientID: "c", IssuedAt: 1, ExpiresAt: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := freshKey(a.sealer, "EdDSA")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.stored.Offer(t.Context(), a.settings, fresh, tokenstore.OfferNow); err != nil {
		t.Fatal(err)
	}
	m.SetTime(began.Add(24 * time.Hour))
	a.mustSync(t)
	late := keeperOn(t, m)
	if late.sealer, err = accesstoken.NewSealer([]byte(strings.Repeat("another root secret ", 2))); err != nil {
		t.Fatal(err)
	}
	if err := late.sync(t.Context()); !errors.Is(err, errSealed) { // the key that signs does not open
		t.Fatal(err)
	}
	recognises := func(what string, want bool) {
		t.Helper()
		for _, k := range []*keyKeeper{a, late} {
			v := accesstoken.NewVerifier(k.ring, accesstoken.VerifierOptions{Issuer: "i", Audience: "a"})
			if _, err := v.Authentic(token); (err == nil) != want {
				t.Errorf("%s: Authentic = %v", what, err)
			}
			if _, err := v.Verify(token, time.Unix(1, 0)); !errors.Is(err, accesstoken.ErrUnknownKey) {
				t.Errorf("%s: Verify = %v", what, err)
			}
			if k.ring.Has(old) {
				t.Errorf("%s: it verifies", what)
			}
		}
	}
	recognises("gone", true)
	if _, retired := a.mustSync(t).Retired[old]; !retired {
		t.Error("it is not listed as retired")
	}
	if _, err := a.stored.Revoke(t.Context(), a.settings, old, tokenstore.SealedKey{}); err != nil {
		t.Fatal(err)
	}
	a.mustSync(t)
	_ = late.sync(t.Context())
	recognises("revoked", false)
}
