package tokenstore

import (
	"context"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// AnyAlive reports whether any of these sessions is alive: it has not expired, and was not
// ended, neither alone nor with all of its user's. Redis knows nothing of the session of a
// token that a client got for itself, so that one is never alive. It costs one round trip,
// and a second one if Redis has any of the sessions. It does not ask whether replicas
// confirm what it finds. Errors: [ErrUnavailable].
func (s *Sessions) AnyAlive(ctx context.Context, sids []ID) (alive bool, err error) {
	sids = slices.DeleteFunc(slices.Clone(sids), func(sid ID) bool { return !s.together(sid) })
	if len(sids) == 0 {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	defer func() { s.observe("alive", time.Since(start), err) }()

	type session struct {
		sid   string
		sub   string
		epoch uint64
	}
	var there []session
	pipe := s.rdb.Pipeline()
	asked := map[ID]*redis.SliceCmd{}
	for _, sid := range sids {
		if asked[sid] == nil {
			asked[sid] = pipe.HMGet(ctx, s.rtKey(sid), "sub", "ue")
		}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return false, unavailable("alive", err)
	}
	for sid, cmd := range asked {
		r := newHash("alive", cmd.Val(), 2)
		if sub := r.optional(0); sub != "" {
			there = append(there, session{sid.String(), sub, r.count(1)})
		}
		if err := r.err(); err != nil {
			return false, err
		}
	}
	if len(there) == 0 {
		return false, nil
	}
	pipe = s.rdb.Pipeline()
	users := make([]*redis.SliceCmd, len(there))
	for i, t := range there {
		users[i] = pipe.HMGet(ctx, s.epochKey(s.UserID(t.sub)), "e", "x")
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return false, unavailable("alive", err)
	}
	for i, t := range there {
		r := newHash("alive", users[i].Val(), 2)
		except, least := r.optional(1), uint64(0)
		if r.at(0) != nil {
			least = r.count(0)
		}
		if err := r.err(); err != nil {
			return false, err
		}
		if t.epoch >= least || except == t.sid {
			return true, nil
		}
	}
	return false, nil
}
