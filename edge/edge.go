// Package edge decides, inside the process that serves a request, whether an
// access token is to be accepted. Latchkey's own replicas use it, and so can any
// Go API that shares their Redis.
//
// Most callers need [KeysFromURL], [Dial] and a [Follower] that runs, or a
// [RemoteFollower] where Redis cannot be reached, and then [New] and [Middleware].
//
// # Modes
//
// Without a follower (strict mode) Verify checks the signature and the claims in
// memory, and then asks Redis in one round trip whether the token, its session
// or its user's epoch was revoked.
//
// With a follower (follow mode) the second step is answered from a copy of the
// denylist in memory, for as long as the copy's lease holds. A token that was
// verified before costs a look-up and no allocation. Outside the lease, Verify
// does what strict mode does; the copy still refuses what it knows.
//
// With a remote follower (remote mode) the copy comes by HTTP from Latchkey, and
// nobody else can be asked. What follows does not hold for it: a logout is refused
// here at the latest one Bound (5 seconds) after it was answered, or nothing is
// accepted. See [RemoteFollower].
//
// # What an answer means
//
// Once a logout has been confirmed ([Confirmer], and every 200 of Latchkey's own
// endpoints), no call of Verify that begins afterwards accepts a token of that
// session, on any replica: in both modes, through crashes, pauses and partitions
// of replicas and outages and total losses of Redis, and through failovers with
// these exceptions. After one that lost a revocation, until a follower that knew has
// put it back, whoever never knew it (a replica that has just come, or asks Redis) may
// accept. And a primary that was deposed and still answers can renew the leases of
// those who are cut off together with it, answer their checks, and confirm their
// logouts.
// WaitReplicas of the store (all promotable replicas), with a follower, closes all
// of them: revocations and renewals then count only when the replicas have them,
// and outside the lease nothing is accepted on one primary's word.
//
// A failover, or a restart of Redis, may also lose renewals and registrations of
// followers, whose leases hold all the same. So a logout is confirmed only by a table
// of followers whose primary has been heard from for one lease: a logout just after
// another has taken over waits for that. Where Redis may not be asked who it is (INFO),
// the exceptions have one more: for up to one lease a follower whose last renewal
// was lost may accept.
//
// The lease is counted by the monotonic clock from before its renewal was sent,
// and ends early if the wall clock says so. No two clocks are compared: the only
// assumption is that clocks run at the same rate within one percent, and that a machine
// that stood still goes on with its wall clock put right.
//
// What nobody can tell is [ErrUnavailable], never an acceptance and never a
// refusal: a caller answers 503. Options.ServeStale trades that for answers from
// the copy alone for a bounded time, in which a logout made elsewhere is missed.
package edge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

var (
	// ErrInvalid says that the token is not one of ours: malformed, not signed
	// by a key of ours, or for another issuer or audience.
	ErrInvalid = errors.New("the access token is invalid")
	// ErrExpired says that the token has expired. A refresh helps.
	ErrExpired = errors.New("the access token has expired")
	// ErrRevoked says that the token was revoked. Only a login helps.
	ErrRevoked = errors.New("the access token was revoked")
	// ErrUnavailable says that nobody could tell. The same token may be shown again.
	ErrUnavailable = tokenstore.ErrUnavailable
)

// Claims are what an accepted token says (RFC 9068 section 2.2).
type Claims struct {
	Issuer    string
	Subject   string
	Audience  []string // shared between callers: not to be changed
	ID        string   // jti
	SessionID string   // sid
	ClientID  string
	Scope     string // space separated; may be empty
	UserEpoch uint64
	LogEpoch  string
	IssuedAt  int64 // Unix seconds, as the other times
	ExpiresAt int64
	AuthTime  int64
	NotBefore int64 // 0 if absent
	// JKT is the thumbprint of the key that the token is bound to (RFC 9449 section
	// 6.1), "" for a bearer token.
	JKT string
	// StatusURI and StatusIndex are where others see whether the token was revoked
	// (status.status_list); "" if the service publishes no status lists.
	StatusURI   string
	StatusIndex uint64

	KeyID string // kid of the key that signed the token
	// Extra is the claims of the operator's own, as JSON; nil if there are none.
	// Shared between callers: not to be changed.
	Extra map[string]json.RawMessage
}

// Options are what a Verifier is made of: Issuer and Audience, the keys, and one
// of Store, Store with Follower, and Remote.
type Options struct {
	// Store is Latchkey's Redis: see [Dial].
	Revocations *tokenstore.Revocations
	// Keys are what tokens verify under: see [KeysFromURL].
	Keys *Keys
	// Ring is for Latchkey's own replicas, which hold the signing keys, in place
	// of Keys.
	Ring     *accesstoken.Ring
	Issuer   string // iss of the tokens
	Audience string // that aud of the tokens must name
	// AnyAudience accepts tokens for whomever, in place of Audience. It is for
	// Latchkey's own endpoints that judge tokens which are shown to others. Never
	// use it to let a request in (RFC 8725 section 3.9): it also judges tokens that are
	// bound to a key without asking for the proof.
	AnyAudience bool
	// Refetch brings the ring up to date. It is called, at most once a second,
	// when a token names a key that the ring does not have. It goes with Ring.
	Refetch func(context.Context) error
	// Follower answers from memory, and Store outside its lease; nil is strict mode.
	Follower *Follower
	// Remote answers from memory where there is no Store, with the bounded guarantee.
	Remote *RemoteFollower
	// CacheSize is how many verified tokens are remembered; 0 means 65,536. A
	// remembered token costs its own length and about 600 bytes.
	CacheSize int
	// ServeStale is for how long after its lease the follower's memory may still
	// answer while Redis cannot; with Remote, after its Bound. 0 is not at all.
	ServeStale time.Duration
}

// Verifier verifies access tokens. It is safe for concurrent use.
type Verifier struct {
	store    *tokenstore.Revocations
	ring     *accesstoken.Ring
	tokens   *accesstoken.Verifier
	refetch  func(context.Context) error
	follower *Follower
	remote   *RemoteFollower
	cache    *cache
	stale    time.Duration
	durable  bool
	judges   bool // tokens that are shown to others: see Options.AnyAudience

	mu      sync.Mutex // held while the ring is refetched
	fetched time.Time  // when that last ended
	failed  error      // and why in vain, if it was
}

const (
	// leeway is how far ahead of Redis time iat and nbf may be. Tokens are
	// issued by Redis time, so it covers no more than one clock's drift.
	leeway = 5 * time.Second
	// refetchEvery bounds what made-up key ids can cost.
	refetchEvery = time.Second
)

// New returns a Verifier, or an error if the options do not fit together.
func New(o Options) (*Verifier, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Keys != nil {
		o.Ring, o.Refetch = o.Keys.ring, o.Keys.fetch
	}
	c, err := newCache(o.CacheSize, o.Ring)
	if err != nil {
		return nil, err
	}
	return &Verifier{
		store: o.Revocations, ring: o.Ring, refetch: o.Refetch, follower: o.Follower, remote: o.Remote, cache: c, stale: o.ServeStale,
		durable: o.Revocations != nil && o.Revocations.WaitReplicas() > 0, judges: o.AnyAudience,
		tokens: accesstoken.NewVerifier(o.Ring, accesstoken.VerifierOptions{
			Issuer: o.Issuer, Audience: o.Audience, AnyAudience: o.AnyAudience, Leeway: leeway,
		}),
	}, nil
}

// check reports what is missing, or there twice.
func (o *Options) check() error {
	switch {
	case (o.Keys == nil) == (o.Ring == nil):
		return errors.New("edge: give Keys, or Ring in a replica of Latchkey")
	case (o.Revocations == nil) == (o.Remote == nil):
		return errors.New("edge: give either Store or Remote")
	case o.Follower != nil && o.Revocations == nil:
		return errors.New("edge: a Follower needs the Store that it follows")
	case o.Issuer == "" || (o.Audience == "") != o.AnyAudience:
		return errors.New("edge: without Issuer and Audience no token is for us; AnyAudience takes the place of Audience")
	}
	return nil
}

// Known is a token that was accepted, as it is remembered: shared by all who show the
// token, and not to be changed.
type Known struct {
	Claims

	token string
	ids   tokenstore.AccessToken
	memo  atomic.Pointer[any]
	// removed is how many keys had been removed from the ring when it was checked.
	removed uint64
	// good is the version of its shard at which the follower last found nothing
	// against it.
	good atomic.Uint64
}

// Memo returns what derive makes of the claims, and derives it once for as long as
// the token is remembered. All calls for tokens of one Verifier give the same derive.
func (k *Known) Memo(derive func(*Claims) any) any {
	if m := k.memo.Load(); m != nil {
		return *m
	}
	m := derive(&k.Claims)
	k.memo.Store(&m)
	return m
}

// Verify returns the claims of a bearer token that is to be accepted. One that is
// bound to a key (DPoP) is refused: whoever shows it must prove to hold the key, see
// [Verifier.VerifyBound]. Errors: [ErrInvalid], [ErrExpired], [ErrRevoked],
// [ErrUnavailable].
func (v *Verifier) Verify(ctx context.Context, token string) (Claims, error) {
	k, err := v.verify(ctx, token, "")
	if err != nil {
		return Claims{}, err
	}
	return k.Claims, nil
}

// VerifyKnown is Verify for callers that derive the same from a token's claims each
// time it is shown, and need no copy of them.
func (v *Verifier) VerifyKnown(ctx context.Context, token string) (*Known, error) {
	return v.verify(ctx, token, "")
}

// VerifyBound returns the claims of a token that is bound to the key with the
// thumbprint jkt, and is to be accepted. The caller has checked the proof that came
// with it (RFC 9449 section 4.3), as [Middleware] does with [DPoP]. A token that is
// bound to another key, or to none, is refused. Errors: those of Verify.
func (v *Verifier) VerifyBound(ctx context.Context, token, jkt string) (Claims, error) {
	if jkt == "" {
		return Claims{}, errBinding
	}
	k, err := v.verify(ctx, token, jkt)
	if err != nil {
		return Claims{}, err
	}
	return k.Claims, nil
}

// errBinding says that a token was shown otherwise than it is bound.
var errBinding = fmt.Errorf("%w: the key that it is bound to was not proven", ErrInvalid)

// verify accepts tokens that are bound to jkt, "" for bearer tokens.
func (v *Verifier) verify(ctx context.Context, token, jkt string) (*Known, error) {
	t := v.cache.get(token)
	if t == nil {
		var err error
		if t, err = v.read(ctx, token); err != nil {
			return nil, err
		}
	} else if v.now().Unix() >= t.ExpiresAt {
		v.cache.drop(token)
		return nil, ErrExpired
	}
	if t.JKT != jkt && !v.judges {
		return nil, errBinding
	}
	if err := v.judge(ctx, t); err != nil {
		if errors.Is(err, ErrRevoked) || errors.Is(err, ErrExpired) {
			v.cache.drop(token)
		}
		return nil, err
	}
	return t, nil
}

// read checks a token that is not remembered, and remembers it.
func (v *Verifier) read(ctx context.Context, token string) (*Known, error) {
	removed := v.ring.Removed()
	claims, err := v.withKeys(ctx, func() (accesstoken.Claims, error) {
		return v.tokens.Verify(token, v.now())
	})
	if err != nil {
		return nil, err
	}
	ids, err := v.ids(claims)
	if err != nil {
		return nil, err
	}
	t := &Known{Claims: Claims(claims), ids: ids, removed: removed}
	v.cache.put(token, t)
	return t, nil
}

// judge asks whether a token was revoked: the follower, or else Redis.
func (v *Verifier) judge(ctx context.Context, t *Known) error {
	if v.remote != nil {
		return v.remote.judge(t, v.stale)
	}
	if v.follower == nil {
		return v.strict(ctx, t)
	}
	shard := t.ids.SID.Shard()
	if shard >= len(v.follower.shards) || t.ids.UID.Shard() != shard {
		return ErrRevoked // issued when there were other shards
	}
	s := v.follower.shards[shard]
	switch verdict, version := s.check(&t.ids, t.good.Load(), v.follower.clock); verdict {
	case accepted:
		t.good.Store(version)
		return nil
	case refused:
		return ErrRevoked
	}
	err := v.outside(ctx, t, s)
	if err != nil && errors.Is(err, ErrUnavailable) && v.stale > 0 && s.stale(v.follower.clock(), v.stale) {
		return nil
	}
	return err
}

// outside judges without a lease. Where replicas have to have a revocation
// before it counts, one primary's word is not enough either: the lease must be
// renewed first.
func (v *Verifier) outside(ctx context.Context, t *Known, s *shard) error {
	if !v.durable {
		return v.strict(ctx, t)
	}
	v.follower.renew(ctx, []*shard{s})
	switch verdict, _ := s.check(&t.ids, 0, v.follower.clock); verdict {
	case accepted:
		return nil
	case refused:
		return ErrRevoked
	}
	return fmt.Errorf("%w: the lease cannot be renewed", ErrUnavailable)
}

func (v *Verifier) strict(ctx context.Context, t *Known) error {
	switch err := v.store.Verify(ctx, t.ids); {
	case errors.Is(err, tokenstore.ErrRevoked):
		return fmt.Errorf("%w: %w", ErrRevoked, err)
	case errors.Is(err, tokenstore.ErrExpired):
		return ErrExpired
	default:
		return err
	}
}

// Authentic returns the claims of a token that a key of ours has signed, even if it has
// expired or was revoked, is for another audience, names another issuer (the setting may
// have changed), or if its key has since been retired. It tells a logout which session to
// end, and must never admit anybody. Errors: [ErrInvalid], [ErrUnavailable].
func (v *Verifier) Authentic(ctx context.Context, token string) (Claims, error) {
	if t := v.cache.get(token); t != nil {
		return t.Claims, nil
	}
	claims, err := v.withKeys(ctx, func() (accesstoken.Claims, error) { return v.tokens.Authentic(token) })
	if err == nil {
		_, err = v.ids(claims)
	}
	if err != nil {
		return Claims{}, err
	}
	return Claims(claims), nil
}

// withKeys checks a token, and once more with fresh keys if it names one that
// the ring lacks. A key that cannot be fetched is an outage, not a refusal.
func (v *Verifier) withKeys(ctx context.Context, check func() (accesstoken.Claims, error)) (accesstoken.Claims, error) {
	claims, err := check()
	if errors.Is(err, accesstoken.ErrUnknownKey) {
		if err := v.freshKeys(ctx); err != nil {
			return accesstoken.Claims{}, err
		}
		claims, err = check()
	}
	switch {
	case err == nil:
		return claims, nil
	case errors.Is(err, accesstoken.ErrExpired):
		return accesstoken.Claims{}, ErrExpired
	default:
		return accesstoken.Claims{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
}

// freshKeys refetches the ring unless that was just done. Those who come
// meanwhile wait for the one who does it, and share what it finds: during an
// outage they would else wait for one attempt after another.
func (v *Verifier) freshKeys(ctx context.Context) error {
	asked := time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.refetch == nil, v.failed == nil && asked.Sub(v.fetched) < refetchEvery:
		return nil
	case v.failed != nil && asked.Before(v.fetched):
		return v.failed
	}
	err := v.refetch(ctx)
	if err != nil && !errors.Is(err, ErrUnavailable) {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err == nil || ctx.Err() == nil { // a caller who gave up has found out nothing
		v.fetched, v.failed = time.Now(), err
	}
	return err
}

// ids reads the ids that a token of ours carries.
func (v *Verifier) ids(c accesstoken.Claims) (tokenstore.AccessToken, error) {
	jti, err := tokenstore.ParseID(c.ID)
	if err != nil {
		return tokenstore.AccessToken{}, fmt.Errorf("%w: jti", ErrInvalid)
	}
	sid, err := tokenstore.ParseID(c.SessionID)
	if err != nil {
		return tokenstore.AccessToken{}, fmt.Errorf("%w: sid", ErrInvalid)
	}
	uid, err := v.userID(c.Subject)
	if err != nil {
		return tokenstore.AccessToken{}, err
	}
	return tokenstore.AccessToken{
		JTI: jti, SID: sid, UID: uid, Key: v.keyID(c.KeyID, sid.Shard()),
		UserEpoch: c.UserEpoch, LogEpoch: c.LogEpoch, Expires: time.Unix(c.ExpiresAt, 0),
	}, nil
}

func (v *Verifier) userID(sub string) (tokenstore.ID, error) {
	if v.remote != nil {
		return v.remote.userID(sub)
	}
	return v.store.UserID(sub), nil
}

func (v *Verifier) keyID(kid string, shard int) tokenstore.ID {
	if v.remote != nil {
		return v.remote.keyID(kid, shard)
	}
	return v.store.KeyID(kid, shard)
}

// now estimates Redis TIME, by which tokens are issued and expire.
func (v *Verifier) now() time.Time {
	if v.remote != nil {
		return v.remote.now()
	}
	return v.store.Now()
}

// CacheStats is how the cache of verified tokens is doing.
type CacheStats struct {
	Hits, Misses uint64
	Size         int
}

// CacheStats returns how the cache of verified tokens is doing.
func (v *Verifier) CacheStats() CacheStats {
	s := v.cache.stats.Snapshot()
	return CacheStats{Hits: s.Hits, Misses: s.Misses, Size: v.cache.entries.EstimatedSize()}
}
