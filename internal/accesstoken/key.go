package accesstoken

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"

	"github.com/golang-jwt/jwt/v5"
)

// Algorithm is a signature algorithm by its JOSE name.
type Algorithm string

// The algorithms a key may have. EdDSA is the one to choose; HS256 has no public
// half, so whoever can verify can also sign.
const (
	EdDSA Algorithm = "EdDSA" // Ed25519, RFC 8037
	ES256 Algorithm = "ES256" // ECDSA on P-256 with SHA-256
	RS256 Algorithm = "RS256" // RSASSA-PKCS1-v1_5 with SHA-256
	HS256 Algorithm = "HS256" // HMAC with SHA-256
)

const (
	generatedRSABits = 3072 // 128 bits of strength, NIST SP 800-57 part 1
	minRSABits       = 2048 // RFC 7518 section 3.3
	hmacKeySize      = 32   // RFC 7518 section 3.2
)

// method returns the implementation of a, nil if there is none.
func (a Algorithm) method() jwt.SigningMethod {
	switch a {
	case EdDSA:
		return jwt.SigningMethodEdDSA
	case ES256:
		return jwt.SigningMethodES256
	case RS256:
		return jwt.SigningMethodRS256
	case HS256:
		return jwt.SigningMethodHS256
	default:
		return nil
	}
}

// Key is a signing key, or the public half of one, which only verifies. It is
// immutable. Every way of printing it (fmt, slog, JSON and other text encodings)
// shows its algorithm and kid alone.
type Key struct {
	id     string
	alg    Algorithm
	header string // of every token under this key, encoded
	jwk    JWK    // zero for HS256

	// material is behind a function, for fmt cannot look into one. Where a Key is
	// an unexported field of something printed, fmt cannot call the methods below,
	// and for verbs such as %s it does follow pointers.
	material func() material
}

// material is what the signing method wants: the same bytes twice for HS256, no
// private half in a key that only verifies.
type material struct {
	private, public any
}

// Generate makes a key for alg. Randomness is read from random, or from crypto/rand
// if that is nil; since Go 1.26 ES256 and RS256 keys are drawn from the system's
// source whatever random is. An RS256 key has 3072 bits. It returns [ErrKey] for
// an unknown algorithm, else the error of reading.
func Generate(alg Algorithm, random io.Reader) (*Key, error) {
	if random == nil {
		random = rand.Reader
	}
	var private any
	var err error
	switch alg {
	case EdDSA:
		_, private, err = ed25519.GenerateKey(random)
	case ES256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), random)
	case RS256:
		private, err = rsa.GenerateKey(random, generatedRSABits)
	case HS256:
		secret := make([]byte, hmacKeySize)
		_, err = io.ReadFull(random, secret)
		private = secret
	default:
		return nil, fmt.Errorf("%w: unknown algorithm %q", ErrKey, string(alg))
	}
	if err != nil {
		return nil, fmt.Errorf("accesstoken: generate %s key: %w", alg, err)
	}
	return newKey(private)
}

// newKey makes a key of an ed25519.PrivateKey, *ecdsa.PrivateKey on P-256,
// *rsa.PrivateKey, or []byte for HS256. The algorithm follows from the type, so a
// key can never serve two (RFC 8725 section 3.1).
func newKey(private any) (*Key, error) {
	var alg Algorithm
	var public crypto.PublicKey
	switch p := private.(type) {
	case ed25519.PrivateKey:
		alg, public = EdDSA, p.Public()
	case *ecdsa.PrivateKey:
		if p.Curve != elliptic.P256() {
			return nil, fmt.Errorf("%w: curve is not P-256", ErrKey)
		}
		alg, public = ES256, &p.PublicKey
	case *rsa.PrivateKey:
		if p.N.BitLen() < minRSABits {
			return nil, fmt.Errorf("%w: RSA modulus below %d bits", ErrKey, minRSABits)
		}
		if p.N.BitLen() > maxSigningRSABits {
			return nil, fmt.Errorf("%w: RSA modulus above %d bits, which leaves a token too little room", ErrKey, maxSigningRSABits)
		}
		alg, public = RS256, &p.PublicKey
	case []byte:
		if len(p) < hmacKeySize {
			return nil, fmt.Errorf("%w: HMAC key below %d bytes", ErrKey, hmacKeySize)
		}
		alg, public = HS256, p
	default:
		return nil, fmt.Errorf("%w: %T", ErrKey, private)
	}
	return keyOf(alg, material{private: private, public: public})
}

// keyOf makes a key of material that suits alg.
func keyOf(alg Algorithm, m material) (*Key, error) {
	k := &Key{alg: alg, material: func() material { return m }}
	if secret, ok := m.public.([]byte); ok && alg == HS256 {
		// The id is one more output of a one-way function of the key, so it can
		// be shown. A plain hash would do as much; the label keeps it apart from
		// any other use.
		id, err := hkdf.Key(sha256.New, secret, nil, "latchkey HS256 key id v1", sha256.Size)
		if err != nil {
			return nil, fmt.Errorf("accesstoken: HS256 key id: %w", err)
		}
		k.id = base64.RawURLEncoding.EncodeToString(id)
	} else {
		jwk, err := newJWK(m.public)
		if err != nil {
			return nil, err
		}
		k.id = jwk.Thumbprint()
		jwk.Use, jwk.Algorithm, jwk.KeyID = "sig", k.alg, k.id
		k.jwk = jwk
	}
	var err error
	k.header, err = k.headerOf(typeJWT)
	return k, err
}

// headerOf returns the header of tokens of a type under k, encoded.
func (k *Key) headerOf(typ string) (string, error) {
	head, err := json.Marshal(struct {
		Algorithm Algorithm `json:"alg"`
		KeyID     string    `json:"kid"`
		Type      string    `json:"typ"`
	}{k.alg, k.id, typ})
	if err != nil {
		return "", fmt.Errorf("accesstoken: encode header: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(head), nil
}

// ID returns the kid: the thumbprint of RFC 7638 of the public key, or for HS256 a
// text derived from the key that reveals nothing of it. It is 43 characters of
// base64url.
func (k *Key) ID() string { return k.id }

// Algorithm returns the one algorithm the key signs with.
func (k *Key) Algorithm() Algorithm { return k.alg }

// VerifiesOnly tells that the key has no private half.
func (k *Key) VerifiesOnly() bool { return k.material().private == nil }

// publicHalf returns the key without its private half. An HS256 key keeps its secret, for
// that is what verifies; it signs no more either.
func (k *Key) publicHalf() *Key {
	half := *k
	m := material{public: k.material().public}
	half.material = func() material { return m }
	return &half
}

// PublicJWK returns the public half of the key for a key set (RFC 7517), and false
// for HS256, which has none.
func (k *Key) PublicJWK() (JWK, bool) { return k.jwk, k.alg != HS256 }

// String returns the algorithm and the kid.
func (k Key) String() string {
	return "[redacted " + string(k.alg) + " key " + k.id + "]"
}

// GoString returns the same as [Key.String], for %#v.
func (k Key) GoString() string { return k.String() }

// Format writes the same as [Key.String] whatever the verb: without it, verbs that
// do not apply to strings, such as %d, would print the fields.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// LogValue returns the same as [Key.String], for log/slog.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText returns the same as [Key.String], for JSON and other encodings. Use
// [Sealer.Seal] to store a key and [Key.PublicJWK] to publish it.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }
