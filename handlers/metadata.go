package handlers

import (
	"net/http"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/dpop"
)

const (
	metadataPath = "/.well-known/oauth-authorization-server"
	keySetPath   = "/.well-known/jwks.json"
)

// metadata is the document of RFC 8414 section 2. What there is none of is left
// out, but for the response types, which the RFC requires: there is no
// authorization endpoint, so the list is empty.
type metadata struct {
	Issuer         string   `json:"issuer"`
	ResponseTypes  []string `json:"response_types_supported"`
	GrantTypes     []string `json:"grant_types_supported"`
	KeySet         string   `json:"jwks_uri,omitempty"`
	Token          string   `json:"token_endpoint,omitempty"`
	TokenAuth      []string `json:"token_endpoint_auth_methods_supported,omitempty"`
	Introspect     string   `json:"introspection_endpoint,omitempty"`
	IntrospectAuth []string `json:"introspection_endpoint_auth_methods_supported,omitempty"`
	Revoke         string   `json:"revocation_endpoint,omitempty"`
	RevokeAuth     []string `json:"revocation_endpoint_auth_methods_supported,omitempty"`
	DPoP           []string `json:"dpop_signing_alg_values_supported,omitempty"` // RFC 9449 section 5.1
}

// announcements say what each route adds to the document. A route that is not in
// the table of routes adds nothing.
func announcements() map[string]func(m *metadata, address string) {
	secrets := []string{"client_secret_basic", "client_secret_post"}
	anybody := slices.Concat(secrets, []string{"none"}) // the public client only says its name
	return map[string]func(*metadata, string){
		http.MethodGet + " " + keySetPath: func(m *metadata, address string) { m.KeySet = address },
		http.MethodPost + " /oauth2/token": func(m *metadata, address string) {
			m.Token, m.TokenAuth, m.GrantTypes = address, anybody, []string{"client_credentials", "refresh_token"}
			m.DPoP = dpop.Algorithms()
		},
		http.MethodPost + " /oauth2/introspect": func(m *metadata, address string) { m.Introspect, m.IntrospectAuth = address, secrets },
		http.MethodPost + " /oauth2/revoke":     func(m *metadata, address string) { m.Revoke, m.RevokeAuth = address, anybody },
	}
}

// describe registers GET /.well-known/oauth-authorization-server (RFC 8414). An
// issuer with a path is looked for at that path behind it (section 3.1).
func (a *api) describe(engine *gin.Engine) {
	issuer := strings.TrimSuffix(a.Settings.Issuer, "/")
	answer := a.serve(func(c *gin.Context) error {
		m := metadata{Issuer: a.Settings.Issuer, ResponseTypes: []string{}, GrantTypes: []string{}}
		all := announcements()
		for _, r := range engine.Routes() {
			if announce := all[r.Method+" "+r.Path]; announce != nil {
				announce(&m, issuer+r.Path)
			}
		}
		set, err := a.Signer.Public()
		if err != nil {
			return err
		}
		if len(set.Keys) == 0 {
			m.KeySet = "" // tokens are signed with HS256, of which nothing can be published
		}
		c.Header("Cache-Control", a.cacheKeys())
		c.JSON(http.StatusOK, m)
		return nil
	})
	for _, at := range slices.Compact([]string{metadataPath, a.Settings.metadataPath()}) {
		engine.GET(at, answer)
		engine.HEAD(at, answer)
	}
}
