package handlers

import (
	"net/http"
	"strconv"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/jsontext"
	"github.com/latchkey-auth/latchkey/internal/session"
)

// tokenResponse is the answer to a login and a refresh (RFC 6749 section 5.1). appendJSON
// writes it.
type tokenResponse struct {
	AccessToken  string `json:"access_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int    `json:"expires_in"`
	RefreshToken string `json:"refresh_token,omitempty"`
	Scope        string `json:"scope,omitempty"`
	// DeviceToken makes whoever logs in a known device, where cookies cannot.
	DeviceToken string `json:"device_token,omitempty"`
}

// send answers 200 with the JSON of t.
func (t tokenResponse) send(c *gin.Context) {
	c.Data(http.StatusOK, "application/json; charset=utf-8", t.appendJSON(make([]byte, 0, 1024)))
}

// appendJSON appends what encoding/json would write, but for the escapes for HTML. Every
// refresh passes here, and encoding/json takes several times as long.
func (t tokenResponse) appendJSON(b []byte) []byte {
	b = jsontext.AppendString(append(b, `{"access_token":`...), t.AccessToken)
	b = jsontext.AppendString(append(b, `,"token_type":`...), t.TokenType)
	b = strconv.AppendInt(append(b, `,"expires_in":`...), int64(t.ExpiresIn), 10)
	for _, member := range [...]struct{ name, value string }{
		{`,"refresh_token":`, t.RefreshToken}, {`,"scope":`, t.Scope}, {`,"device_token":`, t.DeviceToken},
	} {
		if member.value != "" {
			b = jsontext.AppendString(append(b, member.name...), member.value)
		}
	}
	return append(b, '}')
}

// inBody is the answer that carries all tokens, for clients that are no browser.
func inBody(t session.Tokens) tokenResponse {
	return tokenResponse{
		AccessToken: t.Access, TokenType: t.Type, ExpiresIn: t.ExpiresIn, Scope: t.Scope,
		RefreshToken: t.Refresh, DeviceToken: t.Device,
	}
}

// inCookies sets the refresh token in a cookie, and the access token too if the settings say
// so, and returns the answer that carries the access token.
func (a *api) inCookies(c *gin.Context, t session.Tokens) tokenResponse {
	a.setRefreshCookie(c, t.SID, t.Refresh, t.RefreshLeft)
	if t.Type == "bearer" {
		a.setAccessCookie(c, t.SID, t.Access, max(t.ExpiresIn, 1))
	} else {
		// No browser sends a proof along with a cookie. The access cookie of an earlier
		// login would name another session.
		a.clearAccessCookie(c)
	}
	if t.Device != "" {
		a.setDeviceCookie(c, t.Device)
	}
	t.Refresh, t.Device = "", ""
	return inBody(t)
}
