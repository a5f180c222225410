package edge

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// fillScript appends entries to a shard's log as lua/log.lua does: KEYS head, log; ARGV ms
// until and keep, then the sids.
const fillScript = `
local seq = tonumber(redis.call('HGET', KEYS[1], 'seq'))
local chain = redis.call('HGET', KEYS[1], 'chain')
for i = 3, #ARGV do
  seq = seq + 1
  local line = 'sid|' .. ARGV[i] .. '|' .. ARGV[1] .. '|' .. ARGV[2]
  chain = string.sub(redis.sha1hex(string.format('%s|%.0f|%s', chain, seq, line)), 1, 16)
  redis.call('XADD', KEYS[2], string.format('%.0f-0', seq), 'v', chain .. '|' .. line)
end
redis.call('HSET', KEYS[1], 'seq', string.format('%.0f', seq), 'chain', chain)
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return seq`

// fillLog appends n revocations of sessions to the logs of all shards, which must have heads.
// It returns some of the sessions.
func fillLog(t testing.TB, rdb redis.UniversalClient, n int) []tokenstore.ID {
	t.Helper()
	const shards, keep = 16, 15 * time.Minute
	var some []tokenstore.ID
	until := time.Now().Add(keep).UnixMilli()
	for shard := range shards {
		prefix := fmt.Sprintf("lk:{%d}:", shard)
		for left := n / shards; left > 0; {
			batch := min(left, 5000)
			left -= batch
			raw := make([]byte, 16*batch)
			if _, err := rand.Read(raw); err != nil {
				t.Fatal(err)
			}
			args := []any{until, keep.Milliseconds()}
			for i := range batch {
				id := tokenstore.ID(raw[16*i : 16*i+16])
				id[0] = byte(shard)
				args = append(args, id.String())
				if i%1000 == 0 {
					some = append(some, id)
				}
			}
			if err := rdb.Eval(t.Context(), fillScript, []string{prefix + "head", prefix + "log"}, args...).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return some
}

// redisCPU is what a Redis has used of the CPU.
func redisCPU(t testing.TB, rdb redis.UniversalClient) time.Duration {
	t.Helper()
	var total time.Duration
	for line := range strings.Lines(rdb.Info(t.Context(), "cpu").Val()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name == "used_cpu_sys" || name == "used_cpu_user" {
			s, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			total += time.Duration(s * float64(time.Second))
		}
	}
	return total
}

// longLog is how many revocations the tests of a long log have; LONG_LOG says otherwise.
func longLog(t testing.TB) int {
	t.Helper()
	text := os.Getenv("LONG_LOG")
	if text == "" {
		return 32_000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// logouts logs sessions out at a node, one after the other: count of them, or without count
// until stop is called, which waits for the last. It returns how long each took, in order,
// and what went wrong.
func (n *node) logouts(count int, pause time.Duration) (stop func() ([]time.Duration, []error)) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var took []time.Duration
	var failed []error
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; i < count || (count == 0 && ctx.Err() == nil); i++ {
			s := n.login("user" + strconv.Itoa(i%100))
			start := time.Now()
			if err := n.logout(s); err != nil {
				failed = append(failed, err)
			}
			took = append(took, time.Since(start))
			time.Sleep(pause)
		}
	})
	return func() ([]time.Duration, []error) {
		cancel()
		wg.Wait()
		slices.Sort(took)
		return took, failed
	}
}

func percent(sorted []time.Duration, p int) time.Duration { return sorted[len(sorted)*p/100] }

// A replica that starts under a long log reads it and knows it, and is in nobody's way
// meanwhile. LONG_LOG=1000000 prints the figures of docs/scaling.md.
func TestAReplicaStartsUnderALongLog(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	n := newNode(t, server.URL(), ring, nodeOptions{}).ready()
	size := longLog(t)
	gone := fillLog(t, n.rdb, size)
	eventually(t, "the first replica has caught up", func() bool { return n.follower.Stats().Denied >= size && n.follower.Stats().Leased == 16 })
	n.vouches()

	stop := n.logouts(500, 0)
	before, failed := stop()
	if len(failed) > 0 {
		t.Fatal(failed[0])
	}
	counts := []int{1, 3}
	if size > 500_000 {
		counts = []int{1, 10}
	}
	for _, count := range counts {
		cpu, start := redisCPU(t, n.rdb), time.Now()
		stop = n.logouts(0, time.Millisecond)
		late := make([]*node, count)
		for i := range late {
			late[i] = newNode(t, server.URL(), ring, nodeOptions{})
		}
		for _, l := range late {
			<-l.follower.Ready()
		}
		ready, used := time.Since(start), redisCPU(t, n.rdb)-cpu
		during, failed := stop()
		t.Logf("%d entries, %d new: ready after %v, Redis used %v; a logout p50 %v p99 %v, before %v and %v; %d of %d failed",
			size, count, ready, used, percent(during, 50), percent(during, 99), percent(before, 50), percent(before, 99), len(failed), len(during))
		if len(failed) > 0 {
			t.Errorf("a logout at the other replica failed: %v", failed[0])
		}
		for _, l := range late {
			l.leased()
			l.knows(gone)
			l.kill()
		}
	}
}

// knows checks that a node refuses sessions from memory.
func (n *node) knows(sids []tokenstore.ID) {
	n.t.Helper()
	for _, sid := range sids {
		s := n.follower.shards[sid.Shard()]
		s.mu.RLock()
		known := s.deny.denies(&tokenstore.AccessToken{SID: sid}, "")
		s.mu.RUnlock()
		if !known {
			n.t.Fatalf("session %s was logged out, and is not known", sid)
		}
	}
}

// Redis comes back from a snapshot that lacks the last revocations. The followers find that
// its history is not theirs, put back what it lacks and no more, and go on.
func TestAGapUnderALongLog(t *testing.T) {
	t.Parallel()
	server, ring := redistest.Start(t, "--appendonly", "no", "--save", ""), newRing(t)
	lease := 300 * time.Millisecond
	nodes := []*node{newNode(t, server.URL(), ring, nodeOptions{lease: lease}).ready(), newNode(t, server.URL(), ring, nodeOptions{lease: lease}).ready()}
	n, size := nodes[0], longLog(t)
	gone := fillLog(t, n.rdb, size)
	for _, n := range nodes {
		eventually(t, "the log is known", func() bool { return n.follower.Stats().Denied >= size })
		n.vouches()
	}
	if err := n.rdb.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	var lost []session
	for i := range 20 {
		s := n.login("user" + strconv.Itoa(i))
		if err := n.logout(s); err != nil {
			t.Fatal(err)
		}
		lost = append(lost, s)
	}
	server.Kill(t)
	server.Restart(t)
	eventually(t, "what was lost is revoked again", func() bool {
		for _, s := range lost {
			if n.rdb.Exists(t.Context(), denyKey(s)).Val() != 1 {
				return false
			}
		}
		return true
	})
	for _, n := range nodes {
		n.leased()
		n.knows(gone)
		for _, s := range lost {
			n.wants("logged out before", s, ErrRevoked)
		}
		eventually(t, "a logout is confirmed", func() bool { return n.logout(n.login("alice")) == nil })
	}
	if put := nodes[0].follower.Stats().Restored + nodes[1].follower.Stats().Restored; put > int64(3*len(lost)) {
		t.Errorf("%d revocations were put back, and %d were lost", put, len(lost))
	}
}

// reads counts the reads of a long log.
func reads(count *atomic.Int64) func(*tokenstore.Options) {
	return func(o *tokenstore.Options) {
		o.Observe = func(operation string, _ time.Duration, _ error) {
			if operation == "read_log" {
				count.Add(1)
			}
		}
	}
}

// After a failover the log is not read again from the beginning: the two histories have most
// of it in common.
func TestAFailoverUnderALongLog(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	second := startReplica(t, primary)
	ring := newRing(t)
	var f failover
	f.to(primary)
	var pages atomic.Int64
	n := newNode(t, primary.URL(), ring, nodeOptions{lease: 300 * time.Millisecond, dial: f.dial, storeTweak: reads(&pages)}).ready()
	size := longLog(t)
	gone := fillLog(t, n.rdb, size)
	eventually(t, "the log is known", func() bool { return n.follower.Stats().Denied >= size })
	n.vouches()
	if err := n.rdb.Wait(t.Context(), 1, 10*time.Second).Err(); err != nil {
		t.Fatal(err)
	}
	if err := second.Client().ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	var lost []session
	for i := range 20 {
		s := n.login("user" + strconv.Itoa(i))
		if err := n.logout(s); err != nil {
			t.Fatal(err)
		}
		lost = append(lost, s)
	}
	before := pages.Load()
	f.to(second)
	primary.Kill(t)
	eventually(t, "what was lost is revoked again", func() bool {
		for _, s := range lost {
			if second.Client().Exists(t.Context(), denyKey(s)).Val() != 1 {
				return false
			}
		}
		return true
	})
	n.leased()
	n.knows(gone)
	eventually(t, "a logout is confirmed", func() bool { return n.logout(n.login("alice")) == nil })
	if more := pages.Load() - before; more > 16 {
		t.Errorf("%d pages of the log were read again", more)
	}
	if put := n.follower.Stats().Restored; put > int64(2*len(lost)) {
		t.Errorf("%d revocations were put back, and %d were lost", put, len(lost))
	}
}

// barrier holds up what the connections that it has made bring: all of it while it is shut, and
// each read for as long as it says.
type barrier struct {
	mu    sync.Mutex
	shut  chan struct{} // closed when it opens; nil while it is open
	delay time.Duration
}

func (g *barrier) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &gatedConn{conn, g}, nil
}

func (g *barrier) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = make(chan struct{})
}

func (g *barrier) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut == nil {
		return
	}
	close(g.shut)
	g.shut = nil
}

type gatedConn struct {
	net.Conn
	gate *barrier
}

func (c *gatedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.gate.mu.Lock()
	shut, delay := c.gate.shut, c.gate.delay
	c.gate.mu.Unlock()
	if shut != nil {
		<-shut
	}
	if delay > 0 {
		time.Sleep(delay)
	}
	return n, err
}

// Replicas that have stood still while others were logged out catch up when they go on, and
// hold up no logout.
func TestReplicasThatStoodStillCatchUp(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	const lease = 500 * time.Millisecond
	n := newNode(t, server.URL(), ring, nodeOptions{lease: lease}).ready().vouches()
	var g barrier
	o := nodeOptions{lease: lease, dial: g.dial}
	frozen := []*node{newNode(t, server.URL(), ring, o).ready(), newNode(t, server.URL(), ring, o).ready()}
	g.close()
	t.Cleanup(g.open) // or a test that failed could not end
	size := longLog(t)
	gone := fillLog(t, n.rdb, size)
	eventually(t, "the first replica has caught up", func() bool { return n.follower.Stats().Denied >= size && n.follower.Stats().Leased == 16 })
	n.vouches()
	stop := n.logouts(50, 0)
	if _, failed := stop(); len(failed) > 0 {
		t.Fatalf("while they stand still: %v", failed[0])
	}
	stop = n.logouts(0, 0)
	g.open()
	for _, f := range frozen {
		eventually(t, "it has caught up", func() bool { return f.follower.Stats().Denied >= size && f.follower.Stats().Leased == 16 })
		f.knows(gone)
	}
	if _, failed := stop(); len(failed) > 0 {
		t.Errorf("while they catch up: %v", failed[0])
	}
	for _, f := range frozen {
		eventually(t, "a logout there is confirmed", func() bool { return f.logout(f.login("alice")) == nil })
	}
}

// A Redis that is slow to answer takes longer to be read, and is read all the same.
func TestALongLogOfASlowRedis(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	n := newNode(t, server.URL(), ring, nodeOptions{}).ready().vouches()
	size := longLog(t) / 4
	gone := fillLog(t, n.rdb, size)
	g := barrier{delay: 100 * time.Millisecond}
	stop := n.logouts(0, time.Millisecond)
	slow := newNode(t, server.URL(), ring, nodeOptions{dial: g.dial})
	<-slow.follower.Ready()
	slow.leased().knows(gone)
	if _, failed := stop(); len(failed) > 0 {
		t.Errorf("a logout at the other replica: %v", failed[0])
	}
	eventually(t, "a logout there is confirmed", func() bool { return slow.logout(slow.login("alice")) == nil })
}

// On a Cluster each shard is read by itself, of its own node.
func TestALongLogOfACluster(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3, 0, redistest.Options{})
	ring := newRing(t)
	life := defaultLife()
	open := func() (*Follower, *tokenstore.Store, redis.UniversalClient) {
		rdb, err := tokenstore.Dial(tokenstore.DialOptions{URL: cluster.URL(), Timeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		store, err := tokenstore.New(rdb, tokenstore.Options{Shards: 16, Lifetimes: life, Timeout: 3 * time.Second})
		if err == nil {
			err = store.Open(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		follower := NewFollower(FollowerOptions{Revocations: store.Revocations})
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { follower.Run(ctx) })
		t.Cleanup(func() {
			cancel()
			wg.Wait()
			_ = rdb.Close()
		})
		return follower, store, rdb
	}
	first, store, rdb := open()
	<-first.Ready()
	size := longLog(t)
	fillLog(t, rdb, size)
	eventually(t, "who was there has caught up", func() bool { return first.Stats().Denied >= size && first.Stats().Leased == 16 })
	late, _, _ := open()
	eventually(t, "who comes later has caught up", func() bool { return late.Stats().Denied >= size && late.Stats().Leased == 16 })
	n := &node{t: t, store: store, ring: ring, signer: accesstoken.NewSigner(ring), follower: first, confirm: NewConfirmer(store.Revocations, defaultLease).Beside(first)}
	eventually(t, "a logout is confirmed", func() bool { return n.logout(n.login("alice")) == nil })
}
