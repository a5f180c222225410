package handlers

import (
	"errors"
	"log/slog"
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
// A 200 means that no replica accepts the token any more, be it because it was never
// one (section 2.2).
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
	end, known, err := a.endOfShown(c, p["token"], client.ID)
	if err != nil {
		return err
	}
	if known {
		err = a.endShown(c, end)
	}
	if err != nil {
		return err
	}
	c.Status(http.StatusOK)
	return nil
}

// endOfShown names the session that a token of either kind belongs to, and false for
// what is no token of ours. An access token says whom it was issued to; of a refresh
// token the store knows. Errors: errForeign, [edge.ErrUnavailable].
func (a *api) endOfShown(c *gin.Context, shown, client string) (tokenstore.SessionEnd, bool, error) {
	if token, err := a.Refresh.Parse(shown); err == nil {
		return tokenstore.SessionEnd{SID: token.SID, UID: token.UID, IssuedTo: &client}, true, nil
	}
	claims, err := a.Issued.Authentic(c.Request.Context(), shown)
	switch {
	case errors.Is(err, edge.ErrUnavailable):
		return tokenstore.SessionEnd{}, false, err
	case errors.Is(err, edge.ErrInvalid):
		return tokenstore.SessionEnd{}, false, nil
	case err != nil:
		return tokenstore.SessionEnd{}, false, err
	}
	own := claims.ClientID == client || client == "" && !tokenstore.IsClient(claims.ClientID)
	if !own {
		return tokenstore.SessionEnd{}, false, errForeign
	}
	return a.endOf(claims), true, nil
}

// errForeign says that a token was issued to another client (RFC 7009 section 2.1).
var errForeign = &requestError{code: "invalid_grant", description: "The token was issued to another client"}

// endShown ends a session, and returns once no replica accepts its tokens.
func (a *api) endShown(c *gin.Context, end tokenstore.SessionEnd) error {
	revoked, err := a.Store.Revoke(c.Request.Context(), end)
	switch {
	case errors.Is(err, tokenstore.ErrNoSession):
		return nil // its ids are of shards that are no more: nothing accepts it
	case errors.Is(err, tokenstore.ErrForeign):
		return errForeign
	case err == nil:
		err = a.confirm(c, revoked)
	}
	if err != nil {
		return err
	}
	a.note(c, EventTokenRevoked, slog.String("sid", end.SID.String()))
	return nil
}
