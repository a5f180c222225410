package session

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/internal/statuslist"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// MaxShown is how many sessions the tokens of one logout may name, and the refresh tokens of
// one login. Each costs a round trip or two and an event; no browser comes by so many.
const MaxShown = 16

// LogoutRequest shows the tokens whose sessions are to end.
type LogoutRequest struct {
	Access  []Shown
	Refresh []string
	Proof   Proof // of a bound access token
}

// Logout ends the session of each token that is shown. It costs one round trip a session and
// the confirmation, and one or two more if a token cannot be checked.
//
// It returns nil once everything shown that is ours has ended, except a key-bound token in a
// cookie (accessShown). A token that is not ours has nothing to end. If a token may not be
// ended, or cannot be checked, the others are ended all the same, and the error is a
// [RemainsError]. Other errors: ErrTooMany; [tokenstore.ErrUnavailable], after which the
// same request can be sent again.
func (s *Service) Logout(ctx context.Context, from Origin, r LogoutRequest) error {
	shown, err := s.sessionsShown(ctx, from, r)
	if err != nil {
		return err
	}
	if shown.count() > MaxShown {
		return ErrTooMany
	}
	for _, end := range shown.ends {
		if err := s.endOne(ctx, from, EventLogout, end); err != nil {
			return err
		}
	}
	why, err := s.notEnded(ctx, shown)
	if err != nil {
		return err
	}
	if why != nil {
		reason := "key"
		if errors.Is(why, ErrUnchecked) {
			reason = "unchecked"
		}
		s.Record(ctx, from, EventLogoutRefused, slog.String("reason", reason))
		return &RemainsError{why}
	}
	return nil
}

// shownSessions are the sessions that the tokens of a logout name.
type shownSessions struct {
	ends []tokenstore.SessionEnd // each once
	left []leftToken
}

// leftToken is a token that is ours, or claims to be, and whose session the logout may not
// end.
type leftToken struct {
	sid tokenstore.ID
	why error // ErrUnchecked; or, for a token that is bound to a key, [edge.ErrInvalid] or a [ProofError]
	// perhaps is set if the logout may still be a 200: if Redis has no live session sid.
	perhaps bool
}

func (s *shownSessions) end(e tokenstore.SessionEnd) {
	if !s.ended(e.SID) {
		s.ends = append(s.ends, e)
	}
}

func (s *shownSessions) ended(sid tokenstore.ID) bool {
	return slices.ContainsFunc(s.ends, func(e tokenstore.SessionEnd) bool { return e.SID == sid })
}

// count is how many sessions there are, those that may not be ended included.
func (s *shownSessions) count() int {
	sids := map[tokenstore.ID]bool{}
	for _, e := range s.ends {
		sids[e.SID] = true
	}
	for _, left := range s.left {
		sids[left.sid] = true
	}
	return len(sids)
}

// sessionsShown reads the tokens of a logout. Error: [edge.ErrUnavailable].
func (s *Service) sessionsShown(ctx context.Context, from Origin, r LogoutRequest) (*shownSessions, error) {
	sessions := &shownSessions{}
	for _, access := range r.Access { // all of them: to end too much is safer than too little
		if err := s.accessShown(ctx, from, sessions, access, r.Proof); err != nil {
			return nil, err
		}
	}
	for _, token := range s.families(r.Refresh) {
		sessions.end(tokenstore.SessionEnd{SID: token.SID, UID: token.UID})
	}
	for _, text := range r.Refresh {
		if left, ok := s.uncheckedRefresh(text); ok {
			sessions.left = append(sessions.left, left)
		}
	}
	return sessions, nil
}

// accessShown adds the session that an access token names. Error: [edge.ErrUnavailable].
func (s *Service) accessShown(ctx context.Context, from Origin, sessions *shownSessions, shown Shown, proof Proof) error {
	claims, err := s.Verifier.Authentic(ctx, shown.Token)
	switch {
	case errors.Is(err, edge.ErrInvalid):
		if left, ok := s.uncheckedAccess(shown.Token, err); ok {
			sessions.left = append(sessions.left, left)
		}
		return nil
	case err != nil:
		return err
	case shown.ByCookie && claims.JKT != "":
		// A token that is bound to a key is never accepted from a cookie, and Latchkey never
		// sets one. Somebody else did, so ignore it.
		return nil
	}
	end := s.endOf(claims)
	switch err := s.mayEnd(ctx, from, shown, claims, proof); {
	case errors.Is(err, edge.ErrUnavailable):
		return err
	case err != nil:
		sessions.left = append(sessions.left, leftToken{sid: end.SID, why: err})
	default:
		sessions.end(end)
	}
	return nil
}

// notEnded returns why the answer to a logout whose sessions have ended cannot be a 200:
// nil if they are all that the tokens name. Error: [tokenstore.ErrUnavailable].
func (s *Service) notEnded(ctx context.Context, shown *shownSessions) (why, err error) {
	var perhaps []tokenstore.ID
	for _, left := range shown.left {
		switch {
		case shown.ended(left.sid): // another token has ended its session
		case left.perhaps:
			perhaps = append(perhaps, left.sid)
		default:
			return left.why, nil
		}
	}
	alive, err := s.Store.Sessions.AnyAlive(ctx, perhaps)
	if alive {
		why = ErrUnchecked
	}
	return why, err
}

// uncheckedRefresh reads what has the form of a refresh token and an authentication code
// under none of our root secrets: it may be of one that was taken out.
func (s *Service) uncheckedRefresh(text string) (leftToken, bool) {
	if _, err := s.RefreshTokens.Parse(text); !errors.Is(err, refreshtoken.ErrForged) {
		return leftToken{}, false
	}
	sid, err := s.RefreshTokens.UnverifiedSession(text)
	return leftToken{sid: sid, why: ErrUnchecked, perhaps: true}, err == nil
}

// uncheckedAccess reads an access token that was refused with err because nobody here has
// its key: it was retired longer ago than sessions live, or revoked, or it is a stranger's.
func (s *Service) uncheckedAccess(token string, err error) (leftToken, bool) {
	if !errors.Is(err, accesstoken.ErrUnknownKey) {
		return leftToken{}, false // it was checked, and is not ours
	}
	claims, err := accesstoken.Unverified(token)
	if err != nil {
		return leftToken{}, false
	}
	sid, err := tokenstore.ParseID(claims.SessionID)
	// An unexpired token of our issuer may be under a key that only another replica has
	// yet, and may be a client's own token, of whose session Redis knows nothing. So it
	// counts as not ended, whatever Redis says of its session.
	young := claims.Issuer == s.Issuer && s.Store.Now().Unix() < claims.ExpiresAt
	return leftToken{sid: sid, why: ErrUnchecked, perhaps: !young}, err == nil
}

// mayEnd refuses a token that is bound to a key to whoever does not prove to hold it, as
// everywhere.
func (s *Service) mayEnd(ctx context.Context, from Origin, shown Shown, claims edge.Claims, proof Proof) error {
	if !shown.Bound && claims.JKT == "" {
		return nil
	}
	if !shown.Bound {
		return edge.ErrInvalid
	}
	p, err := s.checkProof(proof, shown.Token)
	if err == nil && p.JKT() != claims.JKT {
		err = edge.ErrInvalid
	}
	if err == nil {
		err = s.consumeProof(ctx, p, true)
	}
	s.RecordProof(ctx, from, err)
	return err
}

// endOf names the session of an access token, and the token itself. The ids
// were read once already, when the token was found authentic.
func (s *Service) endOf(claims edge.Claims) tokenstore.SessionEnd {
	sid, _ := tokenstore.ParseID(claims.SessionID)
	jti, _ := tokenstore.ParseID(claims.ID)
	return tokenstore.SessionEnd{
		SID: sid, UID: s.Store.UserID(claims.Subject), JTI: jti, Expires: time.Unix(claims.ExpiresAt, 0), Place: placeOf(claims),
	}
}

// placeOf is the place that an access token names, zero if it names none.
func placeOf(claims edge.Claims) tokenstore.Place {
	id, err := statuslist.ParseID(claims.StatusURI[strings.LastIndexByte(claims.StatusURI, '/')+1:])
	if err != nil {
		return tokenstore.Place{}
	}
	return tokenstore.Place{History: id.History, N: statuslist.Place(id.Block, int(claims.StatusIndex))} //nolint:gosec // Latchkey signed it
}
