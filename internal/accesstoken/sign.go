package accesstoken

import (
	"encoding/base64"
	"fmt"
)

// Signer makes access tokens under the active key of a ring. It is safe for
// concurrent use.
type Signer struct {
	ring *Ring
}

// NewSigner returns a signer that follows r's active key.
func NewSigner(r *Ring) *Signer { return &Signer{ring: r} }

// Sign returns the token of c in compact form. It returns [ErrNoKey] if the ring has
// no active key, and [ErrClaims] if a required claim is missing, a time is out of
// range, exp is not after iat, or the token would be longer than [MaxLength]: it
// signs nothing that a [Verifier] could not read.
func (s *Signer) Sign(c Claims) (string, error) {
	k := s.ring.Active()
	if k == nil {
		return "", ErrNoKey
	}
	payload, err := c.encode()
	if err != nil {
		return "", err
	}
	token, err := k.sign(k.header, payload)
	if err == nil && len(token) > MaxLength {
		return "", fmt.Errorf("%w: token of %d bytes", ErrClaims, len(token))
	}
	return token, err
}

// sign returns the compact form of an encoded header and a payload under k.
func (k *Key) sign(encodedHeader string, payload []byte) (string, error) {
	token := make([]byte, 0, MaxLength/4)
	token = append(token, encodedHeader...)
	token = append(token, '.')
	token = base64.RawURLEncoding.AppendEncode(token, payload)
	private := k.material().private
	if private == nil {
		return "", fmt.Errorf("%w: it only verifies", ErrKey)
	}
	signature, err := k.alg.method().Sign(string(token), private)
	if err != nil {
		return "", fmt.Errorf("accesstoken: sign: %w", err)
	}
	token = append(token, '.')
	token = base64.RawURLEncoding.AppendEncode(token, signature)
	return string(token), nil
}
