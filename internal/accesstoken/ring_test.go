package accesstoken

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRing(t *testing.T) {
	a, b := fixedKey(t, 1), fixedKey(t, 2)
	r := NewRing()
	if r.Active() != nil || r.Has("") || len(r.IDs()) != 0 {
		t.Error("a new ring is not empty")
	}
	if err := r.Activate(a.ID()); !errors.Is(err, ErrNoKey) {
		t.Errorf("Activate of an absent key = %v, want %v", err, ErrNoKey)
	}
	r.Add(a)
	if r.Active() != nil {
		t.Error("Add activated the key")
	}
	r.Add(b)
	r.Add(a)
	want := []string{a.ID(), b.ID()}
	slices.Sort(want)
	if diff := cmp.Diff(want, r.IDs()); diff != "" {
		t.Errorf("IDs (-want +got):\n%s", diff)
	}
	if err := r.Activate(b.ID()); err != nil || r.Active() != b || r.Key(a.ID()) != a {
		t.Errorf("Activate = %v, active %v", err, r.Active())
	}
	r.Remove("unknown")
	r.Remove(a.ID())
	if r.Has(a.ID()) || !r.Has(b.ID()) || r.Active() != b {
		t.Error("Remove of the other key touched more than that")
	}
	r.Remove(b.ID())
	if r.Active() != nil || len(r.IDs()) != 0 {
		t.Error("Remove of the active key left it active")
	}
}

// TestKeyRotation: tokens of the old key verify until it is removed, with either
// spelling of the header.
func TestKeyRotation(t *testing.T) {
	old, fresh := fixedKey(t, 1), fixedKey(t, 2)
	r := ringOf(t, old)
	v := verifierOf(r)
	c := testClaims()
	payload, err := c.encode()
	if err != nil {
		t.Fatal(err)
	}
	tokens := []string{
		mustSign(t, r, c),
		signText(t, old, `{"typ":"at+jwt","kid":"`+old.ID()+`","alg":"EdDSA"}`, string(payload)),
	}
	r.Add(fresh)
	if err := r.Activate(fresh.ID()); err != nil {
		t.Fatal(err)
	}
	for _, token := range append(tokens, mustSign(t, r, c)) {
		if _, err := v.Verify(token, issued); err != nil {
			t.Errorf("Verify during the rotation: %v", err)
		}
	}
	r.Remove(old.ID())
	for _, token := range tokens {
		if _, err := v.Verify(token, issued); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("Verify after the old key's removal = %v, want %v", err, ErrUnknownKey)
		}
	}
}

// TestConcurrentAdds: no change is lost to another made at the same time.
func TestConcurrentAdds(t *testing.T) {
	const writers, each = 8, 200
	r := NewRing()
	start := make(chan struct{})
	var wg sync.WaitGroup
	for w := range writers {
		keys := make([]*Key, each)
		for i := range keys {
			secret := secretOf(byte(w))
			secret[0] = byte(i)
			k, err := newKey(secret)
			if err != nil {
				t.Fatal(err)
			}
			keys[i] = k
		}
		wg.Go(func() {
			<-start
			for _, k := range keys {
				r.Add(k)
			}
		})
	}
	close(start)
	wg.Wait()
	if got := len(r.IDs()); got != writers*each {
		t.Errorf("%d keys in the ring, want %d", got, writers*each)
	}
}

// TestRingUnderRace rotates keys while others sign and verify. A signer must always
// have a key, and whatever it signs must verify.
func TestRingUnderRace(t *testing.T) {
	const rotations = 200
	base := fixedKey(t, 1)
	r := ringOf(t, base)
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			signer, verifier := NewSigner(r), verifierOf(r)
			for {
				select {
				case <-done:
					return
				default:
				}
				k := r.Active()
				if k == nil {
					t.Error("no active key")
					return
				}
				token, err := signer.Sign(testClaims())
				if err != nil {
					t.Errorf("Sign: %v", err)
					return
				}
				// Its key may be gone by now, which is all that may be wrong.
				if _, err := verifier.Verify(token, issued); err != nil && !errors.Is(err, ErrUnknownKey) {
					t.Errorf("Verify: %v", err)
					return
				}
				_ = r.IDs()
			}
		})
	}
	var writers sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			for i := range rotations {
				k := fixedKey(t, byte(2+w*100+i%100))
				r.Add(k)
				if err := r.Activate(k.ID()); err != nil {
					t.Errorf("Activate: %v", err)
				}
				if err := r.Activate(base.ID()); err != nil {
					t.Errorf("Activate: %v", err)
				}
				r.Remove(k.ID())
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
	if diff := cmp.Diff([]string{base.ID()}, r.IDs()); diff != "" {
		t.Errorf("a concurrent change was lost (-want +got):\n%s", diff)
	}
}
