package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/terminal"
)

var (
	errPasswordArgument = errors.New("a password is never an argument, where other users of this machine and the shell's history could read it: " +
		"leave it out and type it when asked, or write it to standard input")
	errPasswordsDiffer = errors.New("the two passwords differ; run the command again")
	errPasswordLines   = errors.New("standard input holds more than one line; write the password once, on one line")
	errInterrupted     = errors.New("interrupted; nothing was changed")
)

// readPassword asks for a new password, twice, where standard input is a
// terminal. Else it is what standard input holds, less one trailing newline.
// The password is one that [credential.ValidatePassword] accepts.
func readPassword(cmd *cobra.Command, username string) (string, error) {
	in := cmd.InOrStdin()
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return promptPassword(cmd.Context(), f, cmd.ErrOrStderr(), username)
	}
	// One byte more than a password and its line end may have tells that it is too long.
	b, err := io.ReadAll(io.LimitReader(in, credential.MaxPassword+3))
	if err != nil {
		return "", fmt.Errorf("read the password from standard input: %w", err)
	}
	if rest, ok := bytes.CutSuffix(b, []byte("\n")); ok {
		b = bytes.TrimSuffix(rest, []byte("\r"))
	}
	if bytes.ContainsAny(b, "\r\n") {
		return "", errPasswordLines
	}
	return string(b), credential.ValidatePassword(string(b))
}

func promptPassword(ctx context.Context, tty *os.File, w io.Writer, username string) (string, error) {
	first, err := readHidden(ctx, tty, w, "New password of "+terminal.Printable(username)+": ")
	if err != nil {
		return "", err
	}
	if err := credential.ValidatePassword(first); err != nil {
		return "", err
	}
	second, err := readHidden(ctx, tty, w, "The same again: ")
	if err != nil {
		return "", err
	}
	if first != second {
		return "", errPasswordsDiffer
	}
	return first, nil
}

// readHidden reads one line that the terminal does not show. When ctx ends, the
// terminal gets its echo back; the read then goes on in the background, since
// nothing can end it, until the program exits.
func readHidden(ctx context.Context, tty *os.File, w io.Writer, prompt string) (string, error) {
	fd := int(tty.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("the terminal: %w", err)
	}
	fmt.Fprint(w, prompt)
	defer fmt.Fprintln(w) // the newline that was typed is not shown either
	type answer struct {
		line []byte
		err  error
	}
	read := make(chan answer, 1)
	go func() {
		line, err := term.ReadPassword(fd)
		read <- answer{line, err}
	}()
	select {
	case a := <-read:
		if errors.Is(a.err, io.EOF) {
			return "", credential.ErrPasswordEmpty
		}
		if a.err != nil {
			return "", fmt.Errorf("the terminal: %w", a.err)
		}
		return string(a.line), nil
	case <-ctx.Done():
		return "", errors.Join(errInterrupted, term.Restore(fd, before))
	}
}

// refusePasswordFlag gives a command the flags under which other programs take
// a password, so that one given there is refused by a reason, and not echoed by
// the complaint about an unknown flag.
func refusePasswordFlag(cmd *cobra.Command) {
	cmd.Flags().StringP("password", "p", "", "")
	_ = cmd.Flags().MarkHidden("password") // it exists
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("password") {
			return errPasswordArgument
		}
		return nil
	}
}
