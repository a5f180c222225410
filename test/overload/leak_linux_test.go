package overload

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// TestNothingLeaks has clients come and go: they log in, refresh, check, follow
// the log of revocations, log out and drop connections, while Redis is restarted
// now and then. What the replica holds must not grow: not from the first look to
// the last but by the slope of a line through all of them.
func TestNothingLeaks(t *testing.T) {
	t.Parallel()
	length, long := duration(t, "LEAK_FOR", 16*time.Second)
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "no")
	rdb := server.Client()
	const pool = 8
	ttl, heap := 4, 1024.0
	if long {
		ttl, heap = 30, 256
	}
	// Whatever is kept for a time is kept for a short one, and so levels off.
	r := start(t, fmt.Sprintf("%s?pool_size=%d", server.URL(), pool), "LATCHKEY_PASSWORD_MEMORY=7168", "LATCHKEY_PASSWORD_ITERATIONS=1",
		fmt.Sprintf("LATCHKEY_ACCESS_TTL=%ds", ttl), fmt.Sprintf("LATCHKEY_REFRESH_TTL=%ds", 2*ttl), fmt.Sprintf("LATCHKEY_SESSION_MAX=%ds", 2*ttl),
		"LATCHKEY_REFRESH_GRACE=2s", "LATCHKEY_EDGE_CACHE=256",
		"GODEBUG=memprofilerate=4096") // so that a profile tells of single KiB
	ch := &churn{addr: r.Addr, rest: 50 * time.Millisecond, ttl: time.Duration(ttl) * time.Second}
	if long {
		ch.rest = 200 * time.Millisecond // so that the machine has something else to do
	}
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() { ch.sessions(ctx, t) })
	}
	clients.Go(func() { ch.streams(ctx) })

	var looks []look
	quiet := func() {
		ch.pause.Lock()
		defer ch.pause.Unlock()
		g := collected(t, r)
		rss, err := resident(r)
		if err != nil {
			t.Fatal(err)
		}
		clients, err := rdb.Info(t.Context(), "clients").Result()
		if err != nil {
			t.Fatal(err)
		}
		connected := 0.0
		for line := range strings.Lines(clients) {
			_, _ = fmt.Sscanf(line, "connected_clients:%f", &connected)
		}
		looks = append(looks, look{
			at:   time.Since(ch.begun).Seconds(),
			heap: (g[heapKey] - g[buffersKey]) / 1024, buffers: g[buffersKey] / 1024, goroutines: g["go_goroutines"], fds: g["process_open_fds"],
			redis: connected, rss: float64(rss) / 1024,
		})
	}
	early := ""
	ch.begun = time.Now()
	every := length / 40
	restart := length / 5
	next := restart
	for (time.Since(ch.begun) < length || ch.cycles.Load() < 20) && !t.Failed() {
		<-time.After(every) // the rate of looks, of what other goroutines do
		if time.Since(ch.begun) > next {
			server.Restart(t)
			next += restart
			r.AwaitReady(t)
			ch.restarts++
			continue // what a restart left half done is over by the next look
		}
		quiet()
		if early == "" && time.Since(ch.begun) > length*3/10 {
			early = ch.profile(t, r)
		}
	}
	late := ch.profile(t, r)
	cancel()
	clients.Wait()
	t.Logf("%v: %d sessions opened and ended, %d checks, %d streams, %d restarts of Redis, %d answers of 503",
		length, ch.cycles.Load(), ch.checks.Load(), ch.streamed.Load(), ch.restarts, ch.unavailable.Load())
	settled := looks[len(looks)/4:] // pools and caches have filled
	// The allowance is for what comes and goes between two looks; a leak of one
	// thing in each of the sessions would be a multiple of it.
	for _, m := range []struct {
		name    string
		of      func(look) float64
		allowed float64
	}{
		{"heap after collection, KiB", func(l look) float64 { return l.heap }, heap},
		{"goroutines", func(l look) float64 { return l.goroutines }, 8},
		{"open files", func(l look) float64 { return l.fds }, 8},
		{"connections of Redis", func(l look) float64 { return l.redis }, 8},
	} {
		g := growth(settled, m.of)
		t.Logf("%-28s first %8.0f, last %8.0f, trend over the run %+8.1f", m.name, m.of(settled[0]), m.of(settled[len(settled)-1]), g)
		if g > m.allowed {
			t.Errorf("%s: grew by %.1f, more than %.0f", m.name, g, m.allowed)
		}
	}
	if long || t.Failed() {
		t.Logf("what the heap has more of at the end than at three tenths of the run:\n%s", difference(t, early, late))
	}
	// go-redis has a pool of the size that is set, at 64 KiB a connection, and one of ten
	// for batches, at 256 KiB. In their lists of idle connections it keeps such as were
	// there and are closed, as many again as there are places.
	buffers := slices.MaxFunc(looks, func(a, b look) int { return cmp.Compare(a.buffers, b.buffers) }).buffers
	t.Logf("%-28s at most %.0f", "buffers for Redis, KiB", buffers)
	if most := 2 * (64.0*pool + 256*10); buffers > most {
		t.Errorf("buffers for Redis: %.0f KiB, more than %.0f", buffers, most)
	}
	rss := func(l look) float64 { return l.rss }
	t.Logf("%-28s first %8.0f, last %8.0f, trend over the run %+8.1f", "resident memory, KiB", rss(settled[0]), rss(settled[len(settled)-1]), growth(settled, rss))
	if g := growth(settled, rss); long && g > 16<<10 { // in a short run the heap's arenas are still being filled
		t.Errorf("resident memory grew by %.0f KiB", g)
	}
}

// profile is the heap while nobody asks anything, after a collection, as pprof reads it.
func (ch *churn) profile(t *testing.T, r *stacktest.Replica) string {
	t.Helper()
	ch.pause.Lock()
	defer ch.pause.Unlock()
	text, err := fetch(t.Context(), r, "/debug/pprof/heap?gc=1")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// difference is what the later of two profiles of the heap has more of, by where it
// was allocated, and less.
func difference(t *testing.T, early, late string) string {
	t.Helper()
	dir := t.ArtifactDir()
	for name, profile := range map[string]string{"early": early, "late": late} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(profile), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return stacktest.Go(t, nil, "tool", "pprof", "-top", "-nodecount", "15", "-sample_index", "inuse_space", "-unit", "kB",
		"-diff_base", filepath.Join(dir, "early"), filepath.Join(dir, "late"))
}

// look is what the replica holds at a time, in seconds.
type look struct{ at, heap, buffers, goroutines, fds, redis, rss float64 }

// growth is the slope of the least-squares line, times the time that it spans.
func growth(looks []look, of func(look) float64) float64 {
	var n, x, y, xx, xy float64
	for _, l := range looks {
		v := of(l)
		n, x, y, xx, xy = n+1, x+l.at, y+v, xx+l.at*l.at, xy+l.at*v
	}
	slope := (n*xy - x*y) / (n*xx - x*x)
	return slope * (looks[len(looks)-1].at - looks[0].at)
}

// churn is clients that come and go.
type churn struct {
	addr     string
	begun    time.Time
	rest     time.Duration // between two sessions of one client
	ttl      time.Duration // of access tokens
	pause    sync.RWMutex  // held for writing while the replica is looked at
	restarts int

	cycles, checks, streamed, unavailable atomic.Int64
}

// sessions are lived through, each on a connection of its own.
func (ch *churn) sessions(ctx context.Context, t *testing.T) {
	for ctx.Err() == nil {
		if err := ch.session(); err != nil {
			t.Error(err)
			return
		}
		select {
		case <-time.After(ch.rest):
		case <-ctx.Done():
		}
	}
}

func (ch *churn) session() error {
	ch.pause.RLock()
	defer ch.pause.RUnlock()
	c := &client{addr: ch.addr, idle: make(chan *conn, 1)}
	defer c.close()
	// An outage is answered 503, and ends a session of the test's but nothing else.
	begun := time.Now()
	ask := func(request string, wanted int) (answer, bool, error) {
		a, err := c.ask(request)
		switch {
		case a.status == 401 && time.Since(begun) > ch.ttl-2*time.Second: // a slow machine's
			return a, false, nil
		case err != nil:
			return a, false, err
		case a.status == 503:
			ch.unavailable.Add(1)
			return a, false, nil
		case a.status != wanted:
			return a, false, fmt.Errorf("%.20q answered %d: %s", request, a.status, a.body)
		}
		return a, true, nil
	}
	a, ok, err := ask(loginRequest(crowd), 200)
	if !ok {
		return err
	}
	s, err := a.session()
	if err != nil {
		return err
	}
	for range 3 {
		for range 5 {
			if _, ok, err = ask(get("/auth/verify", s.Access), 204); !ok {
				return err
			}
			ch.checks.Add(1)
		}
		if a, ok, err = ask(s.refresh(), 200); !ok {
			return err
		}
		if s, err = a.session(); err != nil {
			return err
		}
	}
	if _, ok, err = ask(post("/auth/logout", s.Access, nil), 200); !ok {
		return err
	}
	ch.cycles.Add(1)
	return nil
}

// streams of the log are opened, read for a moment, and dropped without a word.
func (ch *churn) streams(ctx context.Context) {
	for ctx.Err() == nil {
		ch.stream(ctx)
		<-time.After(ch.rest)
	}
}

func (ch *churn) stream(ctx context.Context) {
	ch.pause.RLock()
	defer ch.pause.RUnlock()
	n, err := (&net.Dialer{}).DialContext(ctx, "tcp", ch.addr)
	if err != nil {
		return
	}
	defer func() { _ = n.Close() }()
	_ = n.SetDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := n.Write([]byte(get("/revocations", streaming))); err != nil {
		return
	}
	told := false
	for lines := bufio.NewScanner(n); lines.Scan(); {
		told = told || strings.HasPrefix(lines.Text(), "event: ")
	}
	if told {
		ch.streamed.Add(1)
	}
}
