package edge

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/internal/redistest"
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
