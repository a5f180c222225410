package edge

import (
	"sync"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// tenure is since when this process has known who answers for a shard.
//
// A failover may lose a renewal, or a whole line of the table of followers, and the
// lease that was granted for it holds all the same. But it was granted before the new
// primary took over, and so before the first reply that this process had from it. One
// lease after that reply none of them is left.
type tenure struct {
	mu     sync.Mutex
	server tokenstore.Server
	since  time.Duration // by the monotonic clock, when it was first heard
}

// heard notes whom a reply came from.
func (t *tenure) heard(from tokenstore.Server, now instant) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if from != t.server {
		t.server, t.since = from, now.mono
	}
}

// lasts reports whether who answers has done so for as long as silent.
func (t *tenure) lasts(who tokenstore.Server, now instant, silent time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.server == who && now.mono-t.since >= silent
}
