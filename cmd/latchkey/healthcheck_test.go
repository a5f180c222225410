package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// answerAt serves a stand-in for the admin listener and returns its port.
func answerAt(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	leavesNothing(t)
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestHealthcheck(t *testing.T) {
	port := answerAt(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			fmt.Fprintln(w, "ok")
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, "not ready: \x1b[31mRedis is down")
	})
	// No secret and a setting that is wrong: it reads neither.
	t.Setenv("LATCHKEY_SECRET", "")
	t.Setenv("LATCHKEY_SHARDS", "0")
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	for _, host := range []string{"", "0.0.0.0", "127.0.0.1", "localhost", "[::ffff:0.0.0.0]"} {
		t.Setenv("LATCHKEY_ADMIN_ADDR", host+":"+port)
		o := command(t, strings.NewReader(""), "healthcheck")
		if o.err != nil || !strings.HasSuffix(o.stdout, "/healthz: ok\n") || strings.Count(o.stdout, "\n") != 1 {
			t.Errorf("at %q: %v, printed %q", host, o.err, o.stdout)
		}
	}
	o := fails(t, "", []string{"healthcheck", "--ready"}, "/readyz answers 503: \"not ready: \\x1b[31mRedis is down\"")
	if o.stdout != "" {
		t.Errorf("also prints %q", o.stdout)
	}
}

func TestHealthcheckFails(t *testing.T) {
	unused, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := unused.Addr().String()
	unused.Close()
	for addr, text := range map[string]string{
		closed:       "does not answer: dial tcp " + closed + ": connect: connection refused; is latchkey serve running, with the same LATCHKEY_ADMIN_ADDR?",
		":0":         "port 0, which is any free one; give it a fixed port",
		"localhost":  "not an address; write host:port",
		"localhost:": "not an address; write host:port",
		"a\x1bb:80":  "cannot be asked; check LATCHKEY_ADMIN_ADDR",
	} {
		t.Setenv("LATCHKEY_ADMIN_ADDR", addr)
		fails(t, "", []string{"healthcheck"}, text)
	}
}

// A replica that takes the connection and says nothing, and one that points
// elsewhere, are not healthy.
func TestHealthcheckIsNotFooled(t *testing.T) {
	asked := make(chan struct{}, 1)
	port := answerAt(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
			return
		}
		if r.URL.Path == "/readyz" {
			asked <- struct{}{}
			<-r.Context().Done() // until the client gives up
		}
	})
	t.Setenv("LATCHKEY_ADMIN_ADDR", ":"+port)
	fails(t, "", []string{"healthcheck"}, "answers 302")

	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if answer, err := probe(ctx, "http://127.0.0.1:"+port+"/readyz"); err == nil {
		t.Errorf("a replica that does not answer is healthy: %q", answer)
	}
	go func() { <-asked }()
	fails(t, "", []string{"healthcheck", "--ready"}, "does not answer: context deadline exceeded")
}

func TestProbeURL(t *testing.T) {
	for addr, want := range map[string]string{
		"":                  "http://127.0.0.1:9090/healthz",
		":9191":             "http://127.0.0.1:9191/healthz",
		"[::]:9191":         "http://[::1]:9191/healthz",
		"10.0.0.7:9191":     "http://10.0.0.7:9191/healthz",
		"[fe80::1%eth0]:91": "http://[fe80::1%25eth0]:91/healthz",
	} {
		if got, err := probeURL(addr, "/healthz"); err != nil || got != want {
			t.Errorf("probeURL(%q) = %q, %v, want %q", addr, got, err, want)
		}
	}
}
