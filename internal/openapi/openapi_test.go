package openapi_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/latchkey-auth/latchkey/internal/openapi"
)

// The document is one, with whatever settings, and its examples are of their schemas.
func TestDocument(t *testing.T) {
	t.Parallel()
	all := openapi.Facts{
		Version: `v1 "x"`, Issuer: "https://example.com/auth", MetadataPath: "/.well-known/oauth-authorization-server/auth",
		CookiePath: `/a"b\`, AccessCookie: "access.token", ExpiresIn: 900, Secure: true, Revocations: true, Docs: true,
	}
	least := openapi.Facts{
		Version: "v1", Issuer: "http://localhost:8080", MetadataPath: "/.well-known/oauth-authorization-server",
		CookiePath: "/auth", ExpiresIn: 1,
	}
	for name, tt := range map[string]struct {
		facts openapi.Facts
		has   bool
	}{"everything": {all, true}, "the least": {least, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := openapi.Document(tt.facts)
			if err != nil {
				t.Fatal(err)
			}
			document, err := openapi3.NewLoader().LoadFromData(text)
			if err != nil {
				t.Fatal(err)
			}
			if err := document.Validate(t.Context(), openapi3.EnableExamplesValidation()); err != nil {
				t.Error(err)
			}
			if got := document.Servers[0].URL; got != tt.facts.Issuer {
				t.Errorf("the server is %q", got)
			}
			if document.Info.Version != tt.facts.Version {
				t.Errorf("the version is %q", document.Info.Version)
			}
			for _, path := range []string{"/revocations", "/docs", "/docs/{file}"} {
				if has := document.Paths.Value(path) != nil; has != tt.has {
					t.Errorf("it has %s: %v", path, has)
				}
			}
			for _, scheme := range []string{"accessCookie", "revocationsToken"} {
				if has := document.Components.SecuritySchemes[scheme] != nil; has != tt.has {
					t.Errorf("it has the scheme %s: %v", scheme, has)
				}
			}
			if strings.Contains(string(text), "{{") {
				t.Error("something was not filled in")
			}
		})
	}
}

// Readers see the paths as they are written: what a newcomer needs comes first.
func TestOrder(t *testing.T) {
	t.Parallel()
	text, err := openapi.Document(openapi.Facts{MetadataPath: "/m", ExpiresIn: 1})
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(text) || !strings.Contains(string(text), `"paths":{"/auth/token":{"post":{"tags":["Sessions"],"operationId":"login"`) {
		t.Errorf("it begins %.200s", text)
	}
}

func BenchmarkDocument(b *testing.B) {
	for b.Loop() {
		if _, err := openapi.Document(openapi.Facts{MetadataPath: "/m", ExpiresIn: 1}); err != nil {
			b.Fatal(err)
		}
	}
}
