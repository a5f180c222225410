package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/replica"
	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// These tests run the program itself: real processes, real Redis, real HTTP.

const testSecret = "an end-to-end test's own secret of 32 bytes and more"

// program is where the binary is.
func program(t *testing.T) string {
	t.Helper()
	return stacktest.Build(t, "../..")
}

// process is one running replica.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	api   string // http://127.0.0.1:port
	admin string
	log   *bytes.Buffer
	done  chan error
	mu    sync.Mutex // guards log
}

// launch starts `serve` and waits until it serves.
func launch(t *testing.T, bin, redisURL string, settings ...string) *process {
	t.Helper()
	p, serving := start(t, bin, redisURL, settings...)
	select {
	case line := <-serving:
		p.api, p.admin = "http://"+line["address"], "http://"+line["admin"]
	case err := <-p.done:
		t.Fatalf("the replica ended: %v\n%s", err, p.logged())
	case <-time.After(2 * time.Minute):
		t.Fatalf("the replica does not serve:\n%s", p.logged())
	}
	return p
}

func start(t *testing.T, bin, redisURL string, settings ...string) (*process, <-chan map[string]string) {
	t.Helper()
	p := &process{t: t, log: &bytes.Buffer{}, done: make(chan error, 1)}
	// The process outlives the test's context: its cleanup ends it.
	p.cmd = exec.CommandContext(context.Background(), bin, "serve")
	p.cmd.Env = append([]string{
		"LATCHKEY_SECRET=" + testSecret, "LATCHKEY_REDIS_URL=" + redisURL, "LATCHKEY_ADDR=127.0.0.1:0",
		"LATCHKEY_ADMIN_ADDR=127.0.0.1:0", "LATCHKEY_COOKIE_SECURE=false", "HOME=" + t.TempDir(),
		"LATCHKEY_REDIS_TIMEOUT=5s", "LATCHKEY_PASSWORD_WAIT=30s", // a busy machine is not an outage
		"LATCHKEY_PASSWORD_MEMORY=7168", "LATCHKEY_PASSWORD_ITERATIONS=1", // hashes are not in question
	}, settings...)
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	serving := make(chan map[string]string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			p.mu.Lock()
			p.log.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
			var line map[string]string
			if json.Unmarshal(lines.Bytes(), &line) == nil && line["msg"] == "serving" {
				serving <- line
			}
		}
	}()
	go func() {
		<-read
		p.done <- p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		for range p.done { // until it is reaped
		}
		if t.Failed() {
			t.Logf("replica %s:\n%s", p.api, p.logged())
		}
	})
	return p, serving
}

func (p *process) logged() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// answer is a response, read to its end.
type answer struct {
	status  int
	body    map[string]any
	header  http.Header
	cookies map[string]*http.Cookie
}

func (a answer) access() string { s, _ := a.body["access_token"].(string); return s }

func (a answer) refresh() string {
	if c := a.cookies["refresh_token"]; c != nil {
		return c.Value
	}
	return ""
}

// ask sends a request; access and refresh tokens go where they belong, if any.
func ask(t *testing.T, method, target string, form url.Values, access, refresh string) answer {
	t.Helper()
	a, err := try(t.Context(), method, target, form, access, refresh)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func try(ctx context.Context, method, target string, form url.Values, access, refresh string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(form.Encode()))
	if err != nil {
		return answer{}, err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if access != "" {
		req.Header.Set("Authorization", "Bearer "+access)
	}
	if refresh != "" {
		req.AddCookie(&http.Cookie{Name: "refresh_token", Value: refresh})
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{status: resp.StatusCode, header: resp.Header, cookies: map[string]*http.Cookie{}}
	for _, c := range resp.Cookies() {
		a.cookies[c.Name] = c
	}
	_ = json.Unmarshal(raw, &a.body) // not every answer is JSON
	return a, nil
}

func login() url.Values { return url.Values{"username": {"johndoe"}, "password": {"secret"}} }

// account makes johndoe, and others, whose password is secret, too.
func account(t *testing.T, redisURL string, others ...string) {
	t.Helper()
	cfg := config.Dev()
	cfg.RedisURL = config.RedisURL(redisURL)
	cfg.RedisTimeout = 5 * time.Second // a busy machine is not an outage
	rdb, store, err := replica.OpenStore(cfg, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rdb.Close() }()
	hasher, err := credential.NewHasher(credential.Options{MemoryKiB: 7168, Iterations: 1})
	if err != nil {
		t.Fatal(err)
	}
	hash, err := hasher.Hash(t.Context(), "secret")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(others, "johndoe") {
		if err := store.Accounts.Create(t.Context(), tokenstore.Account{Username: name, Hash: hash}); err != nil {
			t.Fatal(err)
		}
	}
}

func want(t *testing.T, what string, got answer, status int) {
	t.Helper()
	if got.status != status {
		t.Errorf("%s: %d %v, want %d", what, got.status, got.body, status)
	}
}

func TestThreeProcessesAreOneService(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	// All three boot at once on an empty Redis: they must agree on one key.
	var wg sync.WaitGroup
	replicas := make([]*process, 3)
	for i := range replicas {
		wg.Go(func() { replicas[i] = launch(t, bin, server.URL()) })
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	account(t, server.URL())
	a, b, c := replicas[0].api, replicas[1].api, replicas[2].api

	refused := func(what, access, refresh string) {
		t.Helper()
		for _, r := range []string{a, b, c} {
			want(t, what+": access token", ask(t, "GET", r+"/auth/verify", nil, access, ""), 401)
			want(t, what+": refresh token", ask(t, "POST", r+"/auth/refresh", url.Values{}, "", refresh), 401)
		}
	}
	for _, shown := range []string{"both", "cookie", "bearer"} {
		in := ask(t, "POST", a+"/auth/token", login(), "", "")
		want(t, "log in at A", in, 200)
		again := ask(t, "POST", b+"/auth/refresh", url.Values{}, "", in.refresh())
		want(t, "refresh at B", again, 200)
		want(t, "me at C", ask(t, "GET", c+"/users/me", nil, again.access(), ""), 200)
		access, refresh := again.access(), again.refresh()
		switch shown {
		case "cookie":
			access = ""
		case "bearer":
			refresh = ""
		}
		want(t, "log out at C", ask(t, "POST", c+"/auth/logout", url.Values{}, access, refresh), 200)
		refused("by "+shown, again.access(), again.refresh())
		refused("by "+shown+", the older tokens", in.access(), in.refresh())
	}

	// Redis comes back empty: nobody is restarted, and nothing of before works.
	in := ask(t, "POST", a+"/auth/token", login(), "", "")
	out := ask(t, "POST", b+"/auth/token", login(), "", "")
	want(t, "log out", ask(t, "POST", b+"/auth/logout", url.Values{}, out.access(), out.refresh()), 200)
	server.RestartEmpty(t)
	// A token that nobody logged out may be accepted for as long as the lease; one
	// that was logged out never.
	for _, r := range []string{a, b, c} {
		if got := ask(t, "GET", r+"/auth/verify", nil, out.access(), ""); got.status != 401 && got.status != 503 {
			t.Errorf("just after the loss, logged out before: %d", got.status)
		}
		answers(t, r+"/auth/verify", in.access(), 401)
	}
	for _, r := range replicas {
		r.becomes(200)
	}
	refused("after the loss, logged out before", out.access(), out.refresh())
	refused("after the loss, alive before", in.access(), in.refresh())
	account(t, server.URL())
	fresh := ask(t, "POST", a+"/auth/token", login(), "", "")
	want(t, "log in after the loss", fresh, 200)
	for _, r := range []string{a, b, c} {
		want(t, "verify after the loss", ask(t, "GET", r+"/auth/verify", nil, fresh.access(), ""), 204)
	}
	refused("after the new login, logged out before", out.access(), out.refresh())
	for _, r := range replicas {
		for _, secret := range []string{testSecret, in.access(), in.refresh(), out.refresh(), fresh.access(), fresh.refresh()} {
			if strings.Contains(r.logged(), secret) {
				t.Error("a secret is in the log")
			}
		}
	}
}

// answers waits until a path gives a status.
func answers(t *testing.T, target, access string, status int) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		a := ask(t, "GET", target, nil, access, "")
		if a.status == status {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is %d, not %d", target, a.status, status)
		}
		time.Sleep(20 * time.Millisecond) // a poll of another process's state, not a timing
	}
}

// becomes waits until /readyz answers a status.
func (p *process) becomes(status int) {
	p.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		a, err := try(p.t.Context(), "GET", p.admin+"/readyz", nil, "", "")
		if err == nil && a.status == status {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("/readyz is not %d: %v %v", status, a.status, err)
		}
		time.Sleep(20 * time.Millisecond) // a poll of another process's state, not a timing
	}
}

func TestAReplicaStartsDuringAnOutage(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	server.Kill(t)
	p := launch(t, bin, server.URL())
	want(t, "healthz", ask(t, "GET", p.admin+"/healthz", nil, "", ""), 200)
	want(t, "readyz", ask(t, "GET", p.admin+"/readyz", nil, "", ""), 503)
	a := ask(t, "POST", p.api+"/auth/token", login(), "", "")
	want(t, "login", a, 503)
	if a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	server.Restart(t)
	p.becomes(200)
	account(t, server.URL())
	want(t, "login", ask(t, "POST", p.api+"/auth/token", login(), "", ""), 200)
}

func TestAReplicaThatCannotWorkHereSaysWhy(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	launch(t, bin, server.URL())
	for setting, message := range map[string]string{
		"LATCHKEY_SHARDS=8": "set it to 16, or use an empty Redis (setting: LATCHKEY_SHARDS)",
		"LATCHKEY_SECRET=another secret of 32 bytes or more": "sealed under another LATCHKEY_SECRET",
	} {
		p, _ := start(t, bin, server.URL(), setting)
		select {
		case err := <-p.done:
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(p.logged(), message) {
				t.Errorf("%s: %v\n%s", setting, err, p.logged())
			}
		case <-time.After(2 * time.Minute):
			t.Errorf("%s: it runs:\n%s", setting, p.logged())
		}
	}
}

func TestSIGTERMFinishesWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	// A login under these takes about a second: there is time for the signal.
	p := launch(t, bin, server.URL(), "LATCHKEY_PASSWORD_ITERATIONS=32", "LATCHKEY_PASSWORD_MEMORY=32768", "LATCHKEY_SHUTDOWN_DELAY=300ms")
	account(t, server.URL())
	type result struct {
		answer
		err error
	}
	slow := make(chan result, 1)
	go func() {
		a, err := try(context.Background(), "POST", p.api+"/auth/token", url.Values{"username": {"nobody"}, "password": {"x"}}, "", "")
		slow <- result{a, err}
	}()
	for !strings.Contains(metrics(t, p), "latchkey_password_queue_depth 1") {
		if t.Context().Err() != nil {
			t.Fatal("the login did not begin")
		}
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.becomes(503)
	if a, err := try(t.Context(), "GET", p.api+"/auth/verify", nil, "", ""); err != nil || a.status != 401 {
		t.Errorf("in the delay, a new request: %v, %v", a.status, err)
	}
	r := <-slow
	if r.err != nil || r.status != 401 {
		t.Errorf("the login under way: %v, %v", r.status, r.err)
	}
	if err := <-p.done; err != nil {
		t.Errorf("exit: %v", err)
	}
}

func metrics(t *testing.T, p *process) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.admin+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// What one replica logs, counts and serves is told in one place.
func TestMetricsOfAProcess(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	p := launch(t, bin, server.URL())
	account(t, server.URL())
	in := ask(t, "POST", p.api+"/auth/token", login(), "", "")
	again := ask(t, "POST", p.api+"/auth/refresh", url.Values{}, "", in.refresh())
	ask(t, "POST", p.api+"/auth/refresh", url.Values{}, "", in.refresh())
	ask(t, "POST", p.api+"/auth/logout", url.Values{}, again.access(), "")
	text := metrics(t, p)
	for _, line := range []string{
		`latchkey_logins_total{outcome="ok"} 1`,
		`latchkey_refreshes_total{outcome="rotated"} 1`,
		`latchkey_refreshes_total{outcome="same"} 1`,
		`latchkey_logouts_total{kind="session"} 1`,
		`latchkey_http_requests_total{code="200",method="POST",route="/auth/refresh"} 2`,
		`latchkey_store_operation_duration_seconds_count{operation="rotate",outcome="ok"} 2`,
		`latchkey_build_info{`,
		`latchkey_password_queue_depth 0`,
	} {
		if !strings.Contains(text, line) {
			t.Errorf("/metrics lacks %s", line)
		}
	}
	for _, secret := range []string{in.access(), in.refresh(), "johndoe", "127.0.0.1"} {
		if strings.Contains(text, secret) {
			t.Errorf("/metrics holds %q", secret)
		}
	}
}

func TestServeRefusesWhatIsPublished(t *testing.T) {
	t.Parallel()
	bin := program(t)
	cmd := exec.CommandContext(t.Context(), bin, "serve")
	cmd.Env = append(os.Environ(), fmt.Sprintf("LATCHKEY_SECRET=%s", config.DevSecret))
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "openssl rand -base64 48") {
		t.Errorf("%v\n%s", err, out)
	}
}
