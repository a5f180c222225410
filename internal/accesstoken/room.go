package accesstoken

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
)

// A token has at most [MaxLength] bytes. What goes into it comes from several places,
// which change at different times, so each place has a bound of its own, in bytes of
// JSON. Any combination of parts that keep to their bounds fits.
const (
	// MaxAccount bounds an account: twice its subject (JSON may escape each character),
	// its scopes and its claims.
	MaxAccount = 1024
	// MaxClient bounds a registered client: its id, its audiences and its claims.
	MaxClient = 384
	// MaxScopes bounds the claims that all scopes bring together.
	MaxScopes = 512
	// MaxSignature is the size of the longest signature, that of RSA with 4096 bits.
	MaxSignature = maxSigningRSABits / 8
)

// maxSigningRSABits bounds the RSA keys that sign: a longer signature would leave too
// little of a token for its claims. Longer ones still verify.
const maxSigningRSABits = 4096

// maxHeader is the length of the longest encoded header: its kid has 43 characters and
// the name of its algorithm five.
const maxHeader = (8*len(`{"alg":"EdDSA","kid":"0123456789012345678901234567890123456789012","typ":"at+jwt"}`) + 5) / 6

// SignatureSize returns how long a signature of a key is that [Generate] makes, in
// bytes.
func (a Algorithm) SignatureSize() int {
	switch a {
	case HS256:
		return sha256.Size
	case RS256:
		return generatedRSABits / 8
	default:
		return ed25519.SignatureSize // and ES256: two numbers of 32 bytes
	}
}

// signatureSize returns how long a signature of k is, in bytes.
func (k *Key) signatureSize() int {
	switch p := k.material().public.(type) {
	case *rsa.PublicKey:
		return p.Size()
	case *ecdsa.PublicKey:
		return ES256.SignatureSize()
	case ed25519.PublicKey:
		return EdDSA.SignatureSize()
	default:
		return HS256.SignatureSize()
	}
}

// Room returns how long the JSON of the claims of a token may be, in bytes, for the
// token to have at most limit bytes with a signature of the given size.
func Room(limit, signature int) int {
	return base64.RawURLEncoding.DecodedLen(max(0, limit-maxHeader-2-base64.RawURLEncoding.EncodedLen(signature)))
}

// Room returns how long the JSON of the claims may be, in bytes, for [Signer.Sign] to
// return a token of at most limit bytes. Errors: [ErrNoKey].
func (s *Signer) Room(limit int) (int, error) {
	k := s.ring.Active()
	if k == nil {
		return 0, ErrNoKey
	}
	return Room(min(limit, MaxLength), k.signatureSize()), nil
}

// Size returns how long the JSON of c is in a token. Errors: [ErrClaims], as
// [Signer.Sign].
func (c *Claims) Size() (int, error) {
	payload, err := c.encode()
	return len(payload), err
}
