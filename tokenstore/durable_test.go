package tokenstore_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// In durable mode whatever revokes, or puts back what was revoked, counts only when the
// replicas have it. That holds for a request that is sent again, too: it changes nothing,
// but the replicas may not have what the first one wrote.
func TestWhatReplicasLackIsNotDone(t *testing.T) {
	t.Parallel()
	primary, replica := redistest.Start(t), redistest.Start(t)
	open := func(wait int, timeout time.Duration) *tokenstore.Store {
		// A client of its own: WAIT is about the writes of its connection.
		s, err := tokenstore.New(dial(t, primary.URL()), tokenstore.Options{Shards: 16, Lifetimes: lifetimes(), Timeout: timeout, WaitReplicas: wait, StatusLists: true})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error { return s.Open(t.Context()) })
		return s
	}
	s := open(0, time.Minute)
	f := &fixture{Store: s, t: t, rdb: primary.Client()}
	one, all, lost, other := f.login("one"), f.login("all"), f.login("lost"), f.login("other")
	settings := tokenstore.KeySettings{Algorithm: "EdDSA"}
	key := func(kid, sealed string) tokenstore.SealedKey {
		return tokenstore.SealedKey{ID: kid, Sealed: []byte(sealed), Algorithm: "EdDSA"}
	}
	for _, kid := range []string{"signs", "next"} {
		_, err := s.Keys.Offer(t.Context(), settings, key(kid, "sealed"), tokenstore.OfferAsked)
		is(t, "offer "+kid, err, nil)
	}
	host, port, err := net.SplitHostPort(primary.Addr())
	if err == nil {
		err = replica.Client().ReplicaOf(t.Context(), host, port).Err()
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { // in step
		_, err := open(1, time.Minute).Revocations.Renew(t.Context(), []tokenstore.Renewal{{Shard: 1, Member: "m", Mark: tokenstore.Mark{Seq: 1}}})
		return err
	})
	replica.Pause(t)
	for _, op := range []struct {
		name string
		do   func(context.Context, *tokenstore.Store) error
	}{
		{"revoke", func(ctx context.Context, s *tokenstore.Store) error {
			_, err := s.Sessions.Revoke(ctx, tokenstore.SessionEnd{SID: one.sid, UID: one.uid})
			return err
		}},
		{"revoke a user", func(ctx context.Context, s *tokenstore.Store) error {
			_, err := s.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: all.uid})
			return err
		}},
		{"put back a session", func(ctx context.Context, s *tokenstore.Store) error {
			return s.Revocations.Restore(ctx, tokenstore.Entry{Kind: tokenstore.KindSession, ID: other.sid})
		}},
		{"put back a user", func(ctx context.Context, s *tokenstore.Store) error {
			return s.Revocations.Restore(ctx, tokenstore.Entry{Kind: tokenstore.KindUser, ID: lost.uid, Epoch: 7})
		}},
		{"put back a dead key", func(ctx context.Context, s *tokenstore.Store) error {
			return s.Revocations.Restore(ctx, tokenstore.Entry{Kind: tokenstore.KindKey, ID: s.KeyID("dead", 3)})
		}},
		{"put back a signing key", func(ctx context.Context, s *tokenstore.Store) error {
			_, err := s.Keys.Offer(ctx, settings, key("lost", "sealed"), tokenstore.OfferLost)
			return err
		}},
		{"seal a signing key anew", func(ctx context.Context, s *tokenstore.Store) error {
			return s.Keys.Reseal(ctx, "signs", []byte("sealed"), []byte("anew"))
		}},
		{"revoke a signing key", func(ctx context.Context, s *tokenstore.Store) error {
			_, err := s.Keys.Revoke(ctx, settings, "next", tokenstore.SealedKey{})
			return err
		}},
		{"deny a signing key", func(ctx context.Context, s *tokenstore.Store) error {
			_, err := s.Keys.Deny(ctx, "next")
			return err
		}},
		{"a status list", func(ctx context.Context, s *tokenstore.Store) error {
			_, err := s.Revocations.StatusView(ctx, int(one.uid[0]))
			return err
		}},
	} {
		is(t, op.name, op.do(t.Context(), open(1, 200*time.Millisecond)), tokenstore.ErrUnavailable)
		is(t, op.name+", sent again", op.do(t.Context(), open(1, 200*time.Millisecond)), tokenstore.ErrUnavailable)
	}
}

// seenPipelines keeps the commands of each pipeline, by name and first key.
type seenPipelines struct {
	mu   sync.Mutex
	last []string
}

func (s *seenPipelines) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (s *seenPipelines) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (s *seenPipelines) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		s.mu.Lock()
		s.last = nil
		for _, c := range cmds {
			s.last = append(s.last, c.Name())
			if args := c.Args(); c.Name() == "eval" {
				s.last = append(s.last, fmt.Sprint(args[3]))
			}
		}
		s.mu.Unlock()
		return next(ctx, cmds)
	}
}

// From Redis 7.2 on, and on Valkey, a WAIT passes at once where its connection has written
// nothing since the last one. So each WAIT has a write of its own before it, also where the
// script finds that all is done. What that is for, TestWhatReplicasLackIsNotDone shows on such
// a server (make test-valkey).
func TestEachWaitFollowsAWrite(t *testing.T) {
	t.Parallel()
	primary := redistest.Start(t)
	rdb, seen := dial(t, primary.URL()), &seenPipelines{}
	rdb.AddHook(seen)
	s, err := tokenstore.New(rdb, tokenstore.Options{Shards: 16, Lifetimes: lifetimes(), Timeout: time.Minute, WaitReplicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // for replicas that are not there
	defer cancel()
	for _, tt := range []struct {
		key string
		do  func() error
	}{
		{"lk:wait:{lk:keys}", func() error { return s.Keys.Reseal(ctx, "nobody's", []byte("a"), []byte("b")) }},
		{"lk:{1}:wait", func() error {
			return s.Revocations.Restore(ctx, tokenstore.Entry{Kind: tokenstore.KindUser, ID: tokenstore.ID{1}, Epoch: 7})
		}},
	} {
		is(t, tt.key, tt.do(), tokenstore.ErrUnavailable)
		if n := len(seen.last); n < 3 || !slices.Equal(seen.last[n-3:], []string{"eval", tt.key, "wait"}) {
			t.Errorf("%s: the last commands were %q", tt.key, seen.last)
		}
	}
	if n := primary.Client().Exists(t.Context(), "lk:wait:{lk:keys}", "lk:{1}:wait").Val(); n != 2 {
		t.Errorf("%d of 2 marks are there", n)
	}
}
