//go:build unix

// Package examples_test runs the examples against the program.
package examples_test

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// An access token of Latchkey's admits to the Go API until its logout was answered, and a
// scope that was not granted does not.
func TestGoAPI(t *testing.T) {
	t.Parallel()
	latchkey, redis := start(t)
	api := net.JoinHostPort("127.0.0.1", stacktest.FreePort(t))
	stacktest.Launch(t, nil, compile(t, "./go-api"), "-addr", api, "-latchkey", "http://"+latchkey, "-issuer", "http://localhost:8080", "-redis", redis)
	protects(t, latchkey, api, "/reports", "the reports of alice\n")

	if status, _ := get(t, "http://"+api+"/reports", logIn(t, latchkey, "bob").access); status != http.StatusForbidden {
		t.Errorf("a token without the scope reports:read is answered %d, not 403", status)
	}
}

// The same holds for an app behind nginx, which knows nothing of tokens.
func TestNginx(t *testing.T) {
	t.Parallel()
	latchkey, _ := start(t)
	app, front := net.JoinHostPort("127.0.0.1", stacktest.FreePort(t)), net.JoinHostPort("127.0.0.1", stacktest.FreePort(t))
	stacktest.Launch(t, nil, compile(t, "./nginx/app"), "-addr", app)

	bin, dir := stacktest.Installed(t, "nginx", "nginx-light"), t.TempDir()
	for _, name := range []string{"latchkey_headers.conf", "latchkey_question.conf"} {
		stacktest.Configured(t, dir, filepath.Join("..", "deploy", "proxies", name))
	}
	places := "http {\n\taccess_log off;\n" // where Debian's package would have it write
	for _, name := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		places += "\t" + name + "_temp_path " + filepath.Join(dir, name) + ";\n"
	}
	conf := stacktest.Configured(t, dir, "../deploy/proxies/nginx.conf",
		"127.0.0.1:8000", front, "127.0.0.1:8080", latchkey, "127.0.0.1:3000", app, "http {\n", places)
	stacktest.Launch(t, nil, bin, "-p", dir, "-e", "stderr", "-c", conf, "-g", "daemon off; master_process off; pid "+filepath.Join(dir, "nginx.pid")+";")
	protects(t, latchkey, front, "/", "hello, alice\n")
}

// protects awaits that something at addr refuses requests without a token, and checks that
// it admits with one, and refuses that token once its logout was answered.
func protects(t *testing.T, latchkey, addr, path, want string) {
	t.Helper()
	target := "http://" + addr + path
	stacktest.Eventually(t, target+" refuses who has no token", func() bool {
		status, _ := get(t, target, "")
		return status == http.StatusUnauthorized
	})
	login := logIn(t, latchkey, "alice")
	stacktest.Eventually(t, target+" admits who has one", func() bool {
		status, body := get(t, target, login.access)
		return status == http.StatusOK && body == want
	})
	form := url.Values{"refresh_token": {login.refresh}}
	if status, body := post(t, "http://"+latchkey+"/auth/logout", form); status != http.StatusOK {
		t.Fatalf("the logout is answered %d: %s", status, body)
	}
	if status, body := get(t, target, login.access); status != http.StatusUnauthorized {
		t.Errorf("after the logout the token is answered %d: %s", status, body)
	}
}

// start starts Redis and a replica with two users, and returns where they are.
func start(t *testing.T) (latchkey, redis string) {
	t.Helper()
	server := redistest.Start(t)
	fleet := stacktest.NewFleet(t, stacktest.Build(t, ".."), 1, server.URL(), "LATCHKEY_REDIS_TIMEOUT=2s",
		"LATCHKEY_ISSUER=http://localhost:8080", "LATCHKEY_PASSWORD_MEMORY=7168", "LATCHKEY_PASSWORD_ITERATIONS=1")
	fleet.Command(t, "correct horse", "user", "add", "alice", "--scope", "reports:read")
	fleet.Command(t, "correct horse", "user", "add", "bob")
	return fleet.Replicas[0].Addr, server.URL()
}

// compile builds an example.
func compile(t *testing.T, pkg string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "example")
	stacktest.Go(t, os.Environ(), "build", "-o", bin, pkg)
	return bin
}

type tokens struct{ access, refresh string }

func logIn(t *testing.T, latchkey, user string) tokens {
	t.Helper()
	status, body := post(t, "http://"+latchkey+"/auth/token", url.Values{"username": {user}, "password": {"correct horse"}, "refresh_delivery": {"body"}})
	var answer struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK || answer.Refresh == "" {
		t.Fatalf("the login is answered %d: %s", status, body)
	}
	return tokens{answer.Access, answer.Refresh}
}

// get returns the status and the body, or the status 0 if there is no answer.
func get(t *testing.T, target, token string) (status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return send(t, r)
}

func post(t *testing.T, target string, form url.Values) (status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, target, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return send(t, r)
}

func send(t *testing.T, r *http.Request) (status int, body string) {
	t.Helper()
	a, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = a.Body.Close() }()
	raw, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, string(raw)
}
