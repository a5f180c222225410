package tokenstore

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// maxTogether is how many revocations share one exchange with Redis at most.
const maxTogether = 64

// revocations gathers the calls of lua/revoke.lua: while one exchange with Redis is under
// way, those that come form the next one. They then share one connection, one question who
// the primary is, and one WAIT.
type revocations struct {
	mu       sync.Mutex
	waiting  []*revoking
	underWay bool
}

// revoking is one call and its answer.
type revoking struct {
	sid  ID
	call call
	done chan struct{} // closed when the rest is set
	made Revocation
	err  error
}

// revokeTogether calls lua/revoke.lua for a session. With [Options.WaitReplicas] it returns
// when the replicas have the revocation, too. If ctx ends before, the revocation may still be
// made.
func (s *core) revokeTogether(ctx context.Context, sid ID, c call) (Revocation, error) {
	if !s.TailsTogether() {
		c.args[revokeWho] = "1"
		r, err := s.runDurably(ctx, c.script, c.keys, c.args...)
		if err != nil {
			return Revocation{}, err
		}
		made, err := s.revoked(sid, r, primaryOf(r))
		s.tellFollower(made, err)
		return made, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	ctx, end := s.trace(ctx, c.script.name)
	start := time.Now()
	mine := &revoking{sid: sid, call: c, done: make(chan struct{})}
	s.revocations.mu.Lock()
	s.revocations.waiting = append(s.revocations.waiting, mine)
	first := !s.revocations.underWay
	s.revocations.underWay = true
	s.revocations.mu.Unlock()
	if first {
		go s.revokeWaiting()
	}
	var made Revocation
	var err error
	select {
	case <-mine.done:
		made, err = mine.made, mine.err
	case <-ctx.Done():
		err = unavailable(c.script.name, ctx.Err())
	}
	outage := err
	if !errors.Is(err, ErrUnavailable) {
		outage = nil
	}
	s.observe(c.script.name, time.Since(start), outage)
	end(outage)
	return made, err
}

// revokeWaiting sends the revocations that wait, as one exchange. The next exchange begins
// when this one has ended, or after an eighth of the timeout: a connection that hangs must
// not hold up the others for longer.
func (s *core) revokeWaiting() {
	q := &s.revocations
	q.mu.Lock()
	list := q.waiting
	if len(list) > maxTogether {
		list = list[:maxTogether:maxTogether]
	}
	q.waiting = q.waiting[len(list):]
	q.mu.Unlock()

	next := sync.OnceFunc(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.underWay = len(q.waiting) > 0; q.underWay {
			go s.revokeWaiting()
		}
	})
	stalled := time.AfterFunc(s.timeout/8, next)
	s.revokeAll(list)
	stalled.Stop()
	next()
}

// revokeAll sends revocations on one connection and answers their callers.
//
// The last script asks for all who the primary is. A primary's name never comes back once
// it was another's, so what the last one is told holds for the tables that the others read.
func (s *core) revokeAll(list []*revoking) {
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
	defer cancel()
	calls := make([]call, len(list))
	for i, r := range list {
		calls[i] = r.call
	}
	calls[len(calls)-1].args[revokeWho] = "1"
	replies, errs := s.sendAll(ctx, s.rdb, calls, s.waitReplicas)
	primary := ""
	if errs[len(errs)-1] == nil {
		primary = primaryOf(replies[len(replies)-1])
	}
	for i, r := range list {
		if r.err = unavailable(r.call.script.name, errs[i]); r.err == nil {
			r.made, r.err = s.revoked(r.sid, replies[i], primary)
		}
		s.tellFollower(r.made, r.err)
	}
	for _, r := range list {
		close(r.done)
	}
}

// tellFollower tells the follower of this process of a revocation: before the caller of
// Revoke goes on, and in the order in which one exchange has made them.
func (s *core) tellFollower(made Revocation, err error) {
	if told := s.followedBy().made; told != nil && err == nil {
		told(made)
	}
}

// primaryOf reads the name of the primary from a reply of lua/revoke.lua.
func primaryOf(r *reply) string {
	if r.code() == 0 {
		return r.string(8)
	}
	return r.string(2)
}

// TailsTogether reports whether one command may name keys of several shards: not on a
// Cluster, where they live in different slots.
func (s *core) TailsTogether() bool {
	_, cluster := s.rdb.(*redis.ClusterClient)
	return !cluster
}
