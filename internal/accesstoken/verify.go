package accesstoken

import (
	"encoding/base64"
	"slices"
	"strings"
	"time"
)

// MaxLength is the length in bytes above which a token is refused unread.
const MaxLength = 4096

// VerifierOptions says what a [Verifier] expects.
type VerifierOptions struct {
	// Issuer must equal iss, byte for byte. If it is empty, no token verifies.
	Issuer string
	// Audience must be one of aud. If it is empty, no token verifies.
	Audience string
	// AnyAudience accepts tokens for whomever.
	AnyAudience bool
	// Leeway is how far iat and nbf may lie ahead of the time given to Verify. A
	// negative one counts as none. It never prolongs a token: exp has no leeway.
	Leeway time.Duration
}

// Verifier checks access tokens. It is safe for concurrent use.
type Verifier struct {
	ring    *Ring
	options VerifierOptions
	enc     *base64.Encoding
}

// NewVerifier returns a verifier that accepts the keys r has at the time of each call.
func NewVerifier(r *Ring, o VerifierOptions) *Verifier {
	o.Leeway = max(o.Leeway, 0)
	// Strict: bits after the last whole byte must be zero, else one signature
	// could be written in several ways.
	return &Verifier{ring: r, options: o, enc: base64.RawURLEncoding.Strict()}
}

// Verify returns the claims of token if it is valid at now, else an error that wraps
// [ErrInvalid] and no claims. The token dies the instant now reaches exp.
func (v *Verifier) Verify(token string, now time.Time) (Claims, error) {
	c, err := v.Authentic(token)
	if err != nil {
		return Claims{}, err
	}
	if now.Unix() >= c.ExpiresAt {
		return Claims{}, ErrExpired
	}
	// Whole seconds are compared with the second in which the leeway ends.
	if latest := now.Add(v.options.Leeway).Unix(); c.IssuedAt > latest || c.NotBefore > latest {
		return Claims{}, ErrNotYetValid
	}
	return c, nil
}

// Authentic checks all that [Verifier.Verify] does but the time: it is for a logout,
// which must also end a session whose access token has just expired. Never use it
// to grant access.
func (v *Verifier) Authentic(token string) (Claims, error) {
	// Cheap checks come first: nothing is decoded of what is too long or has not
	// three segments, no signature is computed without a key of ours, and no claim
	// is read that was not signed.
	if len(token) > MaxLength {
		return Claims{}, ErrMalformed
	}
	head, rest, _ := strings.Cut(token, ".")
	body, tail, found := strings.Cut(rest, ".")
	if !found || strings.IndexByte(tail, '.') >= 0 {
		return Claims{}, ErrMalformed
	}
	k, err := v.key(head)
	if err != nil {
		return Claims{}, err
	}
	var signature [MaxLength]byte
	n, err := v.decode(&signature, tail)
	if err != nil {
		return Claims{}, err
	}
	signed := token[:len(head)+1+len(body)]
	if err := k.alg.method().Verify(signed, slices.Clone(signature[:n]), k.material().public); err != nil {
		return Claims{}, ErrSignature
	}

	var payload [MaxLength]byte
	n, err = v.decode(&payload, body)
	if err != nil {
		return Claims{}, err
	}
	c, err := parseClaims(payload[:n])
	if err != nil {
		return Claims{}, err
	}
	c.KeyID = k.id
	// parseClaims lets no empty iss or aud through, so an empty expectation is never met.
	if c.Issuer != v.options.Issuer {
		return Claims{}, ErrIssuer
	}
	if !v.options.AnyAudience && !slices.Contains(c.Audience, v.options.Audience) {
		return Claims{}, ErrAudience
	}
	return c, nil
}

// key returns the key that an encoded header names, if the header is one we accept.
func (v *Verifier) key(encodedHeader string) (*Key, error) {
	ring := v.ring.state.Load()
	// A header that is, byte for byte, what a key of ours writes needs no reading.
	if k := ring.byHeader[encodedHeader]; k != nil {
		return k, nil
	}
	var text [MaxLength]byte
	n, err := v.decode(&text, encodedHeader)
	if err != nil {
		return nil, err
	}
	h, err := parseHeader(text[:n])
	if err != nil {
		return nil, err
	}
	k := ring.keys[h.keyID]
	if k == nil {
		return nil, ErrUnknownKey
	}
	// RFC 8725 section 3.1: the key says which algorithm, the token may only agree.
	if h.algorithm != k.alg {
		return nil, ErrAlgorithm
	}
	return k, nil
}

// decode writes the bytes that segment encodes to dst and returns their number.
// No token has a segment too long for dst.
func (v *Verifier) decode(dst *[MaxLength]byte, segment string) (int, error) {
	var src [MaxLength]byte
	n, err := v.enc.Decode(dst[:], src[:copy(src[:], segment)])
	// The decoder skips CR and LF, even in strict mode. A segment that holds one
	// is longer than what it decodes to.
	if err != nil || v.enc.EncodedLen(n) != len(segment) {
		return 0, ErrMalformed
	}
	return n, nil
}
