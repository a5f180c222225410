package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/jsontext"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// numbered is a line of the file.
type numbered struct {
	number  int // from 1
	text    []byte
	err     error
	account tokenstore.Account
}

// readLines sends the lines of in that are not blank, and then closes lines. A
// read that has begun cannot be ended: after ctx it is left behind.
func readLines(ctx context.Context, in io.Reader, lines chan<- numbered) {
	defer close(lines)
	r := bufio.NewReaderSize(in, maxLine)
	for number := 1; ; number++ {
		text, err := r.ReadSlice('\n')
		l := numbered{number: number}
		if errors.Is(err, bufio.ErrBufferFull) {
			l.err = errLongLine
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = r.ReadSlice('\n')
			}
		} else {
			if number == 1 {
				text = bytes.TrimPrefix(text, []byte("\ufeff")) // some systems export one
			}
			l.text = bytes.Clone(bytes.TrimRight(text, "\r\n"))
		}
		if err != nil && !errors.Is(err, io.EOF) {
			l.err = fmt.Errorf("%w: %w", errRead, err)
		}
		if l.err != nil || len(bytes.TrimSpace(l.text)) > 0 {
			select {
			case <-ctx.Done():
				return
			case lines <- l:
			}
		}
		if err != nil {
			return
		}
	}
}

// parseUser reads a line. No error holds a value of it: what stands in the wrong
// place may be a hash or a password.
func parseUser(line []byte) (tokenstore.Account, error) {
	object, err := members(line)
	if err != nil {
		return tokenstore.Account{}, err
	}
	var username, hash, subject string
	var disabled bool
	var claims json.RawMessage
	var scopes scopeList
	known := []struct {
		name string
		into any
		want string
	}{
		{"username", &username, "a string"},
		{"hash", &hash, "a string"},
		{"sub", &subject, "a string"},
		{"scopes", &scopes, "a string or an array of strings"},
		{"claims", &claims, "an object"},
		{"disabled", &disabled, "true or false"},
	}
	for _, k := range known {
		raw := object[k.name]
		delete(object, k.name)
		if raw != nil && json.Unmarshal(raw, k.into) != nil {
			return tokenstore.Account{}, fmt.Errorf("%s is not %s", k.name, k.want)
		}
	}
	if object["password"] != nil {
		return tokenstore.Account{}, errors.New("it has a password in the clear; give its hash, or add the user with: latchkey user add")
	}
	for name := range object {
		return tokenstore.Account{}, fmt.Errorf("it has the unknown member %s; known are username, hash, sub, scopes, claims and disabled", shortened(name))
	}
	if string(claims) == "null" {
		claims = nil
	}
	if credential.ValidateHash(username) == nil {
		return tokenstore.Account{}, errors.New("its username is a password hash; has something been swapped?")
	}
	account, err := newAccount(username, subject, scopes, claims)
	if err != nil {
		return tokenstore.Account{}, err
	}
	account.Hash, account.Disabled = hash, disabled
	if hash == "" {
		return account, errors.New("it has no hash; give one, or add the user with: latchkey user add")
	}
	return account, credential.ValidateHash(hash)
}

// shortened quotes a name for a message, unless it could be a value that went astray.
func shortened(name string) string {
	const most = 32
	if len(name) > most || strings.Contains(name, "$") {
		return "(not shown)"
	}
	return fmt.Sprintf("%q", name)
}

// scopeList is an array of scopes, or a string of them separated by spaces.
type scopeList []string

// UnmarshalJSON reads either form.
func (s *scopeList) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) == nil {
		*s = strings.Fields(text)
		return nil
	}
	return json.Unmarshal(b, (*[]string)(s))
}

// members reads one JSON object and nothing else. Unlike encoding/json alone it
// refuses a name given twice, of which one value would silently be lost (RFC 8259
// section 4), and what is not UTF-8 or holds half a character, in place of which it would
// put U+FFFD: different names would become one. Its errors hold no value.
func members(text []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(text) {
		return nil, errors.New("it is not UTF-8; convert it")
	}
	if !jsontext.Whole(text) {
		return nil, errors.New("it holds half a character (a lone surrogate); correct it at its source")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, errObject
	}
	object := make(map[string]json.RawMessage)
	for d.More() {
		name, err := d.Token()
		key, ok := name.(string)
		if err != nil || !ok {
			return nil, errObject
		}
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return nil, errObject
		}
		if object[key] != nil {
			return nil, fmt.Errorf("it has the member %s twice; leave one out", shortened(key))
		}
		object[key] = slices.Clone(value)
	}
	if _, err := d.Token(); err != nil {
		return nil, errObject
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errObject
	}
	return object, nil
}
