package claimhook

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const key = "canary-webhook-key-0123456789abcdef"

func hook(t *testing.T, h http.HandlerFunc) *Webhook {
	t.Helper()
	srv := httptest.NewServer(h)
	w := New(Options{URL: srv.URL + "/claims", Key: []byte(key), Timeout: 10 * time.Second, Now: func() time.Time { return time.Unix(1_700_000_000, 0) }})
	t.Cleanup(srv.Close)
	t.Cleanup(w.Close)
	return w
}

// The request, byte for byte: receivers are written against it.
func TestTheRequest(t *testing.T) {
	var got []string
	w := hook(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = []string{r.Method, r.URL.Path, r.Header.Get("Content-Type"), r.Header.Get(HeaderTimestamp), r.Header.Get(HeaderSignature), string(body)}
		_, _ = io.WriteString(w, `{"claims":{"tier":"gold","n":[1]},"more":1}`)
	})
	claims, err := w.Claims(t.Context(), Request{Event: "login", Subject: "u-1", Username: "alice", ClientID: "latchkey", Scope: "read"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]json.RawMessage{"tier": json.RawMessage(`"gold"`), "n": json.RawMessage(`[1]`)}, claims); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	// The signature was computed with: printf '1700000000.{...}' | openssl dgst -sha256 -hmac KEY
	want := []string{
		"POST", "/claims", "application/json", "1700000000", "v1=986c1856d427171d6496c5a5812aa00cb018cbb72f6a7e7c10377e29fdbf7475",
		`{"event":"login","sub":"u-1","username":"alice","client_id":"latchkey","scope":"read"}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		claims int
		fails  bool
	}{
		"none":             {200, `{}`, 0, false},
		"null":             {200, `{"claims":null}`, 0, false},
		"no content":       {204, ``, 0, false},
		"two":              {200, `{"claims":{"a":1,"b":2}}`, 2, false},
		"longest":          {200, `{"claims":{"a":"` + strings.Repeat("x", MaxAnswer-19) + `"}}`, 1, false},
		"too long":         {200, `{"claims":{"a":"` + strings.Repeat("x", MaxAnswer-18) + `"}}`, 0, true},
		"a list":           {200, `{"claims":[1]}`, 0, true},
		"no JSON":          {200, `<html>`, 0, true},
		"nothing":          {200, ``, 0, true},
		"an error":         {500, `{"claims":{"a":1}}`, 0, true},
		"not found":        {404, `{"claims":{"a":1}}`, 0, true},
		"created":          {201, `{"claims":{"a":1}}`, 0, true},
		"two values in it": {200, `{"claims":{"a":1}}{"claims":{"a":1}}`, 0, true},
	} {
		w := hook(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, c.body)
		})
		claims, err := w.Claims(t.Context(), Request{})
		if len(claims) != c.claims || errors.Is(err, ErrFailed) != c.fails {
			t.Errorf("%s: %d claims, %v", name, len(claims), err)
		}
		if err != nil && strings.Contains(err.Error(), "xxx") {
			t.Errorf("%s: the error holds the answer", name)
		}
	}
}

// A signed request is not carried to another place.
func TestRedirectsAreNotFollowed(t *testing.T) {
	reached := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer other.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		w := hook(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, status) })
		if _, err := w.Claims(t.Context(), Request{}); !errors.Is(err, ErrFailed) || reached {
			t.Errorf("%d: %v, reached %v", status, err, reached)
		}
	}
}

// A service that does not answer is given up on, and so is a caller's own patience.
func TestTheTimeout(t *testing.T) {
	release := make(chan struct{})
	w := hook(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	w.client.Timeout = 50 * time.Millisecond
	if _, err := w.Claims(t.Context(), Request{}); !errors.Is(err, ErrFailed) {
		t.Errorf("timeout: %v", err)
	}
	w.client.Timeout = time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := w.Claims(ctx, Request{}); !errors.Is(err, ErrFailed) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestNobodyListens(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	w := New(Options{URL: srv.URL + "/canary", Key: []byte(key), Timeout: time.Second})
	defer w.Close()
	if _, err := w.Claims(t.Context(), Request{}); !errors.Is(err, ErrFailed) || strings.Contains(err.Error(), "canary") {
		t.Error(err) // it is logged, and the URL may hold a secret
	}
}
