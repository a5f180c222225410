package tokenstore

import (
	"cmp"
	"context"
	"crypto/sha1" //nolint:gosec // names a history against accidents, not against attackers
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
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
	// Chain is what the log says that the chain is at this entry. A reader that has the
	// mark before it checks it with [Mark.After].
	Chain string

	line string // what the chain is computed over, less the chain and the seq
}

// After returns the mark of the history that continues m by e. If its Chain is not
// that of e, e does not follow m: it is of another history.
func (m Mark) After(e Entry) Mark {
	text := append(make([]byte, 0, 160), m.Chain...)
	text = append(strconv.AppendUint(append(text, '|'), e.Seq, 10), '|')
	sum := sha1.Sum(append(text, e.line...)) //nolint:gosec // see the import
	return Mark{Epoch: m.Epoch, Seq: e.Seq, Chain: hex.EncodeToString(sum[:chainText/2])}
}

// Bare returns a copy of e that holds no part of the reply that e was parsed from, so that
// keeping it does not keep the whole reply in memory. It has no Chain, and [Mark.After]
// cannot be used with it.
func (e *Entry) Bare() Entry {
	kept := *e
	kept.Chain, kept.line = "", ""
	return kept
}

// Member is one follower's line in a shard's table.
type Member struct {
	Name  string
	Mark  Mark   // what it had applied when it renewed; its epoch is not recorded, the chain implies it
	Beat  uint64 // counts its renewals
	Acked Mark   // what it had applied when it last acknowledged; of a look only
	line  string
}

// Ack is what a follower acknowledges: that it has applied a shard's log up to Mark. It is
// true for as long as the follower lives, so one that comes late or twice does no harm. It
// is no sign of life, and no lease is counted from it.
type Ack struct {
	Shard  int
	Member string
	Mark   Mark
}

// Look is what [Revocations.Look] reads of a shard.
type Look struct {
	Shard int
	After uint64 // entries after this seq are wanted
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
	After  uint64 // entries after this seq are wanted; [NoEntries] for none
	Limit  int    // at most so many entries; 0 means [Page]
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
	// Page is how many entries of a shard Renew and Tail return unless the caller sets
	// Renewal.Limit. A follower that is more than a page behind reads the log with
	// [Revocations.ReadLog] instead: Redis answers that outside of a script, and can serve
	// other commands between two reads.
	Page = 128
	// NoEntries is the Renewal.After that asks for the head alone. It is the largest integer
	// that Lua holds.
	NoEntries = 1<<53 - 1

	// membersKept is how long a table outlives the last renewal of anybody.
	membersKept = time.Hour
)

// Renew records what a follower has applied and returns what is beyond, for
// several shards at once: one round trip on standalone Redis, one for each node
// of a Cluster. With [Options.WaitReplicas] it counts only when the replicas
// have it too. Errors: [ErrUnavailable].
func (s *Revocations) Renew(ctx context.Context, renewals []Renewal) ([]View, error) {
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
			keys:   []string{s.membersKey(shard), s.headKey(shard), s.logKey(shard), s.deadKeysKey(shard), s.acksKey(shard)},
			args: []any{
				epoch, r.Member, fmt.Sprintf("%d:%s:%d", r.Mark.Seq, r.Mark.Chain, r.Beat), r.After, cmp.Or(r.Limit, Page),
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

// Look reads the heads of some shards, their tables of followers, and their logs, at most
// limit entries of each: in one script, or on a Cluster in one for each shard. It makes no
// head: where there is none, that of the View is zero. Errors: [ErrUnavailable].
func (s *Revocations) Look(ctx context.Context, looks []Look, limit int) ([]View, error) {
	size := len(looks)
	if !s.TailsTogether() {
		size = 1
	}
	var calls []call
	for part := range slices.Chunk(looks, size) {
		c := call{script: s.scripts.look, args: []any{limit}}
		for _, l := range part {
			shard := byte(l.Shard) //nolint:gosec // at most 255
			c.keys = append(c.keys, s.membersKey(shard), s.acksKey(shard), s.headKey(shard), s.logKey(shard))
			c.args = append(c.args, l.After)
		}
		calls = append(calls, c)
	}
	replies, err := s.runAll(ctx, calls, s.waitReplicas)
	if err != nil {
		return nil, err
	}
	views := make([]View, 0, len(looks))
	for _, r := range replies {
		now, primary := r.time(0), r.string(1)
		if len(r.values) != size+2 {
			r.failed(len(r.values), "a shard")
		}
		for i := range size {
			shard := r.list(i + 2)
			v := View{
				Now: now, Head: Mark{Epoch: shard.string(0), Seq: shard.count(1), Chain: shard.string(2)},
				Entries: shard.entries(3), Members: shard.members(4),
			}
			v.Server = Server{Epoch: v.Head.Epoch, Primary: primary}
			shard.acks(5, v.Members)
			views = append(views, v)
		}
		if err := r.err(); err != nil {
			return nil, err
		}
		s.observeTime(now)
	}
	return views, nil
}

// Tail blocks until a shard of those given has entries after the seq given for
// it, or block has passed, and returns what has come, at most [Page] entries of each.
// Errors: [ErrUnavailable], if there is no answer [Options.Timeout] after block at the latest.
func (s *Revocations) Tail(ctx context.Context, after map[int]uint64, block time.Duration) (map[int][]Entry, error) {
	// Without this deadline go-redis waits for an answer until 10 s after block, even if ctx
	// is cancelled meanwhile.
	ctx, cancel := context.WithTimeout(ctx, block+s.timeout)
	defer cancel()
	streams, shards := s.streams(after)
	got, err := s.rdb.XRead(ctx, &redis.XReadArgs{Streams: streams, Block: block, Count: Page}).Result()
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
			v, _ := m.Values[entryField].(string)
			e, ok := parseEntry(m.ID, v)
			if !ok {
				return nil, unavailable("tail", errLog)
			}
			list = append(list, e)
		}
		news[shards[stream.Stream]] = list
	}
	return news, nil
}

// Acknowledge records what a follower has applied. Errors: [ErrUnavailable].
func (s *Revocations) Acknowledge(ctx context.Context, acks []Ack) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	pipe := s.rdb.Pipeline()
	for _, a := range acks {
		pipe.HSet(ctx, s.acksKey(byte(a.Shard)), a.Member, fmt.Sprintf("%d:%s", a.Mark.Seq, a.Mark.Chain)) //nolint:gosec // at most 255
	}
	_, err := pipe.Exec(ctx)
	err = unavailable("acknowledge", err)
	s.observe("acknowledge", time.Since(start), err)
	return err
}

// ReadLog returns what the logs of some shards hold after the seq given for each, at most
// limit entries of each. It does not wait. Errors: [ErrUnavailable].
//
// It is for long logs: it parses the raw reply itself, at a third of the CPU that go-redis
// takes.
func (s *Revocations) ReadLog(ctx context.Context, after map[int]uint64, limit int) (map[int][]Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	streams, shards := s.streams(after)
	args := []any{"xread", "count", limit, "streams"}
	for _, name := range streams {
		args = append(args, name)
	}
	cmd := redis.NewRawCmd(ctx, args...)
	cmd.SetFirstKeyPos(4)
	err := s.rdb.Process(ctx, cmd)
	var news map[int][]Entry
	if err == nil {
		news, err = parseStreams(string(cmd.Val()), shards)
	}
	err = unavailable("read_log", err)
	s.observe("read_log", time.Since(start), err)
	return news, err
}

// streams returns the arguments of XREAD that name the logs of shards, and which shard each
// log is of.
func (s *core) streams(after map[int]uint64) (streams []string, shards map[string]int) {
	ids := make([]string, 0, len(after))
	shards = make(map[string]int, len(after))
	for shard, seq := range after {
		key := s.logKey(byte(shard)) //nolint:gosec // at most 255
		shards[key] = shard
		streams = append(streams, key)
		ids = append(ids, strconv.FormatUint(seq, 10)+"-0")
	}
	return append(streams, ids...), shards
}

// Strike takes a follower out of a shard's table if it has shown no life since.
// Errors: [ErrUnavailable].
func (s *Revocations) Strike(ctx context.Context, shard int, m Member) error {
	r, err := s.run(ctx, s.scripts.strike, []string{s.membersKey(byte(shard)), s.acksKey(byte(shard))}, m.Name, m.line) //nolint:gosec // at most 255
	if err != nil {
		return err
	}
	return r.oneOf(0, 1)
}

// Leave takes a follower that has ended out of every shard's table. Errors:
// [ErrUnavailable].
func (s *Revocations) Leave(ctx context.Context, member string) error {
	start := time.Now()
	pipe := s.rdb.Pipeline()
	for i := range s.shards {
		pipe.HDel(ctx, s.membersKey(byte(i)), member)
		pipe.HDel(ctx, s.acksKey(byte(i)), member)
	}
	_, err := pipe.Exec(ctx)
	err = unavailable("leave", err)
	s.observe("leave", time.Since(start), err)
	return err
}

// Restore revokes again what an entry revoked, should Redis have lost it. It changes
// nothing if Redis knows. With [Options.WaitReplicas] it returns when the replicas have the
// revocation, too. Errors: [ErrUnavailable].
func (s *Revocations) Restore(ctx context.Context, e Entry) error {
	// The user of a session is not in its entry: the list of the user's
	// sessions is left to its own expiry.
	nobody := ID{e.ID[0]}
	if e.Kind == KindSession {
		_, err := (*Sessions)(s).Revoke(ctx, SessionEnd{SID: e.ID, UID: nobody})
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
	r, err := s.runDurably(ctx, s.scripts.restoreEpoch,
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

const (
	entryField = "v" // the one field of an entry: see lua/log.lua
	chainText  = 16  // length of a chain
)

// parseEntry reads one entry of a stream: its id and its field, as lua/log.lua writes them.
func parseEntry(streamID, value string) (e Entry, ok bool) {
	seq, rest, isNumber := digits(streamID)
	if !isNumber || rest != "-0" || len(value) <= chainText || value[chainText] != '|' {
		return Entry{}, false
	}
	e = Entry{Seq: seq, Chain: value[:chainText], line: value[chainText+1:]}
	kind, line, _ := strings.Cut(e.line, "|")
	id, line, _ := strings.Cut(line, "|")
	until, line, isNumber := digits(line)
	line, isNext := strings.CutPrefix(line, "|")
	keep, line, isNumber2 := digits(line)
	if !isNumber || !isNext || !isNumber2 {
		return Entry{}, false
	}
	line, user := strings.CutPrefix(line, "|")
	if !user && line != "" {
		return Entry{}, false
	}
	switch Kind(kind) { // the constants: an entry that is kept holds on to no reply
	case KindSession:
		e.Kind = KindSession
	case KindKey:
		e.Kind = KindKey
	case KindUser:
		e.Kind = KindUser
	}
	var err error
	if e.ID, err = ParseID(id); err != nil {
		return Entry{}, false
	}
	e.Until, e.At = time.UnixMilli(int64(until)), time.UnixMilli(int64(until)-int64(keep)) //nolint:gosec // at most 18 digits
	switch {
	case (e.Kind == KindSession || e.Kind == KindKey) && !user:
		return e, true
	case e.Kind != KindUser:
		return Entry{}, false
	}
	epoch, except, ok := strings.Cut(line, "|")
	if e.Epoch, err = strconv.ParseUint(epoch, 10, 64); err != nil || !ok {
		return Entry{}, false
	}
	if except != "" {
		if e.Except, err = ParseID(except); err != nil {
			return Entry{}, false
		}
	}
	return e, true
}

// NewEntry returns e as a script logs it behind the mark before, with Seq and Chain.
// Entries that Redis returned are so already: this is for models of the log. Until and
// At are cut to milliseconds.
func NewEntry(before Mark, e Entry) Entry {
	until, at := e.Until.UnixMilli(), e.At.UnixMilli()
	e.Seq, e.Until, e.At = before.Seq+1, time.UnixMilli(until), time.UnixMilli(at)
	e.line = e.text()
	e.Chain = before.After(e).Chain
	return e
}

// text returns an entry's line, as lua/log.lua writes it.
func (e *Entry) text() string {
	until := e.Until.UnixMilli()
	b := append(make([]byte, 0, 96), e.Kind...)
	b = append(append(append(b, '|'), e.ID.String()...), '|')
	b = append(strconv.AppendInt(b, until, 10), '|')
	b = strconv.AppendInt(b, until-e.At.UnixMilli(), 10)
	if e.Kind == KindUser {
		b = append(strconv.AppendUint(append(b, '|'), e.Epoch, 10), '|')
		if e.Except != (ID{}) {
			b = append(b, e.Except.String()...)
		}
	}
	return string(b)
}

// entries reads an XRANGE reply.
func (r *reply) entries(i int) []Entry {
	raw := r.list(i)
	list := make([]Entry, len(raw.values))
	for j := range list {
		pair := raw.list(j)
		fields := pair.list(1)
		e, ok := parseEntry(pair.string(0), fields.string(1))
		if (!ok || fields.string(0) != entryField) && *r.fault == nil {
			*r.fault = errLog
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

// acks reads what followers have acknowledged, and notes it in their lines. What cannot be
// read acknowledges nothing.
func (r *reply) acks(i int, members []Member) {
	acks := r.pairs(i)
	if len(acks) == 0 {
		return
	}
	byName := make(map[string]*Member, len(members))
	for j := range members {
		byName[members[j].Name] = &members[j]
	}
	for _, p := range acks {
		seq, chain, _ := strings.Cut(p[1], ":")
		n, err := strconv.ParseUint(seq, 10, 64)
		if m := byName[p[0]]; m != nil && err == nil {
			m.Acked = Mark{Seq: n, Chain: chain}
		}
	}
}
