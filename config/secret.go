package config

import (
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strconv"
	"strings"
)

// Redacted stands for a secret wherever one would be shown.
const Redacted = "[redacted]"

// Secret is a setting whose value is never shown: fmt, JSON, text and slog render
// it as [Redacted], or as nothing when it is empty. That holds for every verb but
// %p, with which fmt does not ask the value how it wants to be printed.
type Secret string

// Reveal returns the value, for the code that needs it.
func (s Secret) Reveal() []byte { return []byte(s) }

// List returns the secrets of a list that is separated by commas or newlines, less
// the white space around each; empty ones are passed over.
func (s Secret) List() []Secret {
	var list []Secret
	for part := range strings.FieldsFuncSeq(string(s), func(r rune) bool { return r == ',' || r == '\n' }) {
		if part = strings.TrimSpace(part); part != "" {
			list = append(list, Secret(part))
		}
	}
	return list
}

// String returns [Redacted], or "" for an empty secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return Redacted
}

// Format writes the redacted form, whatever the verb.
func (s Secret) Format(f fmt.State, verb rune) { formatRedacted(f, verb, s.String()) }

// GoString returns the redacted form, quoted.
func (s Secret) GoString() string { return fmt.Sprintf("%q", s.String()) }

// MarshalText returns the redacted form; encoding/json and others use it.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue returns the redacted form for log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// RedisURL is the address of Redis, which may hold a user name and a password.
// Wherever it is shown, those are replaced by [Redacted] and the rest stays
// readable; a URL that cannot be parsed is redacted whole.
type RedisURL string

// Reveal returns the URL with its password, for the code that connects.
func (u RedisURL) Reveal() string { return string(u) }

// PoolSize is the pool_size of the URL, or 0 if it has none.
func (u RedisURL) PoolSize() int {
	p, err := url.Parse(string(u))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(p.Query().Get("pool_size")) // Validate refuses what is no number
	return n
}

// String returns the URL without user name and password.
func (u RedisURL) String() string {
	if u == "" {
		return ""
	}
	p, err := url.Parse(string(u))
	if err != nil || p.Opaque != "" || p.Fragment != "" || p.Host == "" && p.Path == "" {
		return Redacted
	}
	var b strings.Builder
	b.WriteString(p.Scheme + "://")
	if p.User != nil {
		b.WriteString(Redacted + "@")
	}
	b.WriteString(p.Host + p.EscapedPath())
	for i, pair := range strings.FieldsFunc(p.RawQuery, func(r rune) bool { return r == '&' }) {
		name, _, given := strings.Cut(pair, "=")
		if given && (strings.Contains(name, "pass") || strings.Contains(name, "%")) {
			pair = name + "=" + Redacted
		}
		b.WriteString([]string{"?", "&"}[min(i, 1)] + pair)
	}
	// An @ that is still there was part of a password which nobody encoded.
	if rest := b.String(); strings.Count(rest, "@") == 0 || p.User != nil && strings.Count(rest, "@") == 1 {
		return rest
	}
	return Redacted
}

// Format writes the redacted form, whatever the verb.
func (u RedisURL) Format(f fmt.State, verb rune) { formatRedacted(f, verb, u.String()) }

// GoString returns the redacted form, quoted.
func (u RedisURL) GoString() string { return fmt.Sprintf("%q", u.String()) }

// MarshalText returns the redacted form; encoding/json and others use it.
func (u RedisURL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// LogValue returns the redacted form for log/slog.
func (u RedisURL) LogValue() slog.Value { return slog.StringValue(u.String()) }

// formatRedacted is what keeps verbs like %x or %d from reaching the string below.
func formatRedacted(f fmt.State, verb rune, shown string) {
	if verb == 'q' || verb == 'v' && f.Flag('#') {
		shown = fmt.Sprintf("%q", shown)
	}
	_, _ = io.WriteString(f, shown)
}
