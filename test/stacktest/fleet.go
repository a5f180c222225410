//go:build unix

package stacktest

import (
	"context"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Fleet is replicas of one service. Each keeps its addresses over restarts, as a
// load balancer needs it.
type Fleet struct {
	bin      string
	env      []string
	Replicas []*Replica
}

// Replica is one of a fleet.
type Replica struct {
	Addr, Admin string // host:port of the API and of the admin listener
	*Process
}

// NewFleet starts n replicas on the Redis at that URL, with these settings, and
// waits until they are ready.
func NewFleet(t testing.TB, bin string, n int, redisURL string, settings ...string) *Fleet {
	t.Helper()
	return NewFleetOf(t, bin, n, append([]string{
		"LATCHKEY_SECRET=a secret of the tests of deployments of 32 bytes and more", "LATCHKEY_REDIS_URL=" + redisURL, "LATCHKEY_COOKIE_SECURE=false",
	}, settings...)...)
}

// NewFleetOf is NewFleet with no settings but these and the listeners' addresses.
func NewFleetOf(t testing.TB, bin string, n int, settings ...string) *Fleet {
	t.Helper()
	f := &Fleet{bin: bin, env: append([]string{"HOME=" + t.TempDir()}, settings...)}
	for range n {
		f.Add(t)
	}
	for _, r := range f.Replicas {
		r.AwaitReady(t)
	}
	return f
}

// Add starts one more replica, and does not wait until it is ready.
func (f *Fleet) Add(t testing.TB) *Replica {
	t.Helper()
	r := &Replica{Addr: net.JoinHostPort("127.0.0.1", FreePort(t)), Admin: net.JoinHostPort("127.0.0.1", FreePort(t))}
	f.Replicas = append(f.Replicas, r)
	f.Start(t, len(f.Replicas)-1)
	return r
}

// Start starts a replica that has ended, or never was, at its addresses.
func (f *Fleet) Start(t testing.TB, i int) {
	t.Helper()
	r := f.Replicas[i]
	r.Process = Launch(t, append([]string{"LATCHKEY_ADDR=" + r.Addr, "LATCHKEY_ADMIN_ADDR=" + r.Admin}, f.env...), f.bin, "serve")
}

// Command runs a command of the operator's, such as user add.
func (f *Fleet) Command(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	return Run(t, f.env, stdin, f.bin, args...)
}

// Terminate asks the replica to end by SIGTERM, and waits until it has, which must
// be in order.
func (r *Replica) Terminate(t testing.TB) {
	t.Helper()
	r.Signal(t, syscall.SIGTERM)
	select {
	case <-r.Done():
	case <-time.After(time.Minute):
		t.Fatalf("%s does not end", r.Addr)
	}
	if code := r.ExitCode(); code != 0 {
		t.Errorf("%s ended with %d", r.Addr, code)
	}
}

// AwaitReady waits until the replica says that it may be sent requests.
func (r *Replica) AwaitReady(t testing.TB) {
	t.Helper()
	Eventually(t, r.Addr+" is ready", func() bool {
		select {
		case <-r.Done():
			t.Fatalf("%s has ended:\n%s", r.Addr, r.Output())
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.Admin+"/readyz", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		a, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(q)
		if err != nil {
			return false
		}
		_ = a.Body.Close()
		return a.StatusCode == http.StatusOK
	})
}

// Addrs are where the replicas' APIs listen.
func (f *Fleet) Addrs() []string {
	var all []string
	for _, r := range f.Replicas {
		all = append(all, r.Addr)
	}
	return all
}

// URLs are those addresses as a comma-separated list of URLs.
func (f *Fleet) URLs() string { return "http://" + strings.Join(f.Addrs(), ",http://") }
