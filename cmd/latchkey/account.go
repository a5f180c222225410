package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// maxSubject is the longest subject, in bytes; OpenID Connect Core section 2
// allows no more than 255 characters.
const maxSubject = 255

// newAccount checks and normalises what an operator says of an account.
func newAccount(username, subject string, scopes []string, claims []byte) (tokenstore.Account, error) {
	a := tokenstore.Account{Username: username, Subject: subject}
	if err := credential.ValidateUsername(username); err != nil {
		return a, err
	}
	if a.Subject == "" {
		a.Subject = username
	}
	if len(a.Subject) > maxSubject || !utf8.ValidString(a.Subject) || strings.TrimSpace(a.Subject) != a.Subject ||
		strings.ContainsFunc(a.Subject, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return a, fmt.Errorf("the subject is not usable; write at most %d bytes of printable characters, without spaces at the ends", maxSubject)
	}
	if tokenstore.IsClient(a.Subject) {
		return a, fmt.Errorf("a subject that begins with %s is a client's; give another with --sub", tokenstore.ClientPrefix)
	}
	var err error
	if a.Scopes, err = joinScopes(scopes); err != nil {
		return a, err
	}
	if a.Claims, err = compactClaims(claims); err != nil {
		return a, err
	}
	if over := a.Size() - accesstoken.MaxAccount; over > 0 {
		return a, fmt.Errorf("the user would not fit into a token: the subject counted twice, the scopes and the claims are %d bytes more than %d; give fewer, or shorter ones", over, accesstoken.MaxAccount)
	}
	return a, nil
}

// joinScopes returns the scopes, each once, as RFC 6749 section 3.3 writes them.
func joinScopes(scopes []string) (string, error) {
	var once []string
	for _, s := range scopes {
		if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			return "", errors.New(`a scope is not usable; write printable ASCII without spaces, " and \`)
		}
		if !slices.Contains(once, s) {
			once = append(once, s)
		}
	}
	return strings.Join(once, " "), nil
}

// compactClaims returns the claims as one line of JSON, or "" for none.
func compactClaims(claims []byte) (string, error) {
	if len(bytes.TrimSpace(claims)) == 0 {
		return "", nil
	}
	object, err := members(claims)
	if err != nil {
		return "", fmt.Errorf("the claims: %w", err)
	}
	if len(object) > accesstoken.MaxExtraPart {
		return "", fmt.Errorf("there are %d claims; give at most %d", len(object), accesstoken.MaxExtraPart)
	}
	for name := range object {
		if name == "" {
			return "", errors.New("the claims: one has no name; give it one")
		}
		if accesstoken.Reserved(name) {
			return "", fmt.Errorf("the claims: Latchkey sets %s itself; leave it out", name)
		}
	}
	if len(object) == 0 {
		return "", nil
	}
	compact, err := json.Marshal(object)
	if err != nil {
		return "", fmt.Errorf("the claims: %w", err)
	}
	return string(compact), nil
}
