package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/internal/bench"
	"github.com/latchkey-auth/latchkey/internal/credential"
)

// maxSessions is how many sessions a bench may have, and so how many users.
const maxSessions = 100_000

// findUsers reads whom to log in, if there are URLs, and settles how many sessions.
func (o *benchOptions) findUsers(cmd *cobra.Command) (err error) {
	switch {
	case o.file != "":
		o.users, err = o.readUsers(cmd)
	case o.username != "":
		var password string
		password, err = askPassword(cmd, o.username)
		o.users = []bench.User{{Name: o.username, Password: password}}
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

// readUsers reads the file of --users. No error holds what stands in it.
func (o *benchOptions) readUsers(cmd *cobra.Command) ([]bench.User, error) {
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
	var users []bench.User
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
		switch first := seen[u.Name]; {
		case err != nil:
		case first > 0:
			err = fmt.Errorf("it has the username of line %d again; leave one out", first)
		case len(users) == maxSessions:
			err = fmt.Errorf("there are more than %d users; give fewer", maxSessions)
		}
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", name, l.number, err)
		}
		users, seen[u.Name] = append(users, u), l.number
	}
	if len(users) == 0 {
		return nil, fmt.Errorf("%s holds no user; write username:password, each on a line of its own", name)
	}
	return users, nil
}

// parseBenchUser reads a line. A username with a colon cannot be written, as in
// HTTP's Basic authentication (RFC 7617 section 2).
func parseBenchUser(l numbered) (bench.User, error) {
	if l.err != nil {
		return bench.User{}, l.err
	}
	name, password, found := bytes.Cut(l.text, []byte(":"))
	if !found {
		return bench.User{}, errors.New("there is no colon in it; write username:password")
	}
	u := bench.User{Name: string(name), Password: string(password), Line: l.number}
	return u, cmp.Or(credential.ValidateUsername(u.Name), credential.ValidatePassword(u.Password))
}
