package handlers

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// The grants that a registered client may be allowed.
const (
	grantClientCredentials = "client_credentials"
	grantRefreshToken      = "refresh_token"
)

var (
	// errClient says that the client could not be authenticated: it is unknown, or
	// its secret is another, or it shows none.
	errClient = errors.New("the client could not be authenticated")
	// errClientMayNot says that the client is not allowed to ask about tokens.
	errClientMayNot = errors.New("the client may not introspect")
)

// shownClient is who a request says that it comes from (RFC 6749 section 2.3.1).
type shownClient struct {
	id, secret string
}

// shownClient reads the client's credentials, from Authorization: Basic or from the
// body, and never from both (RFC 6749 section 2.3). It returns what id it saw even
// with an error. Errors: a [requestError]; errClient.
func (p params) shownClient(r *http.Request) (shownClient, error) {
	inBody := shownClient{id: p["client_id"], secret: p["client_secret"]}
	values := r.Header.Values("Authorization")
	switch len(values) {
	case 0:
		return inBody, nil
	case 1:
	default:
		return inBody, badRequest("Authorization was sent twice")
	}
	scheme, encoded, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Basic") {
		return inBody, errClient
	}
	text, err := base64.StdEncoding.DecodeString(strings.TrimLeft(encoded, " "))
	id, secret, colon := strings.Cut(string(text), ":")
	if err != nil || !colon {
		return inBody, errClient
	}
	// Both halves are form-urlencoded before they are joined (RFC 6749 section 2.3.1).
	var c shownClient
	if c.id, err = url.QueryUnescape(id); err != nil {
		return inBody, errClient
	}
	if c.secret, err = url.QueryUnescape(secret); err != nil {
		return c, errClient
	}
	if inBody.secret != "" || inBody.id != "" && inBody.id != c.id {
		return c, badRequest("The client was named twice: in Authorization and in the body")
	}
	return c, nil
}

// client authenticates the request's client: a registered one by its secret, or
// the public client of the service's own logins, which has none and only says its
// name (RFC 6749 section 3.2.1): then the answer is the zero value. Errors: a
// [requestError], errClient, [tokenstore.ErrUnavailable].
func (a *api) client(c *gin.Context, p params, check secretCheck) (tokenstore.ClientGrant, error) {
	shown, err := p.shownClient(c.Request)
	if err != nil {
		return tokenstore.ClientGrant{}, err
	}
	if shown == (shownClient{id: a.Settings.ClientID}) && c.GetHeader("Authorization") == "" {
		return tokenstore.ClientGrant{}, nil
	}
	return a.authenticate(c, shown, check)
}

// secretCheck is the store's AuthenticateClient or IssueToClient.
type secretCheck func(ctx context.Context, id string, secret [32]byte) (tokenstore.ClientGrant, error)

// authenticate checks a registered client's secret.
func (a *api) authenticate(c *gin.Context, shown shownClient, check secretCheck) (tokenstore.ClientGrant, error) {
	if shown.secret == "" {
		a.note(c, EventClientRefused, slog.String("reason", "no_secret"))
		return tokenstore.ClientGrant{}, errClient
	}
	client, err := check(c.Request.Context(), shown.id, sha256.Sum256([]byte(shown.secret)))
	switch {
	case errors.Is(err, tokenstore.ErrNoClient):
		// What was typed for an id that does not exist may be a secret.
		a.note(c, EventClientRefused, slog.String("reason", "unknown"))
		return client, errClient
	case errors.Is(err, tokenstore.ErrClientSecret):
		a.note(c, EventClientRefused, slog.String("client_id", shown.id), slog.String("reason", "secret"))
		return client, errClient
	}
	return client, err
}

// allow refuses a client a grant that it was not registered for.
func allow(client tokenstore.Client, grant string) error {
	if !slices.Contains(strings.Fields(client.Grants), grant) {
		return &requestError{code: "unauthorized_client", description: "The client is not registered for the grant " + grant}
	}
	return nil
}
