package accesstoken

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"testing"
	"time"
)

const (
	testIssuer   = "https://auth.example.com"
	testAudience = "https://api.example.com"
)

// issued is the iat of the claims below.
var issued = time.Unix(1_700_000_000, 0)

func testClaims() Claims {
	return Claims{
		Issuer: testIssuer, Subject: "johndoe", Audience: []string{testAudience},
		ID: "AAECAwQFBgcICQoLDA0ODw", SessionID: "AP_-_fz7-vn49_b19PPy8Q", ClientID: "latchkey",
		Scope: "read write", UserEpoch: 3, LogEpoch: "c2Vjb25k",
		IssuedAt: issued.Unix(), ExpiresAt: issued.Unix() + 900, AuthTime: issued.Unix() - 60,
	}
}

// fixedKey returns the Ed25519 key whose seed is 32 times b.
func fixedKey(tb testing.TB, b byte) *Key {
	tb.Helper()
	k, err := newKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)))
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func generate(tb testing.TB, alg Algorithm) *Key {
	tb.Helper()
	k, err := Generate(alg, nil)
	if err != nil {
		tb.Fatalf("Generate(%s): %v", alg, err)
	}
	return k
}

// ringOf returns a ring of keys in which the first is active.
func ringOf(tb testing.TB, keys ...*Key) *Ring {
	tb.Helper()
	r := NewRing()
	for _, k := range keys {
		r.Add(k)
	}
	if err := r.Activate(keys[0].ID()); err != nil {
		tb.Fatal(err)
	}
	return r
}

func verifierOf(r *Ring) *Verifier {
	return NewVerifier(r, VerifierOptions{Issuer: testIssuer, Audience: testAudience, Leeway: 5 * time.Second})
}

func mustSign(tb testing.TB, r *Ring, c Claims) string {
	tb.Helper()
	token, err := NewSigner(r).Sign(c)
	if err != nil {
		tb.Fatalf("Sign: %v", err)
	}
	return token
}

// signText returns a token of any header and payload, with a true signature of k.
func signText(tb testing.TB, k *Key, header, payload string) string {
	tb.Helper()
	token, err := k.sign(b64(header), []byte(payload))
	if err != nil {
		tb.Fatal(err)
	}
	return token
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
