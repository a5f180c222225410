package handlers

import (
	"cmp"
	"errors"
	"log/slog"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// maxFamilies is how many families of refresh tokens one refresh may try: a
// browser with a cookie left over from an earlier path has two. A logout has no
// such bound but that of the request's headers: it must end what it was shown.
const maxFamilies = 4

// refresh is POST /auth/refresh: one round trip.
func (a *api) refresh(c *gin.Context) error {
	p, err := bind(c)
	if err != nil {
		return err
	}
	shown := refreshCookies(c.Request)
	inBody := p["refresh_token"] != ""
	if inBody {
		if len(shown) > 0 {
			return badRequest("The refresh token was sent twice: as a cookie and in the body")
		}
		shown = []string{p["refresh_token"]}
	}
	if len(shown) == 0 {
		return errNoRefreshToken
	}
	families := a.families(shown)
	if len(families) == 0 {
		a.note(c, EventRefreshRefused, slog.String("reason", "invalid"))
		return errRefreshToken
	}
	for _, token := range families[:min(len(families), maxFamilies)] {
		next, grant, err := a.rotate(c, token)
		if errors.Is(err, errRefreshToken) {
			continue // another cookie may be the living one
		}
		if err != nil {
			return err
		}
		answer, err := a.issue(c, grant, next, inBody)
		if err != nil {
			return err
		}
		if len(shown) > 1 {
			a.expireStrays(c)
		}
		c.JSON(http.StatusOK, answer)
		return nil
	}
	return errRefreshToken
}

// families reads the tokens that are ours, one for each session: the newest, as
// to show an older one beside it would be to report a theft.
func (a *api) families(shown []string) []refreshtoken.Token {
	var list []refreshtoken.Token
	for _, text := range shown {
		token, err := a.Refresh.Parse(text)
		if err != nil {
			continue
		}
		known := false
		for i := range list {
			if list[i].SID == token.SID {
				known = true
				if token.Gen > list[i].Gen {
					list[i] = token
				}
			}
		}
		if !known {
			list = append(list, token)
		}
	}
	return list
}

// rotate exchanges a refresh token for its successor. Every way in which a
// token is not valid is errRefreshToken outside; log and metric tell them apart.
func (a *api) rotate(c *gin.Context, token refreshtoken.Token) (refreshtoken.Token, tokenstore.Grant, error) {
	if err := a.Signer.Ready(); err != nil {
		return token, tokenstore.Grant{}, err // before the rotation, which a retry might find too old
	}
	if a.Stalled != nil && a.Stalled() {
		return token, tokenstore.Grant{}, errStalled
	}
	next, err := a.Refresh.Next(token)
	if err != nil {
		return next, tokenstore.Grant{}, errRefreshToken
	}
	grant, ended, err := a.Store.Rotate(c.Request.Context(), tokenstore.Rotation{
		SID: token.SID, UID: token.UID, Gen: token.Gen, Hash: token.Hash(), Next: next.Hash(),
	})
	sid := slog.String("sid", tokenstore.ID(token.SID).String())
	refused := func(reason string) error {
		a.note(c, EventRefreshRefused, sid, slog.String("reason", reason))
		return errRefreshToken
	}
	switch {
	case err == nil && grant.Same:
		a.note(c, EventRefreshSame, sid, slog.String("sub", grant.Subject))
	case err == nil:
		a.note(c, EventRefresh, sid, slog.String("sub", grant.Subject))
	case errors.Is(err, tokenstore.ErrReuse):
		a.note(c, EventRefreshReuse, sid)
		err = cmp.Or(a.confirm(c, ended), errRefreshToken)
	case errors.Is(err, tokenstore.ErrRollback):
		a.note(c, EventRefreshRollback, sid)
		err = cmp.Or(a.confirm(c, ended), errRefreshToken)
	case errors.Is(err, tokenstore.ErrNoSession):
		err = refused("expired")
	case errors.Is(err, tokenstore.ErrRevoked):
		// Perhaps by this very request: a client library repeats what is not answered.
		err = cmp.Or(a.confirm(c, ended), refused("revoked"))
	case errors.Is(err, tokenstore.ErrSuperseded):
		err = refused("superseded")
	}
	return next, grant, err
}
