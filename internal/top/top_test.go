package top

import (
	"bytes"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A name is all of its addresses; without a port it is the admin listener's.
func TestTopResolves(t *testing.T) {
	t.Parallel()
	got, err := resolve(t.Context(), []string{"localhost", "10.0.0.7", "10.0.0.7:9090", "[::1]:9191", "::1"})
	if want := "10.0.0.7:9090 127.0.0.1:9090 [::1]:9090 [::1]:9191"; err != nil || strings.Join(got, " ") != want {
		t.Errorf("got %v %v, want %s", got, err, want)
	}
}

// The arithmetic: rates, restarts, and percentiles as Prometheus has them.
func TestTopArithmetic(t *testing.T) {
	t.Parallel()
	read := func(text string, at time.Time) sample {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) }))
		defer srv.Close()
		s := newScraper()
		defer s.client.CloseIdleConnections()
		n := s.one(t.Context(), strings.TrimPrefix(srv.URL, "http://"))
		n.at = at
		if n.err != nil {
			t.Fatal(n.err)
		}
		return n
	}
	const info = "# TYPE latchkey_build_info gauge\nlatchkey_build_info{version=\"v1\"} 1\n"
	began := time.Now()
	before := read(info+"# TYPE c counter\nc{l=\"a\"} 10\nc{l=\"b\"} 5\n# TYPE h histogram\nh_bucket{le=\"1\"} 0\nh_bucket{le=\"2\"} 0\nh_bucket{le=\"+Inf\"} 0\nh_sum 0\nh_count 0\n", began)
	after := read(info+"# TYPE c counter\nc{l=\"a\"} 30\nc{l=\"b\"} 1\n# TYPE h histogram\nh_bucket{le=\"1\"} 50\nh_bucket{le=\"2\"} 100\nh_bucket{le=\"+Inf\"} 100\nh_sum 0\nh_count 100\n", began.Add(2*time.Second))
	i := interval{before, after}
	if got := i.rate("c", is("l", "a")); got != 10 {
		t.Errorf("rate: %v", got)
	}
	if got := i.rate("c", is("l", "b")); got != 0.5 {
		t.Errorf("rate after a restart: %v", got)
	}
	if got := (fleetView{i, i}).quantile(.99, "h", all); math.Abs(got-1.98) > 1e-9 {
		t.Errorf("p99: %v", got)
	}
	if got := (interval{sample{}, after}).rate("c", all); got != 0 {
		t.Errorf("the rate of a replica seen for the first time: %v", got)
	}
	if got := (fleetView{}).quantile(.5, "h", all); !math.IsNaN(got) {
		t.Errorf("p50 of nothing: %v", got)
	}
}

// On a terminal, lines are cut to its size, and colours take no room.
func TestTopFits(t *testing.T) {
	t.Parallel()
	got := fitted([]string{"\x1b[31mabcdef\x1b[0m", "äöü", "third"}, 4, 3)
	if want := "\x1b[31mabcd\x1b[0m\x1b[K\r\näöü\x1b[K"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	var b bytes.Buffer
	if err := Run(t.Context(), Options{Addrs: []string{"127.0.0.1:1"}, Interval: time.Second, Once: true, Out: &b}); err == nil || b.Len() > 0 {
		t.Errorf("%v %q", err, b.String())
	}
}
