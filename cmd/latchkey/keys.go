package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// keyKeeper keeps a replica's ring of signing keys and the sealed keys in Redis
// in agreement.
type keyKeeper struct {
	store  *tokenstore.Store
	sealer *accesstoken.Sealer
	ring   *accesstoken.Ring
	alg    accesstoken.Algorithm
	log    *slog.Logger

	mu sync.Mutex // one sync at a time
}

// errSealed says that the replicas do not share a secret.
var errSealed = errors.New("the signing key in Redis was sealed under another LATCHKEY_SECRET; " +
	"give every replica the same secret, or use an empty Redis")

// sync takes over the keys that Redis holds. Where it holds none, this is the
// first boot, and a new key is offered; or Redis has lost its data, and the key
// that this replica signs with is sealed anew, so that what other replicas
// signed meanwhile is known to all. Errors: [tokenstore.ErrUnavailable], errSealed.
func (k *keyKeeper) sync(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	have, err := k.store.SigningKeys(ctx)
	if err != nil {
		return err
	}
	own := k.ring.Active()
	switch {
	case own != nil && have.Sealed[own.ID()] == nil:
		have, err = k.put(ctx, own, k.store.RestoreSigningKey)
		k.log.LogAttrs(ctx, slog.LevelWarn, "Redis had lost the signing key: sealed it again", slog.String("kid", own.ID()))
	case own == nil && have.Active == "":
		var fresh *accesstoken.Key
		if fresh, err = accesstoken.Generate(k.alg, rand.Reader); err != nil {
			return fmt.Errorf("make a signing key: %w", err)
		}
		have, err = k.put(ctx, fresh, k.store.OfferSigningKey)
	}
	if err != nil {
		return err
	}
	return k.adopt(have)
}

func (k *keyKeeper) put(ctx context.Context, key *accesstoken.Key,
	put func(context.Context, string, []byte) (tokenstore.SealedKeys, error),
) (tokenstore.SealedKeys, error) {
	sealed, err := k.sealer.Seal(key)
	if err != nil {
		return tokenstore.SealedKeys{}, fmt.Errorf("seal the signing key: %w", err)
	}
	return put(ctx, key.ID(), sealed)
}

// adopt opens the keys that the ring lacks and signs with the active one.
func (k *keyKeeper) adopt(have tokenstore.SealedKeys) error {
	for kid, sealed := range have.Sealed {
		if k.ring.Has(kid) {
			continue
		}
		key, err := k.sealer.Open(kid, sealed)
		if err != nil {
			return fmt.Errorf("%w (kid %s)", errSealed, kid)
		}
		k.ring.Add(key)
	}
	if own := k.ring.Active(); own != nil && own.ID() == have.Active {
		return nil
	}
	return k.ring.Activate(have.Active)
}
