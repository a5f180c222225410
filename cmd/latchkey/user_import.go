package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/jsontext"
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

// numbered is a line of the file.
type numbered struct {
	number  int // from 1
	text    []byte
	err     error
	account tokenstore.Account
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
	have, _, err := im.Account(ctx, want.Username)
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
	switch err := im.CreateAccount(ctx, want); {
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
