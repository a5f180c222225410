package accesstoken

import (
	"encoding/base64"
	"errors"
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
	c, err := v.check(token, false)
	if err != nil {
		return Claims{}, err
	}
	// parseClaims lets no empty iss or aud through, so an empty expectation is never met.
	if c.Issuer != v.options.Issuer {
		return Claims{}, ErrIssuer
	}
	if !v.options.AnyAudience && !slices.Contains(c.Audience, v.options.Audience) {
		return Claims{}, ErrAudience
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

// Authentic returns the claims of a token that a key of the ring has signed, be it a
// retired one ([Ring.Recognise]), whatever the token's issuer, audience and times: it is
// for a logout, which ends the session that the token names. Never use it to grant
// access. [ErrUnknownKey] means that the signature could not be checked.
func (v *Verifier) Authentic(token string) (Claims, error) { return v.check(token, true) }

// Unverified returns the claims of what has the form of an access token, though nothing
// is checked: anybody can write such a text. It tells which session a token that cannot
// be checked says it is of.
func Unverified(token string) (Claims, error) {
	v := NewVerifier(NewRing(), VerifierOptions{})
	head, body, _, err := split(token)
	if err != nil {
		return Claims{}, err
	}
	if _, err := v.key(head, true); !errors.Is(err, ErrUnknownKey) {
		// The ring is empty, so an access token's header gives ErrUnknownKey. Any other
		// error means that this is no such header.
		return Claims{}, err
	}
	return v.claims(body)
}

// split returns the three segments of a token.
func split(token string) (head, body, signature string, err error) {
	// Nothing is decoded of what is too long or has not three segments.
	if len(token) > MaxLength {
		return "", "", "", ErrMalformed
	}
	head, rest, _ := strings.Cut(token, ".")
	body, signature, found := strings.Cut(rest, ".")
	if !found || strings.IndexByte(signature, '.') >= 0 {
		return "", "", "", ErrMalformed
	}
	return head, body, signature, nil
}

// check checks the form and the signature of a token: under the keys that verify, and if
// retired is true also under those that are only recognised.
func (v *Verifier) check(token string, retired bool) (Claims, error) {
	// Cheap checks come first: no signature is computed without a key of ours, and no
	// claim is read that was not signed.
	head, body, tail, err := split(token)
	if err != nil {
		return Claims{}, err
	}
	k, err := v.key(head, retired)
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
	c, err := v.claims(body)
	if err != nil {
		return Claims{}, err
	}
	c.KeyID = k.id
	return c, nil
}

// claims reads the payload of a token.
func (v *Verifier) claims(body string) (Claims, error) {
	var payload [MaxLength]byte
	n, err := v.decode(&payload, body)
	if err != nil {
		return Claims{}, err
	}
	return parseClaims(payload[:n])
}

// key returns the key that an encoded header names, if the header is one we accept.
// Retired keys are looked at only if retired is true.
func (v *Verifier) key(encodedHeader string, retired bool) (*Key, error) {
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
	if k == nil && retired {
		k = ring.retired[h.keyID]
	}
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
