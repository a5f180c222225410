//go:build unix

package proxies_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/redistest"
	"github.com/latchkey-auth/latchkey/internal/stacktest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

const (
	accessCookie = "access_token"
	username     = "johndoe"
	password     = "secret"
	scope        = "read write"
	issuer       = "http://auth.example.com"
)

// world is a service, Latchkey, and Redis: what stands behind a proxy.
type world struct {
	*testing.T
	redis    *redistest.Server
	latchkey *stacktest.Process
	api      string // host:port
	grpc     string
	service  *httptest.Server
	served   atomic.Int64 // requests that reached the service
	front    string       // the proxy, host:port
}

// echo is what the service tells of the request it got.
type echo struct {
	Method, URI, Body string
	Header            http.Header
}

func newWorld(t *testing.T, latchkey string) *world {
	t.Helper()
	w := &world{T: t, redis: redistest.Start(t)}
	w.service = httptest.NewServer(http.HandlerFunc(w.serve))
	t.Cleanup(w.service.Close)
	w.account()
	w.latchkey = stacktest.Launch(t, []string{
		"LATCHKEY_SECRET=the proxies' tests' own secret of 32 bytes and more", "LATCHKEY_REDIS_URL=" + w.redis.URL(),
		"LATCHKEY_ADDR=127.0.0.1:0", "LATCHKEY_ADMIN_ADDR=127.0.0.1:0", "LATCHKEY_EXTAUTHZ_ADDR=127.0.0.1:0",
		"LATCHKEY_ACCESS_COOKIE=" + accessCookie, "LATCHKEY_COOKIE_SECURE=false", "LATCHKEY_EDGE_LEASE=3s",
		"LATCHKEY_TRUSTED_PROXIES=127.0.0.0/8", "LATCHKEY_DPOP_NONCE=true", "LATCHKEY_ISSUER=" + issuer,
		"LATCHKEY_PASSWORD_MEMORY=7168", "LATCHKEY_PASSWORD_ITERATIONS=1", "HOME=" + t.TempDir(),
	}, latchkey, "serve")
	w.eventually("Latchkey serves", func() bool {
		for line := range strings.Lines(w.latchkey.Output()) {
			var l map[string]any
			if json.Unmarshal([]byte(line), &l) == nil && l["msg"] == "serving" {
				w.api, _ = l["address"].(string)
				w.grpc, _ = l["ext_authz"].(string)
			}
		}
		return w.api != ""
	})
	return w
}

// serve is the service: it tells what it got, or answers as its path says.
func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	w.served.Add(1)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	status := http.StatusOK
	if text, ok := strings.CutPrefix(r.URL.Path, "/status/"); ok {
		status, _ = strconv.Atoi(text)
		rw.Header().Set("Retry-After", "7")
	}
	rw.Header().Set("X-Service", "yes")
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(echo{r.Method, r.URL.RequestURI(), string(body), r.Header}) // the client may be gone
}

// account makes johndoe.
func (w *world) account() {
	w.Helper()
	rdb, err := tokenstore.Dial(tokenstore.DialOptions{URL: w.redis.URL(), Timeout: 5 * time.Second})
	w.check(err)
	defer func() { _ = rdb.Close() }()
	store, err := tokenstore.New(rdb, tokenstore.Options{
		Shards: 16, Timeout: 5 * time.Second,
		Lifetimes: tokenstore.Lifetimes{Access: 15 * time.Minute, Refresh: time.Hour, Session: 2 * time.Hour, Grace: 10 * time.Second},
	})
	w.check(err)
	w.check(store.Open(w.Context()))
	hasher, err := credential.NewHasher(credential.Options{MemoryKiB: 7168, Iterations: 1})
	w.check(err)
	hash, err := hasher.Hash(w.Context(), password)
	w.check(err)
	w.check(store.CreateAccount(w.Context(), tokenstore.Account{Username: username, Hash: hash, Scopes: scope}))
}

func (w *world) check(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// eventually waits for what another process does.
func (w *world) eventually(what string, done func() bool) {
	w.Helper()
	stacktest.Eventually(w.T, what, done)
}

// login returns an access token.
func (w *world) login(headers ...string) string {
	w.Helper()
	a := w.tryLogin(headers...)
	var t struct {
		Access string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(a.body), &t); err != nil || t.Access == "" {
		w.Fatalf("login: %d %s", a.status, a.body)
	}
	return t.Access
}

func (w *world) tryLogin(headers ...string) answer {
	w.Helper()
	form := url.Values{"username": {username}, "password": {password}}.Encode()
	return w.at(w.api, "POST", "/auth/token", form, append(headers, "Content-Type: application/x-www-form-urlencoded")...)
}

// answer is a response, read.
type answer struct {
	what   string
	status int
	header http.Header
	body   string
}

// at sends a request as it is: proxies see names and values as a hostile client
// wrote them.
func (w *world) at(addr, method, path, body string, headers ...string) answer {
	w.Helper()
	a, err := send(addr, method, path, body, headers...)
	if err != nil {
		w.Fatal(err)
	}
	return a
}

// ask sends a request through the proxy.
func (w *world) ask(method, path, body string, headers ...string) answer {
	w.Helper()
	return w.at(w.front, method, path, body, headers...)
}

func send(addr, method, path, body string, headers ...string) (answer, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return answer{}, err
	}
	text := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: shop.example.com\r\n", method, path)
	for _, h := range headers {
		text += h + "\r\n"
	}
	if body != "" {
		text += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	go func() { _, _ = io.WriteString(conn, text+"\r\n"+body) }() // who refuses may not read it all
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		return answer{}, fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	read, err := io.ReadAll(resp.Body)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return answer{}, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return answer{what: fmt.Sprintf("%s %s %q", method, path, headers), status: resp.StatusCode, header: resp.Header, body: string(read)}, nil
}

// echoed is what reached the service.
func (w *world) echoed(a answer) echo {
	w.Helper()
	var e echo
	if err := json.Unmarshal([]byte(a.body), &e); a.header.Get("X-Service") != "yes" || err != nil {
		w.Fatalf("%.200s: not the service's answer: %d %s", a.what, a.status, a.body)
	}
	return e
}

// refused checks a refusal, which the service must not have seen.
func (w *world) refused(a answer, status int) answer {
	w.Helper()
	if a.status != status || a.header.Get("X-Service") != "" {
		w.Errorf("%.200s: got %d %v %s, want %d", a.what, a.status, a.header, a.body, status)
	}
	challenge := a.header.Values("WWW-Authenticate")
	if status == http.StatusUnauthorized && (len(challenge) != 1 || !strings.HasPrefix(challenge[0], `Bearer realm="latchkey"`)) {
		w.Errorf("%.200s: WWW-Authenticate: %q", a.what, challenge)
	}
	if retry := a.header.Values("Retry-After"); status == http.StatusServiceUnavailable && (len(retry) != 1 || retry[0] != "1") {
		w.Errorf("%.200s: Retry-After: %q", a.what, retry)
	}
	return a
}
