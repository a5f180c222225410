package accesstoken

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/big"
)

// JWK is a public key in the form of RFC 7517, with the members of RFC 7518
// section 6 and RFC 8037 section 2.
type JWK struct {
	Type      string    `json:"kty"`
	Curve     string    `json:"crv,omitempty"` // OKP and EC
	X         string    `json:"x,omitempty"`   // OKP and EC
	Y         string    `json:"y,omitempty"`   // EC
	Modulus   string    `json:"n,omitempty"`   // RSA
	Exponent  string    `json:"e,omitempty"`   // RSA
	Use       string    `json:"use,omitempty"`
	Algorithm Algorithm `json:"alg,omitempty"`
	KeyID     string    `json:"kid,omitempty"`
}

// newJWK returns the members of public that its thumbprint covers.
func newJWK(public crypto.PublicKey) (JWK, error) {
	text := base64.RawURLEncoding.EncodeToString
	switch p := public.(type) {
	case ed25519.PublicKey:
		return JWK{Type: "OKP", Curve: "Ed25519", X: text(p)}, nil
	case *ecdsa.PublicKey:
		// RFC 7518 section 6.2.1.2: coordinates keep their leading zeros, as they
		// do in the uncompressed point, 04 | x | y.
		point, err := p.Bytes()
		if err != nil {
			return JWK{}, fmt.Errorf("%w: %w", ErrKey, err)
		}
		half := 1 + len(point)/2
		return JWK{Type: "EC", Curve: p.Curve.Params().Name, X: text(point[1:half]), Y: text(point[half:])}, nil
	case *rsa.PublicKey:
		return JWK{Type: "RSA", Modulus: text(p.N.Bytes()), Exponent: text(big.NewInt(int64(p.E)).Bytes())}, nil
	default:
		return JWK{}, fmt.Errorf("%w: %T", ErrKey, public)
	}
}

// Thumbprint returns the base64url of the SHA-256 thumbprint of RFC 7638 (RFC 8037
// section 2 for OKP): of the required members, in order of name, without space.
func (j JWK) Thumbprint() string {
	var canonical string
	switch j.Type {
	case "OKP":
		canonical = `{"crv":"` + j.Curve + `","kty":"OKP","x":"` + j.X + `"}`
	case "EC":
		canonical = `{"crv":"` + j.Curve + `","kty":"EC","x":"` + j.X + `","y":"` + j.Y + `"}`
	case "RSA":
		canonical = `{"e":"` + j.Exponent + `","kty":"RSA","n":"` + j.Modulus + `"}`
	}
	sum := sha256.Sum256([]byte(canonical))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
