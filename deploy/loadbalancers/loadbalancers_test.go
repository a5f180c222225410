//go:build unix

// Package loadbalancers_test runs the configurations of this folder: nginx and
// HAProxy themselves, in front of three replicas on a real Redis.
package loadbalancers_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

const password = "correct horse"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// balancer is one of those that this folder has a configuration for.
type balancer struct {
	name  string
	start func(t testing.TB, file string, backends []stacktest.Backend) string
	file  string
	// mute: where a replica dies over a request that is not the first on its
	// client's connection, the client gets no answer, but the end of that connection.
	mute bool
}

func balancers() []balancer {
	return []balancer{
		{name: "nginx", start: stacktest.Nginx, file: "nginx.conf"},
		{name: "HAProxy", start: stacktest.HAProxy, file: "haproxy.cfg", mute: true},
	}
}

// stack is three replicas behind a balancer.
type stack struct {
	*testing.T
	*stacktest.Fleet
	client
	balancer
	front string // URL
}

func newStack(t *testing.T, b balancer, bin string) *stack {
	fleet := stacktest.NewFleet(
		t, bin, 3, redistest.Start(t).URL(),
		"LATCHKEY_TRUSTED_PROXIES=127.0.0.1", "LATCHKEY_SHUTDOWN_DELAY=3s",
		"LATCHKEY_PASSWORD_MEMORY=7168", "LATCHKEY_PASSWORD_ITERATIONS=1",
		"LATCHKEY_REDIS_TIMEOUT=5s", "LATCHKEY_PASSWORD_WAIT=30s", // a busy machine is no outage
	)
	for i := range workers {
		fleet.Command(t, password+"\n", "user", "add", username(i))
	}
	return &stack{T: t, Fleet: fleet, client: newClient(t, ""), balancer: b, front: "http://" + b.start(t, b.file, fleet.Backends())}
}

func username(i int) string { return fmt.Sprintf("user-%d", i) }

func (s *stack) check(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func TestBalancers(t *testing.T) {
	t.Parallel()
	bin := stacktest.Build(t, "../..")
	for _, b := range balancers() {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			s := newStack(t, b, bin)
			s.needsNoStickySessions()
			s.tellsTheClientsAddress()
			s.rollsWithoutAFailure()
			s.losesOnlyLoginsToAKill()
		})
	}
}

// needsNoStickySessions: each request of a session may go to another replica.
func (s *stack) needsNoStickySessions() {
	s.Helper()
	ctx := s.Context()
	addrs := s.Addrs()
	for i, first := range addrs { // every way over three replicas
		for _, second := range addrs {
			for _, third := range addrs {
				in, err := s.login(ctx, "http://"+first, username(i))
				s.check(err)
				next, err := s.refresh(ctx, "http://"+second, in.Next)
				s.check(err)
				s.check(s.logout(ctx, "http://"+third, next.Access))
				for _, addr := range addrs {
					s.check(s.verify(ctx, http.StatusUnauthorized, "http://"+addr, in.Access))
					s.check(s.verify(ctx, http.StatusUnauthorized, "http://"+addr, next.Access))
				}
			}
		}
	}
	before := make([]string, len(addrs))
	for i, r := range s.Replicas {
		before[i] = s.served(r)
	}
	for i := range 20 { // and as the balancer has it
		s.check(s.session(ctx, username(i%workers), func(f func() error) error { return f() }))
	}
	for i, r := range s.Replicas {
		if after := s.served(r); after == before[i] {
			s.Errorf("the balancer sent %s no request", r.Addr)
		}
	}
}

// session is a login, refreshes and checks, a logout, and checks that it holds
// everywhere. each makes one request.
func (s *stack) session(ctx context.Context, user string, each func(func() error) error) error {
	var a answer
	if err := each(func() (err error) { a, err = s.login(ctx, s.front, user); return }); err != nil {
		return fmt.Errorf("login: %w", err)
	}
	for range 3 {
		for range 10 {
			if err := each(func() error { return s.verify(ctx, http.StatusNoContent, s.front, a.Access) }); err != nil {
				return err
			}
		}
		err := each(func() error {
			next, err := s.refresh(ctx, s.front, a.Next)
			if err == nil {
				a = next
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := each(func() error { return s.logout(ctx, s.front, a.Access) }); err != nil {
		return err
	}
	for range 4 { // more than there are replicas
		if err := each(func() error { return s.verify(ctx, http.StatusUnauthorized, s.front, a.Access) }); err != nil {
			return err
		}
	}
	return nil
}

// served is what a replica's metrics say of its requests.
func (s *stack) served(r *stacktest.Replica) string {
	s.Helper()
	q, err := http.NewRequestWithContext(s.Context(), http.MethodGet, "http://"+r.Admin+"/metrics", http.NoBody)
	s.check(err)
	resp, err := s.Do(q)
	s.check(err)
	defer func() { _ = resp.Body.Close() }()
	var all strings.Builder
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "latchkey_http_requests_total") {
			all.WriteString(lines.Text() + "\n")
		}
	}
	return all.String()
}

// tellsTheClientsAddress: it is that of the connection, whatever the client says.
func (s *stack) tellsTheClientsAddress() {
	s.Helper()
	ctx := s.Context()
	for _, from := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"} {
		for _, spoof := range []string{"", "203.0.113.9", "127.0.0.1", "203.0.113.9, 127.0.0.1"} {
			c := newClient(s.T, from)
			in, err := c.login(ctx, s.front, username(0), "X-Forwarded-For", spoof, "X-Real-Ip", spoof, "Forwarded", "for="+spoof)
			s.check(err)
			list, err := c.ask(ctx, http.StatusOK, "GET", s.front+"/auth/sessions", nil, "Authorization", "Bearer "+in.Access)
			s.check(err)
			for _, session := range list.Sessions {
				if session.Current && session.Address != from {
					s.Errorf("from %s, which says %q: the service took it for %q", from, spoof, session.Address)
				}
			}
			s.check(c.logout(ctx, s.front, in.Access))
		}
	}
}

const workers = 6

func (s *stack) retryable(err error) bool {
	return retryable(err) || s.mute && errors.Is(err, io.EOF)
}

// underLoad runs f while users come and go, and returns how many requests there
// were and every error. Each user tries again what is retryable.
func (s *stack) underLoad(f func()) (requests int64, failures []error) {
	s.Helper()
	ctx, stop := context.WithCancel(s.Context())
	defer stop()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var count atomic.Int64
	begun := make(chan struct{}, workers)
	ending := make(chan struct{})
	for i := range workers {
		wg.Go(func() {
			each := func(request func() error) error {
				<-time.After(20 * time.Millisecond) // a user who thinks: the machine has other tests to run
				for tries := 0; ; tries++ {
					err := request()
					count.Add(1)
					if err == nil {
						return nil
					}
					mu.Lock()
					failures = append(failures, err)
					mu.Unlock()
					if !s.retryable(err) || tries == 5 {
						return err
					}
				}
			}
			for first := true; ; first = false {
				err := s.session(ctx, username(i), each)
				if first {
					begun <- struct{}{}
				}
				select {
				case <-ending:
					return
				default:
					if err != nil && !s.retryable(err) {
						return
					}
				}
			}
		})
	}
	for range workers {
		<-begun
	}
	f()
	close(ending)
	wg.Wait()
	return count.Load(), failures
}

// rollsWithoutAFailure: all replicas are restarted, one after another, and no
// request fails.
func (s *stack) rollsWithoutAFailure() {
	s.Helper()
	requests, failures := s.underLoad(func() {
		for i, r := range s.Replicas {
			r.Terminate(s.T)
			s.Start(s.T, i)
			r.AwaitReady(s.T)
		}
	})
	s.Logf("rolled: %d requests, %d failed", requests, len(failures))
	if err := errors.Join(failures...); err != nil {
		s.Error(err)
	}
}

// losesOnlyLoginsToAKill: of what was under way at a replica that is killed, only
// logins fail, with an answer that says to try again; and when it is back it gets
// requests again.
func (s *stack) losesOnlyLoginsToAKill() {
	s.Helper()
	for i, r := range s.Replicas {
		requests, failures := s.underLoad(func() {
			r.Kill()
			s.Start(s.T, i)
			r.AwaitReady(s.T)
			fresh := s.served(r)
			stacktest.Eventually(s.T, r.Addr+" gets requests again", func() bool { return s.served(r) != fresh })
		})
		s.Logf("killed: %d requests, %d failed", requests, len(failures))
		for _, err := range failures {
			if !s.retryable(err) || !strings.Contains(err.Error(), "/auth/token") {
				s.Error(err)
			}
		}
	}
}

// TestOnlyWhatMayBeRepeatedIsSentAgain: behind the balancer every connection breaks
// as soon as a request has been read.
func TestOnlyWhatMayBeRepeatedIsSentAgain(t *testing.T) {
	t.Parallel()
	for _, b := range balancers() {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			var hits sync.Map // path and method -> *atomic.Int64
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/readyz" {
					return
				}
				n, _ := hits.LoadOrStore(r.Method+" "+r.URL.Path, new(atomic.Int64))
				n.(*atomic.Int64).Add(1)
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				_ = conn.Close()
			})
			var backends []stacktest.Backend
			for range 3 {
				addr := serve(t, handler)
				backends = append(backends, stacktest.Backend{Addr: addr, Admin: addr})
			}
			file := b.file
			if b.name == "nginx" { // each request finds all three
				file = stacktest.Configured(t, t.TempDir(), file, "max_fails=3 ", "max_fails=0 ")
			}
			front, c := "http://"+b.start(t, file, backends), newClient(t, "")
			c.Transport.(*http.Transport).DisableKeepAlives = true // see mute
			for _, tt := range []struct {
				request string
				again   bool
			}{
				{"POST /auth/token", false},
				{"POST /auth/logout-all", false},
				{"POST /users/me/password", false},
				{"POST /elsewhere", false},
				{"POST /auth/refresh", true},
				{"POST /auth/logout", true},
				{"POST /auth/verify", true},
				{"GET /auth/verify", true},
				{"GET /users/me", true},
			} {
				method, path, _ := strings.Cut(tt.request, " ")
				_, err := c.ask(t.Context(), http.StatusOK, method, front+path, url.Values{"a": {"b"}})
				if !retryable(err) {
					t.Errorf("%s: %v, want a 503 with Retry-After", tt.request, err)
				}
				n, ok := hits.Load(tt.request)
				if !ok {
					t.Errorf("%s: never sent", tt.request)
					continue
				}
				if got := n.(*atomic.Int64).Load(); tt.again != (got > 1) || got > 3 {
					t.Errorf("%s: sent %d times; more than once: %v", tt.request, got, tt.again)
				}
			}
		})
	}
}

// TestReplicasThatCannotBeReached: what reached none is sent to the next, whatever
// it is.
func TestReplicasThatCannotBeReached(t *testing.T) {
	t.Parallel()
	for _, b := range balancers() {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			alive := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
			var backends []stacktest.Backend
			for _, addr := range []string{net.JoinHostPort("127.0.0.1", stacktest.FreePort(t)), alive, net.JoinHostPort("127.0.0.1", stacktest.FreePort(t))} {
				backends = append(backends, stacktest.Backend{Addr: addr, Admin: alive}) // checks find nothing wrong
			}
			file := b.file
			if b.name == "nginx" { // and nor does nginx
				file = stacktest.Configured(t, t.TempDir(), file, "max_fails=3 ", "max_fails=0 ")
			} else {
				file = stacktest.Configured(t, t.TempDir(), file, "expect status 200", "expect status 204")
			}
			front, c := "http://"+b.start(t, file, backends), newClient(t, "")
			for range 12 {
				for _, path := range []string{"/auth/token", "/auth/refresh", "/auth/logout", "/auth/logout-all"} {
					if _, err := c.ask(t.Context(), http.StatusNoContent, "POST", front+path, nil); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

// serve serves on a port of its own.
func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // ends by Close
	}()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return l.Addr().String()
}
