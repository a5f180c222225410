package accesstoken

import (
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxMembers bounds the members of a header or claims set, for the search for
// duplicates is quadratic and the header is read before the signature is checked.
const maxMembers = 64

// members calls visit with the name and the raw JSON value of each member of the
// one object that text holds, in order, and stops at the first error. It returns
// [ErrMalformed] unless text is valid UTF-8 and exactly one object, with at most
// [maxMembers] members of distinct names. RFC 7515 section 4 and RFC 7519 section 4
// let a parser take the last of two; two parsers that differ in this disagree
// about what was signed.
//
// The values alias text. Objects nested in values are checked for syntax alone.
func members(text []byte, visit func(name, value string) error) error {
	if !utf8.Valid(text) || !json.Valid(text) {
		return ErrMalformed
	}
	// From here on the syntax is known to be right, so the scan needs no bounds
	// checks of its own: every token is followed by another up to the last brace.
	s := string(text)
	i := skipSpace(s, 0)
	if s[i] != '{' {
		return ErrMalformed
	}
	var names [maxMembers]string
	count := 0
	i = skipSpace(s, i+1)
	for s[i] != '}' {
		end := skipString(s, i)
		name, ok := textValue(s[i:end])
		if !ok || count == maxMembers {
			return ErrMalformed
		}
		for _, seen := range names[:count] {
			if seen == name {
				return ErrMalformed
			}
		}
		names[count] = name
		count++

		i = skipSpace(s, end) // colon
		i = skipSpace(s, i+1) // value
		end = skipValue(s, i) // after the value
		if err := visit(name, s[i:end]); err != nil {
			return err
		}
		if i = skipSpace(s, end); s[i] == ',' {
			i = skipSpace(s, i+1)
		}
	}
	return nil
}

func skipSpace(s string, i int) int {
	for s[i] == ' ' || s[i] == '\t' || s[i] == '\n' || s[i] == '\r' {
		i++
	}
	return i
}

// skipString returns the index after the string that begins at s[i].
func skipString(s string, i int) int {
	for i++; s[i] != '"'; i++ {
		if s[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// skipValue returns the index after the value that begins at s[i] and is followed
// by a comma, a closing bracket or space.
func skipValue(s string, i int) int {
	depth := 0
	for {
		switch s[i] {
		case '"':
			i = skipString(s, i)
		case '{', '[':
			depth++
			i++
		case '}', ']':
			if depth == 0 {
				return i
			}
			depth--
			i++
		case ',', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return i
			}
			i++
		default:
			i++
			continue
		}
		if depth == 0 {
			return i
		}
	}
}

// textValue returns the text of a JSON string, and false for any other value. A
// surrogate without its partner is refused, as RFC 7493 section 2.1 demands:
// decoders differ in what they make of it.
func textValue(value string) (string, bool) {
	if value[0] != '"' {
		return "", false
	}
	value = value[1 : len(value)-1]
	if strings.IndexByte(value, '\\') < 0 {
		return value, true
	}
	var b strings.Builder
	b.Grow(len(value))
	for i := 0; i < len(value); i++ {
		if value[i] != '\\' {
			b.WriteByte(value[i])
			continue
		}
		i++
		switch value[i] {
		case 'b':
			b.WriteByte('\b')
		case 'f':
			b.WriteByte('\f')
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		case 't':
			b.WriteByte('\t')
		case 'u':
			r := hex4(value[i+1:])
			i += 4
			if utf16.IsSurrogate(r) {
				if !strings.HasPrefix(value[i+1:], `\u`) {
					return "", false
				}
				if r = utf16.DecodeRune(r, hex4(value[i+3:])); r == utf8.RuneError {
					return "", false
				}
				i += 6
			}
			b.WriteRune(r)
		default: // quote, backslash, slash
			b.WriteByte(value[i])
		}
	}
	return b.String(), true
}

func hex4(s string) rune {
	r, _ := strconv.ParseUint(s[:4], 16, 16) // four hex digits: the syntax was checked
	return rune(r)
}

// textsValue returns the texts of a JSON array of strings, and false for any
// other value.
func textsValue(value string) ([]string, bool) {
	if value[0] != '[' {
		return nil, false
	}
	var texts []string
	for i := skipSpace(value, 1); value[i] != ']'; {
		end := skipValue(value, i)
		text, ok := textValue(value[i:end])
		if !ok {
			return nil, false
		}
		texts = append(texts, text)
		if i = skipSpace(value, end); value[i] == ',' {
			i = skipSpace(value, i+1)
		}
	}
	return texts, true
}

// integerValue returns a JSON number from least to most that is written in plain
// digits, and false for any other value. RFC 7519 section 2 would allow a
// fraction in a date; no token of ours has one, and refusing it (and exponents)
// leaves each number one spelling and no rounding.
func integerValue(value string, least, most uint64) (uint64, bool) {
	if value[0] < '0' || value[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(value, 10, 64)
	return n, err == nil && least <= n && n <= most
}
