package overload

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// hostileFor is how long the test waits for the replica to end a hostile connection. The
// replica's own limits end each within 45 s; a slow machine may need much longer before
// the first of those limits begins to count.
const hostileFor = 8 * time.Minute

// hostile are the ways to hold a connection that must lead nowhere. Each is given
// one and uses it until it is ended by the other side.
func hostile() map[string]func(net.Conn) {
	const slow = time.Second
	trickle := func(c net.Conn, head, drop string) {
		_, err := io.WriteString(c, head)
		for err == nil {
			<-time.After(slow) // that is the attack
			_, err = io.WriteString(c, drop)
		}
	}
	big := strings.Repeat("x", 64<<10)
	return map[string]func(net.Conn){
		"says nothing":         func(net.Conn) {},
		"half a request":       func(c net.Conn) { _, _ = io.WriteString(c, "GET /auth/verify HTTP/1.1\r\nHost: x\r\n") },
		"slow headers":         func(c net.Conn) { trickle(c, "GET /auth/verify HTTP/1.1\r\nHost: x\r\n", "X-A: b\r\n") },
		"slow body of a login": func(c net.Conn) { trickle(c, bodyOf("/auth/token", 4096), "a") },
		"slow body of a check": func(c net.Conn) { trickle(c, bodyOf("/auth/verify", 4096), "a") },
		"slow chunks":          func(c net.Conn) { trickle(c, chunked("/auth/refresh"), "1\r\na\r\n") },
		"a body that stops":    func(c net.Conn) { _, _ = io.WriteString(c, bodyOf("/auth/refresh", 100)+"refresh_token=") },
		"garbage": func(c net.Conn) {
			_, _ = io.WriteString(c, strings.Repeat("\x00\xff\x16\x03\x01 GET / \r\r\n\n", 500))
		},
		"garbage behind a request": func(c net.Conn) {
			_, _ = io.WriteString(c, get("/auth/verify", "x")+strings.Repeat("\x80garbage\r\n\r\n", 500))
		},
		"large headers": func(c net.Conn) {
			_, _ = io.WriteString(c, "GET /auth/verify HTTP/1.1\r\nHost: x\r\nX-Big: "+big+"\r\n\r\n")
		},
		"many headers": func(c net.Conn) {
			_, _ = io.WriteString(c, "GET /auth/verify HTTP/1.1\r\nHost: x\r\n"+strings.Repeat("A: b\r\n", 20_000)+"\r\n")
		},
		"large body": func(c net.Conn) { _, _ = io.WriteString(c, bodyOf("/auth/token", 4<<20)+strings.Repeat(big, 64)) },
		"reads nothing": func(c net.Conn) {
			// Write until the replica resets the connection. It does so 30 s after its own
			// write has blocked. To read before that would let the replica go on, answer
			// all that was sent, and then keep an idle connection for two minutes.
			pipelined := strings.Repeat(get("/auth/verify", "x"), 64)
			for {
				if _, err := io.WriteString(c, pipelined); err != nil {
					return
				}
			}
		},
		"hangs up and goes on": func(c net.Conn) {
			_, _ = io.WriteString(c, "POST /auth/token HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n")
		},
	}
}

func bodyOf(path string, length int) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n", path, length)
}

func chunked(path string) string {
	return "POST " + path + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\n"
}

// TestHostileConnections opens a thousand connections that mean no good. Honest
// clients must not notice, every one of the thousand must be ended by the replica,
// and nothing must be left of them.
func TestHostileConnections(t *testing.T) {
	t.Parallel()
	const connections = 1000
	_, strict := duration(t, "OVERLOAD_FOR", 0)
	server := redistest.Start(t)
	r := start(t, server.URL(), "LATCHKEY_EDGE_CACHE=64") // what honest clients leave is not in question
	honest := newClient(t, r.Addr, 64)
	s := honest.login(t)
	before := collected(t, r)

	var attackers sync.WaitGroup
	var open atomic.Int64
	longest := map[string]*atomic.Int64{}
	ways := hostile()
	for name := range ways {
		longest[name] = &atomic.Int64{}
	}
	attack := func(name string, way func(net.Conn)) {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", r.Addr)
		if err != nil {
			t.Error(err)
			return
		}
		open.Add(1)
		begun := time.Now()
		attackers.Go(func() {
			defer open.Add(-1)
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(begun.Add(hostileFor))
			way(c)
			_, err := io.Copy(io.Discard, c)
			if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("%s: the connection is open after %v", name, time.Since(begun))
			}
			longest[name].Store(max(longest[name].Load(), int64(time.Since(begun))))
		})
	}
	for i := 0; i < connections; {
		for name, way := range ways {
			if i++; i > connections {
				break
			}
			attack(name, way)
		}
	}
	most := readGauges(t, r)

	// Honest traffic until the last of them is gone.
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		attackers.Wait()
		cancel()
	}()
	var checks, refreshes times
	failed := 0
	for ctx.Err() == nil && failed < 10 {
		for request, wanted := range map[string]int{get("/auth/verify", s.Access): 204, s.refresh(): 200} {
			begun := time.Now()
			a, err := honest.ask(request)
			if err != nil || a.status != wanted {
				failed++
				t.Errorf("honest: %d %s %v", a.status, a.body, err)
				continue
			}
			if wanted == 204 {
				checks.add(time.Since(begun))
				continue
			}
			refreshes.add(time.Since(begun))
			if s, err = a.session(); err != nil {
				t.Fatal(err)
			}
		}
		<-time.After(50 * time.Millisecond) // a rate
	}
	cancel()
	attackers.Wait()
	t.Logf("%d connections in %d ways", connections, len(ways))
	for name, took := range longest {
		t.Logf("%-26s ended by the replica within %v", name, time.Duration(took.Load()).Round(10*time.Millisecond))
	}
	t.Logf("meanwhile checks: %d, p99 %v; refreshes: %d, p99 %v", len(checks.took), checks.quantile(.99), len(refreshes.took), refreshes.quantile(.99))
	if p := checks.quantile(.99); strict && p > time.Second {
		t.Errorf("checks: p99 %v", p)
	}
	after := gauges{}
	stacktest.Eventually(t, "nothing is left", func() bool {
		after = collected(t, r)
		return t.Failed() || after["latchkey_connections"] <= before["latchkey_connections"]+1 && after["go_goroutines"] <= before["go_goroutines"]+5 &&
			after["process_open_fds"] <= before["process_open_fds"]+10 && after[heapKey] <= before[heapKey]+4<<20
	})
	for _, name := range []string{"latchkey_connections", "go_goroutines", "process_open_fds", "go_memstats_heap_alloc_bytes", "process_resident_memory_bytes"} {
		t.Logf("%-30s before %10.0f, with all of them %10.0f, after %10.0f", name, before[name], most[name], after[name])
	}
}

// TestTooManyConnections fills a replica's connections with such as wait for the answer
// to a request. A newcomer is told 503. When a connection is silent instead, a newcomer
// takes its place after a while.
func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	const limit = 32
	server := redistest.Start(t)
	r := start(t, server.URL(), fmt.Sprintf("LATCHKEY_MAX_CONNECTIONS=%d", limit))
	var busy []net.Conn
	for range limit { // streams of revocations, which do not end
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", r.Addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := io.WriteString(c, get("/revocations", streaming)); err != nil {
			t.Fatal(err)
		}
		lines, begun := bufio.NewScanner(c), false
		for !begun && lines.Scan() {
			begun = strings.HasPrefix(lines.Text(), "event: hello")
		}
		if !begun {
			t.Fatalf("there is no stream: %v", lines.Err())
		}
		busy = append(busy, c)
	}
	// The newcomers send a whole request: they must hear the answer all the same.
	for range 3 * limit {
		late := newClient(t, r.Addr, 1)
		a, err := late.ask(post("/auth/refresh", "", url.Values{"refresh_token": {strings.Repeat("x", 4096)}}))
		if err != nil || a.status != 503 || a.retryAfter == "" || !a.last || !strings.Contains(string(a.body), `"temporarily_unavailable"`) {
			t.Fatalf("beyond the bound: %d %q %s %v", a.status, a.retryAfter, a.body, err)
		}
	}
	g := readGauges(t, r)
	if n := g[`latchkey_shed_total{class="connection"}`]; n != 3*limit || g["latchkey_connections"] != limit || g["latchkey_connections_evicted_total"] != 0 {
		t.Errorf("%v turned away, want %d; %v connections, want %d; %v evicted", n, 3*limit, g["latchkey_connections"], limit, g["latchkey_connections_evicted_total"])
	}
	_ = busy[0].Close()
	for what, c := range map[string]*client{"one who then is silent": newClient(t, r.Addr, 1), "one who comes later": newClient(t, r.Addr, 1)} {
		stacktest.Eventually(t, what+" is served", func() bool {
			a, err := c.ask(get("/auth/verify", "x"))
			return err == nil && a.status == 401
		})
	}
	if g := readGauges(t, r); g["latchkey_connections"] != limit || g["latchkey_connections_evicted_total"] != 1 {
		t.Errorf("%v connections, %v evicted", g["latchkey_connections"], g["latchkey_connections_evicted_total"])
	}
}
