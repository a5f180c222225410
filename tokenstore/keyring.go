package tokenstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ErrKeyActive says that a key cannot be revoked: it signs, and there is no other
// to sign with.
var ErrKeyActive = errors.New("the key signs, and there is no other")

// KeySettings are what decides when signing keys change.
type KeySettings struct {
	// Publish is for how long a key is published before it signs. If replicas
	// differ, the longest counts.
	Publish time.Duration
	// Rotation is for how long a key signs; 0 is until another takes its place by hand.
	Rotation time.Duration
	// Algorithm is that of new keys. An active key of another one is replaced.
	Algorithm string
}

// SealedKey is a signing key as the replicas share it, sealed by the caller: what
// Redis holds is of no use without the caller's secret.
type SealedKey struct {
	ID        string // kid
	Algorithm string
	Sealed    []byte
	// Public is the key's public half, by which its tokens are recognised once the key
	// has gone; nil for an algorithm that has none. It is not read back: see
	// [KeyRing.Retired].
	Public []byte

	// By Redis TIME; zero is not yet.
	Published time.Time
	Signs     time.Time // when it begins to sign, at the earliest
	Activated time.Time
	Retired   time.Time // since when it only verifies
}

// KeyState is where a signing key is in its life.
type KeyState string

// The states of a signing key. One that is gone is not there any more.
const (
	KeyNext     KeyState = "next"     // published, and will sign
	KeyActive   KeyState = "active"   // signs
	KeyRetiring KeyState = "retiring" // verifies until its last token has expired
)

// KeyRing is what Redis holds of the signing keys.
type KeyRing struct {
	Now    time.Time
	Active string // kid; "" if there is none yet
	Next   string
	Keys   map[string]SealedKey // by kid
	// Gone are the keys that were removed on purpose; true for those that were revoked.
	Gone map[string]bool
	// Retired are the public halves of keys that no longer verify, by kid. Each stays for
	// as long as a session that got a token under it can be alive, so that a logout can
	// tell that such a token is ours. They admit nobody.
	Retired map[string]RetiredKey
	// Wanted says that a new key should be offered now.
	Wanted bool
	// Rotates is when the next key will sign; zero for never.
	Rotates time.Time
	// Longest is the longest access lifetime that a replica ever asked for.
	Longest time.Duration
}

// RetiredKey is what is left of a key that has gone.
type RetiredKey struct {
	Public []byte // as it was offered
	Until  time.Time
}

// State returns where a key of the ring is in its life.
func (r KeyRing) State(kid string) KeyState {
	switch kid {
	case r.Active:
		return KeyActive
	case r.Next:
		return KeyNext
	}
	return KeyRetiring
}

// Until returns when a retiring key will be removed under these settings.
func (r KeyRing) Until(k SealedKey, o KeySettings) time.Time {
	return k.Retired.Add(r.Longest + o.Publish + skewPad)
}

// Ring reads the signing keys and does nothing about them. Now, Wanted and
// Rotates are not told. Errors: [ErrUnavailable].
func (s *Keys) Ring(ctx context.Context) (KeyRing, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	fields, err := s.rdb.HGetAll(ctx, keysKey).Result()
	err = unavailable("keys", err)
	s.observe("keys", time.Since(start), err)
	if err != nil {
		return KeyRing{}, err
	}
	ring, err := keyRing(fields)
	return ring, unavailable("keys", err)
}

// Sync does what is due among the signing keys: the next one becomes
// active once it has been published for long enough, and a retired one is removed
// once its last token has expired: its public half stays for as long as sessions live.
// It returns the keys in force. Errors:
// [ErrUnavailable].
func (s *Keys) Sync(ctx context.Context, o KeySettings) (KeyRing, error) {
	ring, _, err := s.keys(ctx, s.scripts.keysSync, o)
	return ring, err
}

// Offer is why a signing key is offered.
type Offer string

// The reasons for which a signing key is offered.
const (
	OfferDue   Offer = "due"   // KeyRing.Wanted
	OfferAsked Offer = "asked" // by hand: it will sign once it has been published for long enough
	OfferNow   Offer = "now"   // by hand: the next key, or this one if there is none, signs at once
	OfferLost  Offer = "lost"  // Redis has lost it: it verifies again, and signs if no key does
)

// Offer offers a sealed key. It returns the keys in force: of several
// that are offered at once, one wins and the others are dropped. Errors:
// [ErrUnavailable].
func (s *Keys) Offer(ctx context.Context, o KeySettings, k SealedKey, why Offer) (KeyRing, error) {
	ring, _, err := s.keys(ctx, s.scripts.keysPut, o, k.ID, k.Sealed, k.Public, k.Algorithm, string(why))
	return ring, err
}

// Revoke takes a key away for good. If it signs, the next key does so
// from now on, or else the replacement, if it is not zero. What it has signed is
// dead only once [Keys.Deny] has told every shard. Errors: [ErrKeyActive] if
// there is nothing to sign with instead, [ErrUnavailable].
func (s *Keys) Revoke(ctx context.Context, o KeySettings, kid string, replacement SealedKey) (KeyRing, error) {
	ring, active, err := s.keys(ctx, s.scripts.keysRevoke, o, kid, replacement.ID, replacement.Sealed, replacement.Public, replacement.Algorithm)
	if err == nil && active {
		err = ErrKeyActive
	}
	return ring, err
}

// Reseal replaces a sealed key by the same key sealed anew, if nobody
// has done so yet. Errors: [ErrUnavailable].
func (s *Keys) Reseal(ctx context.Context, kid string, before, anew []byte) error {
	r, err := s.runDurably(ctx, s.scripts.keysReseal, []string{keysKey}, kid, before, anew)
	if err != nil {
		return err
	}
	return r.oneOf(0, 1)
}

// Deny denies every token that was signed with a key, on all shards, for ever.
// It returns one revocation for each shard, to be confirmed. Asked again it
// returns the same. Errors: [ErrUnavailable].
func (s *Keys) Deny(ctx context.Context, kid string) ([]Revocation, error) {
	calls := make([]call, s.shards)
	for i := range calls {
		c, err := s.denyKeyCall(s.KeyID(kid, i))
		if err != nil {
			return nil, err
		}
		calls[i] = c
	}
	replies, err := s.runAll(ctx, calls, s.waitReplicas)
	if err != nil {
		return nil, err
	}
	list := make([]Revocation, len(replies))
	for i, r := range replies {
		s.observeTime(r.time(1))
		if err := r.oneOf(0); err != nil {
			return nil, err
		}
		if list[i], err = r.revocation(s.KeyID(kid, i)); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func (s *core) denyKeyCall(id ID) (call, error) {
	epoch, err := s.freshEpoch()
	shard := id[0]
	return call{
		script: s.scripts.revokeKey,
		keys:   []string{s.deadKeysKey(shard), s.headKey(shard), s.logKey(shard), s.membersKey(shard)},
		args:   []any{epoch, id.String(), milliseconds(s.life.Access), milliseconds(skewPad)},
	}, err
}

// KeyID returns the id under which a signing key is denied in a shard: the first
// 16 bytes of SHA-256(kid), with the shard as the first of them.
func (s *core) KeyID(kid string, shard int) ID {
	sum := sha256.Sum256([]byte(kid))
	var id ID
	copy(id[:], sum[:])
	id[0] = byte(shard) //nolint:gosec // at most 255
	return id
}

// keys runs one of the scripts that share lua/keyring.lua. active is set where code 1 says
// that a key was not revoked, since it signs.
func (s *core) keys(ctx context.Context, sc *script, o KeySettings, args ...any) (ring KeyRing, active bool, err error) {
	args = append([]any{
		milliseconds(s.life.Access), milliseconds(o.Publish), milliseconds(o.Rotation), o.Algorithm, milliseconds(skewPad),
		milliseconds(s.life.Session),
	}, args...)
	run := s.runDurably
	if sc == s.scripts.keysSync {
		run = s.run // what it does, it does again
	}
	r, err := run(ctx, sc, []string{keysKey}, args...)
	if err != nil {
		return KeyRing{}, false, err
	}
	pairs := r.pairs(4)
	fields := make(map[string]string, len(pairs))
	for _, p := range pairs {
		fields[p[0]] = p[1]
	}
	ring, err = keyRing(fields)
	if err != nil {
		return KeyRing{}, false, unavailable(sc.name, err)
	}
	ring.Now, ring.Wanted = r.time(1), r.count(2) == 1
	if at := r.count(3); at > 0 {
		ring.Rotates = time.UnixMilli(int64(at)) //nolint:gosec // was an int64
	}
	s.observeTime(ring.Now)
	known := []int64{0}
	if sc == s.scripts.keysRevoke {
		known = []int64{0, 1}
	}
	if err := r.oneOf(known...); err != nil {
		return KeyRing{}, false, err
	}
	return ring, r.code() == 1, nil
}

// keyRing reads the hash that lua/keyring.lua describes.
func keyRing(fields map[string]string) (KeyRing, error) {
	r := KeyRing{Active: fields["active"], Next: fields["next"], Keys: map[string]SealedKey{}, Gone: map[string]bool{}, Retired: map[string]RetiredKey{}}
	for _, name := range []string{"access", "session"} {
		text, ok := fields[name]
		if !ok {
			continue
		}
		ms, err := strconv.ParseUint(text, 10, 63)
		if err != nil {
			return KeyRing{}, fmt.Errorf("%w: %s is %q", errReply, name, text)
		}
		if name == "access" {
			r.Longest = time.Duration(ms) * time.Millisecond
		}
	}
	for name, value := range fields {
		if kid, ok := strings.CutPrefix(name, "k:"); ok {
			k := SealedKey{ID: kid, Sealed: []byte(value)}
			if err := k.note(fields["m:"+kid]); err != nil {
				return KeyRing{}, err
			}
			r.Keys[kid] = k
		} else if kid, ok := strings.CutPrefix(name, "d:"); ok {
			r.Gone[kid] = strings.HasPrefix(value, "revoked")
		} else if kid, ok := strings.CutPrefix(name, "r:"); ok {
			till, public, _ := strings.Cut(value, " ")
			ms, err := strconv.ParseInt(till, 10, 64)
			if err != nil {
				return KeyRing{}, fmt.Errorf("%w: %s is %q", errReply, name, value)
			}
			r.Retired[kid] = RetiredKey{Public: []byte(public), Until: time.UnixMilli(ms)}
		}
	}
	return r, nil
}

// note reads what the scripts note of a key.
func (k *SealedKey) note(text string) error {
	f := strings.Fields(text)
	if len(f) != 5 {
		return fmt.Errorf("%w: of the key %s is noted %q", errReply, k.ID, text)
	}
	k.Algorithm = f[0]
	for i, t := range []*time.Time{&k.Published, &k.Signs, &k.Activated, &k.Retired} {
		ms, err := strconv.ParseInt(f[i+1], 10, 64)
		if err != nil || ms < 0 {
			return fmt.Errorf("%w: of the key %s is noted %q", errReply, k.ID, text)
		}
		if ms > 0 { // 0 is not yet
			*t = time.UnixMilli(ms)
		}
	}
	return nil
}
