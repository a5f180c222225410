package tokenstore

import (
	"context"
	"crypto/sha256"
	"time"
)

// FirstUse reports whether something that counts once, such as a DPoP proof, is used
// for the first time, on any replica. It is remembered until a time, after which it
// must not be asked about: then it counts as used. id is a hash of its name. Error:
// [ErrUnavailable], after which it may count as used.
func (s *Proofs) FirstUse(ctx context.Context, id [sha256.Size]byte, until time.Time) (bool, error) {
	nonce, err := s.freshEpoch()
	if err != nil {
		return false, err
	}
	var name ID
	copy(name[:], id[:])
	name[0] = byte(int(id[len(name)]) % s.shards) //nolint:gosec // at most 255
	r, err := s.run(ctx, s.scripts.firstUse, []string{s.prefix[name[0]] + "used:" + name.String()}, nonce, until.Add(skewPad).UnixMilli())
	if err != nil {
		return false, err
	}
	s.observeTime(r.time(1))
	if err := r.oneOf(0, 1); err != nil {
		return false, err
	}
	return r.code() == 1, nil
}
