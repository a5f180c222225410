package edge

import (
	"errors"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
)

// startReplica starts a Redis that follows another, and waits until it does.
func startReplica(t testing.TB, of *redistest.Server) *redistest.Server {
	t.Helper()
	host, port, err := net.SplitHostPort(of.Addr())
	if err != nil {
		t.Fatal(err)
	}
	r := redistest.Start(t, "--replicaof", host+" "+port)
	primary := of.Client()
	eventually(t, "the replica is in step", func() bool {
		n, err := primary.Wait(t.Context(), 1, 100*time.Millisecond).Result()
		return err == nil && n == 1
	})
	return r
}

func TestWhereReplicasMustHaveALogout(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t, "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
	second := startReplica(t, primary)
	ring, clock := newRing(t), newHandClock()
	const lease = time.Second
	n := newNode(t, primary.URL(), ring, nodeOptions{lease: lease, wait: 1, timeout: 300 * time.Millisecond, clock: clock.read}).ready()
	clock.settled(n)
	alive, first, gone := n.login("alice"), n.login("alice"), n.login("alice")
	if err := n.logout(first); err != nil {
		t.Fatalf("with the replica up: %v", err)
	}
	if got := second.Client().Exists(t.Context(), denyKey(first)).Val(); got != 1 {
		t.Error("it was answered and the replica does not have it")
	}

	second.Pause(t)
	for range 2 { // the second finds it done already: what matters is that the replica has not
		if err := n.logout(gone); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("with the replica paused: %v", err)
		}
	}
	n.wants("inside the lease", alive, nil)
	clock.move(lease, lease)
	n.wants("no lease, and the primary's word alone", alive, ErrUnavailable)

	second.Resume(t)
	eventually(t, "the logout is confirmed", func() bool { return n.logout(gone) == nil })
	if got := second.Client().Exists(t.Context(), denyKey(gone)).Val(); got != 1 {
		t.Error("it was answered and the replica does not have it")
	}
	n.leased()
	n.wants("logged out", gone, ErrRevoked)
	n.wants("alive", alive, nil)
}

// A replica whose lease is longer than that of the one that answers a logout may have been
// cut off: the logout waits for its lease.
func TestALogoutWaitsForTheLongestLease(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	const short, long = 200 * time.Millisecond, 1500 * time.Millisecond
	told := make(chan time.Duration, 1)
	observe := FollowerObserver{Lease: func(d time.Duration) { told <- d }}
	n := newNode(t, server.URL(), ring, nodeOptions{lease: short, observe: observe}).ready().vouches()
	s := n.login("alice")
	// Somebody with a longer lease has renewed it, and is not heard of again.
	members := "lk:{" + strconv.Itoa(s.sid.Shard()) + "}:members"
	if err := n.rdb.HSet(t.Context(), members, memberName(long), "0::1").Err(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := n.logout(s); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < long {
		t.Errorf("the logout was answered after %v, and the lease of a follower may end after %v only", took, long)
	}
	select {
	case lease := <-told:
		if lease != long {
			t.Errorf("told of a lease of %v, want %v", lease, long)
		}
	case <-time.After(2 * time.Minute):
		t.Error("nobody was told of the longer lease")
	}
	// Redis loses everything: who else follows, and what they have heard, is not known any
	// more, and the longest lease that was seen still counts.
	if got := max(n.confirm.shards[s.sid.Shard()].silence(), n.follower.silence()); got < long {
		t.Errorf("after a loss a logout would wait for %v, want at least %v", got, long)
	}
}
