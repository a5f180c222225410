package clients_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

const (
	issuer   = "https://auth.example.com"
	audience = "https://api.example.com"
	password = "correct horse battery staple"
)

// service is the program, serving, with one user.
type service struct {
	testing.TB
	url  string
	http *http.Client
	run  func(stdin string, args ...string) string // another of its commands
}

// program is where the program's binary is.
func program(t *testing.T) string {
	t.Helper()
	return stacktest.Build(t, "../..")
}

// on is the service for another test.
func (s *service) on(t *testing.T) *service {
	other := *s
	other.TB = t
	return &other
}

// serve starts the program on a Redis of its own.
func serve(t *testing.T, bin string, settings ...string) *service {
	t.Helper()
	env := append([]string{
		"LATCHKEY_SECRET=a test's own secret of the clients that is long enough", "LATCHKEY_REDIS_URL=" + redistest.Start(t).URL(),
		"LATCHKEY_ISSUER=" + issuer, "LATCHKEY_AUDIENCE=" + audience, "LATCHKEY_ADDR=127.0.0.1:0", "LATCHKEY_ADMIN_ADDR=127.0.0.1:0",
		"LATCHKEY_PASSWORD_MEMORY=7168", "LATCHKEY_REFRESH_GRACE=2s", "LATCHKEY_REDIS_TIMEOUT=5s", "HOME=" + t.TempDir(),
	}, settings...)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	s := &service{TB: t, http: &http.Client{Transport: transport, Timeout: 20 * time.Second}, run: func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), bin, args...)
		cmd.Env, cmd.Stdin = env, strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return string(out)
	}}
	s.run(password+"\n", "user", "add", "alice", "--scope", "read write", "--claims", `{"tier":"gold"}`)

	cmd := exec.Command(bin, "serve") //nolint:noctx // it ends with the test's cleanup, in order
	cmd.Env = env
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for lines := bufio.NewScanner(stderr); s.url == ""; {
		if !lines.Scan() {
			t.Fatal("the program does not serve")
		}
		var line struct{ Msg, Address string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
			s.url = "http://" + line.Address
		}
	}
	go func() { _, _ = io.Copy(io.Discard, stderr) }() // ends with the process
	return s
}

// client registers a client by the operator's command.
func (s *service) client(args ...string) (id, secret string) {
	s.Helper()
	for line := range strings.Lines(s.run("", append([]string{"client", "add"}, args...)...)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch name {
		case "client_id":
			id = value
		case "client_secret":
			secret = value
		}
	}
	return id, secret
}

// login is what the libraries leave to the program.
func (s *service) login(form url.Values) *oauth2.Token {
	s.Helper()
	resp, err := s.http.PostForm(s.url+"/auth/token", form) //nolint:noctx // a test of one process
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var token oauth2.Token
	if err := json.NewDecoder(resp.Body).Decode(&token); err != nil || resp.StatusCode != http.StatusOK {
		s.Fatalf("login: %d, %v", resp.StatusCode, err)
	}
	return &token
}

// status is what the service answers a library's own HTTP client.
func (s *service) status(c *http.Client, path string) int {
	s.Helper()
	resp, err := c.Get(s.url + path) //nolint:noctx // a test of one process
	if err != nil {
		s.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}
