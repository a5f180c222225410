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
// It is safe to send again within five minutes: if the same change was already made, the
// user's other sessions are ended, in case the first request did not get that far.
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
	changedAt, err := a.replacePassword(c, caller, username, current, next)
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
// that the same request did so before. It returns when the change took effect. Guesses are
// throttled as logins are: an access token is no licence to try passwords. The session
// has a budget of its own, so that strangers do not keep its owner from the change.
func (a *api) replacePassword(c *gin.Context, caller caller, username, current, next string) (time.Time, error) {
	ctx := c.Request.Context()
	attempt := a.attempt(c, username, "")
	attempt.Device = "session " + caller.sid.String()
	found, err := a.lookUp(c, attempt)
	if err != nil {
		return time.Time{}, err
	}
	if !found.Found {
		a.refund(c, found.Charge)
		return time.Time{}, edge.ErrRevoked
	}
	right, err := a.Passwords.Verify(ctx, found.Account.Hash, current)
	if err != nil {
		a.refund(c, found.Charge) // nothing was tried
		return time.Time{}, err
	}
	if !right.Match {
		again, err := a.changedBefore(ctx, found.Account, current, next)
		if err != nil {
			return time.Time{}, err // the guess was tried, and stays charged
		}
		if !again {
			a.note(c, EventPasswordRefused, slog.String("sub", found.Account.Subject))
			return time.Time{}, errPassword
		}
	}
	a.refund(c, found.Charge)
	if !right.Match {
		return found.ReadAt, nil
	}
	hash, err := a.Passwords.Hash(ctx, next)
	if err != nil {
		return time.Time{}, err
	}
	changedAt, err := a.Store.ReplacePassword(context.WithoutCancel(ctx), username, found.Account.Hash, hash)
	if errors.Is(err, tokenstore.ErrUnavailable) { // it may have been changed, and nothing else will say so
		a.note(c, EventPasswordChanged, slog.String("sub", found.Account.Subject), slog.Bool("confirmed", false))
	}
	return changedAt, err
}

// changedBefore reports whether the user replaced the password current by next within the
// last five minutes. It compares next with the password in force only if current is the one
// that was replaced, so that nobody else can use it to guess the password in force.
func (a *api) changedBefore(ctx context.Context, account tokenstore.Account, current, next string) (bool, error) {
	replaced, err := a.Store.ReplacedPassword(ctx, account.Username)
	if err != nil || replaced == "" {
		return false, err
	}
	for _, pair := range [][2]string{{replaced, current}, {account.Hash, next}} {
		result, err := a.Passwords.Verify(ctx, pair[0], pair[1])
		if err != nil || !result.Match {
			return false, err
		}
	}
	return true, nil
}
