package tokenstore

import (
	"context"
	"time"
)

// SealedKeys are the signing keys that the replicas share, each sealed by the
// caller: what Redis holds is of no use without the caller's secret.
type SealedKeys struct {
	Active string            // kid of the key that signs; empty if there is none yet
	Sealed map[string][]byte // by kid
}

// SigningKeys reads the sealed signing keys. Errors: [ErrUnavailable].
func (s *Store) SigningKeys(ctx context.Context) (SealedKeys, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	fields, err := s.rdb.HGetAll(ctx, keysKey).Result()
	err = unavailable("keys", err)
	s.observe("keys", time.Since(start), err)
	if err != nil {
		return SealedKeys{}, err
	}
	return sealedKeys(fields), nil
}

// OfferSigningKey offers a new sealed key: if no key is active yet it becomes
// everybody's, else it is dropped. It returns the keys in force: of several
// replicas that boot at once, one key wins. Errors: [ErrUnavailable].
func (s *Store) OfferSigningKey(ctx context.Context, kid string, sealed []byte) (SealedKeys, error) {
	return s.putKey(ctx, kid, sealed, "1")
}

// RestoreSigningKey puts back a key that this replica has signed with, should
// Redis have lost it, so that no replica refuses what another just signed. It
// becomes active if no key is. Errors: [ErrUnavailable].
func (s *Store) RestoreSigningKey(ctx context.Context, kid string, sealed []byte) (SealedKeys, error) {
	return s.putKey(ctx, kid, sealed, "")
}

func (s *Store) putKey(ctx context.Context, kid string, sealed []byte, onlyFirst string) (SealedKeys, error) {
	r, err := s.run(ctx, s.scripts.keysPut, []string{keysKey}, kid, sealed, onlyFirst)
	if err != nil {
		return SealedKeys{}, err
	}
	fields := make(map[string]string, len(r)/2)
	for i := 0; i+1 < len(r); i += 2 {
		fields[r.string(i)] = r.string(i + 1)
	}
	return sealedKeys(fields), nil
}

func sealedKeys(fields map[string]string) SealedKeys {
	k := SealedKeys{Sealed: make(map[string][]byte, len(fields))}
	for name, value := range fields {
		switch {
		case name == "active":
			k.Active = value
		case len(name) > 2 && name[:2] == "k:":
			k.Sealed[name[2:]] = []byte(value)
		}
	}
	return k
}
