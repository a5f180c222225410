package accesstoken

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// reference reads the members of an object with encoding/json, and tells whether
// text is one that members should accept. Names come decoded, values raw.
func reference(text []byte) (map[string]string, bool) {
	if !utf8.Valid(text) {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, false
	}
	found := make(map[string]string)
	for d.More() {
		before := d.InputOffset()
		token, err := d.Token()
		name, isText := token.(string)
		if err != nil || !isText {
			return nil, false
		}
		// encoding/json turns a lone surrogate into U+FFFD without a word.
		raw := string(text[before:d.InputOffset()])
		if strings.Count(name, "\ufffd") != strings.Count(raw, "\ufffd")+countEscaped(raw) {
			return nil, false
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, false
		}
		if _, twice := found[name]; twice || len(found) == maxMembers {
			return nil, false
		}
		found[name] = string(value)
	}
	return found, json.Valid(text)
}

// countEscaped counts the honest escapes of U+FFFD in a raw JSON string.
func countEscaped(raw string) int {
	return strings.Count(strings.ToLower(strings.ReplaceAll(raw, `\\`, "")), `\ufffd`)
}

func jsonText(raw string) string {
	var s string
	if raw == "" || json.Unmarshal([]byte(raw), &s) != nil {
		return ""
	}
	return s
}

func checkAgainstJSON(t *testing.T, c Claims, want map[string]string) {
	t.Helper()
	for name, got := range map[string]string{
		"iss": c.Issuer, "sub": c.Subject, "jti": c.ID, "sid": c.SessionID,
		"client_id": c.ClientID, "scope": c.Scope, "le": c.LogEpoch,
	} {
		if jsonText(want[name]) != got {
			t.Fatalf("%s = %q, encoding/json reads %q", name, got, jsonText(want[name]))
		}
	}
	for name, got := range map[string]int64{
		"exp": c.ExpiresAt, "iat": c.IssuedAt, "nbf": c.NotBefore, "auth_time": c.AuthTime,
	} {
		var n int64
		if raw := want[name]; raw != "" {
			if err := json.Unmarshal([]byte(raw), &n); err != nil {
				t.Fatal(err)
			}
		}
		if n != got || (n == 0) != (want[name] == "") {
			t.Fatalf("%s = %d, encoding/json reads %d", name, got, n)
		}
	}
	var audience []string
	if json.Unmarshal([]byte(want["aud"]), &audience) != nil {
		audience = []string{jsonText(want["aud"])}
	}
	if strings.Join(audience, "\x00") != strings.Join(c.Audience, "\x00") {
		t.Fatalf("aud = %q, encoding/json reads %q", c.Audience, audience)
	}
}

func TestTextValue(t *testing.T) {
	for raw, want := range map[string]string{
		`"plain"`:              "plain",
		`""`:                   "",
		`"\"\\\/\b\f\n\r\t"`:   "\"\\/\b\f\n\r\t",
		`"\u0041\u00e9\u20AC"`: "Aé€",
		`"\ud83d\udd11"`:       "\U0001F511",
		`"\ufffd\u0000"`:       "\ufffd\x00",
		`"\\u0041"`:            `\u0041`,
	} {
		if got, ok := textValue(raw); !ok || got != want {
			t.Errorf("textValue(%s) = %q, %v, want %q", raw, got, ok, want)
		}
	}
	for _, raw := range []string{
		`1`, `null`, `true`, `[]`, `{}`,
		`"\ud83d"`, `"\ud83dx"`, `"\ud83d\n"`, `"\ud83d\u0041"`, `"\ud83d\ud83d"`, `"\udd11\ud83d"`, `"\udd11"`,
	} {
		if got, ok := textValue(raw); ok {
			t.Errorf("textValue(%s) = %q, want a refusal", raw, got)
		}
	}
}
