package accesstoken

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"testing"
)

func sealerOf(tb testing.TB, secrets ...[]byte) *Sealer {
	tb.Helper()
	s, err := NewSealer(secrets...)
	if err != nil {
		tb.Fatalf("NewSealer: %v", err)
	}
	return s
}

func secretOf(b byte) []byte { return bytes.Repeat([]byte{b}, MinSecret) }

func TestSealThenOpen(t *testing.T) {
	s := sealerOf(t, secretOf(1))
	for _, alg := range []Algorithm{EdDSA, ES256, RS256, HS256} {
		t.Run(string(alg), func(t *testing.T) {
			k := generate(t, alg)
			sealed, err := s.Seal(k)
			if err != nil {
				t.Fatalf("Seal: %v", err)
			}
			got, err := s.Open(k.ID(), sealed)
			if err != nil {
				t.Fatalf("Open: %v", err)
			}
			if got.ID() != k.ID() || got.Algorithm() != alg {
				t.Errorf("Open = %v, want %v", got, k)
			}
			// The opened key signs what the first one verifies.
			token := mustSign(t, ringOf(t, got), testClaims())
			if _, err := verifierOf(ringOf(t, k)).Verify(token, issued); err != nil {
				t.Errorf("Verify of a token of the opened key: %v", err)
			}
		})
	}
}

func TestSealedShowsNothing(t *testing.T) {
	s := sealerOf(t, secretOf(1))
	k := fixedKey(t, 'Z')
	a, errA := s.Seal(k)
	b, errB := s.Seal(k)
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	if bytes.Equal(a, b) {
		t.Error("two seals are equal: the nonce is not random")
	}
	for _, leak := range [][]byte{[]byte("ZZZZ"), []byte("EdDSA"), []byte(k.ID())} {
		if bytes.Contains(a, leak) {
			t.Errorf("the sealed key shows %q", leak)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	s := sealerOf(t, secretOf(1))
	k, other := fixedKey(t, 1), fixedKey(t, 2)
	sealed, err := s.Seal(k)
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(sealed) * 8 {
		altered := bytes.Clone(sealed)
		altered[i/8] ^= 1 << (i % 8)
		if got, err := s.Open(k.ID(), altered); !errors.Is(err, ErrSeal) || got != nil {
			t.Fatalf("bit %d flipped: Open = %v, %v, want %v", i, got, err, ErrSeal)
		}
	}
	for n := range len(sealed) {
		if _, err := s.Open(k.ID(), sealed[:n]); !errors.Is(err, ErrSeal) {
			t.Fatalf("cut to %d: Open = %v, want %v", n, err, ErrSeal)
		}
	}
	for name, open := range map[string]func() (*Key, error){
		"another kid":        func() (*Key, error) { return s.Open(other.ID(), sealed) },
		"no kid":             func() (*Key, error) { return s.Open("", sealed) },
		"nothing":            func() (*Key, error) { return s.Open(k.ID(), nil) },
		"data at the end":    func() (*Key, error) { return s.Open(k.ID(), append(bytes.Clone(sealed), 0)) },
		"another secret":     func() (*Key, error) { return sealerOf(t, secretOf(2)).Open(k.ID(), sealed) },
		"two other secrets":  func() (*Key, error) { return sealerOf(t, secretOf(2), secretOf(3)).Open(k.ID(), sealed) },
		"a key not its kid":  func() (*Key, error) { return s.Open("forged", sealRaw(s, "forged", "EdDSA", pkcs8(t, k))) },
		"an algorithm swap":  func() (*Key, error) { return s.Open(k.ID(), sealRaw(s, k.ID(), "RS256", pkcs8(t, k))) },
		"DER as an HMAC key": func() (*Key, error) { return s.Open(k.ID(), sealRaw(s, k.ID(), "HS256", pkcs8(t, k))) },
		"not PKCS#8":         func() (*Key, error) { return s.Open(k.ID(), sealRaw(s, k.ID(), "EdDSA", []byte("junk"))) },
		"a short HMAC key":   func() (*Key, error) { return s.Open(k.ID(), sealRaw(s, k.ID(), "HS256", []byte("junk"))) },
	} {
		t.Run(name, func(t *testing.T) {
			got, err := open()
			if !errors.Is(err, ErrSeal) || errors.Is(err, ErrInvalid) || got != nil {
				t.Errorf("Open = %v, %v, want %v", got, err, ErrSeal)
			}
		})
	}
}

func pkcs8(t *testing.T, k *Key) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(k.material().private)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// sealRaw seals any content, as one who knows the secret could.
func sealRaw(s *Sealer, kid, alg string, encoded []byte) []byte {
	plain := append([]byte(alg+"\x00"), encoded...)
	return s.aeads()[0].Seal([]byte{sealVersion}, nil, plain, additionalData(kid))
}

func TestSealerSecretRotation(t *testing.T) {
	k := fixedKey(t, 1)
	old, fresh := secretOf(1), secretOf(2)
	sealed, err := sealerOf(t, old).Seal(k)
	if err != nil {
		t.Fatal(err)
	}
	both := sealerOf(t, fresh, old)
	if _, err := both.Open(k.ID(), sealed); err != nil {
		t.Errorf("Open with the old secret in second place: %v", err)
	}
	resealed, err := both.Seal(k)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sealerOf(t, fresh).Open(k.ID(), resealed); err != nil {
		t.Errorf("the first secret did not seal: %v", err)
	}
}

func TestNewSealerRefusesSecrets(t *testing.T) {
	for name, secrets := range map[string][][]byte{
		"none": nil, "nil": {nil}, "short": {secretOf(1)[:31]}, "second short": {secretOf(1), []byte("short")},
	} {
		if s, err := NewSealer(secrets...); !errors.Is(err, ErrSecret) || s != nil {
			t.Errorf("%s: NewSealer = %v, %v, want %v", name, s, err, ErrSecret)
		}
	}
}

// TestSealedKnownAnswer opens a key sealed long ago. If it fails, no deployment can
// read its stored keys any more: change the code, not the vector.
func TestSealedKnownAnswer(t *testing.T) {
	sealed, err := hex.DecodeString("01fbb1f7d12b552d15005f7c8dbda5f66eec12adb8f3faaef8cb3d6c16d0f12337f1abea4d1693d7d587102d3dd64dd0f539b4d2ab1e859c83027b63b35a4e3e3fd371de03efceafecc97da78e52255b9fb146")
	if err != nil {
		t.Fatal(err)
	}
	want := fixedKey(t, 7)
	got, err := sealerOf(t, []byte("latchkey known answer root secret")).Open(want.ID(), sealed)
	if err != nil || got.ID() != want.ID() {
		t.Errorf("Open = %v, %v, want %v", got, err, want)
	}
}

// TestHMACKeyIDKnownAnswer pins the kid of a symmetric key, by which every token in
// circulation names it.
func TestHMACKeyIDKnownAnswer(t *testing.T) {
	k, err := newKey(secretOf(1))
	if err != nil {
		t.Fatal(err)
	}
	if want := "4yQ8TqpvfI65ephDlcG0nX7j5P0vQaIM_QdzVo0dw1c"; k.ID() != want {
		t.Errorf("ID = %s, want %s", k.ID(), want)
	}
}
