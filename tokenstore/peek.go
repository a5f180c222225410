package tokenstore

import "context"

// Peek tells what a refresh token that would be accepted stands for, and changes
// nothing. The grant has no epochs. Current tells the current token from its parent,
// which is accepted within the grace. JKT is the thumbprint of the key that the session is
// bound to. Errors: [ErrNoSession], whatever the reason why the token would not be accepted;
// [ErrUnavailable].
func (s *Sessions) Peek(ctx context.Context, t Rotation) (Grant, error) {
	if !s.together(t.SID, t.UID) {
		return Grant{}, ErrNoSession
	}
	r, err := s.run(ctx, s.scripts.peek, []string{s.rtKey(t.SID), s.epochKey(t.UID)},
		t.SID.String(), t.Gen, t.Hash[:], milliseconds(s.life.Grace))
	if err != nil {
		return Grant{}, err
	}
	now := r.time(1)
	s.observeTime(now)
	code := r.code()
	switch code {
	case 0, 1:
	case 2:
		return Grant{}, r.verdict(ErrNoSession)
	default:
		return Grant{}, r.unknown()
	}
	p := Grant{
		Now: now, RefreshExpiry: r.time(2), AuthTime: r.time(3),
		Subject: r.string(4), Username: r.string(5), Scope: r.string(6), ClientID: r.string(7), Claims: r.string(8),
		JKT:     r.string(9),
		Current: code == 0,
	}
	if err := r.err(); err != nil {
		return Grant{}, err
	}
	if p.Username == "" {
		p.Username = p.Subject
	}
	return p, nil
}
