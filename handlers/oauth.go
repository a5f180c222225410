package handlers

import (
	"errors"
	"log/slog"
	"mime"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// oauth is serve for the endpoints under /oauth2, which speak to clients and not to
// browsers: they read no cookie, and their errors are those of RFC 6749 section 5.2.
func (a *api) oauth(e endpoint) gin.HandlerFunc {
	return a.serve(func(c *gin.Context) error {
		// RFC 6749 section 5.1. Cache-Control is on every answer.
		c.Header("Pragma", "no-cache")
		err := e(c)
		if errors.Is(err, errRefreshToken) {
			return &requestError{code: "invalid_grant", description: "The refresh token is not valid"}
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
	switch p["grant_type"] {
	case grantClientCredentials:
		return a.clientCredentials(c, p)
	case grantRefreshToken:
		return a.refreshGrant(c, p)
	case "":
		return badRequest("grant_type is required")
	}
	return &requestError{code: "unsupported_grant_type", description: "grant_type is client_credentials or refresh_token"}
}

// clientCredentials issues an access token to a client for itself (RFC 6749 section
// 4.4): one round trip, and one for a DPoP proof. There is no refresh token with it (section 4.4.3).
func (a *api) clientCredentials(c *gin.Context, p params) error {
	if err := a.canSign(); err != nil {
		return err
	}
	proof, err := a.offeredProof(c)
	if err != nil {
		return err
	}
	client, err := a.client(c, p, a.Store.IssueToClient)
	if err != nil {
		return err
	}
	if err := allow(client.Client, grantClientCredentials); err != nil {
		return err
	}
	g := client.Grant
	if g.Scope, err = exactScope(p["scope"], client.Scopes); err != nil {
		return err
	}
	if err := a.spend(c, proof); err != nil {
		return err
	}
	g.JKT = proof.JKT()
	uid := a.Store.UserID(client.ID)
	// A session of its own that nothing else belongs to: to revoke the token is to
	// end it. To end all of them is to raise the client's epoch.
	sid, err := a.Store.NewID(uid)
	if err != nil {
		return err
	}
	m := minted{grant: g, sid: sid, uid: uid, client: client.Client}
	if m.asked, err = a.askClaims(c, hookClientCredentials, m); err != nil {
		return err
	}
	answer, err := a.answer(m)
	if err != nil {
		return err
	}
	a.note(c, EventClientToken, slog.String("client_id", client.ID), slog.String("sid", sid.String()))
	answer.send(c)
	return nil
}

// refreshGrant exchanges a refresh token that was handed out in a body (RFC 6749
// section 6): two round trips, or one for the public client, and one for a DPoP proof.
func (a *api) refreshGrant(c *gin.Context, p params) error {
	if err := a.canSign(); err != nil {
		return err
	}
	proof, err := a.offeredProof(c)
	if err != nil {
		return err
	}
	client, err := a.client(c, p, a.Store.AuthenticateClient)
	if err != nil {
		return err
	}
	if client.ID != "" {
		if err := allow(client.Client, grantRefreshToken); err != nil {
			return err
		}
	}
	if p["refresh_token"] == "" {
		return badRequest("refresh_token is required")
	}
	if p["scope"] != "" {
		if _, err := scopeNames(p["scope"]); err != nil {
			return errScopeMalformed
		}
	}
	token, err := a.Refresh.Parse(p["refresh_token"])
	if err != nil {
		a.note(c, EventRefreshRefused, slog.String("reason", "invalid"))
		return errRefreshToken
	}
	if err := a.spend(c, proof); err != nil {
		return err
	}
	answer, err := a.renew(c, token, renewal{client: client.Client, scope: p["scope"], inBody: true, jkt: proof.JKT()})
	if errors.Is(err, tokenstore.ErrScope) {
		return &requestError{code: "invalid_scope", description: "The scope exceeds what was granted"}
	}
	if err != nil {
		return err
	}
	answer.send(c)
	return nil
}

// errScopeMalformed says that a scope is not as RFC 6749 section 3.3 writes it.
var errScopeMalformed = &requestError{code: "invalid_scope", description: "scope is one or more names with one space between them"}

// exactScope is the requested scope, or all that is allowed if none was requested.
// A program that asks for more than it may have is not given less: it would fail
// later, and elsewhere.
func exactScope(requested, allowed string) (string, error) {
	if requested == "" {
		return allowed, nil
	}
	names, err := scopeNames(requested)
	if err != nil {
		return "", errScopeMalformed
	}
	may := strings.Fields(allowed)
	for _, name := range names {
		if !slices.Contains(may, name) {
			return "", &requestError{code: "invalid_scope", description: "The scope exceeds what the client is allowed"}
		}
	}
	return grantedScope(requested, allowed)
}
