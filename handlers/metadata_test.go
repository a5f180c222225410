package handlers_test

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/handlers"
)

// RFC 8414 section 3.2: a JSON object whose issuer is the one that was asked (3.3),
// with the endpoints that there are.
func TestMetadata(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, issuer, path, base string }{
		{"plain", "https://auth.example.com", "/.well-known/oauth-authorization-server", "https://auth.example.com"},
		{"RFC 8414 3.1: a terminating / is left out", "https://auth.example.com/", "/.well-known/oauth-authorization-server", "https://auth.example.com"},
		{"RFC 8414 3.1: a path goes behind", "https://example.com/auth/v1", "/.well-known/oauth-authorization-server/auth/v1", "https://example.com/auth/v1"},
		{"where a proxy has cut the path off", "https://example.com/auth/v1", "/.well-known/oauth-authorization-server", "https://example.com/auth/v1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) { s.Issuer = tt.issuer }})
			a, err := f.try(0, http.MethodGet, tt.path)
			f.check(err)
			a.is(http.StatusOK)
			a.hasHeader("Content-Type", "application/json; charset=utf-8")
			a.hasHeader("Cache-Control", "public, max-age=300")
			var got map[string]any
			f.check(json.Unmarshal([]byte(a.text), &got))
			// What other routes add is for their tests to say.
			for name, want := range map[string]any{
				"issuer": tt.issuer, "jwks_uri": tt.base + "/.well-known/jwks.json", "response_types_supported": []any{},
			} {
				if diff := cmp.Diff(want, got[name]); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
			}
			for name := range got {
				if name == "authorization_endpoint" || name == "registration_endpoint" {
					t.Errorf("it announces %s, which there is none of", name)
				}
			}
			head, err := f.try(0, http.MethodHead, tt.path)
			f.check(err)
			head.is(http.StatusOK)
			f.get(0, tt.path+"/elsewhere").fails(http.StatusNotFound, "not_found", "")
		})
	}
}

// An endpoint is announced if and only if it is there.
func TestMetadataAnnouncesWhatThereIs(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	a, err := f.try(0, http.MethodGet, "/.well-known/oauth-authorization-server")
	f.check(err)
	var got map[string]any
	f.check(json.Unmarshal([]byte(a.text), &got))
	for name, path := range map[string]string{
		"token_endpoint": "/oauth2/token", "introspection_endpoint": "/oauth2/introspect", "revocation_endpoint": "/oauth2/revoke",
	} {
		probe, err := f.try(0, http.MethodPost, path)
		f.check(err)
		there := probe.status != http.StatusNotFound
		if announced := got[name] == issuer+path; announced != there || (got[name] != nil) != there {
			t.Errorf("%s is %v, and POST %s is %d", name, got[name], path, probe.status)
		}
	}
}
