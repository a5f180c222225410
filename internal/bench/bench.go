// Package bench logs sessions in, checks their tokens, refreshes them and logs them out under load, and shows how long
// that took. At the end it shows every token to every URL again: none may be accepted.
package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/latchkey-auth/latchkey/internal/terminal"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// ErrFaults says that a request failed, or that a token was accepted after its logout. It has been shown.
var ErrFaults = errors.New("the bench found faults")

// Options of Run.
type Options struct {
	URLs     []string // of replicas or a load balancer, without a slash at the end
	Title    string   // what the URLs are, as the output says it
	Users    []User   // who log in; sessions go round among them
	Sessions int
	Parallel int           // clients at once
	Duration time.Duration // of the checks, and of the refreshes
	Timeout  time.Duration // of everything
	JSON     bool          // write a [Report] and nothing else
	Out      io.Writer
	Progress io.Writer // a terminal here shows how far a phase is

	// Store, unless it is nil, is where the users are made first, with the password hash of the account HashOf.
	Store  *tokenstore.Store
	HashOf string
}

// User is an account to log in to.
type User struct {
	Name, Password string
	Line           int // of the file that the user is from, from 1; 0: from no file
}

// String names the user, without the password.
func (u User) String() string {
	if u.Line > 0 {
		return fmt.Sprintf("%s (line %d)", terminal.Printable(u.Name), u.Line)
	}
	return terminal.Printable(u.Name)
}

// Run loads the URLs and shows the result. It returns ErrFaults if there were any.
func Run(ctx context.Context, o Options) error {
	b := newRunner(o)
	defer b.client.CloseIdleConnections()
	p := terminal.NewPrinter(o.Out)
	if !o.JSON {
		p.Line(p.Bold("latchkey bench") + "  " + o.Title)
		p.Line(p.Dim(fmt.Sprintf("%s of %s, %s, %s of checks and of refreshes",
			terminal.Plural(o.Sessions, "session"), terminal.Plural(len(o.Users), "user"), terminal.Plural(o.Parallel, "client"), o.Duration)))
		p.Line("")
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	if o.Store != nil {
		if err := b.makeUsers(ctx); err != nil {
			return cmp.Or(b.cutShort(ctx), err)
		}
	}
	if err := b.run(ctx); err != nil {
		return err
	}
	if o.JSON {
		if err := b.printJSON(o.Out); err != nil {
			return err
		}
	} else {
		b.print(p)
	}
	if b.faults() > 0 {
		return ErrFaults
	}
	return nil
}

// makeUsers makes the users in the store. They share one hash, which each login verifies like any other.
func (b *runner) makeUsers(ctx context.Context) error {
	account, _, err := b.Store.Accounts.Get(ctx, b.HashOf)
	if err != nil {
		return err
	}
	var made atomic.Int64
	began := time.Now()
	end := b.progress("users", func() (share, perSecond float64) {
		n := float64(made.Load())
		return n / float64(len(b.Users)), n / time.Since(began).Seconds()
	})
	defer end()
	for _, u := range b.Users {
		if err := b.Store.Accounts.Create(ctx, tokenstore.Account{Username: u.Name, Hash: account.Hash}); err != nil {
			return err
		}
		made.Add(1)
	}
	return nil
}
