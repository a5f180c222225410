package session

import (
	"context"
	"errors"
	"log/slog"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Account returns the caller's account. Errors: [edge.ErrRevoked] if the session has ended
// meanwhile; [tokenstore.ErrNoAccount]; [tokenstore.ErrUnavailable].
func (s *Service) Account(ctx context.Context, caller Caller) (tokenstore.Account, error) {
	username, err := s.username(ctx, caller)
	if err != nil {
		return tokenstore.Account{}, err
	}
	account, _, err := s.Store.Accounts.Get(ctx, username)
	return account, err
}

// username is the name that the caller's session was opened with. The access token names
// the subject alone, which may be another.
func (s *Service) username(ctx context.Context, caller Caller) (string, error) {
	session, err := s.Store.Sessions.Get(ctx, caller.SID)
	if errors.Is(err, tokenstore.ErrNoSession) {
		return "", edge.ErrRevoked
	}
	return session.Username, err
}

// Sessions lists the caller's sessions by pages. next is the cursor of the next page, "" for
// none. Errors: a [RequestError]; [tokenstore.ErrUnavailable].
func (s *Service) Sessions(ctx context.Context, caller Caller, cursor string, limit int) (list []tokenstore.Session, next string, err error) {
	list, next, err = s.Store.Sessions.List(ctx, caller.UID, cursor, limit)
	if errors.Is(err, tokenstore.ErrCursor) {
		err = BadRequest("after must be the value of next in an earlier answer")
	}
	return list, next, err
}

// EndSession ends one of the caller's sessions. Errors: ErrNoSession if the caller has no
// such session, be it another's or none; [tokenstore.ErrUnavailable].
func (s *Service) EndSession(ctx context.Context, from Origin, caller Caller, sid tokenstore.ID) error {
	end := tokenstore.SessionEnd{SID: sid, UID: caller.UID, Owner: caller.Subject}
	err := s.end(ctx, from, EventSessionEnded, func(ctx context.Context) (tokenstore.Revocation, error) {
		return s.Store.Sessions.Revoke(ctx, end)
	}, slog.String("sub", caller.Subject), slog.String("sid", sid.String()))
	if errors.Is(err, tokenstore.ErrNoSession) {
		return ErrNoSession
	}
	return err
}

// LogoutAll ends all sessions of the caller, or all but the caller's own. Errors:
// [edge.ErrRevoked] if the caller's session has ended meanwhile;
// [tokenstore.ErrUnavailable].
func (s *Service) LogoutAll(ctx context.Context, from Origin, caller Caller, exceptCurrent bool) error {
	end := tokenstore.UserEnd{UID: caller.UID}
	if exceptCurrent {
		end.Except = &caller.SID
	}
	err := s.end(ctx, from, EventLogoutAll, func(ctx context.Context) (tokenstore.Revocation, error) {
		return s.Store.Sessions.RevokeUser(ctx, end)
	}, slog.String("sub", caller.Subject), slog.Bool("except_current", exceptCurrent))
	if errors.Is(err, tokenstore.ErrNoSession) {
		return edge.ErrRevoked
	}
	return err
}
