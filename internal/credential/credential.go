// Package credential hashes and verifies passwords, and says which usernames and passwords are acceptable. Most
// callers need one [Hasher] and its [Hasher.Verify], [Hasher.VerifyNobody] and [Hasher.Hash].
//
// New hashes are argon2id (RFC 9106) in PHC string form. Hashes that come from elsewhere, argon2id, argon2i or bcrypt,
// are verified too, and [Result.Upgrade] tells when to replace one. What a hash of unknown origin may cost is bounded:
// see [ValidateHash].
//
// The bytes of a password are used exactly as given: never normalised, trimmed or truncated.
//
// The package stores nothing, and no error of it holds a password or a hash.
package credential

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxPassword is the length of the longest password accepted, in bytes.
	MaxPassword = 1024
	// MaxUsername is the length of the longest username accepted, in bytes.
	MaxUsername = 128
)

var (
	// ErrBusy says that no hash was computed because too many are under way: the queue was full, or the wait for a
	// turn took longer than Options.MaxWait or the caller's context allowed; in the last case the error wraps the
	// context's too. It says nothing about the password. Answer 503 with Retry-After.
	ErrBusy = errors.New("password hashing is busy; retry in a moment")
	// ErrHash says that an encoded hash cannot be verified: it is malformed, of a kind that is not known here, or would
	// cost more than the bounds of ValidateHash. The text says which.
	ErrHash = errors.New("unusable password hash")
	// ErrPasswordEmpty refuses the empty password.
	ErrPasswordEmpty = errors.New("the password is empty; give at least one byte")
	// ErrPasswordTooLong refuses a password of more than MaxPassword bytes.
	ErrPasswordTooLong = fmt.Errorf("the password is longer than %d bytes; choose a shorter one", MaxPassword)
	// ErrUsername refuses a username; the text says why.
	ErrUsername = errors.New("unacceptable username")
)

// ValidatePassword returns nil for a password of 1 to MaxPassword bytes, of whatever content; else ErrPasswordEmpty or
// ErrPasswordTooLong. (NIST SP 800-63B-4, 3.1.1.2: no rules of composition.)
func ValidatePassword(p string) error {
	switch {
	case p == "":
		return ErrPasswordEmpty
	case len(p) > MaxPassword:
		return ErrPasswordTooLong
	}
	return nil
}

// ValidateUsername returns nil for a username of 1 to MaxUsername bytes of UTF-8, with no control character, line or
// paragraph separator or bidirectional control, and no space at either end; else an error that wraps ErrUsername.
// Usernames are compared byte for byte, so what cannot be seen in a list or a log could pass for another account.
func ValidateUsername(u string) error {
	switch {
	case u == "":
		return fmt.Errorf("%w: it is empty; give at least one character", ErrUsername)
	case len(u) > MaxUsername:
		return fmt.Errorf("%w: it is longer than %d bytes; choose a shorter one", ErrUsername, MaxUsername)
	case !utf8.ValidString(u):
		return fmt.Errorf("%w: it is not valid UTF-8; send it in UTF-8", ErrUsername)
	case strings.TrimSpace(u) != u:
		return fmt.Errorf("%w: it begins or ends with a space; remove it", ErrUsername)
	case strings.ContainsFunc(u, invisible):
		return fmt.Errorf("%w: it contains a control character; remove it", ErrUsername)
	}
	return nil
}

func invisible(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp, unicode.Bidi_Control)
}
