package edge

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// newHandNode is a replica whose follower renews when the test says so, and never else.
func newHandNode(t *testing.T, server *redistest.Server, ring *accesstoken.Ring, lease time.Duration) *node {
	t.Helper()
	base := newNode(t, server.URL(), ring, nodeOptions{strict: true})
	n := &node{t: t, rdb: base.rdb, store: base.store, follower: NewFollower(FollowerOptions{Revocations: base.store.Revocations, Lease: lease})}
	v, err := New(Options{Revocations: n.store.Revocations, Ring: ring, Issuer: issuer, Audience: audience, Follower: n.follower})
	if err != nil {
		t.Fatal(err)
	}
	n.verifier = v
	return n
}

// renewed renews all leases once, and shows what was applied.
func (n *node) renewed() {
	n.t.Helper()
	n.follower.renew(n.t.Context(), n.follower.shards)
	if got := n.follower.Stats().Leased; got != n.store.Shards() {
		n.t.Fatalf("%d shards have a lease", got)
	}
}

// A failover, or a restart without the last second, that loses one renewal of a
// follower and no revocation. Who ends a session then must not take the follower for
// silent since its last renewal but one, nor believe that it is not there.
func TestALogoutAfterAFailoverWaitsForTheLeasesOfBefore(t *testing.T) {
	t.Parallel()
	const lease = 1500 * time.Millisecond
	promoted := func(t *testing.T) (primary *redistest.Server, part func(), successor func() *redistest.Server) {
		primary = redistest.Start(t, "--repl-diskless-sync-delay", "0")
		second := startReplica(t, primary)
		return primary, func() {
				if n, err := primary.Client().Wait(t.Context(), 1, 5*time.Second).Result(); err != nil || n != 1 {
					t.Fatalf("%d replicas are in step: %v", n, err)
				}
				if err := second.Client().ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil {
					t.Fatal(err)
				}
			}, func() *redistest.Server {
				primary.Kill(t)
				return second
			}
	}
	restarted := func(t *testing.T) (primary *redistest.Server, part func(), successor func() *redistest.Server) {
		primary = redistest.Start(t)
		return primary, func() {
				if err := primary.Client().Save(t.Context()).Err(); err != nil {
					t.Fatal(err)
				}
			}, func() *redistest.Server {
				primary.Kill(t)
				primary.Restart(t)
				return primary
			}
	}
	for name, tt := range map[string]struct {
		servers func(*testing.T) (*redistest.Server, func(), func() *redistest.Server)
		joined  bool // the follower is in the table that is left
		strict  bool // who ends the session has no follower
		command bool // and has never heard of this Redis
	}{
		"a renewal, promoted":                  {promoted, true, false, false},
		"a renewal, restarted":                 {restarted, true, false, false},
		"a renewal, strict":                    {promoted, true, true, false},
		"a registration, promoted":             {promoted, false, false, false},
		"a registration, restarted":            {restarted, false, false, false},
		"a registration, strict":               {promoted, false, true, false},
		"a registration, a command of its own": {promoted, false, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			primary, part, successor := tt.servers(t)
			ring := newRing(t)
			var f failover
			f.to(primary)
			o := nodeOptions{lease: lease, dial: f.dial, strict: tt.strict}
			waiter, cutOff := newNode(t, primary.URL(), ring, o), newHandNode(t, primary, ring, lease)
			if !tt.strict {
				waiter.ready().vouches()
			}
			first := waiter.login("alice")
			gone := waiter.login(sameShard(waiter, first.uid, "bob"))
			if tt.joined {
				cutOff.renewed()
			}
			switch {
			case tt.command:
			case tt.joined:
				// The waiter sees the follower as it is in the table that will be left.
				if err := waiter.confirmWithin(first, 50*time.Millisecond); !errors.Is(err, ErrUnavailable) {
					t.Fatalf("the follower has not applied it: %v", err)
				}
			default:
				if err := waiter.confirmWithin(first, 3*lease); err != nil {
					t.Fatal(err)
				}
			}
			part()
			if tt.joined {
				<-time.After(lease * 2 / 3)
			}
			cutOff.renewed()
			cutOff.wants("before", gone, nil)
			f.to(successor())

			if tt.command {
				waiter = newNode(t, primary.URL(), ring, o)
			}
			start := time.Now()
			eventually(t, "the logout is confirmed", func() bool { return waiter.logout(gone) == nil })
			took := time.Since(start)
			if err := cutOff.verify(gone); err == nil {
				t.Errorf("accepted after the logout was answered, which took %v", took)
			}
			if took > 2*lease {
				t.Errorf("the logout took %v", took)
			}
			again := waiter.login(sameShard(waiter, first.uid, "dave"))
			start = time.Now()
			if err := waiter.logout(again); err != nil || time.Since(start) > lease/2 {
				t.Errorf("the next logout took %v: %v", time.Since(start), err)
			}
		})
	}
}

// confirmWithin logs out, and gives up waiting after a time.
func (n *node) confirmWithin(s session, d time.Duration) error {
	n.t.Helper()
	r, err := n.store.Sessions.Revoke(n.t.Context(), tokenstore.SessionEnd{SID: s.sid, UID: s.uid})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(n.t.Context(), d)
	defer cancel()
	return n.confirm.Confirm(ctx, r)
}
