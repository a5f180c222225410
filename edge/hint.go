package edge

import (
	"encoding/binary"
	"math/bits"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// hint tells most ids that are not in a big map without going there: it is a
// Bloom filter of which each id uses one word, small enough to stay in the
// processor's cache when the map is not. While the map is small there is none,
// and every id may be in it.
//
// Ids need no hashing: they are random, or of a hash.
type hint struct {
	words []uint64 // a power of two of them
	n     int      // ids added, and no more than len(words)*idsPerWord
}

const (
	// hintFrom is how many ids a map holds when a hint begins to pay.
	hintFrom = 4096
	// idsPerWord leaves one id in forty a wrong "may".
	idsPerWord = 4
)

// place is where an id leaves its mark: a word, and four bits of it.
func (h *hint) place(id tokenstore.ID) (word int, mark uint64) {
	r := binary.LittleEndian.Uint64(id[len(id)-8:])
	mark = 1<<(r&63) | 1<<(r>>6&63) | 1<<(r>>12&63) | 1<<(r>>18&63)
	return int(r >> 24 & uint64(len(h.words)-1)), mark //nolint:gosec // below len(h.words)
}

// may reports whether an id may be in the map.
func (h *hint) may(id tokenstore.ID) bool {
	if h.words == nil {
		return true
	}
	word, mark := h.place(id)
	return h.words[word]&mark == mark
}

// add notes an id that was put into g's maps. It may be there already.
func (h *hint) add(id tokenstore.ID, g *generation) {
	if h.n++; h.n < hintFrom && h.words == nil {
		return
	}
	if h.n <= len(h.words)*idsPerWord {
		word, mark := h.place(id)
		h.words[word] |= mark
		return
	}
	*h = newHint(h.n, g)
}

// newHint returns a hint of what is in g's maps, with room for as many ids again as n.
func newHint(n int, g *generation) hint {
	h := hint{n: g.len()}
	if n < hintFrom {
		return h
	}
	h.words = make([]uint64, 1<<bits.Len(uint(2*n/idsPerWord)))
	for id := range g.sids {
		word, mark := h.place(id)
		h.words[word] |= mark
	}
	for id := range g.users {
		word, mark := h.place(id)
		h.words[word] |= mark
	}
	return h
}
