package edge

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

func denyKey(s session) string {
	return "lk:{" + strconv.Itoa(s.sid.Shard()) + "}:deny:" + s.sid.String()
}

func membersKey(s session) string { return "lk:{" + strconv.Itoa(s.sid.Shard()) + "}:members" }

func TestNothingOfBeforeIsAcceptedOnceALossIsNoticed(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	a := newNode(t, server.URL(), ring, nodeOptions{}).ready().leased()
	strict := newNode(t, server.URL(), ring, nodeOptions{strict: true})
	gone, alive := a.login("alice"), a.login("bob")
	a.wants("before", alive, nil)
	if err := a.logout(gone); err != nil {
		t.Fatal(err)
	}
	if err := a.rdb.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	strict.wants("strict, at once, logged out", gone, ErrRevoked)
	strict.wants("strict, at once, alive", alive, ErrRevoked)
	a.wants("at once, logged out", gone, ErrRevoked)
	eventually(t, "all shards are followed again", func() bool { return a.follower.Stats().Gaps >= int64(a.store.Shards()) })
	a.leased()
	a.wants("healed, logged out", gone, ErrRevoked)
	a.wants("healed, alive", alive, ErrRevoked)
	fresh := a.login("bob")
	a.wants("a new login", fresh, nil)
	strict.wants("a new login, strict", fresh, nil)
}

// A Redis that comes back empty has no table of followers. Their leases hold
// all the same for a while, and a logout must not be answered before they end.
func TestALogoutAfterALossWaitsForTheLeasesOfBefore(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	const lease = 600 * time.Millisecond
	a := newNode(t, server.URL(), ring, nodeOptions{lease: lease}).ready().vouches()
	b := newNode(t, server.URL(), ring, nodeOptions{lease: lease}).ready().vouches()
	for i := range 6 {
		s := a.login("user" + strconv.Itoa(i))
		b.wants("before", s, nil)
		if err := a.rdb.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		if err := a.logout(s); err == nil {
			b.wants("at another replica, after the logout was answered", s, ErrRevoked)
		}
		eventually(t, "both have noticed", func() bool {
			return a.follower.shards[s.sid.Shard()].epochIs(b.follower.shards[s.sid.Shard()])
		})
	}
}

func (s *shard) epochIs(other *shard) bool { return *s.history.Load() == *other.history.Load() }

// failover lets clients reach one Redis and then another at the same address.
type failover struct{ addr atomic.Pointer[string] }

func (f *failover) to(s *redistest.Server) {
	addr := s.Addr()
	f.addr.Store(&addr)
}

func (f *failover) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, *f.addr.Load())
}

// A replica that lacks the last revocations is promoted. Meanwhile it may have
// been written to by others: fewer entries than were lost, as many, or more.
func TestWhatAFailoverLosesIsRevokedAgain(t *testing.T) {
	t.Parallel()
	for name, others := range map[string]int{"nothing new": 0, "fewer": 1, "as many": 4, "more": 9} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			primary := redistest.Start(t, "--repl-diskless-sync-delay", "0")
			second := startReplica(t, primary)
			ring := newRing(t)
			var f failover
			f.to(primary)
			o := nodeOptions{lease: 300 * time.Millisecond, dial: f.dial}
			a := newNode(t, primary.URL(), ring, o).ready().leased()
			b := newNode(t, primary.URL(), ring, o).ready().leased()

			const lost = 3
			kept := a.login("alice")
			if err := a.logout(kept); err != nil {
				t.Fatal(err)
			}
			alive := a.login("alice")
			gone := make([]session, lost)
			for i := range gone {
				gone[i] = a.login("alice")
			}
			strangers := make([]session, others)
			for i := range strangers {
				strangers[i] = a.login("alice")
			}
			everywhere := a.login(sameShard(a, alive.uid, "bob"))
			if err := a.rdb.Wait(t.Context(), 1, 5*time.Second).Err(); err != nil {
				t.Fatal(err)
			}

			// From here on the second knows nothing of what the primary does.
			if err := second.Client().ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil {
				t.Fatal(err)
			}
			for i, s := range gone {
				if err := []*node{a, b}[i%2].logout(s); err != nil {
					t.Fatal(err)
				}
			}
			r, err := a.store.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: everywhere.uid})
			if err == nil {
				err = a.confirm.Confirm(t.Context(), r)
			}
			if err != nil {
				t.Fatal(err)
			}
			strict := newNode(t, second.URL(), ring, nodeOptions{strict: true})
			for _, s := range strangers {
				if _, err := strict.store.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: s.sid, UID: s.uid}); err != nil {
					t.Fatal(err)
				}
			}
			strict.wants("before it is healed the new primary accepts what it has lost", gone[0], nil)

			f.to(second)
			primary.Kill(t)
			dead := append([]session{kept, everywhere}, gone...)
			healed := func() bool {
				for _, n := range []*node{a, b} {
					for _, s := range dead {
						if err := n.verify(s); !errors.Is(err, ErrRevoked) {
							t.Fatalf("a replica that knew of it: %v", err)
						}
					}
				}
				for _, s := range dead {
					if strict.verify(s) == nil {
						return false
					}
				}
				return a.follower.Stats().Gaps > 0 && b.follower.Stats().Gaps > 0
			}
			eventually(t, "what was lost is revoked again", healed)
			for _, s := range gone {
				if _, err := strict.store.Sessions.Get(t.Context(), s.sid); !errors.Is(err, tokenstore.ErrNoSession) {
					t.Errorf("its refresh key lives: %v", err)
				}
			}
			a.leased()
			b.leased()
			for _, n := range []*node{a, b, strict} {
				n.wants("alive", alive, nil)
				for _, s := range append(strangers, dead...) {
					n.wants("dead", s, ErrRevoked)
				}
			}
			if a.follower.Stats().Restored+b.follower.Stats().Restored == 0 {
				t.Error("nobody says that it restored anything")
			}
			// Logouts work as ever.
			if err := b.logout(alive); err != nil {
				t.Fatal(err)
			}
			for _, n := range []*node{a, b, strict} {
				n.wants("logged out", alive, ErrRevoked)
			}
		})
	}
}

// sameShard finds another user in the shard of an id.
func sameShard(n *node, as tokenstore.ID, prefix string) string {
	for i := 0; ; i++ {
		if sub := prefix + strconv.Itoa(i); n.store.UserID(sub).Shard() == as.Shard() {
			return sub
		}
	}
}

func TestAReplicaThatJoinsLaterKnowsEarlierLogouts(t *testing.T) {
	t.Parallel()
	server, ring, clock := startRedis(t), newRing(t), newHandClock()
	a := newNode(t, server.URL(), ring, nodeOptions{}).ready()
	gone, alive, everywhere := make([]session, 50), a.login("alice"), a.login("carol")
	for i := range gone {
		gone[i] = a.login("user" + strconv.Itoa(i))
		if err := a.logout(gone[i]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.store.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: everywhere.uid}); err != nil {
		t.Fatal(err)
	}
	late := newNode(t, server.URL(), ring, nodeOptions{clock: clock.read}).ready().leased()
	late.door.shut() // nobody to ask: it is from memory
	late.wants("alive", alive, nil)
	for _, s := range append(gone, everywhere) {
		late.wants("logged out before", s, ErrRevoked)
	}
}

func TestADeadMemberIsWaitedForOnce(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	const lease = 2 * time.Second
	a := newNode(t, server.URL(), ring, nodeOptions{lease: lease}).ready().vouches()
	dead := newNode(t, server.URL(), ring, nodeOptions{lease: lease}).ready().leased()
	first, second := a.login("alice"), a.login("alice")
	dead.wants("before", first, nil)
	_ = dead.rdb.Close()
	beatAt := time.Now()
	dead.kill()

	took := func(s session) time.Duration {
		t.Helper()
		start := time.Now()
		if err := a.logout(s); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	one := took(first)
	// Its last renewal was at most a third of a lease before it died.
	if time.Since(beatAt) < lease*2/3 || one > lease+lease/2 {
		t.Errorf("the first logout took %v; the lease is %v", one, lease)
	}
	if two := took(second); two > lease/2 {
		t.Errorf("the second took %v", two)
	}
	eventually(t, "it is struck from the table", func() bool {
		return !a.rdb.HExists(t.Context(), membersKey(first), dead.follower.name).Val()
	})
}

func TestAMemberThatLeavesDelaysNobody(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	const lease = 3 * time.Second
	a := newNode(t, server.URL(), ring, nodeOptions{lease: lease}).ready().vouches()
	leaves := newNode(t, server.URL(), ring, nodeOptions{lease: lease}).ready().leased()
	s := a.login("alice")
	leaves.wants("before", s, nil)
	leaves.kill()
	start := time.Now()
	if err := a.logout(s); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > lease/2 {
		t.Errorf("the logout took %v", took)
	}
	leaves.wants("it has no lease any more", s, ErrRevoked)
}
