package accesstoken

import (
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"math/big"
	"strings"
	"testing"
)

// A token whose claims take all of the room is as long as it may be, under every
// algorithm, and one byte more is too much.
func TestRoom(t *testing.T) {
	long, err := rsa.GenerateKey(rand.Reader, maxSigningRSABits)
	if err != nil {
		t.Fatal(err)
	}
	longest, err := newKey(long)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]*Key{"RS256 with 4096 bits": longest}
	for _, alg := range []Algorithm{EdDSA, ES256, RS256, HS256} {
		keys[string(alg)] = generate(t, alg)
		if got := keys[string(alg)].signatureSize(); got != alg.SignatureSize() {
			t.Errorf("%s: a signature of %d bytes, and SignatureSize says %d", alg, got, alg.SignatureSize())
		}
	}
	for name, k := range keys {
		signer := NewSigner(ringOf(t, k))
		for _, limit := range []int{MaxLength, MaxLength - 64} {
			room, err := signer.Room(limit)
			if err != nil {
				t.Fatal(err)
			}
			c := testClaims()
			c.Subject = "<&>" // which a page would escape, and a token does not
			size, err := c.Size()
			if err != nil {
				t.Fatal(err)
			}
			c.Scope += strings.Repeat("s", room-size)
			token, err := signer.Sign(c)
			if err != nil || len(token) > limit || len(token) < limit-1 {
				t.Errorf("%s: all of the room of %d bytes makes a token of %d bytes: %v", name, limit, len(token), err)
			}
			c.Scope += "ss"
			if token, err := signer.Sign(c); err == nil && len(token) <= limit {
				t.Errorf("%s: more than the room of %d bytes makes a token of %d bytes", name, limit, len(token))
			}
		}
	}
	if _, err := NewSigner(NewRing()).Room(MaxLength); !errors.Is(err, ErrNoKey) {
		t.Errorf("without a key: %v", err)
	}
}

func TestAnRSAKeyThatIsTooLongDoesNotSign(t *testing.T) {
	k := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: newModulus(maxSigningRSABits + 8), E: 65537}}
	if _, err := newKey(k); !errors.Is(err, ErrKey) {
		t.Errorf("%v, want ErrKey", err)
	}
}

func newModulus(bits uint) *big.Int { return new(big.Int).Lsh(big.NewInt(1), bits-1) }
