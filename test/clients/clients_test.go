package clients_test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/lestrrat-go/httprc/v3"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jwt"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

func (s *service) endpoint(style oauth2.AuthStyle) oauth2.Endpoint {
	return oauth2.Endpoint{TokenURL: s.url + "/oauth2/token", AuthStyle: style}
}

// styles are the ways in which golang.org/x/oauth2 shows a client's secret.
func styles() map[string]oauth2.AuthStyle {
	return map[string]oauth2.AuthStyle{
		"found out": oauth2.AuthStyleAutoDetect, "client_secret_basic": oauth2.AuthStyleInHeader, "client_secret_post": oauth2.AuthStyleInParams,
	}
}

// Each library against one service for each algorithm that has public keys.
func TestClients(t *testing.T) {
	bin := program(t)
	for _, alg := range []string{oidc.EdDSA, oidc.ES256, oidc.RS256} {
		t.Run(alg, func(t *testing.T) {
			t.Parallel()
			s := serve(t, bin, "LATCHKEY_ALG="+alg)
			t.Run("coreos/go-oidc", func(t *testing.T) { s.on(t).goOIDCRemoteKeySet(alg) })
			t.Run("lestrrat-go/jwx", func(t *testing.T) { s.on(t).jwxCacheAndParse() })
			if alg == oidc.EdDSA {
				t.Run("golang.org/x/oauth2 client credentials", func(t *testing.T) { s.on(t).oauth2ClientCredentials(t) })
				t.Run("golang.org/x/oauth2 refresh", func(t *testing.T) { s.on(t).oauth2RefreshTokenSource(t) })
			}
		})
	}
}

// RFC 6749 section 4.4 with golang.org/x/oauth2.
func (s *service) oauth2ClientCredentials(t *testing.T) {
	id, secret := s.client("billing", "--grant", "client_credentials", "--scope", "read write")
	for name, style := range styles() {
		t.Run(name, func(t *testing.T) {
			c := clientcredentials.Config{ClientID: id, ClientSecret: secret, TokenURL: s.url + "/oauth2/token", Scopes: []string{"read"}, AuthStyle: style}
			token, err := c.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if token.Type() != "Bearer" || token.RefreshToken != "" || token.Extra("scope") != "read" {
				t.Errorf("%+v", token)
			}
			if left := time.Until(token.Expiry); left < 14*time.Minute || left > 15*time.Minute {
				t.Errorf("expires in %v", left)
			}
			// The library's own HTTP client shows it.
			if got := s.status(c.Client(t.Context()), "/auth/verify?scope=read"); got != http.StatusNoContent {
				t.Errorf("verify: %d", got)
			}
			if got := s.status(c.Client(t.Context()), "/auth/verify?scope=write"); got != http.StatusForbidden {
				t.Errorf("verify for more: %d", got)
			}
		})
	}
	for want, c := range map[string]clientcredentials.Config{
		"invalid_client":      {ClientID: id, ClientSecret: "wrong", TokenURL: s.url + "/oauth2/token"},
		"invalid_scope":       {ClientID: id, ClientSecret: secret, TokenURL: s.url + "/oauth2/token", Scopes: []string{"admin"}},
		"unauthorized_client": {ClientID: "latchkey", TokenURL: s.url + "/oauth2/token", AuthStyle: oauth2.AuthStyleInParams},
	} {
		_, err := c.Token(t.Context())
		var refused *oauth2.RetrieveError
		if !errors.As(err, &refused) || refused.ErrorCode != want {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// RFC 6749 section 6 with golang.org/x/oauth2: a confidential client that logged the
// user in, and the public one.
func (s *service) oauth2RefreshTokenSource(t *testing.T) {
	id, secret := s.client("app", "--grant", "refresh_token", "--scope", "read write")
	for name, style := range styles() {
		for client, c := range map[string]*oauth2.Config{
			"confidential": {ClientID: id, ClientSecret: secret, Endpoint: s.endpoint(style)},
			"public":       {ClientID: "latchkey", Endpoint: s.endpoint(style)},
		} {
			if client == "public" && style == oauth2.AuthStyleInHeader {
				continue // a client without a secret has nothing to put there
			}
			t.Run(client+" "+name, func(t *testing.T) {
				form := url.Values{"username": {"alice"}, "password": {password}, "refresh_delivery": {"body"}}
				if client == "confidential" {
					form.Set("client_id", id)
					form.Set("client_secret", secret)
				}
				token := s.login(form)
				first := token.RefreshToken
				for range 3 {
					token.Expiry = time.Now().Add(-time.Minute)
					var err error
					if token, err = c.TokenSource(t.Context(), token).Token(); err != nil {
						t.Fatal(err)
					}
					// The first refresh replaces it; later ones may come within the grace.
					if token.RefreshToken == first {
						t.Error("the refresh token was not replaced")
					}
					if got := s.status(oauth2.NewClient(t.Context(), oauth2.StaticTokenSource(token)), "/auth/verify"); got != http.StatusNoContent {
						t.Errorf("verify: %d", got)
					}
				}
				// The first is spent: once the grace is over it is a theft, and the session ends.
				var err error
				for err == nil {
					_, err = c.TokenSource(t.Context(), &oauth2.Token{RefreshToken: first}).Token()
				}
				var refused *oauth2.RetrieveError
				if !errors.As(err, &refused) || refused.ErrorCode != "invalid_grant" {
					t.Errorf("reuse: %v", err)
				}
				if got := s.status(oauth2.NewClient(t.Context(), oauth2.StaticTokenSource(token)), "/auth/verify"); got != http.StatusUnauthorized {
					t.Errorf("verify after it: %d", got)
				}
			})
		}
	}
}

// The remote key set of coreos/go-oidc, and its checks of iss, aud and exp (RFC 9068
// section 4).
func (s *service) goOIDCRemoteKeySet(alg string) {
	ctx := oidc.ClientContext(s.Context(), s.http)
	keys := oidc.NewRemoteKeySet(ctx, s.url+"/.well-known/jwks.json")
	verifier := func(audience string) *oidc.IDTokenVerifier {
		return oidc.NewVerifier(issuer, keys, &oidc.Config{ClientID: audience, SupportedSigningAlgs: []string{alg}})
	}
	access := s.login(url.Values{"username": {"alice"}, "password": {password}}).AccessToken
	token, err := verifier(audience).Verify(ctx, access)
	if err != nil {
		s.Fatal(err)
	}
	var claims struct {
		ClientID string `json:"client_id"`
		Scope    string `json:"scope"`
		Tier     string `json:"tier"`
	}
	if err := token.Claims(&claims); err != nil || token.Subject != "alice" || claims.ClientID != "latchkey" || claims.Scope != "read write" || claims.Tier != "gold" {
		s.Errorf("%+v %+v %v", token, claims, err)
	}
	if _, err := verifier("https://other.example").Verify(ctx, access); err == nil {
		s.Error("another audience accepts it")
	}
	if _, err := verifier(audience).Verify(ctx, access[:len(access)-4]+"AAAA"); err == nil {
		s.Error("another signature is accepted")
	}
}

// The key cache and the parser of lestrrat-go/jwx.
func (s *service) jwxCacheAndParse() {
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	cache, err := jwk.NewCache(ctx, httprc.NewClient(httprc.WithHTTPClient(s.http)))
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = cache.Shutdown(context.WithoutCancel(ctx)) }()
	if err := cache.Register(ctx, s.url+"/.well-known/jwks.json"); err != nil {
		s.Fatal(err)
	}
	keys, err := cache.CachedSet(s.url + "/.well-known/jwks.json")
	if err != nil {
		s.Fatal(err)
	}
	id, secret := s.client("reports", "--grant", "client_credentials", "--scope", "read")
	own, err := (&clientcredentials.Config{ClientID: id, ClientSecret: secret, TokenURL: s.url + "/oauth2/token"}).Token(ctx)
	if err != nil {
		s.Fatal(err)
	}
	for subject, access := range map[string]string{
		"alice": s.login(url.Values{"username": {"alice"}, "password": {password}}).AccessToken, id: own.AccessToken,
	} {
		token, err := jwt.Parse([]byte(access), jwt.WithKeySet(keys), jwt.WithIssuer(issuer), jwt.WithAudience(audience))
		if err != nil {
			s.Fatal(err)
		}
		if sub, _ := token.Subject(); sub != subject {
			s.Errorf("sub: %q", sub)
		}
		if _, err := jwt.Parse([]byte(access), jwt.WithKeySet(keys), jwt.WithAudience("https://other.example")); err == nil {
			s.Error("another audience accepts it")
		}
	}
}
