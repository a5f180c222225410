package tokenstore

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
)

// ID names a session (sid), an access token (jti) or a user (uid). Its first
// byte is the shard that holds everything about it.
type ID [16]byte

// idText is the length of an ID's text form: 16 bytes in base64url, unpadded.
const idText = 22

// idEncoding is made once: Strict returns a copy of the whole table.
var idEncoding = base64.RawURLEncoding.Strict()

// ErrID is returned for text that is not the canonical form of an ID.
var ErrID = errors.New("not an id")

// ParseID reads the text form that String writes. Only the canonical form is
// accepted, so that one id has one spelling.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != idText {
		return ID{}, ErrID
	}
	// The decoder passes over CR and LF: the length tells.
	if n, err := idEncoding.Decode(id[:], []byte(s)); err != nil || n != len(id) {
		return ID{}, ErrID
	}
	return id, nil
}

// String returns the 22 characters that tokens and keys carry.
func (id ID) String() string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// Shard returns the shard this id lives in.
func (id ID) Shard() int { return int(id[0]) }

// UserID returns the id under which a subject's sessions and epoch are kept:
// the first 16 bytes of SHA-256(sub), with the shard as the first of them. No
// subject appears in the name of a key.
func (s *core) UserID(sub string) ID {
	sum := sha256.Sum256([]byte(sub))
	var id ID
	copy(id[:], sum[:])
	// The shard comes from a byte that the id does not keep, so that the ids of
	// one shard still differ in 120 bits.
	id[0] = byte(int(sum[16]) % s.shards) //nolint:gosec // at most 255
	return id
}

// NewID returns a fresh random id in the shard of a user.
func (s *Sessions) NewID(user ID) (ID, error) {
	var id ID
	if _, err := io.ReadFull(s.rand, id[1:]); err != nil {
		return ID{}, fmt.Errorf("read randomness: %w", err)
	}
	id[0] = user[0]
	return id, nil
}

// together reports whether ids live in one shard of this store. Those of a token
// that was not issued here, or when there were more shards, may not.
func (s *core) together(ids ...ID) bool {
	for _, id := range ids {
		if id.Shard() >= s.shards || id[0] != ids[0][0] {
			return false
		}
	}
	return true
}
