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
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
)

//go:embed openapi.yaml
var source string

// Facts are what the settings decide.
type Facts struct {
	Version      string
	Issuer       string // a URL
	MetadataPath string // of RFC 8414, for this issuer
	CookieName   string // of the refresh cookie
	CookiePath   string
	AccessCookie string // "" for none
	ExpiresIn    int    // of an access token, in seconds
	Secure       bool   // cookies go over HTTPS only
	Revocations  bool   // there is /revocations
	Docs         bool   // there is /docs
	StatusLists  bool   // there is /status-lists
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
	filled, err := fill(source, f)
	if err != nil {
		return nil, fmt.Errorf("the OpenAPI document: %w", err)
	}
	var document ordered
	if err := yaml.UnmarshalWithOptions([]byte(filled), &document.value, yaml.UseOrderedMap()); err != nil {
		return nil, fmt.Errorf("the OpenAPI document: %w", err)
	}
	text, err := json.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("the OpenAPI document: %w", err)
	}
	return text, nil
}

// fill carries out the document's actions, which are those of text/template: values,
// if, with, end, and pattern, a value as a regular expression. That package itself
// calls methods by name, so that with it the linker leaves out no exported method: the
// program would be twice as large.
func fill(text string, f Facts) (string, error) {
	values := map[string]string{
		".Version": f.Version, ".Issuer": f.Issuer, ".Base": f.Base(), ".IssuerPath": f.IssuerPath(), ".MetadataPath": f.MetadataPath,
		".CookieName": f.CookieName, ".CookiePath": f.CookiePath, ".AccessCookie": f.AccessCookie, ".ExpiresIn": strconv.Itoa(f.ExpiresIn),
		".Secure": yes(f.Secure), ".Revocations": yes(f.Revocations), ".Docs": yes(f.Docs), ".StatusLists": yes(f.StatusLists),
	}
	action := regexp.MustCompile(`\{\{(if |with |pattern )?(\.\w*|end)\}\}`)
	var out strings.Builder
	type block struct {
		kept bool
		dot  string // what "." is within
	}
	blocks := []block{{kept: true}}
	at := 0
	for _, m := range action.FindAllStringSubmatchIndex(text, -1) {
		inner := blocks[len(blocks)-1]
		if inner.kept {
			out.WriteString(text[at:m[0]])
		}
		at = m[1]
		verb, name := "", text[m[4]:m[5]]
		if m[2] >= 0 {
			verb = strings.TrimSpace(text[m[2]:m[3]])
		}
		if name == "end" {
			if len(blocks) == 1 {
				return "", errors.New("an end too many")
			}
			blocks = blocks[:len(blocks)-1]
			continue
		}
		value, known := values[name]
		if name == "." {
			value, known = inner.dot, true
		}
		if !known {
			return "", fmt.Errorf("no such value: %s", name)
		}
		switch verb {
		case "if":
			blocks = append(blocks, block{inner.kept && value != "", inner.dot})
		case "with":
			blocks = append(blocks, block{inner.kept && value != "", value})
		case "pattern":
			// The name of a cookie is a token (RFC 6265 section 4.1.1): it needs no other escape.
			value = strings.ReplaceAll(regexp.QuoteMeta(value), `\`, `\\`)
			fallthrough
		default:
			if inner.kept {
				out.WriteString(value)
			}
		}
	}
	out.WriteString(text[at:])
	if len(blocks) > 1 || strings.Contains(out.String(), "{{") {
		return "", errors.New("an action that is not known, or has no end")
	}
	return out.String(), nil
}

// yes is a flag as a value: empty for no.
func yes(flag bool) string {
	if flag {
		return "true"
	}
	return ""
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
