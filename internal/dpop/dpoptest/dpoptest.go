// Package dpoptest makes DPoP proofs as clients do, and as attackers would: signed by
// hand, so that nothing stops a test from making a wrong one.
package dpoptest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // SHA-384 and SHA-512
	"encoding/base64"
	"encoding/json"
	"maps"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Key is a client's key.
type Key struct {
	t      testing.TB
	signer crypto.Signer
	alg    string
	JWK    map[string]any // public
	JKT    string         // its thumbprint
}

// NewKey makes a key for one of ES256, ES384, ES512, EdDSA, RS256 and PS256.
func NewKey(t testing.TB, alg string) *Key {
	t.Helper()
	var signer crypto.Signer
	var err error
	switch alg {
	case "ES256":
		signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		signer, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ES512":
		signer, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "EdDSA":
		_, signer, err = ed25519.GenerateKey(rand.Reader)
	default:
		signer, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return FromSigner(t, alg, signer)
}

// FromSigner is a key that exists.
func FromSigner(t testing.TB, alg string, signer crypto.Signer) *Key {
	t.Helper()
	k := &Key{t: t, signer: signer, alg: alg}
	public := jose.JSONWebKey{Key: signer.Public()}
	text, err := public.MarshalJSON()
	if err == nil {
		err = json.Unmarshal(text, &k.JWK)
	}
	if err != nil {
		t.Fatal(err)
	}
	sum, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	k.JKT = text64(sum)
	return k
}

// Change alters the header and the claims of a proof that is about to be signed.
type Change func(header, claims map[string]any)

// With sets a claim.
func With(name string, value any) Change {
	return func(_, claims map[string]any) { claims[name] = value }
}

// Proof is a proof for a request, made now. With a token it has its hash.
func (k *Key) Proof(method, url, token string, changes ...Change) string {
	header := map[string]any{"typ": "dpop+jwt", "alg": k.alg, "jwk": maps.Clone(k.JWK)}
	claims := map[string]any{"jti": rand.Text(), "htm": method, "htu": url, "iat": time.Now().Unix()}
	if token != "" {
		claims["ath"] = Hash(token)
	}
	for _, c := range changes {
		c(header, claims)
	}
	h, err := json.Marshal(header)
	if err != nil {
		k.t.Fatal(err)
	}
	c, err := json.Marshal(claims)
	if err != nil {
		k.t.Fatal(err)
	}
	return k.Sign(string(h), string(c))
}

// Sign makes a JWS of any header and payload.
func (k *Key) Sign(header, payload string) string {
	input := text64([]byte(header)) + "." + text64([]byte(payload))
	hash := map[string]crypto.Hash{"ES384": crypto.SHA384, "ES512": crypto.SHA512, "EdDSA": 0}
	h, ok := hash[k.alg]
	if !ok {
		h = crypto.SHA256
	}
	digest := []byte(input)
	if h != 0 {
		sum := h.New()
		sum.Write(digest)
		digest = sum.Sum(nil)
	}
	var signature []byte
	var err error
	switch private := k.signer.(type) {
	case *ecdsa.PrivateKey:
		r, s, e := ecdsa.Sign(rand.Reader, private, digest)
		size := (private.Curve.Params().BitSize + 7) / 8
		signature, err = append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...), e
	case *rsa.PrivateKey:
		var options crypto.SignerOpts = h
		if k.alg == "PS256" {
			options = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
		}
		signature, err = private.Sign(rand.Reader, digest, options)
	default:
		signature, err = k.signer.Sign(rand.Reader, digest, h)
	}
	if err != nil {
		k.t.Fatal(err)
	}
	return input + "." + text64(signature)
}

// Hash is the ath of a token.
func Hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return text64(sum[:])
}

func text64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
