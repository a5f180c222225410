package tokenstore

import (
	"context"
	"crypto/sha1" //nolint:gosec // names a history against accidents, not against attackers
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Mark names one prefix of one history of a shard's log.
type Mark struct {
	Epoch string // of the head: one history without a loss of data
	Seq   uint64 // of the last entry; 0 is before the first
	Chain string // hash of all entries up to it
}

// Kind is what an entry of the log revokes.
type Kind string

// The kinds of entries.
const (
	KindSession Kind = "sid"  // every access token of a session
	KindUser    Kind = "user" // every access token of an older user epoch, but those of one session
	KindKey     Kind = "key"  // every access token that was signed with a key, for ever
)

// Entry is one revocation in a shard's log.
type Entry struct {
	Seq    uint64
	Kind   Kind
	ID     ID        // sid, uid, or of a key: see [Store.KeyID]
	Until  time.Time // when the last token it names has expired
	At     time.Time // when it was made
	Epoch  uint64    // the user's, for KindUser
	Except ID        // the excepted session, for KindUser; zero for none

	line string // what the chain is computed over, less the chain and the seq
}

// After returns the mark of the history that continues m by e.
func (m Mark) After(e Entry) Mark {
	sum := sha1.Sum([]byte(m.Chain + "|" + strconv.FormatUint(e.Seq, 10) + "|" + e.line)) //nolint:gosec // see the import
	return Mark{Epoch: m.Epoch, Seq: e.Seq, Chain: hex.EncodeToString(sum[:8])}
}

// Member is one follower's line in a shard's table.
type Member struct {
	Name string
	Mark Mark   // what it has applied; its epoch is not recorded, the chain implies it
	Beat uint64 // counts its renewals
	line string
}

// Server is who answers for a shard. Of two tables of followers, only those of the
// same Server tell of the same leases: a failover or a restart may lose renewals.
type Server struct {
	Epoch string // of the head: one history without a loss of data
	// Primary names a server of Redis from when it was started or promoted until it
	// is replaced or ends (INFO's master_replid). "" if Redis does not tell.
	Primary string
}

// Renewal is what a follower shows when it renews.
type Renewal struct {
	Shard  int
	Member string // "" to look without taking part
	Mark   Mark   // applied
	Beat   uint64
	After  uint64 // entries after this seq are wanted
}

// View is one atomic look at a shard: its head, the entries after the seq that
// was asked for, and who follows.
type View struct {
	Now     time.Time
	Head    Mark
	Longest time.Duration // the longest access lifetime that the shard was ever asked for, with the skew pad
	Entries []Entry       // ascending; if the last one is before the head, there are more
	Members []Member
	Dead    []ID // the signing keys that were revoked
	Server  Server
}

const (
	// page is how many entries one renewal brings at most.
	page = 4096
	// membersKept is how long a table outlives the last renewal of anybody.
	membersKept = time.Hour
)

// Renew records what a follower has applied and returns what is beyond, for
// several shards at once: one round trip on standalone Redis, one for each node
// of a Cluster. With [Options.WaitReplicas] it counts only when the replicas
// have it too. Errors: [ErrUnavailable].
func (s *Store) Renew(ctx context.Context, renewals []Renewal) ([]View, error) {
	calls := make([]call, len(renewals))
	cluster := !s.TailsTogether()
	for i, r := range renewals {
		epoch, err := s.freshEpoch()
		if err != nil {
			return nil, err
		}
		shard := byte(r.Shard) //nolint:gosec // at most 255
		// To ask a primary who it is costs a sixth of a renewal. Where all of them go
		// to one, on one connection, the last one asks for all: what it is told is no
		// older than any of the tables.
		who := 0
		if cluster || i == len(renewals)-1 {
			who = 1
		}
		calls[i] = call{
			script: s.scripts.renew,
			keys:   []string{s.membersKey(shard), s.headKey(shard), s.logKey(shard), s.deadKeysKey(shard)},
			args: []any{
				epoch, r.Member, fmt.Sprintf("%d:%s:%d", r.Mark.Seq, r.Mark.Chain, r.Beat), r.After, page,
				milliseconds(membersKept), milliseconds(s.life.Access), who,
			},
		}
	}
	replies, err := s.runAll(ctx, calls, s.waitReplicas)
	if err != nil {
		return nil, err
	}
	views := make([]View, len(replies))
	for i, r := range replies {
		views[i] = View{
			Now:     r.time(0),
			Head:    Mark{Epoch: r.string(1), Seq: r.count(2), Chain: r.string(3)},
			Longest: r.milliseconds(4) + skewPad,
			Entries: r.entries(5), Members: r.members(6), Dead: r.ids(7),
		}
		if !cluster {
			r = replies[len(replies)-1]
		}
		views[i].Server = Server{Epoch: views[i].Head.Epoch, Primary: r.string(8)}
		if err := errors.Join(replies[i].err(), r.err()); err != nil {
			return nil, err
		}
		s.observeTime(views[i].Now)
	}
	return views, nil
}

// Tail blocks until a shard of those given has entries after the seq given for
// it, or block has passed, and returns what has come. Errors: [ErrUnavailable].
func (s *Store) Tail(ctx context.Context, after map[int]uint64, block time.Duration) (map[int][]Entry, error) {
	streams := make([]string, 0, 2*len(after))
	ids := make([]string, 0, len(after))
	shards := make(map[string]int, len(after))
	for shard, seq := range after {
		key := s.logKey(byte(shard)) //nolint:gosec // at most 255
		shards[key] = shard
		streams = append(streams, key)
		ids = append(ids, strconv.FormatUint(seq, 10)+"-0")
	}
	got, err := s.rdb.XRead(ctx, &redis.XReadArgs{Streams: append(streams, ids...), Block: block, Count: page}).Result()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if err != nil {
		return nil, unavailable("tail", err)
	}
	news := make(map[int][]Entry, len(got))
	for _, stream := range got {
		list := make([]Entry, 0, len(stream.Messages))
		for _, m := range stream.Messages {
			field := func(name string) string { v, _ := m.Values[name].(string); return v }
			e, err := newEntry(m.ID, field)
			if err != nil {
				return nil, unavailable("tail", err)
			}
			list = append(list, e)
		}
		news[shards[stream.Stream]] = list
	}
	return news, nil
}

// TailsTogether reports whether one Tail may name several shards: not on a
// Cluster, where they live in different slots.
func (s *Store) TailsTogether() bool {
	_, cluster := s.rdb.(*redis.ClusterClient)
	return !cluster
}

// Strike takes a follower out of a shard's table if it has shown no life since.
// Errors: [ErrUnavailable].
func (s *Store) Strike(ctx context.Context, shard int, m Member) error {
	r, err := s.run(ctx, s.scripts.strike, []string{s.membersKey(byte(shard))}, m.Name, m.line) //nolint:gosec // at most 255
	if err != nil {
		return err
	}
	return r.oneOf(0, 1)
}

// Leave takes a follower that has ended out of every shard's table. Errors:
// [ErrUnavailable].
func (s *Store) Leave(ctx context.Context, member string) error {
	start := time.Now()
	pipe := s.rdb.Pipeline()
	for i := range s.shards {
		pipe.HDel(ctx, s.membersKey(byte(i)), member)
	}
	_, err := pipe.Exec(ctx)
	err = unavailable("leave", err)
	s.observe("leave", time.Since(start), err)
	return err
}

// Restore revokes again what an entry revoked, should Redis have lost it. It
// does nothing if Redis knows. Errors: [ErrUnavailable].
func (s *Store) Restore(ctx context.Context, e Entry) error {
	// The user of a session is not in its entry: the list of the user's
	// sessions is left to its own expiry.
	nobody := ID{e.ID[0]}
	if e.Kind == KindSession {
		_, err := s.Revoke(ctx, SessionEnd{SID: e.ID, UID: nobody})
		return err
	}
	if e.Kind == KindKey {
		c, err := s.denyKeyCall(e.ID)
		if err != nil {
			return err
		}
		r, err := s.runDurably(ctx, c.script, c.keys, c.args...)
		if err != nil {
			return err
		}
		s.observeTime(r.time(1))
		if err := r.oneOf(0); err != nil {
			return err
		}
		_, err = r.revocation(e.ID)
		return err
	}
	epoch, err := s.freshEpoch()
	if err != nil {
		return err
	}
	except := ""
	if e.Except != (ID{}) {
		except = e.Except.String()
	}
	shard := e.ID[0]
	r, err := s.run(ctx, s.scripts.restoreEpoch,
		[]string{s.epochKey(e.ID), s.userKey(e.ID), s.headKey(shard), s.logKey(shard), s.invalidKey(shard), s.livingKey(e.ID)},
		epoch, e.ID.String(), e.Epoch, except,
		milliseconds(s.life.Session), milliseconds(s.life.Access), milliseconds(skewPad))
	if err != nil {
		return err
	}
	s.observeTime(r.time(1))
	return r.oneOf(0, 1)
}

var errLog = errors.New("the log holds what no script of this version writes")

// newEntry reads one entry of a stream.
func newEntry(streamID string, field func(string) string) (Entry, error) {
	seq, rest, ok := strings.Cut(streamID, "-")
	n, err := strconv.ParseUint(seq, 10, 64)
	id, err2 := ParseID(field("i"))
	until, err3 := strconv.ParseInt(field("u"), 10, 64)
	at, err4 := strconv.ParseInt(field("t"), 10, 64)
	if err := errors.Join(err, err2, err3, err4); err != nil || !ok || rest != "0" {
		return Entry{}, fmt.Errorf("%w: entry %q", errLog, streamID)
	}
	e := Entry{Seq: n, Kind: Kind(field("k")), ID: id, Until: time.UnixMilli(until), At: time.UnixMilli(at)}
	switch e.Kind {
	case KindSession, KindKey:
	case KindUser:
		if e.Epoch, err = strconv.ParseUint(field("e"), 10, 64); err != nil {
			return Entry{}, fmt.Errorf("%w: entry %q", errLog, streamID)
		}
		if x := field("x"); x != "" {
			if e.Except, err = ParseID(x); err != nil {
				return Entry{}, fmt.Errorf("%w: entry %q", errLog, streamID)
			}
		}
	default:
		return Entry{}, fmt.Errorf("%w: kind %q", errLog, e.Kind)
	}
	e.line = strings.Join([]string{field("k"), field("i"), field("u"), field("e"), field("x")}, "|")
	return e, nil
}

// NewEntry returns e as a script logs it, so that [Mark.After] can go on from
// it. Entries that Redis returned are so already: this is for models of the log.
// Until and At are cut to milliseconds.
func NewEntry(e Entry) Entry {
	epoch, except := "", ""
	if e.Kind == KindUser {
		epoch = strconv.FormatUint(e.Epoch, 10)
		if e.Except != (ID{}) {
			except = e.Except.String()
		}
	}
	until := e.Until.UnixMilli()
	e.Until, e.At = time.UnixMilli(until), time.UnixMilli(e.At.UnixMilli())
	e.line = strings.Join([]string{string(e.Kind), e.ID.String(), strconv.FormatInt(until, 10), epoch, except}, "|")
	return e
}

// entries reads an XRANGE reply.
func (r *reply) entries(i int) []Entry {
	raw := r.list(i)
	list := make([]Entry, len(raw.values))
	for j := range list {
		pair := raw.list(j)
		fields := map[string]string{}
		for _, p := range pair.pairs(1) {
			fields[p[0]] = p[1]
		}
		e, err := newEntry(pair.string(0), func(name string) string { return fields[name] })
		if err != nil && *r.fault == nil {
			*r.fault = err
		}
		list[j] = e
	}
	return list
}

// ids reads a list of ids.
func (r *reply) ids(i int) []ID {
	raw := r.list(i)
	list := make([]ID, len(raw.values))
	for j := range list {
		id, err := ParseID(raw.string(j))
		if err != nil {
			r.failed(i, "a list of ids")
		}
		list[j] = id
	}
	return list
}

// members reads a table of followers. A line that cannot be read counts as a
// follower that has applied nothing: it is waited for until it is silent.
func (r *reply) members(i int) []Member {
	pairs := r.pairs(i)
	list := make([]Member, len(pairs))
	for j, p := range pairs {
		m := Member{Name: p[0], line: p[1]}
		if f := strings.Split(m.line, ":"); len(f) == 3 {
			seq, err := strconv.ParseUint(f[0], 10, 64)
			beat, err2 := strconv.ParseUint(f[2], 10, 64)
			if err == nil && err2 == nil {
				m.Mark, m.Beat = Mark{Seq: seq, Chain: f[1]}, beat
			}
		}
		list[j] = m
	}
	return list
}
