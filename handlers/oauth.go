package handlers

import (
	"errors"
	"mime"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/session"
)

// oauth is serve for the endpoints under /oauth2, which speak to clients and not to
// browsers: they read no cookie, and their errors are those of RFC 6749 section 5.2.
func (a *api) oauth(e endpoint) gin.HandlerFunc {
	return a.serve(func(c *gin.Context) error {
		// RFC 6749 section 5.1. Cache-Control is on every answer.
		c.Header("Pragma", "no-cache")
		err := e(c)
		if errors.Is(err, session.ErrRefreshToken) {
			return &session.RequestError{Code: "invalid_grant", Description: "The refresh token is not valid"}
		}
		return err
	})
}

// bindForm reads a body that must be a form (RFC 6749 section 3.2 and appendix B).
func bindForm(c *gin.Context) (params, error) {
	kind, _, err := mime.ParseMediaType(c.GetHeader("Content-Type"))
	if err != nil || kind != "application/x-www-form-urlencoded" {
		return nil, badRequest("Send the parameters as application/x-www-form-urlencoded")
	}
	return bind(c)
}

// token is POST /oauth2/token (RFC 6749 section 3.2).
func (a *api) token(c *gin.Context) error {
	p, err := bindForm(c)
	if err != nil {
		return err
	}
	grant := p["grant_type"]
	switch grant {
	case session.GrantClientCredentials, session.GrantRefreshToken:
	case "":
		return badRequest("grant_type is required")
	default:
		return &session.RequestError{Code: "unsupported_grant_type", Description: "grant_type is client_credentials or refresh_token"}
	}
	client, err := p.credentials(c.Request)
	if err != nil {
		return err
	}
	ctx, from, proof := c.Request.Context(), originOf(c), a.proof(c)
	var tokens session.Tokens
	if grant == session.GrantClientCredentials {
		tokens, err = a.sessions.ClientCredentials(ctx, from, session.ClientCredentialsRequest{Client: client, Scope: p["scope"], Proof: proof})
	} else {
		tokens, err = a.sessions.RefreshForClient(ctx, from, session.ClientRefresh{Client: client, Token: p["refresh_token"], Scope: p["scope"], Proof: proof})
	}
	if err != nil {
		return err
	}
	inBody(tokens).send(c)
	return nil
}
