package handlers

import (
	"log/slog"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/session"
)

// originOf says which request the events of an operation belong to.
func originOf(c *gin.Context) session.Origin {
	return session.Origin{RequestID: requestID(c), Address: c.ClientIP()}
}

// note records a security event of a request to the API.
func (a *api) note(c *gin.Context, e session.Event, attrs ...slog.Attr) {
	a.sessions.Record(c.Request.Context(), originOf(c), e, attrs...)
}
