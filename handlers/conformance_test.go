package handlers_test

import (
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// docs/conformance.md names tests that there are.
func TestConformanceNamesTests(t *testing.T) {
	t.Parallel()
	there := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(text, -1) {
			there[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile("../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`(Test\\w+)`").FindAllSubmatch(list, -1)
	for _, m := range names {
		if !there[string(m[1])] {
			t.Errorf("there is no %s", m[1])
		}
	}
	if len(names) < 50 {
		t.Errorf("only %d tests are named", len(names))
	}
}

// RFC 6750: how a token is shown, and how a request without a good one is refused.
func TestRFC6750(t *testing.T) {
	t.Parallel()
	f := start(t, setup{})
	s := f.login(0)
	const realm = `Bearer realm="latchkey"`
	invalid := realm + `, error="invalid_token", error_description="The access token is not valid"`
	for _, c := range []struct {
		name    string
		path    string
		options []option
		status  int
		header  string
	}{
		{"2.1: the header", "/users/me", []option{bearer(s.access)}, 200, ""},
		{"2.1 and RFC 9110 11.1: the scheme in any case", "/users/me", []option{header("Authorization", "bEARER "+s.access)}, 200, ""},
		{"2: one token in a request", "/users/me", []option{bearer(s.access), bearer(s.access)}, 400, ""},
		{"2.2: not in a body", "/users/me", []option{form("access_token", s.access)}, 401, realm},
		{"2.3: not in the query", "/users/me?access_token=" + s.access, nil, 401, realm},
		{"3: no token, no error code", "/users/me", nil, 401, realm},
		{"3: another scheme, no error code", "/users/me", []option{header("Authorization", "Basic YTpi")}, 401, realm},
		{"3.1: invalid_token", "/users/me", []option{bearer("garbage")}, 401, invalid},
		{"3.1: insufficient_scope", "/auth/verify?scope=admin", []option{bearer(s.access)}, 403, realm + `, error="insufficient_scope", error_description="The access token lacks a scope", scope="admin"`},
	} {
		a := f.get(0, c.path, c.options...)
		if got := a.header.Get("WWW-Authenticate"); a.status != c.status || got != c.header {
			t.Errorf("%s: %d with %q, want %d with %q", c.name, a.status, got, c.status, c.header)
		}
		if a.status == http.StatusBadRequest && a.member("error") != "invalid_request" {
			t.Errorf("%s: %s", c.name, a.text)
		}
	}
}

// RFC 8414 section 2: what the document says of clients is what the endpoints do.
func TestMetadataOfClients(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	a, err := f.try(0, http.MethodGet, "/.well-known/oauth-authorization-server")
	f.check(err)
	got := a.is(http.StatusOK).json()
	secrets := []any{"client_secret_basic", "client_secret_post"}
	for name, want := range map[string][]any{
		"grant_types_supported":                         {"client_credentials", "refresh_token"},
		"token_endpoint_auth_methods_supported":         append(secrets[:2:2], "none"),
		"revocation_endpoint_auth_methods_supported":    append(secrets[:2:2], "none"),
		"introspection_endpoint_auth_methods_supported": secrets,
	} {
		if diff := cmp.Diff(any(want), got[name]); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
}
