package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

const (
	importedBcrypt = "$2b$04$abcdefghijklmnopqrstuuJ1o8LrDKZ0pVw5oYbXcWEHHtgPnBYdW"
	importedArgon2 = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)

// userLine is one line of an import.
func userLine(username string, more ...string) string {
	return fmt.Sprintf(`{"username":%q,"hash":%q%s}`+"\n", username, importedBcrypt, strings.Join(more, ""))
}

func TestUserImport(t *testing.T) {
	c := newConsole(t)
	file := filepath.Join(t.TempDir(), "users.jsonl")
	text := "\ufeff" + userLine("alice") + "\r\n  \n" +
		`{"username":"bob","hash":"` + importedArgon2 + `","sub":"u-1","scopes":["read","write"],"claims":{"team":"a"},"disabled":true}` + "\r\n" +
		`{"username":"carol","hash":"` + importedArgon2 + `","sub":null,"scopes":" read  write ","claims":null,"disabled":false}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := c.works("", "user", "import", file), "3 added, 0 unchanged, 0 left alone, 0 failed\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	for _, want := range []tokenstore.Account{
		{Username: "alice", Subject: "alice", Hash: importedBcrypt},
		{Username: "bob", Subject: "u-1", Hash: importedArgon2, Scopes: "read write", Claims: `{"team":"a"}`, Disabled: true},
		{Username: "carol", Subject: "carol", Hash: importedArgon2, Scopes: "read write"},
	} {
		if diff := cmp.Diff(want, c.account(want.Username)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", want.Username, diff)
		}
	}
	for _, args := range [][]string{{"user", "import"}, {"user", "import", "-"}} {
		if got, want := c.works(text, args...), "0 added, 3 unchanged, 0 left alone, 0 failed\n"; got != want {
			t.Errorf("%q again printed %q, want %q", args, got, want)
		}
	}
	fails(t, "", []string{"user", "import", file + "x"}, "no such file")
}

func TestImportReportsEachBadLine(t *testing.T) {
	_ = newConsole(t)
	for _, tt := range []struct{ name, line, text string }{
		{"not JSON", `username=alice`, "not one JSON object"},
		{"an array", `["alice"]`, "not one JSON object"},
		{"cut off", `{"username":"alice","hash":"` + importedBcrypt, "not one JSON object"},
		{"two objects", strings.TrimSpace(userLine("alice")) + `{}`, "not one JSON object"},
		{"nothing in it", `{}`, "it is empty"},
		{"no hash", `{"username":"alice"}`, "it has no hash"},
		{"a password", `{"username":"alice","password":"` + canary + `"}`, "a password in the clear"},
		{"an unknown member", userLine("alice", `,"admin":true`), `unknown member "admin"`},
		{"a member in capitals", `{"Username":"alice","hash":"` + importedBcrypt + `"}`, `unknown member "Username"`},
		{"a hash for a member", `{"` + importedBcrypt + `":"alice"}`, "unknown member (not shown)"},
		{"a short hash for a member", `{"$1$x$y":"alice"}`, "unknown member (not shown)"},
		{"a member twice", userLine("alice", `,"hash":""`), `the member "hash" twice`},
		{"swapped", `{"username":"` + importedBcrypt + `","hash":"alice"}`, "username is a password hash"},
		{"a number for a name", `{"username":1,"hash":"x"}`, "username is not a string"},
		{"a string for a boolean", userLine("alice", `,"disabled":"no"`), "disabled is not true or false"},
		{"numbers for scopes", userLine("alice", `,"scopes":[1]`), "scopes is not a string or an array of strings"},
		{"a string for claims", userLine("alice", `,"claims":"{}"`), "claims: it is not one JSON object"},
		{"a control character", `{"username":"al\u001b[2Jice","hash":"` + importedBcrypt + `"}`, "control character"},
		{"half a character", `{"username":"\ud800","hash":"` + importedBcrypt + `"}`, "half a character"},
		{"half a character in a claim", userLine("alice", `,"claims":{"\ud800":1,"\ud801":2}`), "half a character"},
		{"not UTF-8", "{\"username\":\"a\xff\",\"hash\":\"" + importedBcrypt + `"}`, "not UTF-8"},
		{"a hash of no known kind", `{"username":"alice","hash":"$5$rounds=5000$` + canary + `"}`, "its kind is not known"},
		{"a hash that was cut", `{"username":"alice","hash":"` + importedBcrypt[:40] + `"}`, "60 characters, this has 40"},
		{"a hash of a hostile cost", `{"username":"alice","hash":"` + strings.Replace(importedArgon2, "m=19456", "m=4194304", 1) + `"}`, "memory m=4194304 KiB is more than"},
		{"a hash with a line break", `{"username":"alice","hash":"` + importedArgon2 + `\n"}`, "hash"},
		{"a very long line", userLine("alice", `,"sub":"`, strings.Repeat("x", maxLine), `"`), "longer than 64 KiB"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := fails(t, "\n"+tt.line+"\n", []string{"user", "import"}, "1 of the lines could not be used")
			if !strings.HasPrefix(o.stderr, "line 2: ") || !strings.Contains(o.stderr, tt.text) {
				t.Errorf("reported\n%swant line 2, and %q", o.stderr, tt.text)
			}
			if want := "0 added, 0 unchanged, 0 left alone, 1 failed\n"; o.stdout != want {
				t.Errorf("printed %q, want %q", o.stdout, want)
			}
		})
	}
}

func TestImportOfManyLines(t *testing.T) {
	c := newConsole(t)
	var text strings.Builder
	var bad []int
	for i := 1; i <= 10_000; i++ {
		switch {
		case i%1000 == 7:
			text.WriteString(`{"username":"broken","hash":"$1$x"}` + "\n")
			bad = append(bad, i)
		case i == 5000:
			text.WriteString(strings.Repeat("x", 3*maxLine) + "\n")
			bad = append(bad, i)
		default:
			text.WriteString(userLine(fmt.Sprintf("user%05d", i)))
		}
	}
	check := func(summary string) {
		t.Helper()
		o := fails(t, text.String(), []string{"user", "import"}, "11 of the lines could not be used")
		if o.stdout != summary {
			t.Errorf("printed %q, want %q", o.stdout, summary)
		}
		var reported []int
		for _, m := range regexp.MustCompile(`(?m)^line (\d+): .+$`).FindAllStringSubmatch(o.stderr, -1) {
			n, _ := strconv.Atoi(m[1])
			reported = append(reported, n)
		}
		if diff := cmp.Diff(bad, reported); diff != "" || strings.Count(o.stderr, "\n") != len(bad) {
			t.Errorf("reported lines (-want +got):\n%s", diff)
		}
	}
	check("9989 added, 0 unchanged, 0 left alone, 11 failed\n")
	check("0 added, 9989 unchanged, 0 left alone, 11 failed\n")
	var list []userView
	if err := json.Unmarshal([]byte(c.works("", "user", "list", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 9989 || !slices.IsSortedFunc(list, func(a, b userView) int { return strings.Compare(a.Username, b.Username) }) {
		t.Errorf("%d users, want 9989, sorted", len(list))
	}
}

func TestImportLeavesExistingUsersAlone(t *testing.T) {
	c := newConsole(t)
	c.add("alice")
	before, session := c.account("alice"), c.open("alice")
	// Not a failure: the other lines are in, and an import that was cut off is run again.
	o := command(t, strings.NewReader(userLine("alice")+userLine("bob")), "user", "import")
	if o.err != nil || o.stdout != "1 added, 0 unchanged, 1 left alone, 0 failed\n" {
		t.Errorf("%v, printed %q", o.err, o.stdout)
	}
	if want := "line 1: the user alice is there already and differs: left alone; --replace would replace it\n"; o.stderr != want {
		t.Errorf("reported %q, want %q", o.stderr, want)
	}
	if diff := cmp.Diff(before, c.account("alice")); diff != "" {
		t.Errorf("alice was changed (-before +after):\n%s", diff)
	}
	session.lives()

	// Nor does the same line again let in who was shut out since.
	c.works("", "user", "disable", "bob")
	if got, want := c.works(userLine("bob"), "user", "import"), "0 added, 0 unchanged, 1 left alone, 0 failed\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	if !c.account("bob").Disabled {
		t.Error("the import enabled a disabled user")
	}
}

func TestImportReplaces(t *testing.T) {
	c := newConsole(t)
	c.add("alice", "--sub", "u-1", "--scope", "read", "--claims", `{"team":"a"}`)
	c.works(userLine("bob"), "user", "import")
	old, underWay, unchanged := c.open("alice"), c.begin("alice"), c.open("bob")
	text := userLine("alice", `,"sub":"u-2"`) + userLine("bob") + userLine("carol")
	if got, want := c.works(text, "user", "import", "--replace"), "1 added, 1 replaced, 1 unchanged, 0 failed\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	if diff := cmp.Diff(tokenstore.Account{Username: "alice", Subject: "u-2", Hash: importedBcrypt}, c.account("alice")); diff != "" {
		t.Errorf("alice (-want +got):\n%s", diff)
	}
	old.ended()
	if _, err := underWay(); !errors.Is(err, tokenstore.ErrSuperseded) {
		t.Errorf("a login that read the replaced account: %v, want superseded", err)
	}
	unchanged.lives()
	c.open("alice").lives()
}

// Of one username the lines count in the file's order, however many are under way.
func TestImportOfOneUsernameTwice(t *testing.T) {
	c := newConsole(t)
	var text strings.Builder
	for i := range 200 {
		text.WriteString(userLine("alice", fmt.Sprintf(`,"sub":"u-%d"`, i)))
	}
	c.works(text.String(), "user", "import")
	if got := c.account("alice").Subject; got != "u-0" {
		t.Errorf("alice is %s, want the first, u-0", got)
	}
	c.works(text.String(), "user", "import", "--replace")
	if got := c.account("alice").Subject; got != "u-199" {
		t.Errorf("alice is %s, want the last, u-199", got)
	}
}

// An outage ends the import at once, though the input goes on.
func TestImportEndsWhenRedisDoes(t *testing.T) {
	c := newConsole(t)
	r, w := io.Pipe()
	done := make(chan output)
	go func() {
		o := command(t, r, "user", "import")
		_ = r.Close() // or the writer would wait for a reader
		done <- o
	}()
	var killed bool
	lines := 0
	for ; ; lines++ {
		if lines == 500 {
			c.redis.Kill(t)
			killed = true
		}
		if _, err := io.WriteString(w, userLine(fmt.Sprintf("user%d", lines))); err != nil {
			break
		}
	}
	o := <-done
	if !killed || o.err == nil || !strings.Contains(o.err.Error(), "nothing is known about whether it happened; run the same command again") ||
		!regexp.MustCompile(`\(line \d+: `).MatchString(o.err.Error()) {
		t.Errorf("after %d lines: %v", lines, o.err)
	}
	if !strings.HasSuffix(o.stdout, " 0 failed\n") {
		t.Errorf("printed %q, want a summary", o.stdout)
	}
}

func TestImportWithFewConnections(t *testing.T) {
	c := newConsole(t)
	t.Setenv("LATCHKEY_REDIS_URL", c.redis.URL()+"?pool_size=2")
	var text strings.Builder
	for i := range 500 {
		text.WriteString(userLine(fmt.Sprintf("user%d", i)))
	}
	c.works(text.String(), "user", "import")
	if n := strings.Count(c.works("", "user", "list"), "\n"); n != 501 {
		t.Errorf("%d lines, want a head and 500 users", n)
	}
}
