package handlers

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// end has commit end sessions in Redis, and returns nil once no replica accepts them.
// Whatever comes of that, it records the event, with whether the confirmation followed.
//
// A client that goes away does not interrupt commit: else nobody would know whether it
// took effect. It does end the wait for the confirmation, which is for that client alone.
// If commit returns an error that says for certain that nothing happened, there is no event.
// Errors: that of commit; [tokenstore.ErrUnavailable], and then the request may be sent
// again.
func (a *api) end(c *gin.Context, e Event, commit func(context.Context) (tokenstore.Revocation, error), attrs ...slog.Attr) error {
	happened, confirmed := true, false
	defer func() { // also if there is a panic
		if happened {
			a.note(c, e, append(attrs, slog.Bool("confirmed", confirmed))...)
		}
	}()
	revoked, err := commit(context.WithoutCancel(c.Request.Context()))
	if err != nil {
		happened = errors.Is(err, tokenstore.ErrUnavailable) // it may have
		return err
	}
	err = a.confirm(c, revoked)
	confirmed = err == nil
	return err
}

// confirm returns once no replica accepts what was revoked: the promise of a
// 200. Error: [tokenstore.ErrUnavailable]; the request may be sent again.
func (a *api) confirm(c *gin.Context, r tokenstore.Revocation) error {
	start := time.Now()
	err := a.Confirmer.Confirm(c.Request.Context(), r)
	a.Metrics.confirmed(time.Since(start), err)
	return err
}
