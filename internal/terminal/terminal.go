// Package terminal writes for people: colours where the terminal knows them, text that cannot be mistaken for
// something else, and figures of few characters.
package terminal

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// HasColour reports whether to print in colour: to a terminal that knows colours, unless the user objects
// (no-color.org).
func HasColour(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// Printer prints lines. Without Colour, the methods that colour a text return it as it is.
type Printer struct {
	W      io.Writer
	Colour bool
}

// NewPrinter returns a printer to w, in colour if w is a terminal.
func NewPrinter(w io.Writer) *Printer { return &Printer{W: w, Colour: HasColour(w)} }

func (p *Printer) paint(code, s string) string {
	if !p.Colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// Bold returns s in bold.
func (p *Printer) Bold(s string) string { return p.paint("1", s) }

// Dim returns s in a fainter colour.
func (p *Printer) Dim(s string) string { return p.paint("2", s) }

// Red returns s in red.
func (p *Printer) Red(s string) string { return p.paint("31", s) }

// Green returns s in green.
func (p *Printer) Green(s string) string { return p.paint("32", s) }

// Cyan returns s in cyan.
func (p *Printer) Cyan(s string) string { return p.paint("36", s) }

// Line prints a line.
func (p *Printer) Line(s string) { fmt.Fprintln(p.W, s) }

// Text prints one or more lines, indented.
func (p *Printer) Text(s string) { fmt.Fprintln(p.W, "   "+strings.ReplaceAll(s, "\n", "\n   ")) }

// Command prints a shell command of one or more lines.
func (p *Printer) Command(s string) {
	for i, l := range strings.Split(s, "\n") {
		fmt.Fprintln(p.W, "   "+p.Dim([]string{"$ ", "  "}[min(i, 1)])+p.Cyan(l))
	}
}

// Printable returns text as it is, or quoted if a terminal could show it as something else. What Redis holds may come
// from anybody who can write there.
func Printable(s string) string {
	if s != "" && s[0] != '"' && utf8.ValidString(s) && strings.TrimSpace(s) == s &&
		!strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	return strconv.Quote(s)
}

// Plural is a number of things: "1 replica", "3 replicas".
func Plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// Duration is d in at most seven characters: 850µs, 1.2ms, 85ms, 1.2s.
func Duration(d time.Duration) string {
	switch {
	case d <= 0:
		return "0"
	case d < time.Millisecond:
		return fmt.Sprintf("%dµs", d.Microseconds())
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1fms", d.Seconds()*1000)
	case d < time.Second:
		return fmt.Sprintf("%.0fms", d.Seconds()*1000)
	case d < 100*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return fmt.Sprintf("%.0fs", d.Seconds())
}

// Number is v in at most five characters: 0.3, 12, 1.2k, 34k, 1.2M.
func Number(v float64) string {
	switch {
	case v < 1000 && v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case v < 0.05:
		return "<0.1"
	case v < 9.95:
		return fmt.Sprintf("%.1f", v)
	case v < 999.5:
		return fmt.Sprintf("%.0f", v)
	case v < 99_950:
		return fmt.Sprintf("%.1fk", v/1e3)
	case v < 999_500:
		return fmt.Sprintf("%.0fk", v/1e3)
	}
	return fmt.Sprintf("%.1fM", v/1e6)
}

// NetError returns the reason of a network error, without addresses and ports, which differ each time.
func NetError(err error) error {
	var op *net.OpError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return errors.New("no answer in time")
	case errors.As(err, &op):
		return op.Err
	}
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
