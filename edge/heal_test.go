package edge

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// A shard's log grows during each renewal, as while other replicas put back what a failover
// has lost, and Redis takes 50 ms to answer. The renewal goes on with that shard for a third
// of a lease, and then it is the other shards' turn.
func TestAGrowingLogDoesNotHoldUpTheRenewalsOfOtherShards(t *testing.T) {
	t.Parallel()
	const lease, took = time.Second, 50 * time.Millisecond
	server, ring := startRedis(t), newRing(t)
	other := newNode(t, server.URL(), ring, nodeOptions{strict: true})
	grow := func() {
		sid := tokenstore.ID{3}
		_, _ = rand.Read(sid[1:])
		if _, err := other.store.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: sid, UID: tokenstore.ID{3}}); err != nil {
			t.Errorf("revoke: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var now instant
	grows, renewals := false, 0
	n := newNode(t, server.URL(), ring, nodeOptions{strict: true, storeTweak: func(o *tokenstore.Options) {
		o.Observe = func(operation string, _ time.Duration, _ error) {
			if operation != "renew" || !grows {
				return
			}
			if renewals++; renewals == 1000 {
				cancel() // it would go on for ever
			}
			now = now.add(took)
			grow()
		}
	}})
	f := NewFollower(FollowerOptions{Revocations: n.store.Revocations, Lease: lease})
	f.clock = func() instant { return now }
	f.renew(ctx, f.shards)
	if st := f.Stats(); st.Leased != 16 {
		t.Fatalf("not booted: %+v", st)
	}
	grows = true
	grow()
	began := now.mono
	f.renew(ctx, f.shards[3:4]) // as the renewal of all shards goes on with the one that has more
	if after := now.mono - began; ctx.Err() != nil || after > lease/2 {
		t.Errorf("the other shards had to wait for %v, with a lease of %v", after, lease)
	}
}
