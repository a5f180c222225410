package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/internal/bench"
	"github.com/latchkey-auth/latchkey/test/redistest"
)

// inProcess runs the program's command line in this process.
func inProcess(t *testing.T, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	o := command(t, strings.NewReader(stdin), args...)
	return o.stdout, o.stderr, o.err
}

// Real replicas on a real Redis, loaded by two of their URLs: everything works,
// and the figures add up.
func TestBenchOnRunningReplicas(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	account(t, server.URL())
	a, b := launch(t, bin, server.URL()), launch(t, bin, server.URL())
	out, _, err := inProcess(t, "secret\n", "bench", a.api, b.api+"/", "--username", "johndoe", "--sessions", "7", "--parallel", "3", "--duration", "300ms", "--json")
	if err != nil {
		t.Fatal(err, out)
	}
	var r bench.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, op := range r.Operations {
		names = append(names, op.Name)
		l := op.Latency
		if op.Requests == 0 || len(op.Failed) > 0 || op.Rate <= 0 || l["min"] > l["p50"] || l["p50"] > l["p99"] || l["p99"] > l["max"] || l["max"] <= 0 {
			t.Errorf("%+v", op)
		}
	}
	if got := strings.Join(names, ","); got != "log in,verify,refresh,log out" || r.Operations[0].Requests != 7 || r.Operations[3].Requests != 7 {
		t.Errorf("phases: %s: %+v", got, r.Operations)
	}
	if r.Users != 1 || r.Sessions != 7 || r.Logout["shown"] != 14 || r.Logout["accepted"] != 0 || r.Logout["unanswered"] != 0 {
		t.Errorf("%+v", r)
	}
	if m := metrics(t, a) + metrics(t, b); !strings.Contains(m, `latchkey_logouts_total{kind="session"}`) {
		t.Error("the replicas have seen no logout")
	}
}

// Each user of a file logs in once, or as often as its turn comes. The first does
// so once more, which tries things out.
func TestBenchLogsManyUsersIn(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	account(t, server.URL(), "ann", "bob", "a space", "zoë")
	file := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(file, []byte("\ufeffann:secret\r\n\n  \nbob:secret\na space:secret\nzoë:secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name     string
		stdin    string
		flags    []string
		users    int
		sessions int
		logins   map[string]int
	}{
		{"one session each", "", []string{"--users", file}, 4, 4, map[string]int{"ann": 2, "bob": 1, "a space": 1, "zoë": 1}},
		{"more sessions than users", "", []string{"--users", file, "--sessions", "6"}, 4, 6, map[string]int{"ann": 3, "bob": 2, "a space": 1, "zoë": 1}},
		{"more users than sessions", "", []string{"--users", file, "--sessions", "2"}, 2, 2, map[string]int{"ann": 2, "bob": 1}},
		{"from standard input", "zoë:secret\nann:secret\n", []string{"--users", "-"}, 2, 2, map[string]int{"zoë": 2, "ann": 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := launch(t, bin, server.URL())
			out, _, err := inProcess(t, tt.stdin, append([]string{"bench", p.api, "--duration", "100ms", "--json"}, tt.flags...)...)
			if err != nil {
				t.Fatal(err, out)
			}
			var r bench.Report
			if err := json.Unmarshal([]byte(out), &r); err != nil {
				t.Fatal(err)
			}
			if r.Users != tt.users || r.Sessions != tt.sessions || r.Operations[3].Requests != int64(tt.sessions) || r.Refused != nil {
				t.Errorf("%+v", r)
			}
			logins := map[string]int{}
			for _, m := range regexp.MustCompile(`"event":"login",.*"sub":"([^"]+)"`).FindAllStringSubmatch(p.logged(), -1) {
				logins[m[1]]++
			}
			if diff := cmp.Diff(tt.logins, logins); diff != "" {
				t.Errorf("logins (-want +got):\n%s", diff)
			}
		})
	}
}

// Whose login fails is told by the line of the file, and nobody's password.
func TestBenchNamesTheLinesThatFail(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	account(t, server.URL())
	p := launch(t, bin, server.URL(), "LATCHKEY_LOGIN_LIMIT_ADDRESS=2/1h")
	lines := "johndoe:secret\n\n"
	for n := range 12 {
		lines += fmt.Sprintf("nobody-%d:canary:%d\n", n, n)
	}
	args := []string{"bench", p.api, "--users", "-", "--parallel", "1", "--duration", "100ms"}
	out, errs, err := inProcess(t, lines, append(args, "--sessions", "26")...)
	var quiet *exitError
	if !errors.As(err, &quiet) {
		t.Error(err)
	}
	for _, want := range []string{
		"26 sessions of 13 users", "log in: 2 failed: 401 Incorrect username or password\n  of --users: lines 3, 4\n",
		"log in: 23 failed: 429 Too many failed attempts\n  of --users: lines 1, 3, 4, 5, 6, 7, 8, 9 and 5 more\n  Too many logins failed before",
		"1 session logged out", ": 0 accepted",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	narrow(t, out)
	again, _, err := inProcess(t, lines[len("johndoe:secret\n\n"):], args...)
	if want := regexp.MustCompile(`of nobody-0 \(line 1\) at .*: 429 Too many failed attempts; .* try again in \d+ s$`); !want.MatchString(errorText(err)) {
		t.Errorf("the second time: %v", err)
	}
	if strings.Contains(out+errs+again+errorText(err), "canary") {
		t.Error("a password shows")
	}
}

// A file of users that cannot be used names the line and what to do, and nothing of
// what stands there.
func TestBenchRefusesAFileOfUsers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, lines, want string }{
		{"nothing", "\n \n", "standard input holds no user; write username:password"},
		{"no colon", "a:b\n\ncanary\n", "standard input, line 3: there is no colon in it; write username:password"},
		{"no password", "a:\n", "line 1: the password is empty"},
		{"a long password", "a:" + strings.Repeat("canary", 200), "line 1: the password is longer than 1024 bytes"},
		{"no username", ":canary", "line 1: unacceptable username: it is empty"},
		{"a control character", "a\x1b[2J:canary", "line 1: unacceptable username: it contains a control character"},
		{"twice", "a:b\nc:canary\na:canary\n", "line 3: it has the username of line 1 again"},
		{"a long line", "a:b\n" + strings.Repeat("canary", 20_000) + "\n", "line 2: it is longer than 64 KiB"},
		{"too many", manyUsers(maxSessions + 1), "line 100001: there are more than 100000 users; give fewer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			out, errs, err := inProcess(t, tt.lines, "bench", "http://127.0.0.1:1", "--users", "-")
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(out+errs+err.Error(), "canary") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, _, err := inProcess(t, "", "bench", "http://127.0.0.1:1", "--users", t.TempDir()+"/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that does not exist: %v", err)
	}
}

func manyUsers(n int) string {
	var lines strings.Builder
	for i := range n {
		fmt.Fprintf(&lines, "u%d:p\n", i)
	}
	return lines.String()
}

// Without a URL it brings its own replicas; without a terminal it draws nothing
// that moves, and nothing is wider than 80 columns.
func TestBenchEmbedded(t *testing.T) {
	t.Parallel()
	out, errs, err := inProcess(t, "", "bench", "--sessions", "5", "--parallel", "2", "--duration", "200ms")
	if err != nil {
		t.Fatal(err, out)
	}
	for _, want := range []string{"log in", "verify", "refresh", "log out", "p99.9", "█", "5 sessions of 5 users", "5 sessions logged out", "at 3 URLs: 0 accepted"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.ContainsAny(out+errs, "\r\x1b") || errs != "" {
		t.Errorf("control characters, or something on standard error: %q", errs)
	}
	narrow(t, out)
}

func narrow(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

// A service that goes on accepting after the logout is caught.
func TestBenchCatchesAForgottenLogout(t *testing.T) {
	t.Parallel()
	forgetful := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/auth/verify":
			w.WriteHeader(http.StatusNoContent)
		case "/auth/logout":
			_, _ = io.WriteString(w, "{}")
		default:
			_, _ = io.WriteString(w, `{"access_token":"a","refresh_token":"r"}`)
		}
	}))
	t.Cleanup(forgetful.Close)
	out, _, err := inProcess(t, "secret", "bench", forgetful.URL, "--username", "u", "--sessions", "3", "--duration", "100ms")
	var quiet *exitError
	if !errors.As(err, &quiet) || !strings.Contains(out, "3 accepted") {
		t.Errorf("%v\n%s", err, out)
	}
}

// What fails is counted by its reason, and the end is a failure.
func TestBenchCountsFailures(t *testing.T) {
	t.Parallel()
	overloaded := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		spoilt := r.PostFormValue("username") == "good" && r.PostFormValue("password") != " p: "
		if r.URL.Path == "/auth/token" && r.PostFormValue("username") != "bad" && !spoilt {
			_, _ = io.WriteString(w, `{"access_token":"a","refresh_token":"r"}`)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, `{"detail":"Service temporarily unavailable"}`)
	}))
	t.Cleanup(overloaded.Close)
	out, _, err := inProcess(t, "secret", "bench", overloaded.URL, "--username", "u", "--sessions", "3", "--duration", "100ms")
	var quiet *exitError
	if !errors.As(err, &quiet) {
		t.Error(err)
	}
	for _, want := range []string{"verify: ", "log out: 3 failed: 503 Service temporarily unavailable", "3 not answered"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	out, _, _ = inProcess(t, "good: p: \nbad:p\nfine:p\n", "bench", overloaded.URL, "--users", "-", "--sessions", "5", "--duration", "100ms", "--json")
	var r bench.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err, out)
	}
	if diff := cmp.Diff(map[string][]int{"503 Service temporarily unavailable": {2}}, r.Refused); diff != "" || r.Operations[0].Failed["503 Service temporarily unavailable"] != 2 {
		t.Errorf("the users refused (-want +got):\n%s%+v", diff, r)
	}
}

// A 503 that says when to try again is no failure: the request is sent again.
func TestBenchSendsAgainAfter503(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	busy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/auth/logout" && n.Add(1)%2 == 1:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.Path == "/auth/verify" && n.Load() > 0:
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/auth/verify":
			w.WriteHeader(http.StatusNoContent)
		default:
			_, _ = io.WriteString(w, `{"access_token":"a","refresh_token":"r"}`)
		}
	}))
	t.Cleanup(busy.Close)
	out, _, err := inProcess(t, "secret", "bench", busy.URL, "--username", "u", "--sessions", "3", "--duration", "100ms")
	if err != nil || !strings.Contains(out, "sent again after a 503: ") {
		t.Errorf("%v\n%s", err, out)
	}
	// Nothing ends by itself that is always answered so.
	full := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(full.Close)
	if _, _, err := inProcess(t, "secret", "bench", full.URL, "--username", "u"); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("%v, want a 503", err)
	}
}

func TestBenchSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }))
	t.Cleanup(other.Close)
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"detail":"Incorrect username or password"}`)
	}))
	t.Cleanup(refusing.Close)
	ctx, cancel := context.WithCancel(t.Context())
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-ctx.Done():
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(slow.Close)
	t.Cleanup(cancel)
	for want, args := range map[string][]string{
		"connection refused":                             {"http://127.0.0.1:1", "--username", "u"},
		"is this Latchkey?":                              {other.URL, "--username", "u"},
		"401 Incorrect username or password":             {refusing.URL, "--username", "u"},
		"--timeout 200ms was over before the end":        {slow.URL, "--username", "u", "--timeout", "200ms"},
		`"localhost:8080" is not a URL`:                  {"localhost:8080", "--username", "u"},
		"whom to log in is missing: give --users":        {other.URL},
		"--users and --username go with a URL":           {"--username", "u"},
		"--users and --username go with a URL; wi":       {"--users", "file"},
		"give one of the two":                            {other.URL, "--username", "u", "--users", "file"},
		"--sessions 100001: from 1 to 100000":            {"--sessions", "100001"},
		"--parallel 1001: from 1 to 1000":                {"--parallel", "1001"},
		"--duration 1ms: from 100ms to 10m":              {"--duration", "1ms"},
		"a password is never an argument":                {other.URL, "--username", "u", "--password", "canary"},
		"--timeout 1s was over before the end: take few": {"--timeout", "1s", "--duration", "1m"},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			out, errs, err := inProcess(t, "canary-password\n", append([]string{"bench"}, args...)...)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
			if strings.Contains(out+errs+errorText(err), "canary") {
				t.Error("the password shows")
			}
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
