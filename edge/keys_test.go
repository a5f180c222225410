package edge

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// refetching is a verifier in strict mode whose keys are fetched by a test.
func refetching(t *testing.T, ring *accesstoken.Ring, refetch func(context.Context) error) *Verifier {
	t.Helper()
	n := newNode(t, "redis://"+redistest.Mini(t).Addr(), ring, nodeOptions{strict: true})
	v, err := New(Options{Revocations: n.store.Revocations, Ring: ring, Issuer: issuer, Audience: audience, Refetch: refetch})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// madeUp is a token that names a key which nobody has.
func madeUp(kid string) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(fmt.Sprintf(`{"alg":"EdDSA","kid":%q,"typ":"at+jwt"}`, kid))) + "." + enc([]byte(`{}`)) + "." + enc(make([]byte, 64))
}

// Made-up keys cost one look a second, however many come.
func TestMadeUpKeysAreLookedForOnce(t *testing.T) {
	t.Parallel()
	var looks atomic.Int64
	v := refetching(t, newRing(t), func(context.Context) error { looks.Add(1); return nil })
	for i := range 50 {
		if _, err := v.Verify(t.Context(), madeUp(fmt.Sprint(i))); !errors.Is(err, ErrInvalid) {
			t.Fatalf("got %v, want ErrInvalid", err)
		}
	}
	if n := looks.Load(); n != 1 {
		t.Errorf("looked %d times, want once", n)
	}
}

// Keys that cannot be fetched are an outage, whatever the error, and the next
// who asks tries again.
func TestKeysThatCannotBeFetched(t *testing.T) {
	t.Parallel()
	looks := 0
	results := []error{tokenstore.ErrUnavailable, errors.New("the seal is broken"), nil}
	v := refetching(t, newRing(t), func(context.Context) error { looks++; return results[looks-1] })
	for i, want := range []error{ErrUnavailable, ErrUnavailable, ErrInvalid} {
		_, err := v.Authentic(t.Context(), madeUp("k"))
		if !errors.Is(err, want) || errors.Is(err, ErrInvalid) && errors.Is(err, ErrUnavailable) {
			t.Errorf("look %d: got %v, want %v", i, err, want)
		}
	}
}

// Who waits while an attempt fails has had that attempt: a crowd is not made to
// wait for one timeout after another.
func TestAnOutageIsWaitedForOnce(t *testing.T) {
	t.Parallel()
	const crowd = 20
	var looks atomic.Int64
	gate := make(chan struct{})
	v := refetching(t, newRing(t), func(context.Context) error {
		looks.Add(1)
		<-gate
		return tokenstore.ErrUnavailable
	})
	var checked sync.WaitGroup
	checked.Add(crowd)
	errs := make([]error, crowd)
	var wg sync.WaitGroup
	for i := range crowd {
		wg.Go(func() {
			_, errs[i] = v.withKeys(t.Context(), func() (accesstoken.Claims, error) {
				checked.Done()
				return accesstoken.Claims{}, accesstoken.ErrUnknownKey
			})
		})
	}
	checked.Wait() // all but the last few instructions: they stand before the lock
	close(gate)
	wg.Wait()
	for _, err := range errs {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
	}
	if n := looks.Load(); n > crowd/2 {
		t.Errorf("%d attempts for a crowd of %d", n, crowd)
	}
}

// One who gave up waiting has not found out anything for the others.
func TestACancelledFetchIsNotShared(t *testing.T) {
	t.Parallel()
	looks := 0
	v := refetching(t, newRing(t), func(ctx context.Context) error {
		looks++
		if err := ctx.Err(); err != nil {
			return err
		}
		return nil
	})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Verify(gone, madeUp("k")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	if _, err := v.Verify(t.Context(), madeUp("k")); !errors.Is(err, ErrInvalid) || looks != 2 {
		t.Errorf("got %v after %d looks, want ErrInvalid after 2", err, looks)
	}
}

// What a strict verifier answers, and that each answer is one of four.
func TestStrictAnswers(t *testing.T) {
	t.Parallel()
	ring := newRing(t)
	redisServer := redistest.Start(t)
	n := newNode(t, redisServer.URL(), ring, nodeOptions{strict: true})
	ids := func() (uid, sid, jti tokenstore.ID) {
		uid = n.store.UserID("alice")
		for _, id := range []*tokenstore.ID{&sid, &jti} {
			var err error
			if *id, err = n.store.Sessions.NewID(uid); err != nil {
				t.Fatal(err)
			}
		}
		return uid, sid, jti
	}
	uid, sid, jti := ids()
	grant, err := n.store.Sessions.Login(t.Context(), tokenstore.NewSession{SID: sid, UID: uid, Subject: "alice", Username: "alice", ReadAt: n.store.Now()})
	if err != nil {
		t.Fatal(err)
	}
	claims := accesstoken.Claims{
		Issuer: issuer, Subject: "alice", Audience: []string{audience}, ID: jti.String(), SessionID: sid.String(), ClientID: "c",
		LogEpoch: grant.LogEpoch, IssuedAt: grant.Now.Unix(), ExpiresAt: grant.Now.Unix() + 900,
	}
	sign := func(edit func(*accesstoken.Claims)) string {
		c := claims
		edit(&c)
		token, err := n.signer.Sign(c)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	good := sign(func(*accesstoken.Claims) {})
	for name, c := range map[string]struct {
		token string
		want  error
	}{
		"good":               {good, nil},
		"good again":         {good, nil}, // now out of the cache
		"garbage":            {"garbage", ErrInvalid},
		"empty":              {"", ErrInvalid},
		"another issuer":     {sign(func(c *accesstoken.Claims) { c.Issuer = "https://evil.example" }), ErrInvalid},
		"another audience":   {sign(func(c *accesstoken.Claims) { c.Audience = []string{"x"} }), ErrInvalid},
		"not yet":            {sign(func(c *accesstoken.Claims) { c.IssuedAt += 60; c.ExpiresAt += 60 }), ErrInvalid},
		"a sid that is none": {sign(func(c *accesstoken.Claims) { c.SessionID = "x" }), ErrInvalid},
		"a jti that is none": {sign(func(c *accesstoken.Claims) { c.ID = "x" }), ErrInvalid},
		"expired":            {sign(func(c *accesstoken.Claims) { c.IssuedAt -= 1000; c.ExpiresAt -= 1000 }), ErrExpired},
		"another history":    {sign(func(c *accesstoken.Claims) { c.LogEpoch = "x" }), ErrRevoked},
		"another shard":      {sign(func(c *accesstoken.Claims) { c.ID = tokenstore.ID{sid[0] ^ 1}.String() }), ErrRevoked},
	} {
		got, err := n.verifier.Verify(t.Context(), c.token)
		if !errors.Is(err, c.want) || (c.want == nil && (err != nil || got.Subject != "alice")) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		for _, other := range []error{ErrInvalid, ErrExpired, ErrRevoked, ErrUnavailable} {
			if !errors.Is(c.want, other) && errors.Is(err, other) {
				t.Errorf("%s: is %v as well", name, other)
			}
		}
	}
	n.door.shut()
	if _, err := n.verifier.Verify(t.Context(), good); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrRevoked) {
		t.Errorf("without Redis: got %v, want ErrUnavailable", err)
	}
	if c, err := n.verifier.Authentic(t.Context(), good); err != nil || c.SessionID != sid.String() {
		t.Errorf("without Redis: Authentic: %v", err)
	}
	n.door.open()
	if _, err := n.store.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: sid, UID: uid}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := n.verifier.Verify(t.Context(), good); !errors.Is(err, ErrRevoked) {
			t.Errorf("revoked: got %v, want ErrRevoked", err)
		}
	}
	if _, err := n.verifier.Authentic(t.Context(), good); err != nil {
		t.Errorf("revoked: Authentic: %v", err)
	}
}

// A key that is gone takes its tokens with it, also those that were verified before.
func TestARemovedKeyEndsItsTokens(t *testing.T) {
	t.Parallel()
	ring := newRing(t)
	n := newNode(t, redistest.Start(t).URL(), ring, nodeOptions{strict: true})
	uid := n.store.UserID("alice")
	sid, _ := n.store.Sessions.NewID(uid)
	jti, _ := n.store.Sessions.NewID(uid)
	grant, err := n.store.Sessions.Login(t.Context(), tokenstore.NewSession{SID: sid, UID: uid, Subject: "alice", Username: "alice", ReadAt: n.store.Now()})
	if err != nil {
		t.Fatal(err)
	}
	token, err := n.signer.Sign(accesstoken.Claims{
		Issuer: issuer, Subject: "alice", Audience: []string{audience}, ID: jti.String(), SessionID: sid.String(), ClientID: "c",
		LogEpoch: grant.LogEpoch, IssuedAt: grant.Now.Unix(), ExpiresAt: grant.Now.Unix() + 900,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.verifier.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	old := ring.Active()
	ring.Remove(old.ID())
	if _, err := n.verifier.Verify(t.Context(), token); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
	// That it is recognised as ours admits nobody.
	ring.Recognise(old)
	if c, err := n.verifier.Authentic(t.Context(), token); err != nil || c.SessionID != sid.String() {
		t.Errorf("Authentic: %+v, %v", c, err)
	}
	for range 2 { // Authentic has not made it a token that is remembered
		if _, err := n.verifier.Verify(t.Context(), token); !errors.Is(err, ErrInvalid) {
			t.Errorf("recognised: got %v, want ErrInvalid", err)
		}
	}
	if _, err := n.verifier.VerifyBound(t.Context(), token, "k"); !errors.Is(err, ErrInvalid) {
		t.Errorf("recognised, bound: got %v, want ErrInvalid", err)
	}
	text, err := json.Marshal(ring.Public())
	if err != nil || strings.Contains(string(text), old.ID()) {
		t.Errorf("published: %s, %v", text, err)
	}
}
