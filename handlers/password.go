package handlers

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// changePassword is POST /users/me/password with current_password and
// new_password. All other sessions end.
//
// It is safe to send again: if the new password is already in force, what was
// left undone is done.
func (a *api) changePassword(c *gin.Context) error {
	p, err := bind(c)
	if err != nil {
		return err
	}
	caller, err := a.caller(c)
	if err != nil {
		return err
	}
	current, next := p["current_password"], p["new_password"]
	if current == "" || next == "" {
		return badRequest("current_password and new_password are required")
	}
	for _, password := range []string{current, next} {
		if err := credential.ValidatePassword(password); err != nil {
			return badRequest("%v", err)
		}
	}
	username, err := a.username(c, caller)
	if err != nil {
		return err
	}
	changedAt, err := a.replacePassword(c, username, current, next)
	if err != nil {
		return err
	}
	err = a.end(c, EventPasswordChanged, func(ctx context.Context) (tokenstore.Revocation, error) {
		revoked, err := a.Store.RevokeUser(ctx, tokenstore.UserEnd{UID: caller.uid, Except: &caller.sid, ChangedAt: changedAt})
		if errors.Is(err, tokenstore.ErrNoSession) {
			// This session ended meanwhile: then all end.
			revoked, err = a.Store.RevokeUser(ctx, tokenstore.UserEnd{UID: caller.uid, ChangedAt: changedAt})
		}
		return revoked, err
	}, slog.String("sub", caller.Subject))
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, message{"Password changed; all other sessions have ended"})
	return nil
}

// replacePassword stores the new password if the current one is right, or finds
// that it is stored already. It returns when the change took effect. Guesses are
// throttled as logins are: an access token is no licence to try passwords.
func (a *api) replacePassword(c *gin.Context, username, current, next string) (time.Time, error) {
	ctx := c.Request.Context()
	attempt := a.attempt(c, username)
	found, err := a.Store.Lookup(ctx, attempt)
	if err != nil {
		return time.Time{}, err
	}
	if !found.Found {
		return time.Time{}, edge.ErrRevoked
	}
	if found.Wait > 0 {
		a.note(c, EventLoginThrottled)
		return time.Time{}, &throttledError{wait: found.Wait}
	}
	right, err := a.Passwords.Verify(ctx, found.Account.Hash, current)
	if err != nil {
		return time.Time{}, err
	}
	if !right.Match {
		already, err := a.Passwords.Verify(ctx, found.Account.Hash, next)
		if err != nil {
			return time.Time{}, err
		}
		if already.Match {
			return found.ReadAt, nil
		}
		if err := a.Store.Failed(ctx, attempt); err != nil {
			return time.Time{}, err
		}
		a.note(c, EventPasswordRefused, slog.String("sub", found.Account.Subject))
		return time.Time{}, errPassword
	}
	hash, err := a.Passwords.Hash(ctx, next)
	if err != nil {
		return time.Time{}, err
	}
	changedAt, err := a.Store.SetPassword(context.WithoutCancel(ctx), username, found.Account.Hash, hash)
	if errors.Is(err, tokenstore.ErrUnavailable) { // it may have been changed, and nothing else will say so
		a.note(c, EventPasswordChanged, slog.String("sub", found.Account.Subject), slog.Bool("confirmed", false))
	}
	return changedAt, err
}
