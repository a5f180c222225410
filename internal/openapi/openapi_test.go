package openapi_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-jose/go-jose/v4"

	"github.com/latchkey-auth/latchkey/internal/openapi"
)

// The document is one, with whatever settings, and its examples are of their schemas.
func TestDocument(t *testing.T) {
	t.Parallel()
	all := openapi.Facts{
		Version: `v1 "x"`, Issuer: "https://example.com/auth", MetadataPath: "/.well-known/oauth-authorization-server/auth",
		CookieName: "__Host-session", CookiePath: `/a"b\`, AccessCookie: "access.token", ExpiresIn: 900, Secure: true, Revocations: true, Docs: true, StatusLists: true,
	}
	least := openapi.Facts{
		Version: "v1", Issuer: "http://localhost:8080", MetadataPath: "/.well-known/oauth-authorization-server",
		CookieName: "refresh_token", CookiePath: "/auth", ExpiresIn: 1,
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
			for _, path := range []string{"/revocations", "/docs", "/docs/{file}", "/status-lists/{id}"} {
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

// The access token of the examples is one: it verifies with the key of the examples.
func TestExamplesAreTrue(t *testing.T) {
	t.Parallel()
	text, err := openapi.Document(openapi.Facts{MetadataPath: "/m", ExpiresIn: 900})
	if err != nil {
		t.Fatal(err)
	}
	document, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		t.Fatal(err)
	}
	answer := func(operation *openapi3.Operation, kind string) *openapi3.MediaType {
		return operation.Responses.Status(http.StatusOK).Value.Content[kind]
	}
	example, err := json.Marshal(answer(document.Paths.Value("/.well-known/jwks.json").Get, "application/jwk-set+json").Example)
	if err != nil {
		t.Fatal(err)
	}
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(example, &keys); err != nil {
		t.Fatal(err)
	}
	for name, e := range answer(document.Paths.Value("/auth/token").Post, "application/json").Examples {
		tokens, _ := e.Value.Value.(map[string]any)
		access, _ := tokens["access_token"].(string)
		token, err := jose.ParseSignedCompact(access, []jose.SignatureAlgorithm{jose.EdDSA})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		payload, err := token.Verify(keys)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var claims struct{ Scope string }
		if err := json.Unmarshal(payload, &claims); err != nil || claims.Scope != tokens["scope"] {
			t.Errorf("%s: the scope is %v, and that of the token %q (%v)", name, tokens["scope"], claims.Scope, err)
		}
	}
}

func BenchmarkDocument(b *testing.B) {
	for b.Loop() {
		if _, err := openapi.Document(openapi.Facts{MetadataPath: "/m", ExpiresIn: 1}); err != nil {
			b.Fatal(err)
		}
	}
}
