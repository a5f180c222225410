package handlers

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// tokenResponse is the answer to a login and a refresh (RFC 6749 section 5.1).
type tokenResponse struct {
	AccessToken  string `json:"access_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int    `json:"expires_in"`
	RefreshToken string `json:"refresh_token,omitempty"`
	Scope        string `json:"scope,omitempty"`
}

// issue signs an access token for a grant and returns the answer that carries
// it. The refresh token goes into a cookie, or for clients that are no browser
// into the answer.
func (a *api) issue(c *gin.Context, g tokenstore.Grant, t refreshtoken.Token, inBody bool) (tokenResponse, error) {
	access, err := a.accessToken(g, t)
	if err != nil {
		return tokenResponse{}, err
	}
	answer := tokenResponse{
		AccessToken: access, TokenType: "bearer",
		ExpiresIn: int(a.Store.Lifetimes().Access / time.Second), Scope: g.Scope,
	}
	if inBody {
		answer.RefreshToken = a.Refresh.Encode(t)
	} else {
		a.setRefreshCookie(c, a.Refresh.Encode(t), g.RefreshExpiry.Sub(g.Now))
		a.setAccessCookie(c, access)
	}
	return answer, nil
}

// accessToken signs what the store granted. iat and exp are Redis time, as all
// that will judge the token.
func (a *api) accessToken(g tokenstore.Grant, t refreshtoken.Token) (string, error) {
	jti, err := a.Store.NewID(t.UID)
	if err != nil {
		return "", err
	}
	iat := g.Now.Unix()
	token, err := a.Signer.Sign(accesstoken.Claims{
		Issuer: a.Settings.Issuer, Subject: g.Subject, Audience: []string{a.Settings.Audience},
		ID: jti.String(), SessionID: tokenstore.ID(t.SID).String(), ClientID: g.ClientID, Scope: g.Scope,
		UserEpoch: g.UserEpoch, LogEpoch: g.LogEpoch,
		IssuedAt: iat, ExpiresAt: iat + int64(a.Store.Lifetimes().Access/time.Second), AuthTime: g.AuthTime.Unix(),
	})
	if err != nil {
		return "", fmt.Errorf("sign the access token: %w", err)
	}
	return token, nil
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
