package tokenstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	// ErrUnavailable says that Redis did not tell: it is down, slow, out of
	// memory, failing over. Whether the operation happened is unknown.
	ErrUnavailable = errors.New("the token store is unavailable")

	// ErrShards says that this Redis was set up with another number of shards.
	ErrShards = errors.New("the number of shards is fixed at first boot")
)

// skewPad is how much longer a denylist entry is kept than the tokens it names:
// the most by which two clocks that both read "now" may differ before an
// expired token could outlive its denial.
const skewPad = 10 * time.Second

// Lifetimes are the durations that sessions and tokens are given.
type Lifetimes struct {
	Access  time.Duration // of an access token
	Refresh time.Duration // of a refresh token that is not used ("idle")
	Session time.Duration // of a session, however often it is refreshed
	Grace   time.Duration // after a rotation: no other rotation happens, and the replaced token still yields the current one
}

// Options are what a Store needs besides its client.
type Options struct {
	Shards    int // 1 to 256; fixed at first boot
	Lifetimes Lifetimes
	// Timeout bounds one operation with its retries. The client's own timeouts
	// bound each attempt. 0 means 750 ms.
	Timeout time.Duration
	// WaitReplicas is how many replicas of Redis must have a revocation before it
	// counts: WAIT on the same connection. 0 waits for none.
	WaitReplicas int
	// SessionsPerUser is how many sessions a user may have: one login more ends the one
	// that would expire first. 0 means any number.
	SessionsPerUser int
	// StatusLists gives sessions and clients' own tokens places in status lists. That
	// they show what is revoked does not depend on it.
	StatusLists bool
	// Observe, if set, is told of every operation: its name, how long it took
	// and its error. It must not block.
	Observe func(operation string, took time.Duration, err error)
	// Trace, if set, is asked for the context of every operation and told of its
	// end. It must not block.
	Trace func(ctx context.Context, operation string) (context.Context, func(error))
	// Rand is where ids and nonces come from; nil means crypto/rand.
	Rand io.Reader
}

// Store is the one owner of the keys under "lk:", by concept: whoever needs one concept is
// given that and nothing else. It is safe for concurrent use, as each of its parts is.
type Store struct {
	*core

	Sessions    *Sessions
	Revocations *Revocations
	Accounts    *Accounts
	Attempts    *Attempts
	Clients     *Clients
	Keys        *Keys
	Proofs      *Proofs
	Audit       *AuditStream
}

type (
	// Sessions are the logins: they begin, refresh, and end.
	Sessions struct{ *core }
	// Revocations are what has been denied: the denylist, its log, and who follows the log.
	// A [Revocations] can revoke again what Redis lost, and nothing else.
	Revocations struct{ *core }
	// Accounts are the users, their passwords and what they may.
	Accounts struct{ *core }
	// Attempts are the guesses of a password that count against an account and an address.
	Attempts struct{ *core }
	// Clients are the OAuth clients that are registered (RFC 6749, section 2).
	Clients struct{ *core }
	// Keys is the ring of signing keys.
	Keys struct{ *core }
	// Proofs are the DPoP proofs that were used (RFC 9449, section 11.1).
	Proofs struct{ *core }
	// AuditStream is the stream of security events in Redis.
	AuditStream struct{ *core }
)

// core is what all parts share: the client, the scripts, the names of the keys, the clock.
type core struct {
	rdb          redis.UniversalClient
	batches      *batches // nil: each script is sent by itself
	shards       int
	prefix       []string // by shard: "lk:{i}:"
	life         Lifetimes
	timeout      time.Duration
	waitReplicas int
	perUser      int // sessions; 0: any number
	statusLists  bool
	observe      func(string, time.Duration, error)
	trace        func(context.Context, string) (context.Context, func(error))
	rand         io.Reader
	scripts      scripts
	observed     atomic.Pointer[observedTime]
	revocations  revocations
	follower     atomic.Pointer[followed]
}

// observedTime is a reading of Redis TIME and the moment it was had. The
// moment carries a monotonic reading: a step of the replica's wall clock does
// not move it.
type observedTime struct {
	redis time.Time
	at    time.Time
}

// New returns a Store on a client. It does not talk to Redis; Open does.
func New(rdb redis.UniversalClient, o Options) (*Store, error) {
	if o.Shards < 1 || o.Shards > 256 {
		return nil, fmt.Errorf("shards: %d is not in 1..256", o.Shards)
	}
	if o.Timeout == 0 {
		o.Timeout = 750 * time.Millisecond
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Observe == nil {
		o.Observe = func(string, time.Duration, error) {}
	}
	if o.Trace == nil {
		o.Trace = func(ctx context.Context, _ string) (context.Context, func(error)) { return ctx, func(error) {} }
	}
	sc, err := loadScripts()
	if err != nil {
		return nil, err
	}
	batches, err := newBatches(rdb)
	if err != nil {
		return nil, err
	}
	c := &core{
		rdb: rdb, batches: batches, shards: o.Shards, life: o.Lifetimes, timeout: o.Timeout,
		waitReplicas: o.WaitReplicas, perUser: o.SessionsPerUser, statusLists: o.StatusLists, observe: o.Observe, trace: o.Trace, rand: o.Rand, scripts: sc,
	}
	for i := range o.Shards {
		c.prefix = append(c.prefix, "lk:{"+strconv.Itoa(i)+"}:")
	}
	return &Store{
		core: c, Sessions: &Sessions{c}, Revocations: &Revocations{c}, Accounts: &Accounts{c}, Attempts: &Attempts{c},
		Clients: &Clients{c}, Keys: &Keys{c}, Proofs: &Proofs{c}, Audit: &AuditStream{c},
	}, nil
}

// Open records the number of shards if nobody has yet, and otherwise checks it.
// It returns [ErrShards] in an [OptionError] if this Redis was set up with another number, and
// [ErrUnavailable]. It may be called again at any time: it is also how the
// record is restored after Redis lost its data.
func (s *Store) Open(ctx context.Context) error {
	r, err := s.run(ctx, s.scripts.meta, []string{metaKey}, s.shards)
	if err != nil {
		return err
	}
	k, now := r.count(0), r.time(1)
	if err := r.err(); err != nil {
		return err
	}
	if k != uint64(s.shards) { //nolint:gosec // at most 256
		return &OptionError{OptionShards, fmt.Errorf("%w: this Redis has %d, and %d are asked for; set it to %d, or use an empty Redis",
			ErrShards, k, s.shards, k)}
	}
	s.observeTime(now)
	return nil
}

// Lifetimes returns the durations this store was made with.
func (s *core) Lifetimes() Lifetimes { return s.life }

// WaitReplicas returns how many replicas of Redis must have a revocation.
func (s *core) WaitReplicas() int { return s.waitReplicas }

// Shards returns the number of shards.
func (s *core) Shards() int { return s.shards }

// Now estimates Redis TIME from the last reply: the time that the issuing and
// the denying of tokens go by. Before the first reply it is the local clock.
func (s *core) Now() time.Time {
	o := s.observed.Load()
	if o == nil {
		return time.Now()
	}
	return o.redis.Add(time.Since(o.at))
}

// observeTime takes note of a Redis TIME that a reply carried, at most once a
// second: the two clocks do not drift apart faster than that matters. The zero time, of a
// reply that cannot be read, is ignored.
func (s *core) observeTime(t time.Time) {
	if t.IsZero() {
		return
	}
	o := s.observed.Load()
	now := time.Now()
	// One that is ahead of the estimate is always taken: it may be the first after
	// the machine was suspended, and a clock that lags lets expired tokens pass.
	if o != nil && now.Sub(o.at) < time.Second && !t.After(o.redis.Add(now.Sub(o.at))) {
		return
	}
	s.observed.Store(&observedTime{redis: t, at: now})
}

const (
	metaKey = "lk:meta"
	keysKey = "lk:keys"
)

func (s *core) rtKey(sid ID) string    { return s.prefix[sid[0]] + "rt:" + sid.String() }
func (s *core) denyKey(id ID) string   { return s.prefix[id[0]] + "deny:" + id.String() }
func (s *core) epochKey(uid ID) string { return s.prefix[uid[0]] + "ue:" + uid.String() }
func (s *core) userKey(uid ID) string  { return s.prefix[uid[0]] + "us:" + uid.String() }
func (s *core) headKey(shard byte) string {
	return s.prefix[shard] + "head"
}
func (s *core) logKey(shard byte) string     { return s.prefix[shard] + "log" }
func (s *core) membersKey(shard byte) string { return s.prefix[shard] + "members" }

// acksKey has what followers have applied since they last renewed.
func (s *core) acksKey(shard byte) string { return s.prefix[shard] + "acks" }

// invalidKey has the places in status lists that are revoked, livingKey those that a
// user's living tokens name.
func (s *core) invalidKey(shard byte) string { return s.prefix[shard] + "invalid" }
func (s *core) livingKey(uid ID) string      { return s.prefix[uid[0]] + "idx:" + uid.String() }

// deadKeysKey has the signing keys that were revoked.
func (s *core) deadKeysKey(shard byte) string { return s.prefix[shard] + "dead" }

// accountKey is in the shard of the username, which need not be the shard of
// the account's subject.
func (s *core) accountKey(username string) string {
	return s.prefix[s.UserID(username)[0]] + "acct:" + username
}

// costsKey counts a shard's accounts by what their password hashes cost.
func (s *core) costsKey(username string) string {
	return s.prefix[s.UserID(username)[0]] + "costs"
}

// replacedKey has the password hash that an account had before its user replaced it.
func (s *core) replacedKey(username string) string {
	return s.prefix[s.UserID(username)[0]] + "old:" + username
}

// throttleKeys are named by a hash, so that an attacker's input is of one
// length and no address is readable in a dump.
func (s *core) throttleKey(username, client string) string {
	return s.prefix[s.UserID(username)[0]] + "thr:c:" + digest(username+"\x00"+client)
}

func (s *core) anyoneKey(username, client string) string {
	return s.prefix[s.UserID(username)[0]] + "thr:a:" + digest(username+"\x00"+client)
}

// receiptKey names what one attempt was charged in one slot.
func (s *core) receiptKey(shard byte, nonce string) string {
	return s.prefix[shard] + "thr:r:" + nonce
}

func digest(v string) string {
	sum := sha256.Sum256([]byte(v))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// freshEpoch returns the name that a script gives to a new head, should it find
// none. It is fresh for each call: two losses of data never share an epoch.
func (s *core) freshEpoch() (string, error) {
	var b [8]byte
	if _, err := io.ReadFull(s.rand, b[:]); err != nil {
		return "", fmt.Errorf("read randomness: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b[:]), nil
}

func milliseconds(d time.Duration) int64 { return d.Milliseconds() }
