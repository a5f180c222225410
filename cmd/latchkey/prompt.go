package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/internal/credential"
)

var (
	errPasswordArgument = errors.New("a password is never an argument, where other users of this machine and the shell's history could read it: " +
		"leave it out and type it when asked, or write it to standard input")
	errPasswordLines = errors.New("standard input holds more than one line; write the password once, on one line")
	errTerminal      = errors.New("write the password to standard input, as in: latchkey user passwd NAME < password.txt")
)

// readPassword reads a new password from standard input, less one trailing
// newline. It is one that [credential.ValidatePassword] accepts. A terminal,
// which would show what is typed, is refused.
func readPassword(cmd *cobra.Command, _ string) (string, error) {
	in := cmd.InOrStdin()
	if f, ok := in.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			return "", errTerminal
		}
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
