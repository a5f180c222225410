package tokenstore_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// gate holds up the pipelines that it is given until it opens, and counts them and the
// sessions that they end.
type gate struct {
	open      chan struct{}
	exchanges atomic.Int64
	sessions  atomic.Int64
}

func (g *gate) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (g *gate) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (g *gate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		g.exchanges.Add(1)
		for _, cmd := range cmds {
			if keys, ok := cmd.Args()[2].(int); ok {
				g.sessions.Add(int64(keys / 9)) // see lua/revoke.lua
			}
		}
		select {
		case <-g.open:
		case <-ctx.Done():
		}
		return next(ctx, cmds)
	}
}

// Revocations that come while one exchange is under way share the next script. Each gets its
// own answer, also where Redis can do one of them and not another, and all of them the name
// of the primary.
func TestRevocationsGather(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	s, err := tokenstore.New(rdb, tokenstore.Options{Shards: 16, Lifetimes: lifetimes(), Timeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return s.Open(t.Context()) })
	f := &fixture{Store: s, t: t, rdb: server.Client()}
	f.login("warm").logout(true) // the script is known

	const n = 20
	sessions := make([]tokenstore.SessionEnd, n)
	for i := range sessions {
		a := f.login("alice")
		sessions[i] = tokenstore.SessionEnd{SID: a.sid, UID: a.uid}
		switch i % 5 {
		case 3:
			sessions[i].Owner = "alice"
			if err := f.rdb.Set(t.Context(), a.key("rt", a.sid), "not a session", 0).Err(); err != nil {
				t.Fatal(err)
			}
		case 4:
			sessions[i].Owner = "mallory" // whose session it is not
		}
	}
	g := &gate{open: make(chan struct{})}
	rdb.AddHook(g)
	var wg sync.WaitGroup
	for _, e := range sessions {
		wg.Go(func() {
			r, err := s.Sessions.Revoke(t.Context(), e)
			switch {
			case e.Owner == "alice":
				is(t, "a session that cannot be read", err, tokenstore.ErrUnavailable)
			case e.Owner != "":
				is(t, "another's session", err, tokenstore.ErrNoSession)
			case err != nil:
				t.Error(err)
			case r.Entry.ID != e.SID || r.Entry.Seq != r.Mark.Seq || r.Server.Primary == "" || r.Server.Epoch == "":
				t.Errorf("session %s: %+v", e.SID, r)
			}
		})
	}
	eventually(t, func() error {
		if tokenstore.RevocationsWaiting(s)+int(g.sessions.Load()) < n {
			return errors.New("they have not all come")
		}
		return nil
	})
	close(g.open)
	wg.Wait()
	if got := g.exchanges.Load(); got > 2 {
		t.Errorf("%d revocations took %d exchanges, want 2: the first, and one for all that came meanwhile", n, got)
	}
}

// An entry is told of, acknowledged, and the acknowledgement seen by a look. Only one who
// follows alone is not told of what it has revoked.
func TestFollowersAreTold(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) *tokenstore.Store{
		"standalone": func(t *testing.T) *tokenstore.Store {
			return storeOn(t, tokenstore.DialOptions{URL: redistest.Start(t).URL()})
		},
		"cluster": func(t *testing.T) *tokenstore.Store {
			return storeOn(t, tokenstore.DialOptions{URL: redistest.StartCluster(t, 3, 0, redistest.Options{}).URL()})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			ctx, cancel := context.WithCancel(t.Context())
			ready, told, ended := make(chan struct{}, 1), make(chan tokenstore.Told, 10), make(chan error)
			go func() {
				ended <- s.Revocations.Listen(ctx, time.Minute, func() { ready <- struct{}{} }, func(e tokenstore.Told) { told <- e })
			}()
			<-ready
			sid := func(n byte) tokenstore.ID { return tokenstore.ID{3, n} }
			revoke := func(n byte) tokenstore.Revocation {
				t.Helper()
				r, err := s.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: sid(n), UID: tokenstore.ID{3}})
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			first := revoke(1)
			got := <-told
			if first.Entry.Seq != 1 || got.Entry != first.Entry || got.Shard != 3 || got.Epoch != first.Server.Epoch {
				t.Errorf("told %+v of %+v", got, first)
			}
			begin := tokenstore.Mark{Epoch: got.Epoch, Chain: got.Epoch}
			mark := begin.After(got.Entry)
			if mark.Chain != got.Entry.Chain {
				t.Errorf("the chain is %s, want %s", got.Entry.Chain, mark.Chain)
			}

			var made []tokenstore.Revocation
			s.Revocations.FollowedBy("me:1000", func(r tokenstore.Revocation) { made = append(made, r) })
			if _, err := s.Revocations.Renew(t.Context(), []tokenstore.Renewal{{Shard: 3, Member: "me:1000", Mark: begin, Beat: 1}}); err != nil {
				t.Fatal(err)
			}
			if r := revoke(2); r.Followers != 1 || len(r.Members) != 1 || r.Members[0].Name != "me:1000" {
				t.Errorf("alone: %+v", r)
			}
			if _, err := s.Revocations.Renew(t.Context(), []tokenstore.Renewal{{Shard: 3, Member: "other:1000", Mark: begin, Beat: 1}}); err != nil {
				t.Fatal(err)
			}
			if r := revoke(3); r.Followers != 2 || len(r.Members) != 0 {
				t.Errorf("of two: %+v", r)
			}
			if len(made) != 2 || made[0].Entry.ID != sid(2) || made[1].Entry.ID != sid(3) {
				t.Errorf("the follower of this process was told %+v", made)
			}
			if got := <-told; got.Entry.ID != sid(3) {
				t.Errorf("told of %v, want the third", got.Entry.ID)
			}

			if err := s.Revocations.Acknowledge(t.Context(), []tokenstore.Ack{{Shard: 3, Member: "me:1000", Mark: mark}, {Shard: 3, Member: "gone", Mark: mark}}); err != nil {
				t.Fatal(err)
			}
			views, err := s.Revocations.Look(t.Context(), []tokenstore.Look{{Shard: 3, After: 1}, {Shard: 5, After: 0}}, 10)
			if err != nil || len(views) != 2 || len(views[0].Members) != 2 || len(views[0].Entries) != 2 || views[0].Head.Seq != 3 {
				t.Fatalf("the look: %+v, %v", views, err)
			}
			if views[1].Head.Seq != 0 || len(views[1].Members) > 0 {
				t.Errorf("a shard without followers: %+v", views[1])
			}
			for _, m := range views[0].Members {
				want := tokenstore.Mark{}
				if m.Name == "me:1000" {
					want = tokenstore.Mark{Seq: 1, Chain: mark.Chain}
				}
				if m.Acked != want || m.Mark != (tokenstore.Mark{Chain: begin.Chain}) {
					t.Errorf("%s has acknowledged %v and shown %v", m.Name, m.Acked, m.Mark)
				}
				if err := s.Revocations.Strike(t.Context(), 3, m); err != nil {
					t.Error(err)
				}
			}
			cancel()
			is(t, "the end", <-ended, tokenstore.ErrUnavailable)
		})
	}
}

// A connection that hangs is given up, and who listens no more leaves nothing behind.
func TestListeningToSilenceIsGivenUp(t *testing.T) {
	t.Parallel()
	here, there := net.Pipe()
	t.Cleanup(func() { _ = here.Close(); _ = there.Close() })
	go func() { // it takes all, and answers the greeting only
		buf := make([]byte, 1024)
		for {
			n, err := there.Read(buf)
			if err != nil {
				return
			}
			if strings.Contains(string(buf[:n]), "hello") {
				_, _ = there.Write([]byte("-ERR unknown command\r\n"))
			}
		}
	}()
	rdb := redis.NewClient(&redis.Options{
		Protocol: 2, DisableIdentity: true, MaxRetries: -1, DialerRetries: 1,
		Dialer: func(context.Context, string, string) (net.Conn, error) { return here, nil },
	})
	t.Cleanup(func() { _ = rdb.Close() })
	s, err := tokenstore.New(rdb, tokenstore.Options{Shards: 16, Lifetimes: lifetimes()})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Revocations.Listen(t.Context(), 50*time.Millisecond, func() { t.Error("nobody has answered") }, func(tokenstore.Told) {})
	is(t, "silence", err, tokenstore.ErrUnavailable)
}
