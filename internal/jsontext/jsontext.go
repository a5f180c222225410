// Package jsontext tells whether every decoder reads the same strings out of a JSON text, and
// writes strings.
//
// encoding/json puts U+FFFD in place of bytes that are no UTF-8 and of surrogates without a
// partner. Different texts then become one string: of two passwords, either would open
// what the other protects.
package jsontext

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"unicode/utf16"
	"unicode/utf8"
)

// Whole reports whether text is UTF-8 and no escape in it is a surrogate without its
// partner (RFC 7493 section 2.1). It checks nothing else: a text that is no JSON may be
// whole.
func Whole(text []byte) bool {
	if !utf8.Valid(text) {
		return false
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		i++ // what is escaped; in a JSON text a backslash stands in strings alone
		if i == len(text) || text[i] != 'u' {
			continue
		}
		first, ok := unit(text[i+1:])
		if !ok {
			continue
		}
		i += 4
		if !utf16.IsSurrogate(first) {
			continue
		}
		rest := text[i+1:]
		if len(rest) < 2 || rest[0] != '\\' || rest[1] != 'u' {
			return false
		}
		second, ok := unit(rest[2:])
		if !ok || utf16.DecodeRune(first, second) == utf8.RuneError {
			return false
		}
		i += 6
	}
	return true
}

// unit reads the four hexadecimal digits of an escape.
func unit(digits []byte) (rune, bool) {
	var b [2]byte
	if len(digits) < 4 {
		return 0, false
	}
	if _, err := hex.Decode(b[:], digits[:4]); err != nil {
		return 0, false
	}
	return rune(b[0])<<8 | rune(b[1]), true
}

// AppendString appends text as a JSON string to b, with escapes where JSON demands them and
// for U+2028 and U+2029, as encoding/json does without its escapes for HTML. Plain ASCII, as
// nearly all texts are, is copied as it is.
func AppendString(b []byte, text string) []byte {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return appendEscaped(b, text)
		}
	}
	return append(append(append(b, '"'), text...), '"')
}

func appendEscaped(b []byte, text string) []byte {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	_ = e.Encode(text) // neither a string nor a buffer fails
	return append(b, bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...)
}
