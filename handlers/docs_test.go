package handlers_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/latchkey-auth/latchkey/handlers"
)

// The page and all that it loads come from here, under a policy that lets nothing
// else in, and as small as the client can read it.
func TestDocsPage(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) { s.Docs = true }})
	fetch := func(path string, options ...option) answer {
		t.Helper()
		a, err := f.try(0, http.MethodGet, path, options...)
		f.check(err)
		return a
	}
	page := fetch("/docs").is(http.StatusOK)
	page.hasHeader("Content-Type", "text/html; charset=utf-8")
	loaded := regexp.MustCompile(`(?:src|href)="([^"#]+)"`).FindAllStringSubmatch(page.text, -1)
	if len(loaded) < 6 {
		t.Errorf("the page loads %q", loaded)
	}
	if regexp.MustCompile(`<script>|<style|style=|https?://|[ "]on[a-z]+=`).MatchString(page.text) {
		t.Error("the page has something inline, or from elsewhere")
	}
	for _, l := range append(loaded, []string{"", "docs"}) {
		plain := fetch("/"+l[1], header("Accept-Encoding", "identity")).is(http.StatusOK)
		if l[1] == "openapi.json" {
			continue
		}
		policy := plain.header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'; ") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
			t.Errorf("%s: the policy is %q", l[1], policy)
		}
		if kind := plain.header.Get("Content-Type"); kind != "image/png" && !strings.HasSuffix(kind, "; charset=utf-8") {
			t.Errorf("%s: the type is %q", l[1], kind)
		}
		packed := fetch("/"+l[1], header("Accept-Encoding", "br, gzip"))
		if packed.header.Get("Content-Encoding") == "gzip" {
			r, err := gzip.NewReader(strings.NewReader(packed.text))
			f.check(err)
			var text bytes.Buffer
			_, err = io.Copy(&text, r) //nolint:gosec // what is embedded
			f.check(err)
			if text.String() != plain.text || len(packed.text) > len(plain.text)/2 {
				t.Errorf("%s: %d bytes compressed are %d, want %d", l[1], len(packed.text), text.Len(), len(plain.text))
			}
			if packed.header.Get("Vary") != "Accept-Encoding" || packed.header.Get("ETag") == plain.header.Get("ETag") {
				t.Errorf("%s: a cache takes one encoding for the other", l[1])
			}
		}
		again := fetch("/"+l[1], header("If-None-Match", packed.header.Get("ETag")), header("Accept-Encoding", "gzip"))
		if again.status != http.StatusNotModified || again.text != "" {
			t.Errorf("%s: with its ETag: %d", l[1], again.status)
		}
		if head, err := f.try(0, http.MethodHead, "/"+l[1]); err != nil || head.status != http.StatusOK {
			t.Errorf("HEAD %s: %d %v", l[1], head.status, err)
		}
	}
	for _, encoding := range []string{"", "identity", "br", "gzip;q=0", "gzip; q=0.0, *", "x-gzip"} {
		if got := fetch("/docs/swagger-ui.css", header("Accept-Encoding", encoding)).header.Get("Content-Encoding"); got != "" {
			t.Errorf("Accept-Encoding %q was answered with %s", encoding, got)
		}
	}
	for _, encoding := range []string{"gzip", "GZIP;q=0.5", "br;q=1, gzip;q=0.1", "*"} {
		if got := fetch("/docs/swagger-ui.css", header("Accept-Encoding", encoding)).header.Get("Content-Encoding"); got != "gzip" {
			t.Errorf("Accept-Encoding %q was answered with %q", encoding, got)
		}
	}
	f.get(0, "/docs/index.html").fails(http.StatusNotFound, "not_found", "Not found")
	f.get(0, "/docs/%2e%2e%2fdocs.js").is(http.StatusNotFound)
}

// Without the setting there is no page; the document is always there.
func TestDocsAreOff(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	f.get(0, "/docs").is(http.StatusNotFound)
	f.get(0, "/docs/docs.js").is(http.StatusNotFound)
	a, err := f.try(0, http.MethodGet, "/openapi.json")
	f.check(err)
	a.is(http.StatusOK)
	a.hasHeader("Cache-Control", "public, max-age=300")
	again, err := f.try(0, http.MethodGet, "/openapi.json", header("If-None-Match", a.header.Get("ETag")))
	f.check(err)
	again.is(http.StatusNotModified)
	if part, err := f.try(0, http.MethodGet, "/openapi.json", header("Range", "bytes=0-9")); err != nil || part.status != http.StatusPartialContent {
		t.Errorf("a part: %d %v", part.status, err)
	}
	if none, err := f.try(0, http.MethodGet, "/openapi.json", header("Range", "bytes=99999999-")); err != nil || none.status != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("no part: %d %v", none.status, err)
	}
}
