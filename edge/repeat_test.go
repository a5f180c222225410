package edge

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// A logout that is sent again after many others costs Redis no reading of the log: it
// is confirmed by the head of that moment, which its own entry precedes.
func TestARepeatedLogoutReadsNoLog(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	a := newNode(t, server.URL(), ring, nodeOptions{}).ready().vouches()
	var reads atomic.Int64
	b := newNode(t, server.URL(), ring, nodeOptions{strict: true, storeTweak: func(o *tokenstore.Options) {
		o.Observe = func(operation string, _ time.Duration, _ error) {
			if operation == "renew" || operation == "look" {
				reads.Add(1)
			}
		}
	}})
	old := a.login("alice")
	for _, n := range []*node{a, b} { // the first confirmation of b hears from every shard
		if err := n.logout(old); err != nil {
			t.Fatal(err)
		}
	}
	for range 300 {
		s := a.login("alice")
		if _, err := a.store.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: s.sid, UID: s.uid}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the follower shows the head", func() bool {
		views, err := a.store.Revocations.Renew(t.Context(), []tokenstore.Renewal{{Shard: old.sid.Shard(), After: tokenstore.NoEntries}})
		if err != nil || len(views[0].Members) != 1 {
			return false
		}
		return views[0].Members[0].Mark.Chain == views[0].Head.Chain
	})
	before := reads.Load()
	if err := b.logout(old); err != nil {
		t.Fatal(err)
	}
	if n := reads.Load() - before; n != 0 {
		t.Errorf("the table and the log were read %d times, want none: the answer of the script has the follower at the head", n)
	}
}
