package handlers

import (
	"context"
	"errors"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// revoke is POST /oauth2/revoke (RFC 7009): ends what a refresh or an access token
// stands for, as a logout does. Of a user's session both kinds end all of it
// (section 2.1); a token that a client got for itself ends alone. A client ends only
// what was issued to it.
//
// A 200 means that no replica accepts the token any more, nor the session that it names,
// or that it never was one (section 2.2). A token that cannot be checked is invalid_grant
// while the session that it names may be alive.
func (a *api) revoke(c *gin.Context) error {
	p, err := bindForm(c)
	if err != nil {
		return err
	}
	client, err := a.client(c, p, a.Store.AuthenticateClient)
	if err != nil {
		return err
	}
	if p["token"] == "" {
		return badRequest("token is required")
	}
	shown, err := a.endOfShown(c.Request.Context(), p["token"], client.ID)
	if err != nil {
		return err
	}
	for _, end := range shown.ends {
		if err := a.endOne(c, EventTokenRevoked, end); errors.Is(err, tokenstore.ErrForeign) {
			return errForeign
		} else if err != nil {
			return err
		}
	}
	why, err := a.notEnded(c.Request.Context(), shown)
	if err != nil {
		return err
	}
	if why != nil {
		return errUncheckedGrant
	}
	c.Status(http.StatusOK)
	return nil
}

// endOfShown names the session that a token of either kind belongs to: none for what is
// no token of ours. An access token says whom it was issued to; of a refresh
// token the store knows. Errors: errForeign, [edge.ErrUnavailable].
func (a *api) endOfShown(ctx context.Context, shown, client string) (*shownSessions, error) {
	sessions := &shownSessions{}
	if token, err := a.Refresh.Parse(shown); err == nil {
		sessions.end(tokenstore.SessionEnd{SID: token.SID, UID: token.UID, IssuedTo: &client})
		return sessions, nil
	}
	if left, ok := a.uncheckedRefresh(shown); ok {
		sessions.left = append(sessions.left, left)
		return sessions, nil
	}
	claims, err := a.Issued.Authentic(ctx, shown)
	if errors.Is(err, edge.ErrInvalid) {
		if left, ok := a.uncheckedAccess(shown, err); ok {
			sessions.left = append(sessions.left, left)
		}
		return sessions, nil
	}
	if err != nil {
		return nil, err
	}
	own := claims.ClientID == client || client == "" && !tokenstore.IsClient(claims.ClientID)
	if !own {
		return nil, errForeign
	}
	sessions.end(a.endOf(claims))
	return sessions, nil
}

var (
	// errForeign says that a token was issued to another client (RFC 7009 section 2.1).
	errForeign = &requestError{code: "invalid_grant", description: "The token was issued to another client"}
	// errUncheckedGrant is errUnchecked for clients.
	errUncheckedGrant = &requestError{
		code:        "invalid_grant",
		description: "The token cannot be checked any more, so its session may live on; send its refresh token or a fresh access token",
	}
)
