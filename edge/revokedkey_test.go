package edge

import (
	"strconv"
	"testing"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

func deadKey(s session) string { return "lk:{" + strconv.Itoa(s.sid.Shard()) + "}:dead" }

// revokeKey revokes the key of a ring and returns once that is confirmed.
func (n *node) revokeKey() {
	n.t.Helper()
	list, err := n.store.Keys.Deny(n.t.Context(), n.ring.Active().ID())
	if err != nil {
		n.t.Fatal(err)
	}
	for _, r := range list {
		if err := n.confirm.Confirm(n.t.Context(), r); err != nil {
			n.t.Fatal(err)
		}
	}
}

// The ring still has the key: it is the denial that refuses its tokens, on every
// replica from the moment the revocation is confirmed, and over HTTP soon after.
func TestARevokedKeyIsDeadEverywhere(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	a := newNode(t, server.URL(), ring, nodeOptions{}).ready().vouches()
	b := newNode(t, server.URL(), ring, nodeOptions{}).ready().leased()
	strict := newNode(t, server.URL(), ring, nodeOptions{strict: true})
	feed := NewFeed(FeedOptions{Revocations: a.store.Revocations})
	far := newRemote(t, feedServer(t, feed).URL, a, RemoteOptions{}, 0).wait(t)
	sessions := []session{a.login("alice"), a.login("bob"), a.login("carol")}
	for _, s := range sessions {
		for _, n := range []*node{a, b, strict} {
			n.wants("before", s, nil)
		}
		far.becomes(t, s, nil)
	}
	a.revokeKey()
	for _, s := range sessions {
		for _, n := range []*node{a, b, strict} {
			n.wants("of a revoked key", s, ErrRevoked)
		}
		far.becomes(t, s, ErrRevoked)
	}
	sound := newNode(t, server.URL(), newRing(t), nodeOptions{}).ready().leased()
	sound.wants("of another key", sound.login("alice"), nil)
}

// The log forgets a revocation after an access lifetime. A stolen key can sign
// for ever, so a follower that comes later must learn of it all the same.
func TestARevokedKeyIsKnownAfterTheLogHasForgottenIt(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	a := newNode(t, server.URL(), ring, nodeOptions{}).ready().vouches()
	s := a.login("alice")
	feed := NewFeed(FeedOptions{Revocations: a.store.Revocations})
	streams := feedServer(t, feed)
	a.revokeKey()
	for shard := range a.store.Shards() {
		if err := a.rdb.Del(t.Context(), "lk:{"+strconv.Itoa(shard)+"}:log").Err(); err != nil {
			t.Fatal(err)
		}
	}
	late := newNode(t, server.URL(), ring, nodeOptions{}).ready().leased()
	late.wants("a follower that came later", s, ErrRevoked)
	if got, _ := late.follower.shards[s.sid.Shard()].check(&tokenstore.AccessToken{
		SID: s.sid, UID: s.uid, Key: late.store.KeyID(ring.Active().ID(), s.sid.Shard()),
	}, 0, late.follower.clock); got != refused {
		t.Errorf("its memory says %v", got)
	}
	newRemote(t, streams.URL, a, RemoteOptions{}, 0).wait(t).becomes(t, s, ErrRevoked)
}

// A failover lost the revocation: a follower that knew puts it back.
func TestALostRevocationOfAKeyIsPutBack(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	a := newNode(t, server.URL(), ring, nodeOptions{}).ready().vouches()
	strict := newNode(t, server.URL(), ring, nodeOptions{strict: true})
	s := a.login("alice")
	a.revokeKey()
	if err := a.rdb.Del(t.Context(), deadKey(s)).Err(); err != nil {
		t.Fatal(err)
	}
	a.wants("who knew", s, ErrRevoked)
	eventually(t, "Redis knows again", func() bool { return a.rdb.HLen(t.Context(), deadKey(s)).Val() == 1 })
	strict.wants("who asks Redis", s, ErrRevoked)
}
