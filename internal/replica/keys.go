package replica

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// keyKeeper keeps a replica's ring of signing keys and the sealed keys in Redis in agreement, and makes, activates and
// removes keys when that is due: see docs/keys.md.
type keyKeeper struct {
	stored   *tokenstore.Keys
	sealer   *accesstoken.Sealer
	ring     *accesstoken.Ring
	settings tokenstore.KeySettings
	folder   *keysDir // nil: the keys are in Redis
	log      *slog.Logger
	// revoked gets a value when a key was revoked, so that sync is called at once.
	revoked chan struct{}

	mu     sync.Mutex                         // one sync at a time
	synced time.Time                          // when Redis last answered
	signs  string                             // kid of the key that this replica last signed with
	dead   []string                           // kids of the keys that are known to be revoked
	shown  atomic.Pointer[tokenstore.KeyRing] // for the metrics
}

func newKeyKeeper(cfg *config.Config, stored *tokenstore.Keys, sealer *accesstoken.Sealer, logger *slog.Logger) *keyKeeper {
	k := &keyKeeper{
		stored: stored, sealer: sealer, ring: accesstoken.NewRing(), settings: KeySettings(cfg), log: logger,
		revoked: make(chan struct{}, 1),
	}
	if cfg.KeysDir != "" {
		k.folder = newKeysDir(cfg)
	}
	return k
}

// KeySettings are the settings of the signing keys in Redis.
func KeySettings(cfg *config.Config) tokenstore.KeySettings {
	return tokenstore.KeySettings{Publish: cfg.KeyPublish(), Rotation: cfg.KeyRotation, Algorithm: cfg.Algorithm}
}

// errSealed says that the replicas do not share a secret.
var errSealed = errors.New("a signing key in Redis was sealed under another LATCHKEY_SECRET; " +
	"give every replica the same secrets, or use an empty Redis")

// wake makes the caller of sync call it soon. It does not block.
func (k *keyKeeper) wake() {
	select {
	case k.revoked <- struct{}{}:
	default:
	}
}

// sync makes the keys that are due in Redis and brings the ring up to date with Redis or, if there is one, with the
// folder. Errors: [tokenstore.ErrUnavailable], errSealed, and a fault of the folder while there is no other key.
func (k *keyKeeper) sync(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.folder != nil {
		return k.reload(ctx)
	}
	have, err := k.inForce(ctx)
	if err != nil {
		// A replica that cannot learn of a rotation stops signing before the other replicas forget the old key.
		if !k.synced.IsZero() && time.Since(k.synced) > k.settings.Publish {
			k.ring.Rest()
		}
		return err
	}
	k.synced = time.Now()
	return k.adopt(ctx, have)
}

// inForce returns the keys that Redis holds, after it put back keys and revocations that Redis had lost and made a key
// that is due.
func (k *keyKeeper) inForce(ctx context.Context) (tokenstore.KeyRing, error) {
	have, err := k.stored.Sync(ctx, k.settings)
	if err != nil {
		return have, err
	}
	for _, kid := range k.lost(have) {
		if have, err = k.offer(ctx, k.ring.Key(kid), tokenstore.OfferLost); err != nil {
			return have, err
		}
		k.log.LogAttrs(ctx, slog.LevelWarn, "Redis had lost a signing key: sealed it again", slog.String("kid", kid))
	}
	for _, kid := range k.dead {
		if have.Gone[kid] {
			continue
		}
		if have, err = k.revoke(ctx, kid); err != nil {
			return have, err
		}
		k.log.LogAttrs(ctx, slog.LevelWarn, "Redis had lost that a signing key was revoked: revoked it again", slog.String("kid", kid))
	}
	if !have.Wanted {
		return have, nil
	}
	fresh, err := accesstoken.Generate(accesstoken.Algorithm(k.settings.Algorithm), rand.Reader)
	if err != nil {
		return have, fmt.Errorf("make a signing key: %w", err)
	}
	return k.offer(ctx, fresh, tokenstore.OfferDue)
}

// lost returns the keys of the ring that Redis neither holds nor has removed. The one that signs comes first, because
// the first key in an empty Redis becomes the one that signs.
func (k *keyKeeper) lost(have tokenstore.KeyRing) []string {
	list := slices.DeleteFunc(k.ring.IDs(), func(kid string) bool {
		_, there := have.Keys[kid]
		_, gone := have.Gone[kid]
		return there || gone || k.ring.Key(kid).VerifiesOnly()
	})
	slices.SortStableFunc(list, func(a, b string) int {
		if a == k.signs && b != k.signs {
			return -1
		}
		return 0
	})
	return list
}

func (k *keyKeeper) offer(ctx context.Context, key *accesstoken.Key, why tokenstore.Offer) (tokenstore.KeyRing, error) {
	sealed, err := sealKey(k.sealer, key)
	if err != nil {
		return tokenstore.KeyRing{}, err
	}
	return k.stored.Offer(ctx, k.settings, sealed, why)
}

// revoke repeats a revocation that Redis has lost.
func (k *keyKeeper) revoke(ctx context.Context, kid string) (tokenstore.KeyRing, error) {
	instead, err := freshKey(k.sealer, k.settings.Algorithm)
	if err != nil {
		return tokenstore.KeyRing{}, err
	}
	return k.stored.Revoke(ctx, k.settings, kid, instead)
}

// NewSigningKey makes a signing key, sealed under the first secret.
func NewSigningKey(cfg *config.Config) (tokenstore.SealedKey, error) {
	sealer, err := accesstoken.NewSealer(rootSecrets(cfg)...)
	if err != nil {
		return tokenstore.SealedKey{}, err
	}
	return freshKey(sealer, cfg.Algorithm)
}

func freshKey(sealer *accesstoken.Sealer, algorithm string) (tokenstore.SealedKey, error) {
	key, err := accesstoken.Generate(accesstoken.Algorithm(algorithm), rand.Reader)
	if err != nil {
		return tokenstore.SealedKey{}, fmt.Errorf("make a signing key: %w", err)
	}
	return sealKey(sealer, key)
}

func sealKey(sealer *accesstoken.Sealer, key *accesstoken.Key) (tokenstore.SealedKey, error) {
	sealed, err := sealer.Seal(key)
	if err != nil {
		return tokenstore.SealedKey{}, fmt.Errorf("seal the signing key: %w", err)
	}
	offer := tokenstore.SealedKey{ID: key.ID(), Algorithm: string(key.Algorithm()), Sealed: sealed}
	if jwk, ok := key.PublicJWK(); ok {
		if offer.Public, err = json.Marshal(jwk); err != nil {
			return tokenstore.SealedKey{}, fmt.Errorf("encode the public key: %w", err)
		}
	}
	return offer, nil
}

// adopt makes the ring agree with Redis. It adds keys before it changes the key that signs, and removes keys after.
// A key that cannot be opened is an error; the others are adopted all the same.
func (k *keyKeeper) adopt(ctx context.Context, have tokenstore.KeyRing) error {
	var failed error
	for kid, in := range have.Keys {
		if !k.ring.Has(kid) {
			key, err := k.sealer.Open(kid, in.Sealed)
			if err != nil {
				failed = fmt.Errorf("%w (kid %s)", errSealed, kid)
				continue
			}
			k.ring.Add(key)
		}
		if err := k.reseal(ctx, kid, in.Sealed); err != nil {
			return err
		}
	}
	if k.ring.Has(have.Active) {
		if own := k.ring.Active(); own == nil || own.ID() != have.Active {
			if err := k.ring.Activate(have.Active); err != nil {
				return err
			}
			if own != nil {
				k.log.LogAttrs(ctx, slog.LevelInfo, "signing with another key", slog.String("kid", have.Active))
			}
		}
		k.signs = have.Active
	}
	k.recognise(ctx, have)
	for _, kid := range k.ring.IDs() {
		if _, there := have.Keys[kid]; !there {
			k.ring.Remove(kid)
			k.log.LogAttrs(ctx, slog.LevelInfo, "a signing key is gone", slog.String("kid", kid), slog.Bool("revoked", have.Gone[kid]))
		}
	}
	k.dead = k.dead[:0]
	for kid, revoked := range have.Gone {
		if revoked {
			k.dead = append(k.dead, kid)
		}
	}
	k.shown.Store(&have)
	return failed
}

// recognise makes the retired keys of the ring agree with Redis.
func (k *keyKeeper) recognise(ctx context.Context, have tokenstore.KeyRing) {
	before := k.ring.Retired()
	for kid, retired := range have.Retired {
		if slices.Contains(before, kid) {
			continue
		}
		key, err := accesstoken.ParsePublicKey(retired.Public)
		if err != nil || key.ID() != kid {
			k.log.LogAttrs(ctx, slog.LevelDebug, "a retired key in Redis cannot be read", slog.String("kid", kid))
			continue
		}
		k.ring.Recognise(key)
	}
	for _, kid := range before {
		if _, there := have.Retired[kid]; !there {
			k.ring.Forget(kid)
		}
	}
}

// reseal seals a key under the first secret if it is sealed under an older one.
func (k *keyKeeper) reseal(ctx context.Context, kid string, before []byte) error {
	if k.sealer.Current(kid, before) {
		return nil
	}
	if _, err := k.sealer.Open(kid, before); err != nil {
		return nil //nolint:nilerr // a replica that knows the older secret reseals it
	}
	sealed, err := sealKey(k.sealer, k.ring.Key(kid))
	if err != nil {
		return err
	}
	if err := k.stored.Reseal(ctx, kid, before, sealed.Sealed); err != nil {
		return err
	}
	k.log.LogAttrs(ctx, slog.LevelInfo, "a signing key is sealed under the first LATCHKEY_SECRET now", slog.String("kid", kid))
	return nil
}

// reload makes the ring agree with the folder. A folder that cannot be used leaves the ring as it is; that is an error
// only while there is no key to sign with.
func (k *keyKeeper) reload(ctx context.Context) error {
	set, err := k.folder.read()
	switch {
	case err != nil && k.ring.Active() == nil:
		return err
	case err != nil:
		if k.folder.fault(err) {
			k.log.LogAttrs(ctx, slog.LevelError, "LATCHKEY_KEYS_DIR: keeping the keys of before", slog.String("cause", err.Error()))
		}
		return nil
	case set == nil: // nothing has changed
		return nil
	}
	LogWarnings(ctx, k.log, set.Exposed)
	for _, key := range set.Keys {
		k.ring.Add(key)
	}
	if err := k.ring.Activate(set.Active); err != nil {
		return err
	}
	in := func(keys []*accesstoken.Key, kid string) bool {
		return slices.ContainsFunc(keys, func(key *accesstoken.Key) bool { return key.ID() == kid })
	}
	for _, key := range set.Retired {
		k.ring.Recognise(key)
	}
	for _, kid := range k.ring.Retired() {
		if !in(set.Retired, kid) {
			k.ring.Forget(kid)
		}
	}
	for _, kid := range k.ring.IDs() {
		if !in(set.Keys, kid) {
			k.ring.Remove(kid)
		}
	}
	k.log.LogAttrs(ctx, slog.LevelInfo, "signing keys read from LATCHKEY_KEYS_DIR", slog.String("kid", set.Active), slog.Any("kids", k.ring.IDs()))
	return nil
}

// stats are the figures for the metrics.
func (k *keyKeeper) stats() handlers.KeyStats {
	if k.folder != nil {
		s := handlers.KeyStats{FolderFaults: k.folder.faults.Load(), Retiring: len(k.ring.IDs())}
		if k.ring.Active() != nil {
			s.Active, s.Retiring = 1, s.Retiring-1
		}
		return s
	}
	have := k.shown.Load()
	if have == nil {
		return handlers.KeyStats{}
	}
	s := handlers.KeyStats{Now: k.stored.Now(), Since: have.Keys[have.Active].Activated, Rotates: have.Rotates}
	for kid := range have.Keys {
		switch have.State(kid) {
		case tokenstore.KeyActive:
			s.Active++
		case tokenstore.KeyNext:
			s.Next++
		case tokenstore.KeyRetiring:
			s.Retiring++
		}
	}
	return s
}
