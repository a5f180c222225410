package tokenstore

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// maxTogether is how many revocations share one script at most. Redis serves nobody else while
// it runs, for about a millisecond.
const maxTogether = 32

// revocations gathers the calls of lua/revoke.lua: while one exchange with Redis is under
// way, those that come form the next one. They then share one script, one question who the
// primary is, one message to the followers and one WAIT.
type revocations struct {
	mu       sync.Mutex
	waiting  []*revoking
	underWay bool
}

// revoking is one session to end, and what came of it.
type revoking struct {
	end  SessionEnd
	done chan struct{} // closed when the rest is set
	made Revocation
	err  error
}

// revokeTogether calls lua/revoke.lua for a session. With [Options.WaitReplicas] it returns
// when the replicas have the revocation, too. If ctx ends before, the revocation may still be
// made.
func (s *core) revokeTogether(ctx context.Context, e SessionEnd) (Revocation, error) {
	mine := &revoking{end: e, done: make(chan struct{})}
	if !s.TailsTogether() {
		s.revokeAll([]*revoking{mine}, func(c call) (*reply, error) {
			return s.runDurably(ctx, c.script, c.keys, c.args...)
		})
		return mine.made, mine.err
	}
	name := s.scripts.revoke.name
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	ctx, end := s.trace(ctx, name)
	start := time.Now()
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
		err = unavailable(name, ctx.Err())
	}
	outage := err
	if !errors.Is(err, ErrUnavailable) {
		outage = nil
	}
	s.observe(name, time.Since(start), outage)
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
	s.revokeAll(list, func(c call) (*reply, error) {
		ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
		defer cancel()
		replies, errs := s.sendAll(ctx, s.rdb, []call{c}, s.waitReplicas)
		return replies[0], unavailable(c.script.name, errs[0])
	})
	stalled.Stop()
	next()
}

// revokeAll ends sessions by one script, which run sends, and answers their callers.
func (s *core) revokeAll(list []*revoking, run func(call) (*reply, error)) {
	ends := make([]SessionEnd, len(list))
	for i, r := range list {
		ends[i] = r.end
	}
	made, err := s.revokeNow(ends, run)
	for i, r := range list {
		if r.err = err; err == nil {
			r.made, r.err = made(i)
		}
		// Before the caller of Revoke goes on, and in the order in which the script has made them.
		if told := s.followedBy().made; told != nil && r.err == nil {
			told(r.made)
		}
	}
	for _, r := range list {
		close(r.done)
	}
}

// revokeNow ends sessions by one script, and returns what reads its answer about each.
func (s *core) revokeNow(ends []SessionEnd, run func(call) (*reply, error)) (made func(i int) (Revocation, error), err error) {
	c, err := s.revokeCall(s.followedBy().name, ends...)
	if err != nil {
		return nil, err
	}
	r, err := run(c)
	if err != nil {
		return nil, err
	}
	now, primary, sessions := r.time(0), r.string(1), r.list(2)
	if len(sessions.values) != len(ends) {
		r.failed(2, "a list with an answer about each session")
	}
	answers := make([]*reply, len(sessions.values))
	for i := range answers {
		answers[i] = newReply(r.operation, sessions.list(i).values) // what is wrong with one says nothing of the others
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	s.observeTime(now)
	return func(i int) (Revocation, error) {
		return s.revoked(ends[i].SID, now, primary, answers[i])
	}, nil
}

// TailsTogether reports whether one command may name keys of several shards: not on a
// Cluster, where they live in different slots.
func (s *core) TailsTogether() bool {
	_, cluster := s.rdb.(*redis.ClusterClient)
	return !cluster
}
