package tokenstore

import (
	"context"
	"fmt"
	"time"
)

// AccessToken is what Verify needs to know of an access token whose signature
// was already checked.
type AccessToken struct {
	JTI       ID
	SID       ID
	UID       ID
	Key       ID // of the key that signed it: see [Store.KeyID]
	UserEpoch uint64
	LogEpoch  string
	Expires   time.Time
}

// Verify tells whether an access token may still be accepted: nil if so,
// [ErrRevoked] if it, its session, its user's epoch or its key was revoked or this
// Redis lost its data since it was issued, [ErrExpired] if it expired by Redis time,
// [ErrUnavailable].
func (s *Revocations) Verify(ctx context.Context, t AccessToken) error {
	if !s.together(t.SID, t.JTI, t.UID) {
		return fmt.Errorf("%w: it was issued for other shards", ErrRevoked)
	}
	epoch, err := s.freshEpoch()
	if err != nil {
		return err
	}
	shard := t.SID[0]
	r, err := s.run(ctx, s.scripts.verify,
		[]string{s.denyKey(t.JTI), s.denyKey(t.SID), s.epochKey(t.UID), s.headKey(shard), s.logKey(shard), s.deadKeysKey(shard)},
		epoch, t.SID.String(), t.LogEpoch, t.UserEpoch, t.Expires.UnixMilli(), t.Key.String())
	if err != nil {
		return err
	}
	s.observeTime(r.time(1))
	switch r.code() {
	case 0:
		return r.err()
	case 1, 2:
		return r.verdict(ErrRevoked)
	case 3:
		return r.verdict(fmt.Errorf("%w: the user logged out everywhere", ErrRevoked))
	case 4:
		return r.verdict(fmt.Errorf("%w: the store lost its data since", ErrRevoked))
	case 5:
		return r.verdict(ErrExpired)
	case 6:
		return r.verdict(fmt.Errorf("%w: the key that signed it", ErrRevoked))
	default:
		return r.unknown()
	}
}
