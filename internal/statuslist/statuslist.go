// Package statuslist is the encoding of status lists and of their names, for lists of
// one bit each, VALID or INVALID (draft-ietf-oauth-status-list-21 sections 4 and 7.1).
// It signs nothing, and knows nothing of where statuses come from.
package statuslist

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is how many tokens a list is for: 16 KiB before it is compressed. All lists
// are of that size from the beginning, so that it tells nobody how many tokens there are
// (section 13.3).
const Size = 1 << 17

// List is the statuses of Size tokens. The zero List says that all are VALID.
type List struct {
	bits [Size / 8]byte
}

// Revoke sets the status at idx to INVALID. It panics unless 0 <= idx < [Size].
func (l *List) Revoke(idx int) {
	l.bits[idx/8] |= 1 << (idx % 8) // the least significant bit of a byte comes first
}

// RevokePlaces sets to INVALID those of count places, from first on, that are in a block:
// the one that the list is of. It walks no place of another block.
func (l *List) RevokePlaces(block, first, count uint64) {
	end := first + count
	if end < first {
		end = math.MaxUint64
	}
	begin := Place(block, 0)
	for n, last := max(first, begin), min(end, begin+Size); n < last; n++ {
		l.Revoke(int(n - begin)) //nolint:gosec // less than Size
	}
}

// Encode returns the member lst: the bytes as ZLIB of DEFLATE, in base64url (section
// 4.2). The highest level, which section 4.1 recommends, would save a seventh of a list
// with a thousand revocations, and take 10 ms in place of 0.5: lists are made anew all
// the time.
func (l *List) Encode() (string, error) { return encode(l.bits[:]) }

func encode(bits []byte) (string, error) {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	_, err := w.Write(bits)
	if err := errors.Join(err, w.Close()); err != nil {
		return "", fmt.Errorf("statuslist: compress: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b.Bytes()), nil
}

// ErrID is returned for text that is not the canonical form of an [ID].
var ErrID = errors.New("not the id of a status list")

// maxHistory is the longest history in an ID, in bytes.
const maxHistory = 32

// ID names a list: the last part of its URI.
type ID struct {
	Shard   int    // 0 to 255
	History string // 1 to 32 letters, digits, - and _
	Block   uint64 // the n of its first place, divided by Size
}

// Locate returns the block that has a place, and the index in it.
func Locate(n uint64) (block uint64, idx int) { return n / Size, int(n % Size) }

// Place is the inverse of [Locate].
func Place(block uint64, idx int) uint64 { return block*Size + uint64(idx) } //nolint:gosec // an index is not negative

// String returns shard.history.block.
func (id ID) String() string {
	return strconv.Itoa(id.Shard) + "." + id.History + "." + strconv.FormatUint(id.Block, 10)
}

// ParseID reads what String writes, and only that, so that one list has one URI.
func ParseID(text string) (ID, error) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 || len(parts[1]) > maxHistory {
		return ID{}, ErrID
	}
	shard, err1 := strconv.ParseUint(parts[0], 10, 8)
	block, err2 := strconv.ParseUint(parts[2], 10, 64)
	id := ID{Shard: int(shard), History: parts[1], Block: block}
	if err1 != nil || err2 != nil || block > maxBlock || !name(id.History) || id.String() != text {
		return ID{}, ErrID
	}
	return id, nil
}

// maxBlock is the last block whose places fit into 53 bits, which Redis' scripts and
// JSON readers count in.
const maxBlock = 1<<53/Size - 1

func name(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}
