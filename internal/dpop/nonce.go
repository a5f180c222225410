package dpop

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"
)

// nonceWindow is how long one nonce is given out. It is accepted for as long again.
const nonceWindow = 2 * time.Minute

// Nonces makes and checks the server's nonces (RFC 9449 section 8). It keeps nothing:
// a nonce is a MAC of the time at which it is given out, and any replica that has the
// key knows it. It is safe for concurrent use.
type Nonces struct{ keys [][]byte }

// NewNonces returns the nonces of the first key, and accepts those of all. A key has
// 32 bytes.
func NewNonces(keys ...[]byte) *Nonces { return &Nonces{keys: keys} }

// Current is the nonce to give out.
func (n *Nonces) Current(now time.Time) string { return nonce(n.keys[0], window(now)) }

// Check reports whether a nonce was given out at most two windows ago.
func (n *Nonces) Check(shown string, now time.Time) bool {
	w := window(now)
	for _, key := range n.keys {
		// The next window's, too: the replica that gave it out may be ahead.
		for _, w := range [...]int64{w, w - 1, w + 1} {
			if hmac.Equal([]byte(shown), []byte(nonce(key, w))) {
				return true
			}
		}
	}
	return false
}

func window(now time.Time) int64 { return now.Unix() / int64(nonceWindow/time.Second) }

func nonce(key []byte, window int64) string {
	mac := hmac.New(sha256.New, key)
	_ = binary.Write(mac, binary.BigEndian, window) // a hash takes all
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:16])
}
