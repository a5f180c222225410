package tokenstore

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// toldOn is the channel on which lua/log.lua tells of each entry.
const toldOn = "lk:log"

// Told is an entry of a shard's log as Redis has told of it.
type Told struct {
	Shard int
	Epoch string // of the head when the entry was made
	Entry Entry
}

// followed is the follower of this process.
type followed struct {
	name string
	made func(Revocation)
}

// FollowedBy tells the store of the follower of its process. made is called with what
// [Sessions.Revoke] has revoked before Revoke returns, and must not block. So where member is
// the only one that follows, Redis tells nobody of that.
func (s *Revocations) FollowedBy(member string, made func(Revocation)) {
	s.follower.Store(&followed{member, made})
}

func (s *core) followedBy() followed {
	if f := s.follower.Load(); f != nil {
		return *f
	}
	return followed{}
}

// Listen calls take with each entry that Redis tells of, and ready when it has begun to
// listen: what was made before that, nobody tells of. It returns when ctx ends or nothing
// was heard for twice as long as silence, though it has asked. Entries may be missing, and
// may be of a history that Redis has lost, or of another deployment: the chain of the entry
// tells. Errors: [ErrUnavailable].
func (s *Revocations) Listen(ctx context.Context, silence time.Duration, ready func(), take func(Told)) error {
	sub := s.rdb.Subscribe(ctx, toldOn)
	stop := context.AfterFunc(ctx, func() { _ = sub.Close() })
	defer func() {
		if stop() {
			_ = sub.Close()
		}
	}()
	asked := false
	for {
		message, err := sub.ReceiveTimeout(ctx, silence)
		var late net.Error
		switch {
		case errors.As(err, &late) && late.Timeout() && !asked:
			asked = true
			err = sub.Ping(ctx)
		case err == nil:
			asked = false
		}
		if err != nil {
			return unavailable("listen", err)
		}
		switch m := message.(type) {
		case *redis.Subscription:
			ready()
		case *redis.Message:
			for line := range strings.SplitSeq(m.Payload, "\n") {
				if told, ok := s.parseTold(line); ok {
					take(told)
				}
			}
		}
	}
}

// parseTold reads one of the lines that lua/log.lua publishes.
func (s *core) parseTold(text string) (t Told, ok bool) {
	head, rest, _ := strings.Cut(text, "|")
	epoch, rest, _ := strings.Cut(rest, "|")
	seq, value, _ := strings.Cut(rest, "|")
	shard, isHead := strings.CutSuffix(strings.TrimPrefix(head, "lk:{"), "}:head")
	n, err := strconv.Atoi(shard)
	if !isHead || err != nil || n < 0 || n >= s.shards || s.headKey(byte(n)) != head { //nolint:gosec // at most 255
		return Told{}, false
	}
	e, ok := parseEntry(seq+"-0", value)
	return Told{Shard: n, Epoch: epoch, Entry: e}, ok && e.ID.Shard() == n
}
