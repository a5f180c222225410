package edge

import (
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

func TestALogoutIsKnownEverywhereWhenItIsConfirmed(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	nodes := make([]*node, 3)
	for i := range nodes {
		nodes[i] = newNode(t, server.URL(), ring, nodeOptions{}).ready()
	}
	for i := range 60 {
		s := nodes[i%3].login("user" + strconv.Itoa(i))
		for _, n := range nodes {
			for range 2 { // the second is from the cache
				if err := n.verify(s); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := nodes[(i+1)%3].logout(s); err != nil {
			t.Fatal(err)
		}
		for j, n := range nodes {
			if err := n.verify(s); !errors.Is(err, ErrRevoked) {
				t.Fatalf("replica %d after the logout of %d: %v", j, i, err)
			}
		}
	}
}

// A replica that has just started hears of a logout at once, and not with its next renewal:
// logouts wait for it. The lease is so long that no renewal comes.
func TestANewReplicaHearsAtOnce(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	nodes := []*node{newNode(t, server.URL(), ring, nodeOptions{}).ready(), newNode(t, server.URL(), ring, nodeOptions{lease: time.Hour}).ready()}
	s := nodes[0].login("alice")
	if _, err := nodes[0].store.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: s.sid, UID: s.uid, JTI: s.jti, Expires: s.exp}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new replica knows the logout", func() bool { return errors.Is(nodes[1].verify(s), ErrRevoked) })
}

func BenchmarkVerifyHot(b *testing.B) {
	n := newNode(b, startRedis(b).URL(), newRing(b), nodeOptions{}).ready()
	s := n.login("alice")
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := n.verifier.Verify(ctx, s.token); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkConfirmedLogout(b *testing.B) {
	for _, replicas := range []int{1, 3, 10} {
		b.Run(strconv.Itoa(replicas), func(b *testing.B) {
			server, ring := startRedis(b), newRing(b)
			nodes := make([]*node, replicas)
			for i := range nodes {
				nodes[i] = newNode(b, server.URL(), ring, nodeOptions{}).ready().vouches()
			}
			var took []time.Duration
			for b.Loop() {
				b.StopTimer()
				s := nodes[0].login("alice")
				b.StartTimer()
				start := time.Now()
				if err := nodes[0].logout(s); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs/median")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs/p99")
		})
	}
}
