package edge

import (
	"fmt"
	"strings"

	"github.com/maypok86/otter/v2"
	"github.com/maypok86/otter/v2/stats"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
)

// cache remembers verified tokens. One is found by the end of its signature, which is
// the quicker to hash, and then compared as a whole: no two tokens can be taken for
// one another, and what is not exactly a token that was verified is not found. It says
// nothing about revocation.
type cache struct {
	entries *otter.Cache[string, *Known]
	ring    *accesstoken.Ring
	stats   *stats.Counter
}

const (
	defaultCacheSize = 1 << 16
	// tail is how much of its end finds a token: all of an HS256 signature, the shortest
	// there is. A token whose signature was verified shares it with no other.
	tail = 43
)

func newCache(size int, ring *accesstoken.Ring) (*cache, error) {
	if size == 0 {
		size = defaultCacheSize
	}
	counter := stats.NewCounter()
	entries, err := otter.New(&otter.Options[string, *Known]{MaximumSize: size, StatsRecorder: counter})
	if err != nil {
		return nil, fmt.Errorf("the cache of verified tokens: %w", err)
	}
	return &cache{entries: entries, ring: ring, stats: counter}, nil
}

// get returns a token that was verified, if its key is still in the ring.
func (c *cache) get(token string) *Known {
	t, ok := c.entries.GetIfPresent(ending(token))
	if !ok || t.token != token {
		return nil
	}
	if t.removed != c.ring.Removed() {
		return nil // a key has gone since: perhaps this token's
	}
	return t
}

// put remembers a token. The token is copied: it may be a part of a request's
// buffer.
func (c *cache) put(token string, t *Known) {
	t.token = strings.Clone(token)
	c.entries.Set(ending(t.token), t)
}

func (c *cache) drop(token string) { c.entries.Invalidate(ending(token)) }

func ending(token string) string { return token[max(0, len(token)-tail):] }
