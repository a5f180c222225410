package handlers

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/jsontext"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
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

// minted is what an access token is made of.
type minted struct {
	grant    tokenstore.Grant // Scope is that of this token
	sid, uid tokenstore.ID
	client   tokenstore.Client // zero for the service's own logins
	asked    extraClaims       // of the webhook
}

// mintedBy is the part that a refresh token names.
func mintedBy(t refreshtoken.Token, g tokenstore.Grant, client tokenstore.Client, asked extraClaims) minted {
	return minted{grant: g, sid: t.SID, uid: t.UID, client: client, asked: asked}
}

// canSign returns nil if there is a key to sign with. A request for tokens asks this before
// it takes effect or uses anything up: a password attempt, a DPoP proof, a refresh token.
// Error: [accesstoken.ErrNoKey].
func (a *api) canSign() error {
	_, err := a.Signer.Room(a.room.limit)
	return err
}

// issue signs an access token and returns the answer that carries it, and the refresh
// token.
func (a *api) issue(c *gin.Context, m minted, t refreshtoken.Token, inBody bool) (tokenResponse, error) {
	answer, err := a.answer(m)
	if err != nil {
		return tokenResponse{}, err
	}
	return a.handOut(c, answer, m, t, inBody), nil
}

// handOut adds the refresh token to an answer: in a cookie, or for clients that are no
// browser in the body.
func (a *api) handOut(c *gin.Context, answer tokenResponse, m minted, t refreshtoken.Token, inBody bool) tokenResponse {
	if inBody {
		answer.RefreshToken = a.Refresh.Encode(t)
		return answer
	}
	a.setRefreshCookie(c, m.sid, a.Refresh.Encode(t), m.grant.RefreshExpiry.Sub(m.grant.Now))
	if m.grant.JKT == "" {
		a.setAccessCookie(c, m.sid, answer.AccessToken, max(answer.ExpiresIn, 1))
	} else {
		// No browser sends a proof along with a cookie, and that of an earlier login
		// would say that it is somebody else.
		a.clearAccessCookie(c)
	}
	return answer
}

// answer signs an access token and returns the answer that carries it alone.
func (a *api) answer(m minted) (tokenResponse, error) {
	access, err := a.accessToken(m)
	kind := "bearer"
	if m.grant.JKT != "" {
		kind = "DPoP" // RFC 9449 section 5
	}
	return tokenResponse{
		AccessToken: access, TokenType: kind,
		ExpiresIn: int(a.accessExpiry(m.grant) - m.grant.Now.Unix()), Scope: m.grant.Scope,
	}, err
}

// accessExpiry returns the exp of an access token. The token does not outlive its session:
// of a session that Redis has dropped, nobody could tell whether its tokens still live.
func (a *api) accessExpiry(g tokenstore.Grant) int64 {
	exp := g.Now.Unix() + int64(a.Store.Lifetimes().Access/time.Second)
	if g.RefreshExpiry.IsZero() { // a client that speaks for itself has no session
		return exp
	}
	return min(exp, g.RefreshExpiry.Unix())
}

// accessToken signs what the store granted.
func (a *api) accessToken(m minted) (string, error) {
	jti, err := a.Store.NewID(m.uid)
	if err != nil {
		return "", err
	}
	token, err := a.Signer.Sign(a.tokenClaims(m, jti))
	if err != nil {
		return "", fmt.Errorf("sign the access token: %w", err)
	}
	return token, nil
}

// tokenClaims is what the access token says. iat and exp are Redis time, as all that
// will judge the token.
func (a *api) tokenClaims(m minted, jti tokenstore.ID) accesstoken.Claims {
	g, iat := m.grant, m.grant.Now.Unix()
	claims := accesstoken.Claims{
		Issuer: a.Settings.Issuer, Subject: g.Subject, Audience: a.audience(m.client),
		ID: jti.String(), SessionID: m.sid.String(), ClientID: g.ClientID, Scope: g.Scope,
		UserEpoch: g.UserEpoch, LogEpoch: g.LogEpoch,
		IssuedAt: iat, ExpiresAt: a.accessExpiry(g),
		Extra: a.extra(m), JKT: g.JKT,
	}
	if !g.AuthTime.IsZero() { // a client that speaks for itself has not logged in
		claims.AuthTime = g.AuthTime.Unix()
	}
	if a.lists != nil && g.Place.N != 0 {
		claims.StatusURI, claims.StatusIndex = a.lists.reference(m.uid.Shard(), g.Place)
	}
	return claims
}

// grantedScope is what of the requested scope an account is allowed; all of it
// if nothing was requested (RFC 6749 section 3.3).
func grantedScope(requested, allowed string) (string, error) {
	if requested == "" {
		return allowed, nil
	}
	may := strings.Fields(allowed)
	var granted []string
	for _, s := range strings.Fields(requested) {
		if slices.Contains(may, s) && !slices.Contains(granted, s) {
			granted = append(granted, s)
		}
	}
	if len(granted) == 0 {
		return "", &requestError{code: "invalid_scope", description: "None of the requested scope is allowed"}
	}
	return strings.Join(granted, " "), nil
}
