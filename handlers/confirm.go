package handlers

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// end calls commit, which revokes sessions in Redis, waits until no replica accepts them,
// and records event e with confirmed=true. If commit or the confirmation fails with
// ErrUnavailable, the event is recorded all the same, with confirmed=false. If commit fails
// with another error, nothing has happened, and no event is recorded.
//
// commit runs to its end even if the client goes away; otherwise nobody would know whether
// it took effect. The wait for the confirmation ends with the request.
//
// Errors: those of commit; [tokenstore.ErrUnavailable], after which the request may be sent
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
