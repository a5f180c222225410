package session

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// ChangePassword replaces the caller's password and ends all other sessions.
//
// It is safe to call again within five minutes: if the same change was already made, the
// user's other sessions are ended, in case the first call did not get that far. Errors: a
// [RequestError], ErrPassword, a [ThrottledError], [edge.ErrRevoked],
// [credential.ErrBusy], [tokenstore.ErrConflict], [tokenstore.ErrUnavailable].
func (s *Service) ChangePassword(ctx context.Context, from Origin, caller Caller, current, next string) error {
	if current == "" || next == "" {
		return BadRequest("current_password and new_password are required")
	}
	for _, password := range []string{current, next} {
		if err := credential.ValidatePassword(password); err != nil {
			return BadRequest("%v", err)
		}
	}
	username, err := s.username(ctx, caller)
	if err != nil {
		return err
	}
	changedAt, err := s.replacePassword(ctx, from, caller, username, current, next)
	if err != nil {
		return err
	}
	return s.end(ctx, from, EventPasswordChanged, func(ctx context.Context) (tokenstore.Revocation, error) {
		revoked, err := s.Store.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: caller.UID, Except: &caller.SID, ChangedAt: changedAt})
		if errors.Is(err, tokenstore.ErrNoSession) {
			// This session ended meanwhile: then all end.
			revoked, err = s.Store.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: caller.UID, ChangedAt: changedAt})
		}
		return revoked, err
	}, slog.String("sub", caller.Subject))
}

// replacePassword stores the new password if the current one is right, or finds
// that the same request did so before. It returns when the change took effect. Guesses are
// throttled as logins are: an access token is no licence to try passwords. The session
// has a budget of its own, so that strangers do not keep its owner from the change.
func (s *Service) replacePassword(ctx context.Context, from Origin, caller Caller, username, current, next string) (time.Time, error) {
	attempt := s.attempt(from, username, nil)
	attempt.Device = "session " + caller.SID.String()
	found, err := s.lookUp(ctx, from, attempt)
	if err != nil {
		return time.Time{}, err
	}
	if !found.Found {
		s.refund(ctx, from, found.Charge)
		return time.Time{}, edge.ErrRevoked
	}
	right, err := s.Passwords.Verify(ctx, found.Account.Hash, current)
	if err != nil {
		s.refund(ctx, from, found.Charge) // nothing was tried
		return time.Time{}, err
	}
	if !right.Match {
		again, err := s.changedBefore(ctx, found.Account, current, next)
		if err != nil {
			return time.Time{}, err // the guess was tried, and stays charged
		}
		if !again {
			s.Record(ctx, from, EventPasswordRefused, slog.String("sub", found.Account.Subject))
			return time.Time{}, ErrPassword
		}
	}
	s.refund(ctx, from, found.Charge)
	if !right.Match {
		return found.ReadAt, nil
	}
	hash, err := s.Passwords.Hash(ctx, next)
	if err != nil {
		return time.Time{}, err
	}
	changedAt, err := s.Store.Accounts.ReplacePassword(context.WithoutCancel(ctx), username, found.Account.Hash, hash)
	if errors.Is(err, tokenstore.ErrUnavailable) { // it may have been changed, and nothing else will say so
		s.Record(ctx, from, EventPasswordChanged, slog.String("sub", found.Account.Subject), slog.Bool("confirmed", false))
	}
	return changedAt, err
}

// changedBefore reports whether the user replaced the password current by next within the
// last five minutes. It compares next with the password in force only if current is the one
// that was replaced, so that nobody else can use it to guess the password in force.
func (s *Service) changedBefore(ctx context.Context, account tokenstore.Account, current, next string) (bool, error) {
	replaced, err := s.Store.Accounts.ReplacedPassword(ctx, account.Username)
	if err != nil || replaced == "" {
		return false, err
	}
	for _, pair := range [][2]string{{replaced, current}, {account.Hash, next}} {
		result, err := s.Passwords.Verify(ctx, pair[0], pair[1])
		if err != nil || !result.Match {
			return false, err
		}
	}
	return true, nil
}
