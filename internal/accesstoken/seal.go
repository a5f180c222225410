package accesstoken

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"
)

const (
	// MinSecret is the length in bytes below which a sealing secret is refused.
	MinSecret = 32

	// sealVersion is the first byte of a sealed key. What follows is nonce 12 |
	// ciphertext | tag 16, and the plaintext is the algorithm's name, a zero byte,
	// and PKCS#8 (RFC 5208; for HS256 the bare key).
	sealVersion = 1
	// infoSeal names the derived key and begins the additional data. Changing it
	// makes every stored key unreadable.
	infoSeal = "latchkey signing key v1"
)

// Sealer encrypts signing keys for a store that others can read and write. It is
// safe for concurrent use. Printing it shows a fixed text.
type Sealer struct {
	// aeads is behind a function for the same reason as [Key]'s material.
	aeads func() []cipher.AEAD
}

// NewSealer returns a sealer under AES-256-GCM with keys derived from the given
// secrets, each of at least [MinSecret] bytes of high entropy. The first seals, all
// of them open. It returns [ErrSecret] if there is none or one is short. The slices
// are not retained.
func NewSealer(secrets ...[]byte) (*Sealer, error) {
	if len(secrets) == 0 {
		return nil, ErrSecret
	}
	aeads := make([]cipher.AEAD, 0, len(secrets))
	for _, secret := range secrets {
		if len(secret) < MinSecret {
			return nil, ErrSecret
		}
		// RFC 5869 section 3.1: no salt is needed for a secret that is itself random.
		key, err := hkdf.Key(sha256.New, secret, nil, infoSeal, 32)
		if err != nil {
			return nil, fmt.Errorf("accesstoken: derive sealing key: %w", err)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, fmt.Errorf("accesstoken: sealing cipher: %w", err)
		}
		// A random nonce is safe for 2^32 seals (NIST SP 800-38D section 8.3); a
		// deployment makes a handful.
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, fmt.Errorf("accesstoken: sealing cipher: %w", err)
		}
		aeads = append(aeads, aead)
	}
	return &Sealer{aeads: func() []cipher.AEAD { return aeads }}, nil
}

// Seal returns k encrypted and bound to its kid: a key put under another key's kid
// does not open.
func (s *Sealer) Seal(k *Key) ([]byte, error) {
	private := k.material().private
	if private == nil {
		return nil, fmt.Errorf("%w: it only verifies", ErrKey)
	}
	plain := append([]byte(k.alg), 0)
	if secret, ok := private.([]byte); ok {
		plain = append(plain, secret...)
	} else {
		der, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			return nil, fmt.Errorf("accesstoken: encode key: %w", err)
		}
		plain = append(plain, der...)
	}
	return s.aeads()[0].Seal([]byte{sealVersion}, nil, plain, additionalData(k.id)), nil
}

// Open returns the key that was sealed as kid, or [ErrSeal] if none of the secrets
// opens it, if it was sealed as another kid, or if it was altered.
func (s *Sealer) Open(kid string, sealed []byte) (*Key, error) {
	if len(sealed) == 0 || sealed[0] != sealVersion {
		return nil, fmt.Errorf("%w: unknown version", ErrSeal)
	}
	for _, aead := range s.aeads() {
		plain, err := aead.Open(nil, nil, sealed[1:], additionalData(kid))
		if err != nil {
			continue
		}
		k, err := parseKey(plain)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSeal, err)
		}
		// The additional data says so too; this holds whatever sealed it.
		if k.id != kid {
			return nil, fmt.Errorf("%w: kid is not that of the key", ErrSeal)
		}
		return k, nil
	}
	return nil, ErrSeal
}

// Current reports whether a sealed key was sealed under the first of the secrets.
func (s *Sealer) Current(kid string, sealed []byte) bool {
	if len(sealed) == 0 || sealed[0] != sealVersion {
		return false
	}
	_, err := s.aeads()[0].Open(nil, nil, sealed[1:], additionalData(kid))
	return err == nil
}

// String returns a fixed text.
func (Sealer) String() string { return "[redacted sealer]" }

// Format writes the same as [Sealer.String] whatever the verb.
func (s Sealer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

func additionalData(kid string) []byte { return []byte(infoSeal + "\x00" + kid) }

// parseKey reads the plaintext of a sealed key.
func parseKey(plain []byte) (*Key, error) {
	alg, encoded, _ := bytes.Cut(plain, []byte{0})
	var private any = encoded
	if Algorithm(alg) != HS256 {
		var err error
		if private, err = x509.ParsePKCS8PrivateKey(encoded); err != nil {
			return nil, fmt.Errorf("%w: not PKCS#8", ErrKey)
		}
	}
	k, err := newKey(private)
	if err != nil {
		return nil, err
	}
	if k.alg != Algorithm(alg) {
		return nil, fmt.Errorf("%w: key is not for the named algorithm", ErrKey)
	}
	return k, nil
}
