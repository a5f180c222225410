package handlers

import (
	"net/http"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/session"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// sessionResponse is one of the caller's sessions.
type sessionResponse struct {
	ID        string    `json:"id"` // sid
	CreatedAt time.Time `json:"created_at"`
	LastUsed  time.Time `json:"last_used_at"`
	ExpiresAt time.Time `json:"expires_at"` // unless it is refreshed before
	Device    string    `json:"device"`
	Address   string    `json:"address"`
	ClientID  string    `json:"client_id"`
	Current   bool      `json:"current"`
}

// sessionsResponse is one page of them.
type sessionsResponse struct {
	Sessions []sessionResponse `json:"sessions"`
	Next     string            `json:"next,omitempty"` // the parameter after of the next page
}

// listSessions is GET /auth/sessions.
func (a *api) listSessions(c *gin.Context) error {
	after, err := queryParam(c, "after")
	if err != nil {
		return err
	}
	limit, err := pageLimit(c)
	if err != nil {
		return err
	}
	caller, err := a.caller(c)
	if err != nil {
		return err
	}
	list, next, err := a.sessions.Sessions(c.Request.Context(), caller, after, limit)
	if err != nil {
		return err
	}
	answer := make([]sessionResponse, len(list))
	for i, s := range list {
		answer[i] = sessionResponse{
			ID: s.SID.String(), CreatedAt: s.Created.UTC(), LastUsed: s.LastUsed.UTC(), ExpiresAt: s.Expires.UTC().Truncate(time.Millisecond),
			Device: s.Device, Address: s.Address, ClientID: s.ClientID, Current: s.SID == caller.SID,
		}
	}
	c.JSON(http.StatusOK, sessionsResponse{Sessions: answer, Next: next})
	return nil
}

// pageLimit is how many sessions the caller wants to see at once.
func pageLimit(c *gin.Context) (int, error) {
	text, err := queryParam(c, "limit")
	if err != nil || text == "" {
		return tokenstore.MaxSessionPage, err
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > tokenstore.MaxSessionPage {
		return 0, badRequest("limit is a number from 1 to %d", tokenstore.MaxSessionPage)
	}
	return n, nil
}

// endSession is DELETE /auth/sessions/{sid}: 204, or 404 if the caller has no
// such session, be it another's or none.
func (a *api) endSession(c *gin.Context) error {
	caller, err := a.caller(c)
	if err != nil {
		return err
	}
	sid, err := tokenstore.ParseID(c.Param("sid"))
	if err != nil {
		return session.ErrNoSession
	}
	if err := a.sessions.EndSession(c.Request.Context(), originOf(c), caller, sid); err != nil {
		return err
	}
	if sid == caller.SID {
		a.clearRefreshCookie(c)
		a.clearAccessCookie(c)
	}
	c.Status(http.StatusNoContent)
	return nil
}
