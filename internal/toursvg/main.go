// Command toursvg draws the output of `latchkey dev --exit`, which it reads from standard
// input, as an SVG on standard output. `make tour-svg` makes docs/tour.svg with it.
package main

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"
)

const (
	columns    = 92  // longer lines are cut, and end in "…"
	width      = 816 // room for columns characters of the fonts below at fontSize, and the padding
	fontSize   = 14
	lineHeight = 20
	padding    = 20
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "toursvg:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	lines, err := excerpt(in)
	if err != nil {
		return err
	}
	_, err = io.WriteString(out, draw(lines))
	return err
}

// line is one line of the picture, and the class of its colour.
type line struct{ class, text string }

var (
	title  = regexp.MustCompile(`^\d+  \S`)
	answer = regexp.MustCompile(`^   [A-Z]  (\d)\d\d  `)
)

// excerpt keeps of the tour's output the heading, the title of each step, what the replicas
// answered and what the step found. Commands, explanations and cookies are left out.
func excerpt(in io.Reader) ([]line, error) {
	lines := []line{{"dim", "$ latchkey dev"}}
	passed := false
	scanner := bufio.NewScanner(in)
	for scanner.Scan() {
		text := scanner.Text()
		switch m := answer.FindStringSubmatch(text); {
		case strings.HasPrefix(text, "Latchkey: "), title.MatchString(text):
			lines = append(lines, line{}, line{"bold", text})
		case strings.HasPrefix(text, "Log in at one"):
			lines = append(lines, line{"plain", text})
		case m != nil:
			class := "red"
			if m[1] == "2" {
				class = "plain"
			}
			lines = append(lines, line{class, text})
		case strings.HasPrefix(text, "   ✓ "):
			lines = append(lines, line{"green", text})
		case strings.HasPrefix(text, "✓ All "):
			lines = append(lines, line{}, line{"green", text})
			passed = true
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, err
	}
	if !passed {
		return nil, fmt.Errorf("the input is not the output of a tour that passed: it has no line that begins with %q", "✓ All ")
	}
	return lines, nil
}

// draw returns the picture: a terminal with colours and a background of its own, so that it
// can be read on light and on dark pages.
func draw(lines []line) string {
	var b strings.Builder
	height := len(lines)*lineHeight + 2*padding
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-labelledby="t">`+"\n", width, height, width, height)
	b.WriteString(`<title id="t">The tour of latchkey dev: log in at one replica, refresh at another, log out at a third</title>
<!-- Made by make tour-svg. Do not edit. -->
<style>
text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre;fill:#e6edf3}
.bold{font-weight:700}.dim{fill:#9198a1}.green{fill:#56d364}.red{fill:#ff7b72}
</style>
`)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" rx="8" fill="#0d1117"/>`+"\n", width, height)
	for i, l := range lines {
		if l.text == "" {
			continue
		}
		fmt.Fprintf(&b, `<text class="%s" x="%d" y="%d" xml:space="preserve">%s</text>`+"\n", l.class, padding, padding+fontSize+i*lineHeight, html.EscapeString(cut(l.text)))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// cut ends a line that is longer than columns with "…".
func cut(s string) string {
	if utf8.RuneCountInString(s) <= columns {
		return s
	}
	return string([]rune(s)[:columns-1]) + "…"
}
