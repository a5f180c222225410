package jsontext_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/latchkey-auth/latchkey/internal/jsontext"
)

func TestWhole(t *testing.T) {
	for text, want := range map[string]bool{
		`{}`: true, `"é😀"`: true, `"\u00e9\n\\\""`: true,
		`"\ud83d\ude00"`: true, `"\uD83D\uDE00x"`: true, `"\ufffd"`: true, `"�"`: true,
		`"\\ud800"`: true, // a backslash and five letters
		`"\ud800"`:  false, `"\udc00"`: false, `"\ud800x"`: false, `"\ud800\n"`: false, `"\ud800\u0041"`: false,
		`"\ud800\ud800"`: false, `"\udc00\ud800"`: false, `"\ud83d\ude00\ud83d"`: false, `"\\\ud800"`: false,
		"\"\xff\"": false, "\"\xed\xa0\x80\"": false,
		`\`: true, `\u`: true, `\ud8`: true, `"\ud800\u12"`: false, // no JSON, but no panic
	} {
		if got := jsontext.Whole([]byte(text)); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

// What is whole, encoding/json reads without putting anything in its place.
func FuzzWhole(f *testing.F) {
	for _, s := range []string{`"\ud800"`, `"\ud83d\ude00"`, `"\\ud800"`, "\"\xff\"", `{"a":"\udc00"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var v any
		if json.Unmarshal([]byte(text), &v) != nil {
			return
		}
		replaced := hasReplacement(v)
		meant := strings.Contains(strings.ToLower(text), `\ufffd`) || strings.Contains(text, "\ufffd")
		if jsontext.Whole([]byte(text)) && replaced && !meant {
			t.Errorf("%q is whole, and is read as %q", text, v)
		}
		if !jsontext.Whole([]byte(text)) && !hasReplacement(v) && !duplicates(text) {
			t.Errorf("%q is not whole, and is read as %q", text, v)
		}
	})
}

func hasReplacement(v any) bool {
	switch v := v.(type) {
	case string:
		return strings.Contains(v, "\ufffd")
	case []any:
		for _, e := range v {
			if hasReplacement(e) {
				return true
			}
		}
	case map[string]any:
		for k, e := range v {
			if strings.Contains(k, "\ufffd") || hasReplacement(e) {
				return true
			}
		}
	}
	return false
}

// duplicates tells that a value may have been dropped: the text has several names.
func duplicates(text string) bool { return strings.Count(text, ":") > 1 }
