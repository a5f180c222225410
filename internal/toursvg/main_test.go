package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

const tour = `Latchkey: the life of a session on 3 replicas
Log in at one, refresh at another, log out at a third: then none takes its tokens again.

   replica A   http://127.0.0.1:8080

1  Log in at replica A
   The access token is in the answer.
   $ curl -s <http://127.0.0.1:8080/auth/token>
   A  200  {"access_token":"eyJ…0ybRDQ","scope":"profile & reports:read"}
           Set-Cookie: refresh_token=lkr1_…HuwHUj
   ✓ a session is open

2  Show the access token to every replica
   A  401  invalid_token: The access token was revoked
   ✓ refused at once

✓ All 2 steps passed in 1.3 s.
`

func TestRun(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	if err := run(strings.NewReader(tour), &out); err != nil {
		t.Fatal(err)
	}
	svg := out.String()
	for _, want := range []string{
		`class="bold" x="20" y="134" xml:space="preserve">1  Log in at replica A<`, `class="red"`, "401  invalid_token", "profile &amp; reports", "All 2 steps passed",
	} {
		if !strings.Contains(svg, want) {
			t.Errorf("the picture lacks %q:\n%s", want, svg)
		}
	}
	for _, unwanted := range []string{"curl", "Set-Cookie", "127.0.0.1"} {
		if strings.Contains(svg, unwanted) {
			t.Errorf("the picture has %q, which belongs into the terminal only", unwanted)
		}
	}
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the picture is not XML: %v", err)
		}
	}
}

func TestRunRefusesATourThatFailed(t *testing.T) {
	t.Parallel()
	failed, _, _ := strings.Cut(tour, "✓ All")
	if err := run(strings.NewReader(failed), io.Discard); err == nil {
		t.Error("a tour without its last line made a picture")
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("…", columns+1)
	if got := []rune(cut(long)); len(got) != columns {
		t.Errorf("a line of %d characters is cut to %d, not to %d", columns+1, len(got), columns)
	}
	if got := cut(long[:len("…")*columns]); len([]rune(got)) != columns {
		t.Errorf("a line that fits is cut to %d characters", len([]rune(got)))
	}
}
