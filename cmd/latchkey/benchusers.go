package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// maxSessions is how many sessions a bench may have, and so how many users.
const maxSessions = 100_000

// benchUser is an account that a bench logs in to.
type benchUser struct {
	name, password string
	line           int // of the file that it is from, from 1; 0: it is from none
}

// findUsers reads whom to log in, if there are URLs, and settles how many sessions.
func (o *benchOptions) findUsers(cmd *cobra.Command) (err error) {
	switch {
	case o.file != "":
		o.users, err = o.readUsers(cmd)
	case o.username != "":
		var password string
		password, err = askPassword(cmd, o.username)
		o.users = []benchUser{{name: o.username, password: password}}
	}
	switch {
	case o.sessions > 0: // as asked
	case o.file != "":
		o.sessions = len(o.users)
	default:
		o.sessions = 100
	}
	o.users = o.users[:min(len(o.users), o.sessions)]
	return err
}

// String names the user, without the password.
func (u benchUser) String() string {
	if u.line > 0 {
		return fmt.Sprintf("%s (line %d)", printable(u.name), u.line)
	}
	return printable(u.name)
}

// readUsers reads the file of --users. No error holds what stands in it.
func (o *benchOptions) readUsers(cmd *cobra.Command) ([]benchUser, error) {
	in, name := cmd.InOrStdin(), "standard input"
	if o.file != "-" {
		f, err := os.Open(o.file)
		if err != nil {
			return nil, fmt.Errorf("the file of --users: %w", err)
		}
		defer f.Close()
		in, name = f, o.file
	}
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	lines := make(chan numbered)
	go readLines(ctx, in, lines)
	var users []benchUser
	seen := map[string]int{} // the line of each username
	for {
		var l numbered
		var more bool
		select {
		case <-ctx.Done():
			return nil, errors.New("interrupted; nobody was logged in")
		case l, more = <-lines:
		}
		if !more {
			break
		}
		u, err := parseBenchUser(l)
		switch first := seen[u.name]; {
		case err != nil:
		case first > 0:
			err = fmt.Errorf("it has the username of line %d again; leave one out", first)
		case len(users) == maxSessions:
			err = fmt.Errorf("there are more than %d users; give fewer", maxSessions)
		}
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", name, l.number, err)
		}
		users, seen[u.name] = append(users, u), l.number
	}
	if len(users) == 0 {
		return nil, fmt.Errorf("%s holds no user; write username:password, each on a line of its own", name)
	}
	return users, nil
}

// parseBenchUser reads a line. A username with a colon cannot be written, as in
// HTTP's Basic authentication (RFC 7617 section 2).
func parseBenchUser(l numbered) (benchUser, error) {
	if l.err != nil {
		return benchUser{}, l.err
	}
	name, password, found := bytes.Cut(l.text, []byte(":"))
	if !found {
		return benchUser{}, errors.New("there is no colon in it; write username:password")
	}
	u := benchUser{name: string(name), password: string(password), line: l.number}
	return u, cmp.Or(credential.ValidateUsername(u.name), credential.ValidatePassword(u.password))
}

// makeUsers makes the users of an embedded run. They have the demo's hash, which each
// login verifies as it would any other.
func (b *bencher) makeUsers(ctx context.Context, store *tokenstore.Store) error {
	demo, _, err := store.Account(ctx, demoUser)
	if err != nil {
		return err
	}
	var made atomic.Int64
	began := time.Now()
	shown := b.progress("users", func() (share, perSecond float64) {
		n := float64(made.Load())
		return n / float64(len(b.users)), n / time.Since(began).Seconds()
	})
	defer shown()
	for _, u := range b.users {
		if err := store.CreateAccount(ctx, tokenstore.Account{Username: u.name, Hash: demo.Hash}); err != nil {
			return err
		}
		made.Add(1)
	}
	return nil
}
