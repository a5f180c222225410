package edge

import (
	"fmt"
	"strings"

	"github.com/maypok86/otter/v2"
	"github.com/maypok86/otter/v2/stats"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
)

// cache remembers verified tokens, keyed by the whole token: no two tokens can
// be taken for one another, and what is not exactly a token that was verified is
// not found. It says nothing about revocation.
type cache struct {
	entries *otter.Cache[string, *verified]
	ring    *accesstoken.Ring
	stats   *stats.Counter
}

const defaultCacheSize = 1 << 16

func newCache(size int, ring *accesstoken.Ring) (*cache, error) {
	if size == 0 {
		size = defaultCacheSize
	}
	counter := stats.NewCounter()
	entries, err := otter.New(&otter.Options[string, *verified]{MaximumSize: size, StatsRecorder: counter})
	if err != nil {
		return nil, fmt.Errorf("the cache of verified tokens: %w", err)
	}
	return &cache{entries: entries, ring: ring, stats: counter}, nil
}

// get returns a token that was verified, if its key is still in the ring.
func (c *cache) get(token string) *verified {
	t, ok := c.entries.GetIfPresent(token)
	if !ok {
		return nil
	}
	if t.removed != c.ring.Removed() {
		return nil // a key has gone since: perhaps this token's
	}
	return t
}

// put remembers a token. The token is copied: it may be a part of a request's
// buffer.
func (c *cache) put(token string, t *verified) { c.entries.Set(strings.Clone(token), t) }

func (c *cache) drop(token string) { c.entries.Invalidate(token) }
