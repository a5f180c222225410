package handlers

import (
	"errors"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/session"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// login is POST /auth/token.
func (a *api) login(c *gin.Context) error {
	req, body, err := readLogin(c)
	if err != nil {
		return err
	}
	req.Earlier, req.Proof, req.UserAgent = a.endingCookies(c.Request), a.proof(c), c.Request.UserAgent()
	for _, cookie := range c.Request.CookiesNamed(deviceCookie) {
		req.Devices = append(req.Devices, cookie.Value)
	}
	tokens, err := a.sessions.Login(c.Request.Context(), originOf(c), req)
	if errors.Is(err, session.ErrTooMany) {
		return a.tooManyShown(c)
	}
	if err != nil {
		return err
	}
	if !body {
		a.inCookies(c, tokens).send(c)
		return nil
	}
	if len(a.refreshCookies(c.Request)) > 0 {
		a.clearRefreshCookie(c) // the sessions of those have ended
		a.clearAccessCookie(c)
	}
	inBody(tokens).send(c)
	return nil
}

// readLogin reads and checks the parameters of a login. inBody says that the refresh token is
// to come in the body.
func readLogin(c *gin.Context) (r session.LoginRequest, inBody bool, err error) {
	p, err := bind(c)
	if err != nil {
		return r, false, err
	}
	r = session.LoginRequest{Username: p["username"], Password: p["password"], Scope: p["scope"], Devices: []string{p["device_token"]}}
	if g := p["grant_type"]; g != "" && g != "password" {
		return r, false, &session.RequestError{Code: "unsupported_grant_type", Description: "grant_type is password, or absent"}
	}
	switch p["refresh_delivery"] {
	case "", "cookie":
	case "body":
		inBody = true
	default:
		return r, false, badRequest("refresh_delivery is cookie or body")
	}
	// Clients of other services send a client_id here that means nothing; only that
	// of a registered client does.
	if client, err := p.credentials(c.Request); tokenstore.IsClient(client.ID) {
		if err != nil {
			return r, false, err
		}
		if p["refresh_delivery"] == "cookie" {
			return r, false, badRequest("A registered client gets the refresh token in the body")
		}
		r.Client, inBody = client, true
	}
	if r.Username == "" || r.Password == "" {
		return r, false, badRequest("username and password are required")
	}
	if err := credential.ValidateUsername(r.Username); err != nil {
		return r, false, badRequest("%v", err)
	}
	if err := credential.ValidatePassword(r.Password); err != nil {
		return r, false, badRequest("%v", err)
	}
	return r, inBody, nil
}
