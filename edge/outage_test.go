package edge

import (
	"context"
	"errors"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/test/chaos"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// handClock stands still until a test moves it.
type handClock struct {
	mu  sync.Mutex
	now instant
}

func newHandClock() *handClock {
	return &handClock{now: instant{mono: time.Hour, wall: time.Now().UnixNano()}}
}

func (c *handClock) read() instant {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// settled lets time pass until a follower may vouch for its history.
func (c *handClock) settled(n *node) {
	c.move(2*n.follower.lease, 2*n.follower.lease)
	n.leased()
}

// move moves both clocks, each by its own.
func (c *handClock) move(mono, wall time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.mono += mono
	c.now.wall += int64(wall)
}

// eventually waits until ok, which looks at what others do.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("not in 2 minutes: " + what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// leased waits until every shard of a node answers by itself.
func (n *node) leased() *node {
	n.t.Helper()
	eventually(n.t, "every shard has a lease", func() bool { return n.follower.Stats().Leased == n.store.Shards() })
	return n
}

// vouches waits until a node may answer logouts without waiting for leases of before.
func (n *node) vouches() *node {
	n.t.Helper()
	eventually(n.t, "every shard was followed for a lease", func() bool {
		for _, s := range n.follower.shards {
			if !s.vouches(n.follower.clock(), silence(n.follower.lease)) {
				return false
			}
		}
		return true
	})
	return n
}

// vouches reports whether one history, of one primary, was followed for long enough
// to confirm at once.
func (s *shard) vouches(now instant, silent time.Duration) bool {
	s.tenure.mu.Lock()
	server := s.tenure.server
	s.tenure.mu.Unlock()
	return s.trusts(tokenstore.Mark{Seq: math.MaxUint64}, 0, now.mono, silent) && s.tenure.lasts(server, now, silent)
}

// wants checks that a node says what it should of a session.
func (n *node) wants(what string, s session, want error) {
	n.t.Helper()
	if err := n.verify(s); !errors.Is(err, want) || (want == nil && err != nil) {
		n.t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestAnOutageIsBridgedForOneLeaseExactly(t *testing.T) {
	t.Parallel()
	const lease, stale = time.Second, 10 * time.Second
	for name, tt := range map[string]struct {
		stale time.Duration
		until time.Duration // after the last renewal
	}{
		"deny":        {0, lease},
		"serve-stale": {stale, lease + stale},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, clock := startRedis(t), newHandClock()
			n := newNode(t, server.URL(), newRing(t), nodeOptions{lease: lease, stale: tt.stale, clock: clock.read}).ready()
			clock.settled(n)
			alive, gone, unseen := n.login("alice"), n.login("alice"), n.login("bob")
			n.wants("before", alive, nil)
			if err := n.logout(gone); err != nil {
				t.Fatal(err)
			}

			n.door.shut()
			n.wants("at once", alive, nil)
			clock.move(lease-1, lease-1)
			n.wants("inside the lease, from the cache", alive, nil)
			n.wants("inside the lease, never seen", unseen, nil)
			n.wants("inside the lease, revoked", gone, ErrRevoked)
			clock.move(tt.until-lease, tt.until-lease)
			n.wants("one nanosecond before the bound", alive, nil)
			n.wants("one nanosecond before the bound, revoked", gone, ErrRevoked)
			clock.move(1, 1)
			n.wants("at the bound", alive, ErrUnavailable)
			n.wants("at the bound, never seen", unseen, ErrUnavailable)
			n.wants("at the bound, revoked: memory still refuses", gone, ErrRevoked)

			n.door.open()
			n.leased()
			n.wants("Redis is back", alive, nil)
			n.wants("Redis is back, never seen", unseen, nil)
			n.wants("Redis is back, revoked", gone, ErrRevoked)
		})
	}
}

func TestEitherClockEndsTheLease(t *testing.T) {
	t.Parallel()
	const lease = time.Second
	for name, tt := range map[string]struct {
		mono, wall time.Duration
		want       error
	}{
		"neither":                          {lease - 1, lease - 1, nil},
		"the monotonic":                    {lease, 0, ErrUnavailable},
		"the wall, after a suspension":     {0, lease, ErrUnavailable},
		"the wall steps back":              {0, -time.Hour, nil},
		"the wall steps back, and it ends": {lease, -time.Hour, ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, clock := startRedis(t), newHandClock()
			n := newNode(t, server.URL(), newRing(t), nodeOptions{lease: lease, clock: clock.read}).ready()
			clock.settled(n)
			s := n.login("alice")
			n.wants("before", s, nil)
			n.door.shut()
			clock.move(tt.mono, tt.wall)
			n.wants("after", s, tt.want)
		})
	}
}

// counting counts the commands that are sent on behalf of one context.
type counting struct{ commands int64 }

type countKey struct{}

func (c *counting) context(ctx context.Context) context.Context {
	return context.WithValue(ctx, countKey{}, c)
}

type countHook struct{}

func (countHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (countHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if c, ok := ctx.Value(countKey{}).(*counting); ok {
			c.commands++
		}
		return next(ctx, cmd)
	}
}

func (countHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if c, ok := ctx.Value(countKey{}).(*counting); ok {
			c.commands += int64(len(cmds))
		}
		return next(ctx, cmds)
	}
}

func TestNoCommandIsSentInsideTheLease(t *testing.T) {
	t.Parallel()
	server, clock := startRedis(t), newHandClock()
	n := newNode(t, server.URL(), newRing(t), nodeOptions{clock: clock.read}).ready()
	clock.settled(n)
	n.rdb.AddHook(countHook{})
	var count counting
	ctx := count.context(t.Context())
	gone := n.login("alice")
	if err := n.logout(gone); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		s := n.login("alice")
		for range 100 { // the first is not in the cache
			if _, err := n.verifier.Verify(ctx, s.token); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := n.verifier.Verify(ctx, gone.token); !errors.Is(err, ErrRevoked) {
			t.Fatal(err)
		}
	}
	if count.commands != 0 {
		t.Errorf("%d commands for 10,100 checks", count.commands)
	}

	// The hook does count: without a lease Redis is asked.
	s := n.login("alice")
	n.kill()
	if _, err := n.verifier.Verify(ctx, s.token); err != nil || count.commands == 0 {
		t.Errorf("%d commands for a check without a lease: %v", count.commands, err)
	}
}

// What the history is for: with a guard missing it must show. Each case takes
// one away, from outside, and asks all nodes the instant a logout is answered.
func TestAMissingGuardShowsInTheHistory(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		unconfirmed bool               // logouts are answered before anybody has applied them
		cut         func(*node) func() // what becomes of the third node before the logouts; the result ends it
		violated    bool
	}{
		"none":                                  {false, nil, false},
		"the confirmation":                      {true, nil, true},
		"none, and a node is cut off":           {false, func(n *node) func() { n.cut(); return func() {} }, false},
		"the lease, and a node is cut off":      {false, func(n *node) func() { n.cut(); n.leaseForEver(); return func() {} }, true},
		"applying first: entries only promised": {false, func(n *node) func() { n.cut(); n.leaseForEver(); return n.promise() }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, ring := startRedis(t), newRing(t)
			nodes := make([]*node, 3)
			for i := range nodes {
				nodes[i] = newNode(t, server.URL(), ring, nodeOptions{lease: 300 * time.Millisecond}).ready().leased()
			}
			h := chaos.NewHistory()
			ask := func(number int, s session) {
				for i, n := range nodes {
					c := chaos.Check{Session: number, Replica: i, Asked: h.Now()}
					err := n.verify(s)
					c.AnsweredAt = h.Now()
					switch {
					case err == nil:
						c.Answer = chaos.Accepted
					case errors.Is(err, ErrRevoked):
						c.Answer = chaos.Refused
					}
					h.Checked(c)
				}
			}
			list := make([]session, 40)
			for i := range list {
				list[i] = nodes[0].login("alice")
				ask(h.Session(), list[i])
			}
			if tt.cut != nil {
				defer tt.cut(nodes[2])()
			}
			for i, s := range list {
				l := chaos.Logout{Session: i, Asked: h.Now()}
				var err error
				if tt.unconfirmed {
					_, err = nodes[0].store.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: s.sid, UID: s.uid})
				} else {
					err = nodes[0].logout(s)
				}
				l.AnsweredAt, l.Confirmed = h.Now(), err == nil
				h.LoggedOut(l)
				ask(i, s)
			}
			if v := h.Judge(); v.Violated() != tt.violated || v.Confirmed != len(list) {
				t.Errorf("violated = %v:\n%s", v.Violated(), v)
			} else {
				t.Logf("\n%s", v)
			}
		})
	}
}

// cut ends a node's follower as a dead network would: nobody hears of it.
func (n *node) cut() {
	_ = n.rdb.Close()
	n.kill()
}

// leaseForEver takes the lease's end away.
func (n *node) leaseForEver() {
	for _, s := range n.follower.shards {
		s.granted.Store(&instant{mono: math.MaxInt64, wall: math.MaxInt64})
	}
}

// promise shows, in a node's name, that it has applied whatever the log holds.
func (n *node) promise() func() {
	n.t.Helper()
	rdb := redis.NewClient(n.rdb.Options())
	done, stop := make(chan struct{}), make(chan struct{})
	store, err := tokenstore.New(rdb, tokenstore.Options{Shards: n.store.Shards(), Lifetimes: n.store.Lifetimes(), Timeout: time.Second})
	if err != nil {
		n.t.Fatal(err)
	}
	go func() {
		defer close(done)
		ctx := context.Background()
		for beat := uint64(1 << 20); ; beat++ {
			select {
			case <-stop:
				return
			default:
			}
			for i := range store.Shards() {
				v, err := store.Revocations.Renew(ctx, []tokenstore.Renewal{{Shard: i, After: math.MaxInt32}})
				if err == nil {
					_, _ = store.Revocations.Renew(ctx, []tokenstore.Renewal{{Shard: i, Member: n.follower.name, Mark: v[0].Head, Beat: beat, After: math.MaxInt32}})
				}
			}
		}
	}()
	return func() {
		close(stop)
		<-done
		_ = rdb.Close()
	}
}
