// Package openapi holds the OpenAPI 3.1 document of the HTTP API: openapi.yaml,
// which is written by hand, with the parts that the settings decide filled in.
//
// A caller needs [Document]. The package serves nothing and knows no route: that
// document and routes agree is for the tests of package handlers to say.
package openapi

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"text/template"

	"github.com/goccy/go-yaml"
)

//go:embed openapi.yaml
var source string

// Facts are what the settings decide.
type Facts struct {
	Version      string
	Issuer       string // a URL
	MetadataPath string // of RFC 8414, for this issuer
	CookiePath   string
	AccessCookie string // "" for none
	ExpiresIn    int    // of an access token, in seconds
	Secure       bool   // cookies go over HTTPS only
	Revocations  bool   // there is /revocations
	Docs         bool   // there is /docs
}

// Base is the issuer as the beginning of an address.
func (f Facts) Base() string { return strings.TrimSuffix(f.Issuer, "/") }

// IssuerPath is the path of the issuer, or "".
func (f Facts) IssuerPath() string {
	u, err := url.Parse(f.Base())
	if err != nil {
		return ""
	}
	return u.EscapedPath()
}

// Document returns the document as JSON, in the order in which it is written.
func Document(f Facts) ([]byte, error) {
	// All that is filled in stands within double quotes, which mean the same in YAML
	// and JSON.
	for _, s := range []*string{&f.Version, &f.Issuer, &f.MetadataPath, &f.CookiePath} {
		quoted, err := json.Marshal(*s)
		if err != nil {
			return nil, fmt.Errorf("the OpenAPI document: %w", err)
		}
		*s = string(quoted[1 : len(quoted)-1])
	}
	t, err := template.New("openapi.yaml").Funcs(template.FuncMap{
		// The name of a cookie is a token (RFC 6265 section 4.1.1): it needs no other escape.
		"pattern": func(s string) string { return strings.ReplaceAll(regexp.QuoteMeta(s), `\`, `\\`) },
	}).Parse(source)
	if err != nil {
		return nil, fmt.Errorf("the OpenAPI document: %w", err)
	}
	var filled bytes.Buffer
	if err := t.Execute(&filled, f); err != nil {
		return nil, fmt.Errorf("the OpenAPI document: %w", err)
	}
	var document ordered
	if err := yaml.UnmarshalWithOptions(filled.Bytes(), &document.value, yaml.UseOrderedMap()); err != nil {
		return nil, fmt.Errorf("the OpenAPI document: %w", err)
	}
	text, err := json.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("the OpenAPI document: %w", err)
	}
	return text, nil
}

// ordered is a value whose objects keep their order.
type ordered struct{ value any }

// MarshalJSON implements [json.Marshaler].
func (o ordered) MarshalJSON() ([]byte, error) {
	switch v := o.value.(type) {
	case yaml.MapSlice:
		var b bytes.Buffer
		for i, item := range v {
			b.WriteByte("{,"[min(i, 1)])
			name, err := json.Marshal(fmt.Sprint(item.Key))
			if err != nil {
				return nil, err
			}
			value, err := json.Marshal(ordered{item.Value})
			if err != nil {
				return nil, err
			}
			b.Write(append(append(name, ':'), value...))
		}
		if len(v) == 0 {
			b.WriteByte('{')
		}
		b.WriteByte('}')
		return b.Bytes(), nil
	case []any:
		list := make([]ordered, len(v))
		for i := range v {
			list[i] = ordered{v[i]}
		}
		return json.Marshal(list)
	}
	return json.Marshal(o.value)
}
