package refreshtoken

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"math"
	"sync"
)

const (
	// Length is the length in bytes of every refresh token's text.
	Length = len(prefix) + (bodySize+macSize)*8/6
	// MinSecret is the length in bytes below which a root secret is refused.
	MinSecret = 32

	prefix = "lkr1_"

	uidAt    = 16
	genAt    = uidAt + 16
	secretAt = genAt + 4
	bodySize = secretAt + 32
	macSize  = 16

	// Changing either of these, or the order of any field, ends every session
	// and breaks a rolling upgrade. A new format takes a new prefix instead.
	infoMAC    = "latchkey refresh token v1 mac"
	infoDerive = "latchkey refresh token v1 derive"
)

// Codec makes and checks refresh tokens. It is safe for concurrent use.
type Codec struct {
	roots []*root
	enc   *base64.Encoding
}

// New returns a codec for the given root secrets, each of at least [MinSecret]
// bytes of high entropy. The first makes the tokens of new sessions, all of them
// are accepted. It returns [ErrSecret] if there is none or one is short. The
// slices are not retained.
func New(secrets ...[]byte) (*Codec, error) {
	if len(secrets) == 0 {
		return nil, ErrSecret
	}
	// Strict refuses set bits after the last whole byte. No text of the right
	// length has such bits in this format; a later one may.
	c := &Codec{enc: base64.RawURLEncoding.Strict()}
	for _, secret := range secrets {
		r, err := newRoot(secret)
		if err != nil {
			return nil, err
		}
		c.roots = append(c.roots, r)
	}
	return c, nil
}

// First returns the first token, generation 1, of session sid of user uid. Its
// secret is read from random, or from crypto/rand if that is nil; the error is
// that of reading it.
func (c *Codec) First(sid, uid [16]byte, random io.Reader) (Token, error) {
	if random == nil {
		random = rand.Reader
	}
	t := Token{SID: sid, UID: uid, Gen: 1}
	if _, err := io.ReadFull(random, t.Secret[:]); err != nil {
		return Token{}, fmt.Errorf("refreshtoken: random secret: %w", err)
	}
	return t, nil
}

// Next returns the one successor of t: the same for every replica that knows the
// root secret under which t was authenticated. It returns [ErrExhausted] if t is of
// the last generation.
func (c *Codec) Next(t Token) (Token, error) {
	if t.Gen == math.MaxUint32 {
		return Token{}, ErrExhausted
	}
	next := t
	next.Gen++
	// secret(n+1) = HMAC(k, sid | uid | n+1 | secret(n)): the body of the
	// successor with its parent's secret in place.
	c.rootOf(t).derive.sum(&next, next.Secret[:])
	return next, nil
}

// Encode returns the text of t, the only form in which a token leaves the service.
func (c *Codec) Encode(t Token) string {
	var raw [bodySize + macSize]byte
	t.body((*[bodySize]byte)(raw[:]))
	c.rootOf(t).mac.sum(&t, raw[bodySize:])

	var text [Length]byte
	copy(text[:], prefix)
	c.enc.Encode(text[len(prefix):], raw[:])
	return string(text[:])
}

// Parse returns the token whose text is s. It returns [ErrMalformed] if s is not
// exactly in the form that [Codec.Encode] writes, and [ErrForged] if its
// authentication code is of none of the codec's secrets; both wrap [ErrInvalid].
// The codes are compared in constant time.
func (c *Codec) Parse(s string) (Token, error) {
	t, mac, err := c.read(s)
	if err != nil {
		return Token{}, err
	}
	for i, r := range c.roots {
		var want [macSize]byte
		r.mac.sum(&t, want[:])
		if hmac.Equal(mac[:], want[:]) {
			if i > 0 {
				t.root = r
			}
			return t, nil
		}
	}
	return Token{}, ErrForged
}

// UnverifiedSession returns the session that a text in the form of a refresh token
// names. Its authentication code is not looked at: anybody can write such a text. Error:
// [ErrMalformed].
func (c *Codec) UnverifiedSession(s string) ([16]byte, error) {
	t, _, err := c.read(s)
	return t.SID, err
}

// read takes a text apart into a token and its authentication code.
func (c *Codec) read(s string) (t Token, mac [macSize]byte, err error) {
	if len(s) != Length || s[:len(prefix)] != prefix {
		return Token{}, mac, ErrMalformed
	}
	var text [Length - len(prefix)]byte
	copy(text[:], s[len(prefix):])
	var raw [bodySize + macSize]byte
	// The decoder skips CR and LF, even in strict mode. A text that holds one
	// comes out short.
	if n, err := c.enc.Decode(raw[:], text[:]); err != nil || n != len(raw) {
		return Token{}, mac, ErrMalformed
	}
	copy(t.SID[:], raw[:uidAt])
	copy(t.UID[:], raw[uidAt:genAt])
	t.Gen = binary.BigEndian.Uint32(raw[genAt:secretAt])
	copy(t.Secret[:], raw[secretAt:bodySize])
	copy(mac[:], raw[bodySize:])
	return t, mac, nil
}

func (c *Codec) rootOf(t Token) *root {
	if t.root != nil {
		return t.root
	}
	return c.roots[0]
}

// body writes all of t that its authentication code covers.
func (t *Token) body(b *[bodySize]byte) {
	copy(b[:uidAt], t.SID[:])
	copy(b[uidAt:genAt], t.UID[:])
	binary.BigEndian.PutUint32(b[genAt:secretAt], t.Gen)
	copy(b[secretAt:], t.Secret[:])
}

// root is one root secret's pair of subkeys. They differ so that no
// authentication code, which clients see, can be a derived secret.
type root struct {
	mac, derive *subkey
}

func newRoot(secret []byte) (*root, error) {
	if len(secret) < MinSecret {
		return nil, ErrSecret
	}
	mac, err := newSubkey(secret, infoMAC)
	if err != nil {
		return nil, err
	}
	derive, err := newSubkey(secret, infoDerive)
	if err != nil {
		return nil, err
	}
	return &root{mac: mac, derive: derive}, nil
}

// subkey computes HMAC-SHA256 over token bodies under one key. Keyed states are
// pooled, which saves their allocation and two of the four compressions.
type subkey struct {
	states sync.Pool
}

type state struct {
	hmac hash.Hash
	body [bodySize]byte
	sum  [sha256.Size]byte
}

func newSubkey(secret []byte, info string) (*subkey, error) {
	// RFC 5869 section 3.1: no salt is needed for a secret that is itself random.
	key, err := hkdf.Key(sha256.New, secret, nil, info, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("refreshtoken: derive subkey: %w", err)
	}
	k := &subkey{}
	k.states.New = func() any { return &state{hmac: hmac.New(sha256.New, key)} }
	return k, nil
}

// sum writes the leading len(out) bytes, at most 32, of the code of t's body to out.
func (k *subkey) sum(t *Token, out []byte) {
	s := k.states.Get().(*state) // all that states.New makes
	s.hmac.Reset()
	t.body(&s.body)
	s.hmac.Write(s.body[:])
	copy(out, s.hmac.Sum(s.sum[:0]))
	clear(s.body[:])
	clear(s.sum[:])
	k.states.Put(s)
}
