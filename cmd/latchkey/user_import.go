package main

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"sync"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/internal/terminal"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// maxLine is the longest line that an import reads, in bytes: several times what
// the longest acceptable account takes.
const maxLine = 64 << 10

func newUserImport() *cobra.Command {
	var replace bool
	cmd := &cobra.Command{
		Use:   "import [FILE]",
		Short: "Add users from a file of JSON lines, with the password hashes they have",
		Long: `Add users from a file, or from standard input if FILE is - or left out. Each line is
one user, a JSON object:

    {"username":"alice","hash":"$2b$12$..."}
    {"username":"bob","hash":"$argon2id$v=19$m=19456,t=2,p=1$...","sub":"u-17",
     "scopes":["read","write"],"claims":{"team":"a"},"disabled":true}   (on one line)

hash is a PHC string of argon2id or argon2i, or bcrypt; what is weaker than today's
parameters is replaced when the user logs in. sub is the username unless given.

A line that cannot be used is reported with its number, and the others are imported.
A user who is there already and differs from the line is reported and left alone, or
with --replace replaced as a whole, which ends that user's sessions. A user who is
there already just as the line says stays untouched either way: an import that was
cut off can be run again.

The command fails if a line could not be used, and not because users were left alone.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if len(args) == 1 && args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("the file to import: %w", err)
				}
				defer f.Close()
				in = f
			}
			return operate(cmd, func(ctx context.Context, op operator) error {
				im := &importing{operator: op, replace: replace, faults: cmd.ErrOrStderr()}
				err := im.run(ctx, in)
				return errors.Join(say(cmd, "%s", im.summary()), err)
			})
		},
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "replace users that are there already, which ends their sessions")
	return cmd
}

// importing is one import under way.
type importing struct {
	operator
	replace bool
	faults  io.Writer // a line for each line that was not imported as it stands

	mu                                          sync.Mutex
	added, replaced, unchanged, skipped, failed int
}

// run imports the file. It returns an error if a line failed, or at the first
// answer that Redis did not give.
func (im *importing) run(ctx context.Context, in io.Reader) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)

	// Lines of one username meet in one queue, and so are dealt with in the
	// file's order.
	queues := make([]chan numbered, im.parallel)
	var wg sync.WaitGroup
	for i := range queues {
		queues[i] = make(chan numbered, 4)
		wg.Go(func() {
			for l := range queues[i] {
				if ctx.Err() != nil {
					continue
				}
				if err := im.put(ctx, l); err != nil {
					stop(fmt.Errorf("line %d: %w", l.number, err))
				}
			}
		})
	}
	err := im.feed(ctx, in, queues)
	for _, q := range queues {
		close(q)
	}
	wg.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted; run the same command again: what has been imported stays untouched")
	}
	if err == nil && im.failed > 0 {
		err = fmt.Errorf("%d of the lines could not be used; correct those and import the file again", im.failed)
	}
	return err
}

// feed reads lines and hands each usable one to the queue of its username, until
// the input or ctx ends.
func (im *importing) feed(ctx context.Context, in io.Reader, queues []chan numbered) error {
	lines := make(chan numbered, len(queues))
	go readLines(ctx, in, lines)
	seed := maphash.MakeSeed()
	for {
		var l numbered
		var more bool
		select {
		case <-ctx.Done():
			return nil
		case l, more = <-lines:
		}
		if !more {
			return nil
		}
		if errors.Is(l.err, errRead) {
			return fmt.Errorf("line %d: %w", l.number, l.err)
		}
		if l.err == nil {
			l.account, l.err = parseUser(l.text)
		}
		if l.err != nil {
			im.fail(l.number, l.err)
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case queues[maphash.String(seed, l.account.Username)%uint64(len(queues))] <- l:
		}
	}
}

// put imports one user. Its error is one that ends the import.
func (im *importing) put(ctx context.Context, l numbered) error {
	want := l.account
	// Asked first: CreateAccount takes an account of the same hash for the same
	// request sent again, and would enable anew a user who was disabled since.
	have, _, err := im.Accounts.Get(ctx, want.Username)
	switch {
	case err == nil && have == want:
		im.count(&im.unchanged)
		return nil
	case err == nil && !im.replace:
		im.skip(l)
		return nil
	case err == nil:
		if err := im.deleteUser(ctx, want.Username); err != nil && !errors.Is(err, tokenstore.ErrNoAccount) {
			return err
		}
	case !errors.Is(err, tokenstore.ErrNoAccount):
		return err
	}
	switch err := im.Accounts.Create(ctx, want); {
	case errors.Is(err, tokenstore.ErrAccountExists): // added by somebody else this moment
		im.skip(l)
	case err != nil:
		return err
	case have.Username != "":
		im.count(&im.replaced)
	default:
		im.count(&im.added)
	}
	return nil
}

func (im *importing) count(n *int) {
	im.mu.Lock()
	defer im.mu.Unlock()
	*n++
}

func (im *importing) fail(line int, err error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.failed++
	fmt.Fprintf(im.faults, "line %d: %v\n", line, err)
}

func (im *importing) skip(l numbered) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.skipped++
	fmt.Fprintf(im.faults, "line %d: the user %s is there already and differs: left alone; --replace would replace it\n",
		l.number, terminal.Printable(l.account.Username))
}

func (im *importing) summary() string {
	s := fmt.Sprintf("%d added, %d unchanged, %d left alone, %d failed", im.added, im.unchanged, im.skipped, im.failed)
	if im.replace {
		s = fmt.Sprintf("%d added, %d replaced, %d unchanged, %d failed", im.added, im.replaced, im.unchanged, im.failed)
	}
	return s
}

var (
	errRead     = errors.New("the input cannot be read further; run the same command again")
	errLongLine = fmt.Errorf("it is longer than %d KiB; is there a line break missing?", maxLine>>10)
	errObject   = errors.New(`it is not one JSON object; write {"username":"...","hash":"..."} on one line`)
)
