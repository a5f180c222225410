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
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

const (
	accessCookie = "access_token"
	username     = "johndoe"
	admin        = "root"
	password     = "secret"
	scope        = "read write" // johndoe's; root has admin, too
	issuer       = "http://auth.example.com"
)

// world is a service, Latchkey, and Redis: what stands behind a proxy.
type world struct {
	*testing.T
	redis    *redistest.Server
	latchkey *stacktest.Process
	api      string // host:port
	grpc     string
	service  string       // host:port
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
	w.startService()
	w.account(username, scope)
	w.account(admin, scope+" admin")
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

// startService starts the service. It is lenient: it takes request targets that Go's
// server refuses. A connection serves one request.
func (w *world) startService() {
	l, err := (&net.ListenConfig{}).Listen(w.Context(), "tcp", "127.0.0.1:0")
	w.check(err)
	w.Cleanup(func() { _ = l.Close() })
	w.service = l.Addr().String()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go w.serve(conn)
		}
	}()
}

// serve reads a request and tells what it got, answers as its path says, or opens a
// WebSocket. It never lets anybody into /admin whose token lacks that scope.
func (w *world) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	// Proxies may keep a connection that they never use.
	line, err := bufio.NewReaderSize(oneByte{conn}, 16).ReadString('\n')
	if err != nil {
		return
	}
	method, rest, _ := strings.Cut(line, " ")
	cut := strings.LastIndexByte(rest, ' ')
	if cut < 0 {
		return
	}
	target, proto := rest[:cut], rest[cut+1:]
	in := bufio.NewReader(io.MultiReader(strings.NewReader(method+" / "+proto), conn))
	r, err := http.ReadRequest(in)
	if err != nil {
		w.Errorf("the service cannot read %q: %v", line, err)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the proxy may have given up
	}
	w.served.Add(1)
	if inAdmin(lenient(target)) && !slices.Contains(strings.Fields(r.Header.Get("X-Auth-Scope")), "admin") {
		w.Errorf("%q reached /admin with the scope %q", target, r.Header.Get("X-Auth-Scope"))
	}
	// Headers that Connection names are the proxy's alone: a server behind it drops them.
	if hop := strings.ToLower(strings.Join(r.Header["Connection"], ",")); r.Header.Get("X-Auth-Subject") == "" || strings.Contains(hop, "x-auth") {
		w.Errorf("%s: the service got Connection: %s and X-Auth-Subject: %q", target, hop, r.Header["X-Auth-Subject"])
	}
	if upgrade := r.Header.Get("Upgrade"); upgrade != "" {
		if !strings.EqualFold(upgrade, "websocket") {
			w.Errorf("the service was asked for %q, which goes past the proxy", upgrade)
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nX-Service: yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
			"Sec-WebSocket-Accept: "+r.Header.Get("Sec-WebSocket-Key")+"\r\n\r\n")
		_, _ = io.Copy(conn, in)
		return
	}
	rec := httptest.NewRecorder()
	status := http.StatusOK
	if text, ok := strings.CutPrefix(target, "/status/"); ok {
		status, _ = strconv.Atoi(text)
		rec.Header().Set("Retry-After", "7")
	}
	rec.Header().Set("X-Service", "yes")
	rec.WriteHeader(status)
	_ = json.NewEncoder(rec).Encode(echo{r.Method, target, string(body), r.Header}) // strings
	answer := rec.Result()
	answer.Request, answer.Close = r, true
	answer.ContentLength = int64(rec.Body.Len())
	_ = answer.Write(conn) // the proxy may have given up
}

// oneByte reads byte by byte, so that nothing beyond a line is taken.
type oneByte struct{ io.Reader }

func (r oneByte) Read(p []byte) (int, error) { return r.Reader.Read(p[:1]) }

// account makes an account.
func (w *world) account(name, scopes string) {
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
	w.check(store.Accounts.Create(w.Context(), tokenstore.Account{Username: name, Hash: hash, Scopes: scopes}))
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
	return w.access(w.tryLogin(headers...))
}

// loginAs returns another account's.
func (w *world) loginAs(name string) string {
	w.Helper()
	form := url.Values{"username": {name}, "password": {password}}.Encode()
	return w.access(w.at(w.api, "POST", "/auth/token", form, "Content-Type: application/x-www-form-urlencoded"))
}

func (w *world) access(a answer) string {
	w.Helper()
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
	return sendVersion("1.1", addr, method, path, body, headers...)
}

func sendVersion(version, addr, method, path, body string, headers ...string) (answer, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return answer{}, err
	}
	text := fmt.Sprintf("%s %s HTTP/%s\r\nHost: shop.example.com\r\n", method, path, version)
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
