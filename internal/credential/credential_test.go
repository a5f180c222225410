package credential

import (
	"errors"
	"strings"
	"testing"
)

func TestValidatePassword(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, password string
		want           error
	}{
		{"empty", "", ErrPasswordEmpty},
		{"one byte", "x", nil},
		{"one space", " ", nil},
		{"NUL", "\x00", nil},
		{"not UTF-8", "\xff\xfe", nil},
		{"longest", strings.Repeat("x", MaxPassword), nil},
		{"longest in bytes, not runes", strings.Repeat("ü", MaxPassword/2), nil},
		{"too long", strings.Repeat("x", MaxPassword+1), ErrPasswordTooLong},
	} {
		if err := ValidatePassword(tt.password); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v; want %v", tt.name, err, tt.want)
		}
	}
}

func TestValidateUsername(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, username string
		ok             bool
	}{
		{"empty", "", false},
		{"plain", "johndoe", true},
		{"address", "john.doe+1@example.org", true},
		{"inner space", "John Doe", true},
		{"other scripts", "Жанна 山田", true},
		{"emoji", "👩‍🚀", true},
		{"braces", "{}", true},
		{"longest", strings.Repeat("x", MaxUsername), true},
		{"too long", strings.Repeat("x", MaxUsername+1), false},
		{"too long in bytes", strings.Repeat("ü", MaxUsername/2+1), false},
		{"leading space", " john", false},
		{"trailing space", "john ", false},
		{"trailing no-break space", "john\u00a0", false},
		{"CRLF", "john\r\nSet-Cookie: a=b", false},
		{"trailing newline", "john\n", false},
		{"NUL", "jo\x00hn", false},
		{"DEL", "jo\x7fhn", false},
		{"C1 control", "jo\u0085hn", false},
		{"line separator", "jo\u2028hn", false},
		{"right-to-left override", "jo\u202ehn", false},
		{"not UTF-8", "jo\xffhn", false},
		{"overlong UTF-8", "jo\xc0\xafhn", false},
	} {
		err := ValidateUsername(tt.username)
		if (err == nil) != tt.ok || (err != nil && !errors.Is(err, ErrUsername)) {
			t.Errorf("%s: %v; want acceptable = %v", tt.name, err, tt.ok)
		}
	}
}
