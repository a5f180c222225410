package overload

import (
	"bufio"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// TestADrainEndsWhatDoesNotEndByItself has connections of every kind that would
// outlive a drain: kept ones, one that never asked, a stream of revocations and one
// of Envoy's. The replica serves them during the delay, and then ends in order and
// in time.
func TestADrainEndsWhatDoesNotEndByItself(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	envoy := net.JoinHostPort("127.0.0.1", stacktest.FreePort(t))
	r := start(t, server.URL(), "LATCHKEY_EXTAUTHZ_ADDR="+envoy, "LATCHKEY_SHUTDOWN_DELAY=1s", "LATCHKEY_SHUTDOWN_TIMEOUT=2m")
	dial := func(addr string) net.Conn {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(time.Now().Add(3 * time.Minute)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	say := func(c net.Conn, text string) {
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}

	kept := newClient(t, r.Addr, 1)
	s := kept.login(t)
	silent := dial(r.Addr)
	stream := dial(r.Addr)
	say(stream, get("/revocations", streaming))
	lines := bufio.NewScanner(stream)
	begins := false
	for !begins && lines.Scan() {
		begins = strings.HasPrefix(lines.Text(), "event: hello")
	}
	if !begins {
		t.Fatal("there is no stream")
	}
	// HTTP/2 with nothing on it yet: a preface and an empty SETTINGS frame (RFC 9113 section 3.4).
	grpc := dial(envoy)
	say(grpc, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	if _, err := grpc.Read(make([]byte, 9)); err != nil {
		t.Fatal(err)
	}

	r.Signal(t, syscall.SIGTERM)
	begun := time.Now()
	ended := make(chan time.Duration, 1)
	go func() {
		for more := true; more; {
			more = lines.Scan()
		}
		ended <- time.Since(begun)
	}()
	stacktest.Eventually(t, "the drain is announced", func() bool {
		_, err := fetch(t.Context(), r, "/readyz")
		return err != nil
	})
	a, err := kept.ask(get("/auth/verify", s.Access))
	if err != nil || a.status != 204 || !a.last {
		t.Errorf("in the delay, on a kept connection: %d, last %v, %v", a.status, a.last, err)
	}
	if a, err = kept.ask(get("/auth/verify", s.Access)); err != nil || a.status != 204 {
		t.Errorf("in the delay, on a new connection: %d %v", a.status, err)
	}
	if d := <-ended; d < 900*time.Millisecond {
		t.Errorf("the stream ended after %v: before the delay was over", d)
	}
	for name, c := range map[string]net.Conn{"that never asked": silent, "of Envoy's": grpc} {
		if _, err := io.Copy(io.Discard, c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("the connection %s: %v", name, err)
		}
	}
	select {
	case <-r.Done():
	case <-time.After(110 * time.Second):
		t.Fatalf("the replica runs after %v", time.Since(begun))
	}
	if code := r.ExitCode(); code != 0 {
		t.Errorf("the replica ended with %d", code)
	}
	t.Logf("drained within %v", time.Since(begun).Round(time.Millisecond))
}
