package accesstoken

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
)

// ParseKeyFile reads the one key that a file holds: PEM (PKCS#8, PKCS#1, SEC 1, or a
// public key), or a JWK (RFC 7517). A public key makes a [Key] that only verifies.
// A kid that the JWK has is passed over: keys are named by their thumbprint. It
// returns [ErrKey] with what is wrong, and nothing of the key.
func ParseKeyFile(text []byte) (*Key, error) {
	text = bytes.TrimSpace(text)
	switch {
	case len(text) == 0:
		return nil, fmt.Errorf("%w: the file is empty", ErrKey)
	case text[0] == '{':
		return parseJWKFile(text)
	}
	return parsePEMFile(text)
}

func parsePEMFile(text []byte) (*Key, error) {
	var key *Key
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		if block.Type == "EC PARAMETERS" { // openssl ecparam writes them first
			continue
		}
		if key != nil {
			return nil, fmt.Errorf("%w: the file holds more than one key", ErrKey)
		}
		var err error
		if key, err = parsePEM(block); err != nil {
			return nil, err
		}
	}
	if key == nil {
		return nil, fmt.Errorf("%w: neither PEM nor a JWK", ErrKey)
	}
	return key, nil
}

func parsePEM(block *pem.Block) (*Key, error) {
	if block.Headers["DEK-Info"] != "" || block.Type == "ENCRYPTED PRIVATE KEY" {
		return nil, fmt.Errorf("%w: encrypted: decrypt it, and let nobody else read the file", ErrKey)
	}
	var parsed any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		parsed, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "PUBLIC KEY":
		if parsed, err = x509.ParsePKIXPublicKey(block.Bytes); err == nil {
			return newPublicKey(parsed)
		}
	default:
		return nil, fmt.Errorf("%w: PEM of type %q", ErrKey, block.Type)
	}
	if err != nil {
		// Not the parser's words: they may quote what they have read.
		return nil, fmt.Errorf("%w: the content of %s cannot be read", ErrKey, block.Type)
	}
	return newKey(parsed)
}

// newPublicKey is newKey for a key that only verifies.
func newPublicKey(public any) (*Key, error) {
	j, err := newJWK(public)
	if err != nil {
		return nil, err
	}
	alg, checked, err := j.public()
	if err != nil {
		return nil, err
	}
	return keyOf(alg, material{public: checked})
}

// privateJWK has the private members of RFC 7518 section 6 and RFC 8037 section 2.
type privateJWK struct {
	JWK
	D      string          `json:"d"`
	P      string          `json:"p"`
	Q      string          `json:"q"`
	Secret string          `json:"k"`
	Others json.RawMessage `json:"oth"`
	Ops    []string        `json:"key_ops"`
}

func parseJWKFile(text []byte) (*Key, error) {
	var j privateJWK
	if err := json.Unmarshal(text, &j); err != nil {
		return nil, fmt.Errorf("%w: not a JWK", ErrKey)
	}
	if j.Use != "" && j.Use != "sig" {
		return nil, fmt.Errorf("%w: use %q", ErrKey, j.Use)
	}
	k, err := j.key()
	if err != nil {
		return nil, err
	}
	if j.Algorithm != "" && j.Algorithm != k.alg {
		return nil, fmt.Errorf("%w: it is for %s, and alg says %q", ErrKey, k.alg, j.Algorithm)
	}
	return k, nil
}

// key returns the key that j is.
func (j privateJWK) key() (*Key, error) {
	parts := make([][]byte, 4)
	for i, text := range []string{j.D, j.P, j.Q, j.Secret} {
		b, err := base64.RawURLEncoding.Strict().DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("%w: a private member is not base64url", ErrKey)
		}
		parts[i] = b
	}
	d, p, q, secret := parts[0], parts[1], parts[2], parts[3]
	if j.Type == "oct" {
		return newKey(secret)
	}
	alg, public, err := j.public()
	if err != nil {
		return nil, err
	}
	if len(d) == 0 {
		return keyOf(alg, material{public: public})
	}
	private, err := privateHalf(public, d, p, q)
	if err == nil && len(j.Others) > 0 {
		err = errors.New("more than two primes")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the private half: %w", ErrKey, err)
	}
	return newKey(private)
}

var errHalves = errors.New("not that of the public one")

// privateHalf makes the private key of a public one.
func privateHalf(public any, d, p, q []byte) (any, error) {
	switch pub := public.(type) {
	case ed25519.PublicKey:
		if len(d) != ed25519.SeedSize {
			return nil, errors.New("of the wrong length")
		}
		private := ed25519.NewKeyFromSeed(d)
		if !pub.Equal(private.Public()) {
			return nil, errHalves
		}
		return private, nil
	case *ecdsa.PublicKey:
		private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d)
		if err != nil {
			return nil, errors.New("not a number below the order of the curve, of 32 bytes")
		}
		if !pub.Equal(&private.PublicKey) {
			return nil, errHalves
		}
		return private, nil
	case *rsa.PublicKey:
		if len(p) == 0 || len(q) == 0 {
			return nil, errors.New("without its primes")
		}
		private := &rsa.PrivateKey{
			PublicKey: *pub, D: new(big.Int).SetBytes(d),
			Primes: []*big.Int{new(big.Int).SetBytes(p), new(big.Int).SetBytes(q)},
		}
		if private.Validate() != nil {
			return nil, errHalves
		}
		private.Precompute()
		return private, nil
	}
	return nil, fmt.Errorf("%T", public)
}
