//go:build unix

package docs_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// What the comment right before a block of commands may say. A reader does not see it.
const (
	notRun     = "not run"    // : why
	background = "background" // : the last command stays until the page ends; wait for this port
	briefly    = "briefly"    // : the same, and it is ended as soon as it listens
)

// Every block of shell commands in every page is run as it stands, the blocks of a
// page one after another, or says in a comment why it is not.
func TestWalk(t *testing.T) {
	t.Parallel()
	for _, p := range pages(t) {
		var script strings.Builder
		for _, b := range p.blocks {
			switch {
			case b.language == "" && strings.Contains(b.text, "$ "), b.language == "bash", b.language == "shell":
				t.Errorf("%s:%d: commands in a block that is neither sh nor console", p.path, b.line)
			case b.directive == notRun && len(b.argument) < 8 && (b.language == "sh" || b.language == "console"):
				t.Errorf("%s:%d: not run, and does not say why", p.path, b.line)
			case b.language == "sh" && b.directive != notRun:
				fmt.Fprintf(&script, "echo '== line %d' >&2\n%s\n", b.line, b.script(t, p.path))
			}
		}
		if script.Len() == 0 {
			continue
		}
		t.Run(p.path, func(t *testing.T) {
			t.Parallel()
			w, text := newWorld(t), script.String()
			if !strings.Contains(text, "redis-server") && !strings.Contains(text, "cmd/latchkey dev") { // these pages take a service for granted
				text = "redis-server >/dev/null & listens 6379\nlatchkey serve & listens 8080\n" + text
				w.env = append(w.env, "LATCHKEY_SECRET=a secret of the test of the pages of 32 bytes or more", "PASSWORD=correct horse")
			}
			w.run(t, text)
		})
	}
}

// script is a block as a shell runs it that nobody sits at.
func (b block) script(t *testing.T, path string) string {
	t.Helper()
	switch b.directive {
	case background, briefly:
		lines := strings.Split(strings.TrimSpace(b.text), "\n")
		last := strings.TrimSuffix(strings.TrimSpace(regexp.MustCompile(` {2,}#.*`).ReplaceAllString(lines[len(lines)-1], "")), "&")
		lines[len(lines)-1] = last + " &\nlistens " + b.argument
		if b.directive == briefly {
			lines = append(lines, "kill $!; wait $! || true")
		}
		return strings.Join(lines, "\n")
	case "":
		return b.text
	}
	t.Errorf("%s:%d: a block cannot be %q", path, b.line, b.directive)
	return ""
}

// world is where a page's commands run: a folder with copies of nothing, programs of
// the names that they use, and ports of its own in the place of those that they name.
type world struct {
	dir   string
	env   []string
	ports *strings.Replacer
}

func newWorld(t *testing.T) *world {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{dir: t.TempDir()}
	api, admin, redisPort := row(t), row(t), stacktest.FreePort(t)
	w.ports = strings.NewReplacer("localhost:8080", "localhost:"+api+"0", "127.0.0.1:8080", "127.0.0.1:"+api+"0", ":808$n", ":"+api+"$n", ":909$n", ":"+admin+"$n",
		"listens 8080", "listens "+api+"0", "listens 6379", "listens "+redisPort, "listens 8083", "listens "+api+"3")
	w.program(t, "latchkey", fmt.Sprintf(`case "$1" in dev) set -- "$@" --addr 127.0.0.1:%s0;; esac; exec %q "$@"`, api, latchkey(t)))
	w.program(t, "go", `[ "$1 $2" = "run ./cmd/latchkey" ] || { echo "only latchkey is run here: go $*" >&2; exit 1; }; shift 2; exec latchkey "$@"`)
	w.program(t, "redis-server", fmt.Sprintf(`exec %q --port %s --dir %q --save '' "$@"`, stacktest.Installed(t, "redis-server", "redis-server"), redisPort, t.TempDir()))
	w.program(t, "redis-cli", fmt.Sprintf(`exec %q -p %s "$@"`, stacktest.Installed(t, "redis-cli", "redis-tools"), redisPort))
	w.program(t, "listens", `for i in $(seq 300); do (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null && exit 0; sleep 0.1; done; echo "nothing listens at $1" >&2; exit 1`)
	w.env = []string{
		"PATH=" + w.dir + "/.bin:" + os.Getenv("PATH"), "HOME=" + w.dir, "LATCHKEY_REDIS_URL=redis://127.0.0.1:" + redisPort,
		"LATCHKEY_ADDR=127.0.0.1:" + api + "0", "LATCHKEY_ADMIN_ADDR=127.0.0.1:" + admin + "0", "LATCHKEY_REDIS_TIMEOUT=2s",
		"LATCHKEY_ISSUER=http://localhost:8080",
	}
	for _, name := range []string{"deploy", "docs"} {
		if err := os.Symlink(filepath.Join(root, name), filepath.Join(w.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// program puts a shell script on the path.
func (w *world) program(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(w.dir, ".bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, ".bin", name), []byte("#!/bin/bash\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
}

func (w *world) run(t *testing.T, script string) string {
	t.Helper()
	// What the page leaves running ends with it.
	const end = "trap 'trap \"\" TERM; kill -- -$$ 2>/dev/null || true; wait || true' EXIT\n"
	p := stacktest.Launch(t, w.env, "setsid", "--wait", "/bin/bash", "-euo", "pipefail", "-c", end+"cd "+w.dir+"\n"+w.ports.Replace(script))
	select {
	case <-p.Done():
	case <-time.After(10 * time.Minute):
		t.Fatal("the commands do not end")
	}
	if code := p.ExitCode(); code != 0 {
		t.Errorf("the commands end with %d", code)
	}
	return p.Output()
}

// row is the beginning of ten ports in a row that are free, but for their last digit.
func row(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := stacktest.FreePort(t)
		begin := port[:len(port)-1]
		free := true
		for digit := range 4 {
			l, err := net.Listen("tcp", "127.0.0.1:"+begin+strconv.Itoa(digit))
			if err != nil {
				free = false
				break
			}
			_ = l.Close()
		}
		if free {
			return begin
		}
	}
	t.Fatal("no four ports in a row are free")
	return ""
}

// Every command in a block of console output is run, against a replica and with a
// session of its own, and answers what is printed below it: the same status, and the
// same members of the same JSON object.
func TestConsole(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	fleet := stacktest.NewFleet(t, latchkey(t), 1, server.URL(), "LATCHKEY_AUDIENCE=http://127.0.0.1:8080", "LATCHKEY_REDIS_TIMEOUT=2s",
		"LATCHKEY_PASSWORD_MEMORY=7168", "LATCHKEY_PASSWORD_ITERATIONS=1")
	addr := fleet.Replicas[0].Addr
	fleet.Command(t, "secret", "user", "add", "johndoe", "--scope", "profile reports:read")
	fleet.Command(t, "secret", "user", "add", "alice", "--scope", "read")
	client := func(name string, args ...string) string {
		_, secret, _ := strings.Cut(fleet.Command(t, "", append([]string{"client", "add", name}, args...)...), "client_secret=")
		return strings.TrimSpace(secret)
	}
	var secrets map[string]string
	register := func() map[string]string { // once oauth.md has shown how
		fleet.Command(t, "", "client", "delete", "orders-api")
		return map[string]string{
			"lkc_billing":    client("billing", "--grant", "client_credentials", "--scope", "invoices:read invoices:write"),
			"lkc_app":        client("app", "--grant", "refresh_token", "--scope", "read"),
			"lkc_orders-api": client("orders-api", "--introspect", "--audience", "http://127.0.0.1:8080"),
		}
	}

	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.language != "console" || b.directive == notRun {
				continue
			}
			w := newWorld(t)
			w.env = append(w.env, "LATCHKEY_REDIS_URL="+server.URL(), "LATCHKEY_SECRET=a secret of the tests of deployments of 32 bytes and more")
			w.ports = strings.NewReplacer("http://127.0.0.1:8080", "http://"+addr)
			for _, c := range commands(b.text) {
				line := fmt.Sprintf("%s:%d: %s", p.path, b.line, c.line)
				if secrets == nil && strings.Contains(c.line, "lkc_") {
					secrets = register()
				}
				got := w.run(t, prepare(addr)+fill(c.line, secrets))
				want, answer := c.output, after(got, "==answer==\n")
				if status := regexp.MustCompile(`HTTP/1\.1 \d+`).FindString(want); status != regexp.MustCompile(`HTTP/1\.1 \d+`).FindString(answer) {
					t.Errorf("%s\nis to answer %s, and answers\n%s", line, status, answer)
				}
				if members := members(want); !slices.Equal(members, membersOf(answer)) && len(members) > 0 {
					t.Errorf("%s\nis to answer %q, and answers\n%s", line, members, answer)
				}
				if p.path == "docs/api.md" && strings.Contains(c.line, "new_password=secret2") {
					fleet.Command(t, "secret", "user", "passwd", "johndoe")
				}
			}
		}
	}
}

type command struct{ line, output string }

// commands are what follows a prompt, each with what is printed below.
func commands(text string) []command {
	var list []command
	continued := false
	for line := range strings.Lines(text) {
		typed, prompt := strings.CutPrefix(line, "$ ")
		switch {
		case prompt:
			list = append(list, command{line: typed})
		case len(list) == 0:
			continue
		case continued:
			list[len(list)-1].line += line
		default:
			list[len(list)-1].output += line
		}
		continued = (prompt || continued) && strings.HasSuffix(strings.TrimSpace(line), `\`)
	}
	return list
}

// prepare gives a command what the pages take for granted: the tokens of a session
// in $TOKEN and $REFRESH, its cookies in the file jar, and another session, $OTHER.
func prepare(addr string) string {
	return strings.ReplaceAll(`
login() { curl -s "$@" http://ADDR/auth/token; }
TOKEN=$(login -c jar -d username=johndoe -d password=secret | grep -o 'eyJ[^"]*')
REFRESH=$(login -d username=johndoe -d password=secret -d refresh_delivery=body | grep -o 'lkr1_[^"]*')
OTHER=$(curl -s -H "Authorization: Bearer $(login -d username=johndoe -d password=secret | grep -o 'eyJ[^"]*')" http://ADDR/auth/sessions |
	grep -o '"id":"[^"]*"[^}]*"current":true' | cut -d '"' -f 4)
echo ==answer==
`, "ADDR", addr)
}

// fill puts whole tokens in the places of those that the pages cut short.
func fill(line string, secrets map[string]string) string {
	for id, secret := range secrets {
		line = strings.ReplaceAll(line, id+":$SECRET", id+":"+secret)
	}
	line = regexp.MustCompile(`/auth/sessions/[A-Za-z0-9_-]{22}`).ReplaceAllString(line, `/auth/sessions/$$OTHER`)
	if strings.Contains(line, "lkc_app:") {
		line = "REFRESH=$(curl -s -u lkc_app:" + secrets["lkc_app"] + " -d username=alice -d password=secret http://127.0.0.1:8080/auth/token | grep -o 'lkr1_[^\"]*')\necho ==answer==\n" + line
	}
	return strings.NewReplacer("lkr1_…", "$REFRESH", "eyJ…", "$TOKEN", "password=…", "password=secret").Replace(line)
}

func after(text, mark string) string { return text[strings.LastIndex(text, mark)+len(mark):] }

// members are the names in the JSON that is printed, sorted, each once: what is cut
// short in a page cannot be compared further.
func members(text string) []string {
	if strings.Contains(text, "…}") || strings.Contains(text, ", …") { // members left out
		return nil
	}
	return membersOf(text)
}

func membersOf(text string) []string {
	var list []string
	for _, m := range regexp.MustCompile(`"([a-z_]+)":`).FindAllStringSubmatch(text, -1) {
		list = append(list, m[1])
	}
	slices.Sort(list)
	return slices.Compact(list)
}
