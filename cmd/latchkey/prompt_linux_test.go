package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/latchkey-auth/latchkey/internal/credential"
)

// keyboard is the other end of a terminal: what a person types and sees.
type keyboard struct {
	t        *testing.T
	terminal *os.File // standard input of the program
	person   *os.File
}

func newKeyboard(t *testing.T) *keyboard {
	t.Helper()
	leavesNothing(t)
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		terminal.Close()
		person.Close() // hangs up, which ends a read that was left behind
	})
	return &keyboard{t, terminal, person}
}

// hidden waits until the terminal shows what is typed, or does not.
func (k *keyboard) hidden(want bool) {
	k.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		s, err := unix.IoctlGetTermios(int(k.terminal.Fd()), unix.TCGETS)
		if err != nil {
			k.t.Fatal(err)
		}
		if (s.Lflag&unix.ECHO == 0) == want {
			return
		}
		if time.Now().After(deadline) {
			k.t.Fatalf("the terminal is not hidden=%t", want)
		}
		time.Sleep(time.Millisecond) // a poll of the terminal's state, not a timing
	}
}

// types waits for a prompt, and for the terminal to hide the answer, and types it.
func (k *keyboard) types(prompts written, prompt, line string) {
	k.t.Helper()
	for text := range prompts {
		if text == prompt {
			break
		}
	}
	k.hidden(true)
	if _, err := io.WriteString(k.person, line+"\n"); err != nil {
		k.t.Fatal(err)
	}
}

// written passes on what is written.
type written chan string

func (w written) Write(b []byte) (int, error) {
	w <- string(b)
	return len(b), nil
}

// seen is what the terminal showed of what was typed, once it is closed.
func (k *keyboard) seen() string {
	k.t.Helper()
	k.terminal.Close()
	b, err := io.ReadAll(k.person)
	if err != nil && !errors.Is(err, unix.EIO) { // which is how a terminal ends
		k.t.Fatal(err)
	}
	return string(b)
}

func TestPasswordPrompt(t *testing.T) {
	for _, tt := range []struct {
		name  string
		typed []string
		want  error
	}{
		{"twice the same", []string{canary, canary}, nil},
		{"twice another", []string{canary, canary + "!"}, errPasswordsDiffer},
		{"nothing", []string{""}, credential.ErrPasswordEmpty},
		{"too long", []string{strings.Repeat("x", 1025)}, credential.ErrPasswordTooLong},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := newKeyboard(t)
			prompts := make(written, 8)
			var password string
			done := make(chan error)
			go func() {
				cmd := newUserAdd()
				cmd.SetContext(t.Context())
				cmd.SetIn(k.terminal)
				cmd.SetErr(prompts)
				var err error
				password, err = readPassword(cmd, "alice")
				done <- err
			}()
			asked := []string{"New password of alice: ", "The same again: "}
			for i, line := range tt.typed {
				k.types(prompts, asked[i], line)
			}
			err := <-done
			if !errors.Is(err, tt.want) || tt.want == nil && (err != nil || password != canary) {
				t.Errorf("%q, %v, want %v", password, err, tt.want)
			}
			if text := <-prompts; text != "\n" || len(prompts) > 0 {
				t.Errorf("after the last answer it writes %q and %d more", text, len(prompts))
			}
			k.hidden(false)
			if seen := k.seen(); strings.Contains(seen, canary) {
				t.Errorf("the terminal showed %q", seen)
			}
		})
	}
}

// Ctrl-C at the prompt ends the command, and the terminal shows again what is typed.
func TestPasswordPromptInterrupted(t *testing.T) {
	k := newKeyboard(t)
	ctx, interrupt := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		cmd := newUserAdd()
		cmd.SetContext(ctx)
		cmd.SetIn(k.terminal)
		cmd.SetErr(io.Discard)
		_, err := readPassword(cmd, "alice")
		done <- err
	}()
	k.hidden(true)
	interrupt()
	if err := <-done; !errors.Is(err, errInterrupted) {
		t.Errorf("%v, want %v", err, errInterrupted)
	}
	k.hidden(false)
}
