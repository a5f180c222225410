package openapi

import (
	"regexp"
	"strings"
	"testing"
	"text/template"
)

// What fill makes of the document is what text/template makes of it.
func TestFill(t *testing.T) {
	reference := template.Must(template.New("").Funcs(template.FuncMap{
		"pattern": func(s string) string { return strings.ReplaceAll(regexp.QuoteMeta(s), `\`, `\\`) },
	}).Parse(source))
	for _, cookie := range []string{"", "access.token"} {
		for _, issuer := range []string{"https://a.example", "https://a.example/b/"} {
			for _, flag := range []bool{false, true} {
				f := Facts{
					Version: "v", Issuer: issuer, MetadataPath: "/m", CookieName: "refresh_token", CookiePath: "/auth", AccessCookie: cookie,
					ExpiresIn: 900, Secure: flag, Revocations: !flag, Docs: flag, StatusLists: !flag,
				}
				var want strings.Builder
				if err := reference.Execute(&want, f); err != nil {
					t.Fatal(err)
				}
				if got, err := fill(source, f); err != nil || got != want.String() {
					t.Errorf("%+v: another document than text/template's, or %v", f, err)
				}
			}
		}
	}
	for _, text := range []string{"{{end}}", "{{if .Docs}}", "{{.Nothing}}", "{{ .Docs }}", "{{range .Docs}}{{end}}"} {
		if got, err := fill(text, Facts{}); err == nil {
			t.Errorf("%q was made %q", text, got)
		}
	}
}
