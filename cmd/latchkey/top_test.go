package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// host is the address in a URL.
func host(base string) string { return strings.TrimPrefix(base, "http://") }

// Real replicas under a little traffic: what top prints is what happened.
func TestTopOnce(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	account(t, server.URL())
	a, b := launch(t, bin, server.URL()), launch(t, bin, server.URL())
	a.becomes(200)
	b.becomes(200)
	shown, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-shown:
				return
			default:
			}
			in, err := try(t.Context(), "POST", a.api+"/auth/token", login(), "", "")
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = try(t.Context(), "GET", b.api+"/auth/verify", nil, in.access(), "")
			_, _ = try(t.Context(), "POST", b.api+"/auth/refresh", url.Values{}, "", in.refresh())
			_, _ = try(t.Context(), "POST", b.api+"/auth/logout", url.Values{}, in.access(), "")
		}
	}()
	var out string
	stacktest.Eventually(t, "top shows the traffic", func() bool { // a busy machine may take seconds for one login
		var errs string
		var err error
		out, errs, err = inProcess(t, "", "top", "--once", "--interval", "1500ms", host(a.admin), host(b.admin))
		if err != nil || errs != "" {
			t.Fatal(err, errs)
		}
		for _, idle := range []string{"confirmed p99 –", "rotated 0 ", "  ok 0 ", "verify p99 –", "lag p99 –"} {
			if strings.Contains(out, idle) {
				return false
			}
		}
		return true
	})
	close(shown)
	<-done
	t.Log("\n" + out)
	narrow(t, out)
	for _, want := range []string{"2 replicas, 2 ready", "16/16", "/auth/verify", "/auth/token", "/auth/logout", "followers 2", "unavailable 0%", "5xx 0%", host(a.admin), host(b.admin)} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q", want)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Error("control characters without a terminal")
	}

	// One that is gone is shown as such, and the others all the same.
	out, _, err := inProcess(t, "", "top", "--once", "--interval", "100ms", host(a.admin), "127.0.0.1:1")
	var quiet *exitError
	if !errors.As(err, &quiet) || !strings.Contains(out, "2 replicas, 1 ready") || !strings.Contains(out, "down: connect: connection refused") {
		t.Errorf("%v\n%s", err, out)
	}
	// During an outage of Redis no shard has a lease, and nobody is ready.
	server.Kill(t)
	a.becomes(503)
	for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(out, " 0/16"); { // the lease may outlast the readiness
		out, _, err = inProcess(t, "", "top", "--once", "--interval", "100ms", host(a.admin))
		if err != nil || !strings.Contains(out, "0 ready") || !strings.Contains(out, "unready") || time.Now().After(deadline) {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

func TestTopSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	api := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(api.Close)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("other_metric 1\n")) }))
	t.Cleanup(other.Close)
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>\n")) }))
	t.Cleanup(page.Close)
	for want, args := range map[string][]string{
		"no replica answers: connect: connection refused": {"127.0.0.1:1"},
		"/metrics answers 404":                            {host(api.URL)},
		"not an admin listener of Latchkey":               {host(other.URL)},
		"not metrics":                                     {host(page.URL)},
		"write host or host:port":                         {api.URL},
		"--interval 1ms: from 100ms to 1m":                {"--interval", "1ms"},
		"latchkey.invalid: ":                              {"latchkey.invalid"},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			if _, _, err := inProcess(t, "", append([]string{"top", "--once"}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		})
	}
}
