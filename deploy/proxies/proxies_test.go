//go:build unix

// Package proxies_test runs the configurations of this folder: nginx, HAProxy and
// Caddy themselves, and for Traefik and Envoy clients that do what these do.
package proxies_test

import (
	"encoding/base64"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/internal/dpop/dpoptest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// proxy is one way into the service.
type proxy struct {
	name  string
	start func(w *world) // sets w.front
	down  int            // what it answers when Latchkey does not: 503 where it can be set
	page  bool           // refusals have the proxy's own page, in place of Latchkey's JSON
}

func TestProxies(t *testing.T) {
	t.Parallel()
	latchkey := stacktest.Build(t, "../..")
	for _, p := range []proxy{
		{name: "nginx", start: startNginx, down: 503, page: true},
		{name: "HAProxy", start: startHAProxy, down: 503},
		{name: "Caddy", start: startCaddy, down: 503},
		{name: "Traefik's contract", start: startTraefik, down: 500},
		{name: "Envoy's contract, HTTP", start: startEnvoyHTTP, down: 503},
		{name: "Envoy's contract, gRPC", start: startEnvoyGRPC, down: 503},
	} {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, latchkey)
			p.start(w)
			w.eventually("the proxy asks Latchkey", func() bool {
				a, err := send(w.front, "GET", "/", "")
				return err == nil && a.status == http.StatusUnauthorized
			})
			if n := w.served.Load(); n != 0 {
				t.Fatalf("%d requests without a token reached the service", n)
			}
			w.protects(p)
			w.hidesSpoofs()
			if p.name != "Envoy's contract, HTTP" { // which cannot demand scopes
				w.demandsScope()
				w.guardsPaths()
			}
			w.takesCookies()
			w.opensWebSockets()
			w.takesProofs()
			w.logsOut(p)
			w.failsClosed(p)
		})
	}
}

// protects: nobody gets in without a token, and with one everything gets through.
func (w *world) protects(p proxy) {
	w.Helper()
	large := strings.Repeat("x", 200_000)
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"} {
		for _, headers := range [][]string{
			nil,
			{"Authorization: Bearer garbage"},
			{"Authorization: Basic am9objpkb2U="},
			{"Authorization:"},
			{"X-Auth-Subject: admin"},
			{"Origin: https://evil.example", "Access-Control-Request-Method: DELETE"},
		} {
			a := w.refused(w.ask(method, "/orders?scope=read", "", headers...), http.StatusUnauthorized)
			if !p.page && method != "HEAD" && !strings.Contains(a.body, `"error":`) {
				w.Errorf("%s: not Latchkey's words: %s", a.what, a.body)
			}
		}
	}
	w.refused(w.ask("POST", "/orders", large), http.StatusUnauthorized)
	if n := w.served.Load(); n != 0 {
		w.Fatalf("%d requests without a token reached the service", n)
	}

	token := w.login()
	good := "Authorization: Bearer " + token
	for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"} {
		for _, uri := range []string{"/", "/orders/1?scope=admin&x=1", "/a%20b?x=%zz;y", "/auth/verify"} {
			body := ""
			if method != "GET" {
				body = "the body of " + uri
			}
			e := w.through(w.ask(method, uri, body, good), token)
			if e.Method != method || e.URI != uri || e.Body != body {
				w.Errorf("%s %s %q arrived as %s %s %q", method, uri, body, e.Method, e.URI, e.Body)
			}
		}
	}
	if e := w.through(w.ask("POST", "/upload", large, good), token); e.Body != large {
		w.Errorf("of %d bytes %d arrived", len(large), len(e.Body))
	}
	// What the service answers is its own matter.
	for _, status := range []int{201, 401, 403, 404, 500, 503} {
		a := w.ask("GET", "/status/"+strconv.Itoa(status), "", good)
		w.echoed(a)
		if a.status != status || a.header.Get("Retry-After") != "7" || a.header.Get("WWW-Authenticate") != "" {
			w.Errorf("the service's own %d: %d %v", status, a.status, a.header)
		}
	}
}

// identity is what the service must be told of a token's owner.
func identity(w *world, token string) http.Header {
	w.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	w.check(err)
	var c struct {
		Sub, Sid, Scope string
		Exp             int64
	}
	w.check(json.Unmarshal(payload, &c))
	return http.Header{
		"X-Auth-Subject": {c.Sub}, "X-Auth-Session": {c.Sid}, "X-Auth-Scope": {c.Scope}, "X-Auth-Expires": {strconv.FormatInt(c.Exp, 10)},
	}
}

// through checks that a request reached the service with the headers of its
// token's owner and no other of that family, however written.
func (w *world) through(a answer, token string) echo {
	w.Helper()
	if a.status != http.StatusOK {
		w.Fatalf("%.200s: %d %v %s", a.what, a.status, a.header, a.body)
	}
	e := w.echoed(a)
	want := identity(w, token)
	for name, values := range want {
		if !slices.Equal(e.Header[name], values) {
			w.Errorf("%.200s: %s: the service got %q, want %q", a.what, name, e.Header[name], values)
		}
	}
	// A server behind would drop what Connection names.
	if hop := strings.ToLower(strings.Join(e.Header["Connection"], ",")); strings.Contains(hop, "x-auth") {
		w.Errorf("%.200s: the service got Connection: %s", a.what, hop)
	}
	for name, values := range e.Header {
		plain := strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
				return r
			}
			return '-'
		}, strings.ToLower(name))
		if strings.HasPrefix(plain, "x-auth-") && want[name] == nil {
			w.Errorf("%.200s: the service got %s: %q", a.what, name, values)
		}
	}
	return e
}

func (w *world) hidesSpoofs() {
	w.Helper()
	token := w.login()
	good := "Authorization: Bearer " + token
	var all []string
	for _, last := range []string{"Subject", "Session", "Scope", "Expires"} {
		for _, name := range []string{
			"X-Auth-" + last, "X_Auth_" + last, "X-Auth_" + last, "X_Auth-" + last, "X.Auth." + last, "X-Auth." + last, "X.Auth-" + last, "X_Auth." + last,
		} {
			for _, name := range []string{name, strings.ToLower(name), strings.ToUpper(name), "x" + name[1:]} {
				all = append(all, name+": admin")
				w.through(w.ask("GET", "/", "", good, name+": admin"), token)
			}
		}
	}
	for many := range slices.Chunk(all, 64) { // HAProxy takes 101
		w.through(w.ask("GET", "/", "", append(many[:len(many):len(many)], good)...), token)
		w.through(w.ask("GET", "/", "", append([]string{good}, many...)...), token)
	}
	for _, hop := range []string{"X-Auth-Subject", "x-auth-scope, X-AUTH-SESSION", "close, X-Auth-Subject", "keep-alive,x-auth-expires"} {
		w.through(w.ask("GET", "/", "", good, "Connection: "+hop), token)
	}
	w.through(w.ask("GET", "/", "", good, "Connection: close", "Connection: X-Auth-Subject"), token)
	w.through(w.ask("GET", "/", "", good, "X-Forwarded-Method: POST", "X-Forwarded-Uri: /admin/", "X-Original-Url: /admin/"), token)
	for _, twice := range [][]string{{good, good}, {good, "Authorization: Bearer garbage"}, {"authorization: Bearer garbage", good}} {
		if a := w.ask("GET", "/", "", twice...); a.status == http.StatusOK {
			w.Errorf("two tokens are let through: %q", a.header)
		}
	}
}

func (w *world) demandsScope() {
	w.Helper()
	token := w.login()
	before := w.served.Load()
	for _, uri := range []string{"/admin/", "/admin/users", "/admin/users?scope=read", "/admin/?scope"} {
		a := w.refused(w.ask("GET", uri, "", "Authorization: Bearer "+token), http.StatusForbidden)
		if challenge := a.header.Get("WWW-Authenticate"); !strings.Contains(challenge, `error="insufficient_scope"`) || !strings.Contains(challenge, `scope="admin"`) {
			w.Errorf("%s: WWW-Authenticate: %q", uri, challenge)
		}
		w.refused(w.ask("GET", uri, ""), http.StatusUnauthorized)
	}
	if n := w.served.Load(); n != before {
		w.Errorf("%d of them reached the service", n-before)
	}
}

func (w *world) takesCookies() {
	w.Helper()
	token := w.login()
	cookie := "Cookie: theme=dark; " + accessCookie + "=" + token
	w.through(w.ask("GET", "/", "", cookie), token)
	w.through(w.ask("POST", "/", "x", cookie, "Origin: https://shop.example.com", "Sec-Fetch-Site: same-origin"), token)
	w.through(w.ask("POST", "/", "x", cookie, "Origin: https://shop.example.com"), token)
	w.through(w.ask("GET", "/", "", cookie, "Sec-Fetch-Site: cross-site"), token)
	before := w.served.Load()
	for _, method := range []string{"POST", "DELETE", "PROPFIND"} {
		w.refused(w.ask(method, "/", "x", cookie, "Origin: https://evil.example", "Sec-Fetch-Site: cross-site"), http.StatusForbidden)
		if a := w.refused(w.ask(method, "/", "x", cookie, "Origin: https://blog.example.com"), http.StatusForbidden); !strings.Contains(a.body, `"access_denied"`) {
			w.Errorf("%.200s: not told why: %s", a.what, a.body)
		}
	}
	w.refused(w.ask("GET", "/", "", "Cookie: "+accessCookie+"=garbage"), http.StatusUnauthorized)
	if n := w.served.Load(); n != before {
		w.Errorf("%d of them reached the service", n-before)
	}
}

// logsOut: right after the answer to a logout, the token is dead.
func (w *world) logsOut(p proxy) {
	w.Helper()
	for range 20 {
		token := w.login()
		good := "Authorization: Bearer " + token
		w.through(w.ask("GET", "/", "", good), token)
		if a := w.at(w.api, "POST", "/auth/logout", url.Values{}.Encode(), good); a.status != http.StatusOK {
			w.Fatalf("logout: %d %s", a.status, a.body)
		}
		a := w.refused(w.ask("GET", "/", "", good), http.StatusUnauthorized)
		if challenge := a.header.Get("WWW-Authenticate"); !strings.Contains(challenge, "The access token was revoked") {
			w.Errorf("WWW-Authenticate: %s", challenge)
		}
		if !p.page && !strings.Contains(a.body, "The access token was revoked") {
			w.Errorf("not Latchkey's words: %s", a.body)
		}
	}
}

// takesProofs: a token that is bound to a key gets in with a proof of the very request
// (RFC 9449), and each proof once. Nonces come by way of refusals.
func (w *world) takesProofs() {
	w.Helper()
	key := dpoptest.NewKey(w, "ES256")
	nonce := ""
	proof := func(method, url, token string) string {
		return "DPoP: " + key.Proof(method, url, token, dpoptest.With("nonce", nonce))
	}
	const login = issuer + "/auth/token"
	if nonce = w.tryLogin(proof("POST", login, "")).header.Get("DPoP-Nonce"); nonce == "" {
		w.Fatal("a login without a nonce gets none")
	}
	token := w.login(proof("POST", login, ""))
	good := "Authorization: DPoP " + token

	const orders = "http://shop.example.com/orders/1"
	nonce = "made up"
	told := w.ask("GET", "/orders/1", "", good, proof("GET", orders, token)).header.Values("DPoP-Nonce")
	if len(told) != 1 || told[0] == "" {
		w.Fatalf("a refusal tells the nonces %q", told)
	}
	nonce = told[0]
	for _, method := range []string{"GET", "POST", "DELETE"} {
		for _, query := range []string{"", "?x=1&scope=admin"} {
			fresh := proof(method, orders, token)
			w.through(w.ask(method, "/orders/1"+query, "", good, fresh), token)
			w.unproven(w.ask(method, "/orders/1"+query, "", good, fresh))
		}
	}
	w.unproven(w.ask("GET", "/orders/1", "", good))
	w.unproven(w.ask("GET", "/orders/1", "", good, proof("POST", orders, token)))
	w.unproven(w.ask("GET", "/orders/2", "", good, proof("GET", orders, token)))
	w.unproven(w.ask("GET", "/orders/1", "", good, proof("GET", "https://shop.example.com/orders/1", token)))
	w.unproven(w.ask("GET", "/orders/1", "", good, proof("GET", "http://evil.example/orders/1", token)))
	w.unproven(w.ask("GET", "/orders/1", "", good, proof("GET", orders, token), proof("GET", orders, token)))
	// What a request was is the proxy's to say, not the client's.
	for _, spoof := range []string{"X-Forwarded-Uri: /orders/1", "X-Forwarded-Method: GET", "X-Forwarded-Host: shop.example.com", "X-Forwarded-Proto: http"} {
		w.unproven(w.ask("POST", "/orders/2", "", good, spoof, proof("GET", orders, token)))
	}
	w.refused(w.ask("GET", "/orders/1", "", "Authorization: Bearer "+token, proof("GET", orders, token)), http.StatusUnauthorized)
}

// unproven checks that a bound token did not get in.
func (w *world) unproven(a answer) {
	w.Helper()
	if a.status != http.StatusUnauthorized || a.header.Get("X-Service") != "" {
		w.Errorf("%.300s: got %d %s, want 401", a.what, a.status, a.body)
	}
}

// failsClosed: without Redis tokens are taken for as long as the lease, and then,
// as without Latchkey, nobody gets in.
func (w *world) failsClosed(p proxy) {
	w.Helper()
	token := w.login()
	good := "Authorization: Bearer " + token
	again := func(what string) {
		w.eventually(what, func() bool {
			a, err := send(w.front, "GET", "/", "", good)
			return err == nil && a.status == http.StatusOK
		})
	}
	w.through(w.ask("GET", "/", "", good), token)
	w.redis.Pause(w.T)
	w.through(w.ask("GET", "/", "", good), token) // inside the lease
	var a answer
	w.eventually("the lease ends", func() bool {
		a = w.ask("GET", "/", "", good)
		return a.status != http.StatusOK
	})
	w.refused(a, http.StatusServiceUnavailable)
	w.refused(w.ask("GET", "/", ""), http.StatusUnauthorized) // that much is known
	w.redis.Resume(w.T)
	again("Redis is back")

	before := w.served.Load()
	w.latchkey.Freeze(w.T) // connections open, and nothing comes
	start := time.Now()
	w.refused(w.ask("GET", "/", "", good), p.down)
	if took := time.Since(start); took > 10*time.Second {
		w.Errorf("a frozen Latchkey is noticed after %v", took)
	}
	if n := w.served.Load(); n != before {
		w.Errorf("%d requests reached the service", n-before)
	}
	w.latchkey.Thaw(w.T)
	again("Latchkey is back")

	w.latchkey.Kill()
	before = w.served.Load()
	for _, headers := range [][]string{{good}, nil, {"Authorization: Bearer garbage"}, {good, "X-Auth-Subject: admin"}} {
		for _, uri := range []string{"/", "/admin/"} {
			w.refused(w.ask("GET", uri, "", headers...), p.down)
		}
	}
	if n := w.served.Load(); n != before {
		w.Errorf("%d requests reached the service", n-before)
	}
}

// configured writes a configuration of this folder with other addresses.
func (w *world) configured(dir, file string, pairs ...string) string {
	w.Helper()
	return stacktest.Configured(w.T, dir, file, pairs...)
}

// addresses are what the configurations name, and what they are here.
func (w *world) addresses() []string {
	w.front = net.JoinHostPort("127.0.0.1", stacktest.FreePort(w.T))
	return []string{
		// In two steps, as a port of one may be the placeholder of another.
		"127.0.0.1:8080", "LATCHKEY", "127.0.0.1:3000", "SERVICE", "LATCHKEY", w.api, "SERVICE", w.service,
	}
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

func startNginx(w *world) {
	bin, dir := stacktest.Installed(w.T, "nginx", "nginx-light"), w.TempDir()
	// Where Debian's package would have it write.
	places := "http {\n\taccess_log off;\n"
	for _, name := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		places += "\t" + name + "_temp_path " + filepath.Join(dir, name) + ";\n"
	}
	conf := w.configured(dir, "nginx.conf", append(w.addresses(), "127.0.0.1:8000", w.front, "http {\n", places)...)
	w.configured(dir, "latchkey_headers.conf")
	w.configured(dir, "latchkey_question.conf")
	stacktest.Launch(w.T, nil, bin, "-p", dir, "-e", "stderr", "-c", conf,
		"-g", "daemon off; master_process off; pid "+filepath.Join(dir, "nginx.pid")+";")
}

func startHAProxy(w *world) {
	bin, dir := stacktest.Installed(w.T, "haproxy", "haproxy"), w.TempDir()
	lua := w.configured(dir, "latchkey.lua")
	stacktest.Launch(w.T, nil, bin, "-db", "-f", w.configured(dir, "haproxy.cfg", append(w.addresses(), "127.0.0.1:8000", w.front, "/etc/haproxy/latchkey.lua", lua)...))
}

func startCaddy(w *world) {
	bin := os.Getenv("CADDY") // as `make test` builds it
	if bin == "" {
		bin = stacktest.Go(w.T, []string{"CGO_ENABLED=0", "GOWORK=off"}, "-C", "../../tools/caddy", "tool", "-n", "caddy") // builds it, and says where
	}
	dir := w.TempDir()
	conf := w.configured(dir, "Caddyfile", append(w.addresses(), "shop.example.com:8000", "shop.example.com:"+port(w.front))...)
	text, err := os.ReadFile(conf)
	w.check(err)
	w.check(os.WriteFile(conf, append([]byte("{\n\tadmin off\n\tpersist_config off\n}\n"), text...), 0o600))
	stacktest.Launch(w.T, []string{"HOME=" + dir}, bin, "run", "--config", conf, "--adapter", "caddyfile")
}
