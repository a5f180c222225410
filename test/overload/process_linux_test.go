package overload

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/stacktest"
)

const (
	password = "correct horse battery staple"
	user     = "alice"
	// crowd logs in without end, so that its sessions end by its own logins.
	crowd = "bob"
	// streaming is the token of GET /revocations.
	streaming = "overload-test-revocations-token-of-32-bytes-and-more"
)

// start starts one replica with two users, and returns it with its folder's program.
func start(t *testing.T, redisURL string, settings ...string) *stacktest.Replica {
	t.Helper()
	f := stacktest.NewFleet(t, stacktest.Build(t, "../.."), 1, redisURL, append([]string{
		// One user at one address has more logins under way here than any limit allows.
		"LATCHKEY_LOGIN_LIMIT_CLIENT=100000/1m", "LATCHKEY_LOGIN_LIMIT_ACCOUNT=100000/1m", "LATCHKEY_LOGIN_LIMIT_ADDRESS=100000/1m",
		"LATCHKEY_PPROF=true", "LATCHKEY_LOG_LEVEL=warn", "LATCHKEY_REVOCATIONS_TOKEN=" + streaming,
	}, settings...)...)
	f.Command(t, password+"\n", "user", "add", user)
	f.Command(t, password+"\n", "user", "add", crowd)
	return f.Replicas[0]
}

// fetch reads a page of the admin listener.
func fetch(ctx context.Context, r *stacktest.Replica, path string) (string, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.Admin+path, http.NoBody)
	if err != nil {
		return "", err
	}
	a, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(q)
	if err != nil {
		return "", err
	}
	defer func() { _ = a.Body.Close() }()
	b, err := io.ReadAll(a.Body)
	if err == nil && a.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, a.Status)
	}
	return string(b), err
}

// gauges are the series of /metrics by name and labels.
type gauges map[string]float64

func readGauges(t testing.TB, r *stacktest.Replica) gauges {
	t.Helper()
	text, err := fetch(t.Context(), r, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	g := gauges{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil {
			g[name] = v
		}
	}
	return g
}

// heapKey is where collected puts the bytes of the heap, and buffersKey those of them
// that are the buffers of connections to Redis, where the profile is fine enough.
// Prometheus's own gauge has the garbage of whoever asks in it, which is more than a
// leak is.
const heapKey, buffersKey = "heap", "buffers"

// collected is readGauges after a collection of garbage.
func collected(t testing.TB, r *stacktest.Replica) gauges {
	t.Helper()
	profile := ""
	for range 2 { // finalizers free in the second
		var err error
		if profile, err = fetch(t.Context(), r, "/debug/pprof/heap?gc=1&debug=1"); err != nil {
			t.Fatal(err)
		}
	}
	g := readGauges(t, r)
	_, rest, _ := strings.Cut(profile, "\n# HeapAlloc = ")
	line, _, _ := strings.Cut(rest, "\n")
	heap, err := strconv.ParseFloat(line, 64)
	if err != nil {
		t.Fatalf("the profile does not tell the heap: %v", err)
	}
	g[heapKey], g[buffersKey] = heap, allocated(profile, "internal/pool.NewConnWithBufferSize")
	return g
}

// allocated is how many bytes are live that were allocated below a function, in a
// profile as text.
func allocated(profile, function string) float64 {
	sum := 0.0
	for record := range strings.SplitSeq(profile, "\n\n") {
		if !strings.Contains(record, function+"+") {
			continue
		}
		for line := range strings.Lines(record) {
			var objects, bytes float64
			if n, _ := fmt.Sscanf(line, "%f: %f [", &objects, &bytes); n == 2 {
				sum += bytes
			}
		}
	}
	return sum
}

// histogram is how many values came between two looks, by the upper bounds of the
// replica's buckets, each with those below.
type histogram struct {
	bounds []float64 // seconds, ascending, the last infinite
	counts map[float64]float64
}

// checksKey and waitsKey are those of the replica's own: how long it took for checks of
// tokens, and how long whatever it had to do waited for a CPU before.
const (
	checksKey = `latchkey_http_request_duration_seconds_bucket{method="GET",route="/auth/verify",le="`
	waitsKey  = `go_sched_latencies_seconds_bucket{le="`
)

func newHistogram(before, after gauges, key string) histogram {
	h := histogram{counts: map[float64]float64{}}
	for name, n := range after {
		rest, ok := strings.CutPrefix(name, key)
		if le, err := strconv.ParseFloat(strings.TrimSuffix(rest, `"}`), 64); ok && err == nil {
			h.counts[le] = n - before[name]
		}
	}
	h.bounds = slices.Sorted(maps.Keys(h.counts))
	return h
}

// quantile is the upper bound, in seconds, of the bucket with the q-quantile.
func (h histogram) quantile(q float64) float64 {
	for _, le := range h.bounds {
		if h.counts[le] >= q*h.counts[math.Inf(1)] {
			return le
		}
	}
	return math.Inf(1)
}

// above is the share of values above the first bound that is at least that many seconds.
func (h histogram) above(seconds float64) float64 {
	for _, le := range h.bounds {
		if le >= seconds {
			return 1 - h.counts[le]/max(h.counts[math.Inf(1)], 1)
		}
	}
	return 0
}

// collecting is the share of the CPUs that went to garbage between two looks.
func collecting(before, after gauges) float64 {
	const gc, all = "go_cpu_classes_gc_total_cpu_seconds_total", "go_cpu_classes_total_cpu_seconds_total"
	return (after[gc] - before[gc]) / max(after[all]-before[all], 1e-9)
}

// resident is the RAM of a replica, in bytes.
func resident(r *stacktest.Replica) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", r.PID()))
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no VmRSS", f.Name())
}

// duration is how long a test lasts: the setting's, or else a short time.
func duration(t testing.TB, setting string, short time.Duration) (d time.Duration, long bool) {
	t.Helper()
	text := os.Getenv(setting)
	if text == "" {
		return short, false
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", setting, err)
	}
	return d, true
}
