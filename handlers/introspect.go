package handlers

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// introspection is the answer about one token (RFC 7662 section 2.2).
type introspection map[string]any

// inactive is the answer about whatever is not a living token that the caller may
// know of. It says nothing else, not even why.
func inactive() introspection { return introspection{"active": false} }

// introspect is POST /oauth2/introspect (RFC 7662): is this token good now, and what
// does it say? The caller is a client that is registered to ask.
func (a *api) introspect(c *gin.Context) error {
	p, err := bindForm(c)
	if err != nil {
		return err
	}
	client, err := a.client(c, p, a.Store.AuthenticateClient)
	if err != nil {
		return err
	}
	if client.ID == "" {
		return errClient
	}
	if !client.Introspect {
		return errClientMayNot
	}
	if p["token"] == "" {
		return badRequest("token is required")
	}
	// Access and refresh tokens cannot be mistaken for one another, so
	// token_type_hint has nothing to tell (RFC 7662 section 2.1).
	var answer introspection
	if token, err := a.Refresh.Parse(p["token"]); err == nil {
		answer, err = a.examineRefresh(c, client.Client, token)
		if err != nil {
			return err
		}
	} else if answer, err = a.examineAccess(c, client.Client, p["token"]); err != nil {
		return err
	}
	c.JSON(http.StatusOK, answer)
	return nil
}

// examineAccess tells what an access token says, to the client that it was issued to
// and to those that it is for.
func (a *api) examineAccess(c *gin.Context, asker tokenstore.Client, token string) (introspection, error) {
	claims, err := a.Issued.Verify(c.Request.Context(), token)
	switch {
	case errors.Is(err, edge.ErrUnavailable):
		return nil, err
	case errors.Is(err, edge.ErrInvalid), errors.Is(err, edge.ErrExpired), errors.Is(err, edge.ErrRevoked):
		return inactive(), nil
	case err != nil:
		return nil, err
	}
	if claims.ClientID != asker.ID && !overlap(claims.Audience, a.audience(asker)) {
		return inactive(), nil
	}
	answer := introspection{}
	for name, value := range claims.Extra {
		answer[name] = value
	}
	for name, value := range map[string]any{
		"active": true, "token_type": "Bearer", "iss": claims.Issuer, "sub": claims.Subject, "aud": claims.Audience,
		"client_id": claims.ClientID, "jti": claims.ID, "sid": claims.SessionID, "iat": claims.IssuedAt, "exp": claims.ExpiresAt,
	} {
		answer[name] = value
	}
	if claims.Scope != "" {
		answer["scope"] = claims.Scope
	}
	if claims.JKT != "" { // RFC 9449 section 6.2
		answer["token_type"], answer["cnf"] = "DPoP", map[string]string{"jkt": claims.JKT}
	}
	if claims.AuthTime != 0 {
		answer["auth_time"] = claims.AuthTime
	}
	return answer, nil
}

// examineRefresh tells what a refresh token stands for, to the client that it was
// issued to and to no other: a resource server that is shown one must not take it
// for an access token.
func (a *api) examineRefresh(c *gin.Context, asker tokenstore.Client, token refreshtoken.Token) (introspection, error) {
	g, err := a.Store.Peek(c.Request.Context(), shownRefresh(token))
	if errors.Is(err, tokenstore.ErrNoSession) {
		return inactive(), nil
	}
	if err != nil {
		return nil, err
	}
	if !g.Current || g.ClientID != asker.ID { // spent, or another's
		return inactive(), nil
	}
	answer := introspection{
		"active": true, "iss": a.Settings.Issuer, "sub": g.Subject, "username": g.Username, "client_id": g.ClientID,
		"sid": tokenstore.ID(token.SID).String(), "auth_time": g.AuthTime.Unix(), "exp": g.RefreshExpiry.Unix(),
	}
	if g.Scope != "" {
		answer["scope"] = g.Scope
	}
	return answer, nil
}

// audience is whom a client's tokens are for.
func (a *api) audience(c tokenstore.Client) []string {
	if c.Audiences == "" {
		return []string{a.Settings.Audience}
	}
	return strings.Fields(c.Audiences)
}

func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}
