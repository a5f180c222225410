package edge

import (
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

func TestAFullDenylistGoesStrictAndForgetsNothing(t *testing.T) {
	t.Parallel()
	server, ring, clock := startRedis(t), newRing(t), newHandClock()
	const perShard = 2
	n := newNode(t, server.URL(), ring, nodeOptions{maxDenied: perShard * 16, clock: clock.read}).ready()
	clock.settled(n)
	alive := n.login("alice")
	gone := make([]session, 5)
	for i := range gone {
		gone[i] = n.login("alice") // one user, one shard
	}
	for _, s := range gone {
		n.wants("before", s, nil)
		if err := n.logout(s); err != nil {
			t.Fatal(err)
		}
		n.wants("logged out", s, ErrRevoked)
	}
	eventually(t, "the full shard asks Redis", func() bool { return n.follower.Stats().Leased == 15 })
	for _, s := range gone {
		n.wants("asked of Redis", s, ErrRevoked)
	}
	n.wants("asked of Redis, alive", alive, nil)

	n.door.shut()
	n.wants("Redis cannot be asked", alive, ErrUnavailable)
	for i, s := range gone {
		want := ErrUnavailable
		if i < perShard {
			want = ErrRevoked
		}
		n.wants("Redis cannot be asked, logged out", s, want)
	}
	n.door.open()

	n.wants("Redis is back", alive, nil)
}

// Room comes with time: once what did not fit is needed no more by the follower's clock, and
// what is remembered has expired by Redis time. If the clock of Redis was set back, the
// tokens live for longer, and are denied for longer.
func TestADenialLastsUntilItsTokensHaveExpiredByRedisTime(t *testing.T) {
	const width = time.Minute
	var now instant
	made := time.UnixMilli(simEpoch)
	s := newShard(0, time.Second, 1, width)
	log := []tokenstore.Entry{simEntry(start("h"), tokenstore.ID{0, 1}, made, width)}
	log = append(log, simEntry(start("h").After(log[0]), tokenstore.ID{0, 2}, made, width))
	s.look("h", log, now)
	if s.granted.Load() != nil {
		t.Fatal("one of two did not fit, and there is a lease")
	}
	redis := func(at time.Time) {
		t.Helper()
		for out := (outcome{more: true}); out.more; {
			out = s.renewed(s.renewal("m", now), tokenstore.View{Now: at, Head: headOf(log)}, now)
		}
	}
	back := made.Add(-time.Hour) // the clock of Redis was set back
	for range 5 {
		now = now.add(width)
		back = back.Add(width)
		redis(back)
		if !s.deny.names(tokenstore.ID{0, 1}) {
			t.Fatalf("forgotten %v before its tokens expire", made.Add(width).Sub(back))
		}
	}
	for range 4 {
		now = now.add(2 * width)
		redis(made.Add(2 * width))
	}
	if s.deny.names(tokenstore.ID{0, 1}) || s.granted.Load() == nil {
		t.Error("remembered for ever, or without a lease for ever")
	}
}

// ids are random, as sessions' are.
func ids(t testing.TB, n int) []tokenstore.ID {
	t.Helper()
	raw := make([]byte, 16*n)
	if _, err := rand.Read(raw); err != nil {
		t.Fatal(err)
	}
	list := make([]tokenstore.ID, n)
	for i := range list {
		copy(list[i][:], raw[16*i:])
	}
	return list
}

// deniedShards are a follower's 16 shards with n sessions denied.
func deniedShards(list []tokenstore.ID) []*shard {
	shards := make([]*shard, 16)
	for i := range shards {
		shards[i] = newShard(i, time.Second, 4_000_000/16, 15*time.Minute)
	}
	var out outcome
	for _, id := range list {
		shards[id[0]%16].apply(tokenstore.Entry{Kind: tokenstore.KindSession, ID: id}, instant{mono: time.Hour}, &out)
	}
	return shards
}

// A follower that reads a part of the log again adds ids that are there already. They count
// towards the size at which the filter is built, and must not keep later ids out of it.
func TestWhatComesAfterRepeatsIsDenied(t *testing.T) {
	d := newDenylist(100_000, time.Minute)
	list := ids(t, hintFrom+100)
	add := func(list []tokenstore.ID) {
		for _, id := range list {
			d.add(tokenstore.Entry{Kind: tokenstore.KindSession, ID: id}, 0)
		}
	}
	add(list[:hintFrom-50])
	add(list[:50]) // again
	add(list[hintFrom-50:])
	for i, id := range list {
		if !d.denies(&tokenstore.AccessToken{SID: id}, "") {
			t.Fatalf("id %d is not denied", i)
		}
	}
}

const million = 1_000_000

// It does not run beside others: they would allocate too.
func TestAMillionDeniedIDsTakeLittleMemory(t *testing.T) {
	list := ids(t, million)
	used := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := used()
	shards := deniedShards(list)
	each := float64(used()-before) / million
	t.Logf("%.1f bytes each", each)
	if each > 64 {
		t.Errorf("%.1f bytes each, want at most 64", each)
	}
	total := 0
	for _, s := range shards {
		total += s.deny.len()
	}
	if total != million {
		t.Errorf("%d are remembered", total)
	}
	for _, id := range list {
		if !shards[id[0]%16].deny.denies(&tokenstore.AccessToken{SID: id}, "") {
			t.Fatal("one is forgotten")
		}
	}
	runtime.KeepAlive(shards)
}

func BenchmarkDenied1M(b *testing.B) {
	for _, n := range []int{0, 1000, million} {
		list := ids(b, n)
		shards := deniedShards(list)
		for name, asked := range map[string][]tokenstore.ID{"alive": ids(b, 1000), "denied": list[:min(n, 1000)]} {
			if len(asked) == 0 {
				continue
			}
			b.Run(fmt.Sprintf("%d/%s", n, name), func(b *testing.B) {
				b.ReportAllocs()
				i, found := 0, 0
				for b.Loop() {
					id := asked[i%len(asked)]
					if shards[id[0]%16].deny.denies(&tokenstore.AccessToken{SID: id}, "") {
						found++
					}
					i += 7919
				}
			})
		}
		runtime.KeepAlive(shards)
	}
}

// BenchmarkPropagation is the time from a revocation's reply until ten replicas
// refuse the token.
func BenchmarkPropagation(b *testing.B) {
	server, ring := startRedis(b), newRing(b)
	nodes := make([]*node, 10)
	for i := range nodes {
		nodes[i] = newNode(b, server.URL(), ring, nodeOptions{}).ready().vouches()
	}
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		s := nodes[i%10].login("user" + strconv.Itoa(i%100))
		b.StartTimer()
		r, err := nodes[i%10].store.Sessions.Revoke(b.Context(), tokenstore.SessionEnd{SID: s.sid, UID: s.uid})
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		for _, n := range nodes {
			for {
				if mark, _ := n.follower.shards[r.Shard].applied(); mark.Seq >= r.Mark.Seq {
					break
				}
				<-time.After(20 * time.Microsecond)
			}
		}
		took = append(took, time.Since(start))
		for _, n := range nodes {
			if err := n.verify(s); !errors.Is(err, ErrRevoked) {
				b.Fatal(err)
			}
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs/median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs/p99")
}
