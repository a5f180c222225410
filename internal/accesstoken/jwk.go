package accesstoken

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
)

const (
	// maxRSABits bounds what one signature check can cost.
	maxRSABits = 8192
	// maxSet is how many keys of a set are read.
	maxSet = 100
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

// Set is a JWK Set (RFC 7517 section 5).
type Set struct {
	Keys []JWK `json:"keys"`
}

// Public returns the public halves of all keys, in order of kid: what may be shown
// to anybody. HS256 keys have none.
func (r *Ring) Public() Set {
	set := Set{Keys: []JWK{}}
	for _, kid := range r.IDs() {
		if k := r.Key(kid); k != nil {
			if j, ok := k.PublicJWK(); ok {
				set.Keys = append(set.Keys, j)
			}
		}
	}
	return set
}

// Public returns the keys under which what s signs is to be verified, and
// [ErrNoKey] if there is no active key yet.
func (s *Signer) Public() (Set, error) {
	if s.ring.Active() == nil {
		return Set{}, ErrNoKey
	}
	return s.ring.Public(), nil
}

// ParseSet reads a JWK Set into keys that only verify. Keys that it does not
// understand are left out (RFC 7517 section 5), and so are those that are not
// meant for signatures or whose kid is not their thumbprint: no key made by this
// package has another. It returns [ErrKey] if the text is no set, or holds no key
// that can be used.
func ParseSet(text []byte) ([]*Key, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, fmt.Errorf("%w: not a key set", ErrKey)
	}
	var keys []*Key
	for _, raw := range set.Keys[:min(len(set.Keys), maxSet)] {
		var j JWK
		if json.Unmarshal(raw, &j) != nil {
			continue
		}
		if k, err := j.key(); err == nil {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: no usable key in the set of %d (a service that signs with HS256 publishes none)", ErrKey, len(set.Keys))
	}
	return keys, nil
}

// ParsePublicKey reads one JWK into a key that only verifies, as [ParseSet] does. It
// returns [ErrKey].
func ParsePublicKey(text []byte) (*Key, error) {
	var j JWK
	if err := json.Unmarshal(text, &j); err != nil {
		return nil, fmt.Errorf("%w: not a JWK", ErrKey)
	}
	return j.key()
}

// key returns the key that verifies what j's private half signs, or [ErrKey].
func (j JWK) key() (*Key, error) {
	if j.Use != "" && j.Use != "sig" {
		return nil, fmt.Errorf("%w: use %q", ErrKey, j.Use)
	}
	alg, public, err := j.public()
	if err != nil {
		return nil, err
	}
	if j.Algorithm != "" && j.Algorithm != alg {
		return nil, fmt.Errorf("%w: key is not for the named algorithm", ErrKey)
	}
	k, err := keyOf(alg, material{public: public})
	if err != nil {
		return nil, err
	}
	if k.id != j.KeyID {
		return nil, fmt.Errorf("%w: kid is not that of the key", ErrKey)
	}
	return k, nil
}

// public reads the members that make up the key.
func (j JWK) public() (Algorithm, crypto.PublicKey, error) {
	enc := base64.RawURLEncoding.Strict()
	var parts [][]byte
	for _, text := range []string{j.X, j.Y, j.Modulus, j.Exponent} {
		b, err := enc.DecodeString(text)
		if err != nil {
			return "", nil, fmt.Errorf("%w: not base64url", ErrKey)
		}
		parts = append(parts, b)
	}
	x, y, n, e := parts[0], parts[1], parts[2], parts[3]
	switch {
	case j.Type == "OKP" && j.Curve == "Ed25519" && len(x) == ed25519.PublicKeySize:
		return EdDSA, ed25519.PublicKey(x), nil
	case j.Type == "EC" && j.Curve == "P-256" && len(x) == 32 && len(y) == 32:
		p, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
		if err != nil {
			return "", nil, fmt.Errorf("%w: not a point of the curve", ErrKey)
		}
		return ES256, p, nil
	case j.Type == "RSA" && len(n) <= maxRSABits/8 && len(e) <= 4:
		p := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
		if p.N.BitLen() < minRSABits || p.E < 3 || p.E%2 == 0 || p.E > 1<<31-1 {
			return "", nil, fmt.Errorf("%w: RSA modulus or exponent", ErrKey)
		}
		return RS256, p, nil
	}
	return "", nil, fmt.Errorf("%w: key type %q, curve %q", ErrKey, j.Type, j.Curve)
}
