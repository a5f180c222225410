package replica

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// newTestLimiter returns a connLimiter of a size on a free port, a channel of what it accepts,
// and the count of those it refused.
func newTestLimiter(t *testing.T, limit int, refusal string) (*connLimiter, <-chan net.Conn, *atomic.Int64) {
	t.Helper()
	tcp, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var refused atomic.Int64
	l := newConnLimiter(tcp, limit, refusal, func() { refused.Add(1) })
	accepted := make(chan net.Conn, 16)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				return
			}
			accepted <- c
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l, accepted, &refused
}

func call(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAConnectionBeyondTheLimitIsRefused(t *testing.T) {
	l, accepted, refused := newTestLimiter(t, 1, tooManyConns())
	call(t, l)
	first := <-accepted

	c := call(t, l)
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://x/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	a, err := http.ReadResponse(bufio.NewReader(c), q)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(a.Body)
	if err != nil || int64(len(body)) != a.ContentLength || a.StatusCode != 503 || a.Header.Get("Retry-After") == "" || !a.Close {
		t.Errorf("%d %v %q %v", a.StatusCode, a.Header, body, err)
	}
	_ = a.Body.Close()
	_ = c.Close()
	if refused.Load() != 1 {
		t.Errorf("%d refused", refused.Load())
	}

	for range 2 { // twice, as servers do, and yet one place
		_ = first.Close()
	}
	call(t, l)
	second := <-accepted
	if n := l.open.Load(); n != 1 {
		t.Errorf("%d are open", n)
	}
	_ = second.Close()
	if n := l.open.Load(); n != 0 || len(l.slots) != 0 || len(l.members) != 0 {
		t.Errorf("%d are open, %d places taken, %d members", n, len(l.slots), len(l.members))
	}
}

func TestWithoutARefusalNothingIsSent(t *testing.T) {
	l, accepted, _ := newTestLimiter(t, 1, "")
	call(t, l)
	first := <-accepted
	defer func() { _ = first.Close() }()
	if b, err := io.ReadAll(call(t, l)); err != nil || len(b) > 0 {
		t.Errorf("%q %v", b, err)
	}
}

func TestTheLongestSilentMakesRoom(t *testing.T) {
	l, accepted, refused := newTestLimiter(t, 3, tooManyConns())
	var here [3]*limitedConn
	for i := range here {
		call(t, l)
		here[i] = (<-accepted).(*limitedConn)
		t.Cleanup(func() { _ = here[i].Close() })
	}
	now := time.Now()
	here[0].lastByte.Store(now.Add(-evictAfter - time.Second).UnixNano())
	here[1].lastByte.Store(now.Add(-evictAfter - time.Minute).UnixNano())
	call(t, l)
	fourth := <-accepted
	defer func() { _ = fourth.Close() }()
	if _, err := here[1].Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the longest silent: %v, want net.ErrClosed", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, i := range []int{0, 2} {
		if _, ok := l.members[here[i]]; !ok {
			t.Errorf("connection %d was closed", i)
		}
	}
	if l.evicted.Load() != 1 || refused.Load() != 0 {
		t.Errorf("%d evicted, %d refused", l.evicted.Load(), refused.Load())
	}
}

// A full connLimiter evicts no connection with a request under way, however long that takes.
func TestARequestUnderWayKeepsItsConnection(t *testing.T) {
	tcp, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var refused atomic.Int64
	l := newConnLimiter(tcp, 1, tooManyConns(), func() { refused.Add(1) })
	begun, end := make(chan struct{}, 1), make(chan struct{})
	srv := newServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		begun <- struct{}{}
		<-end
		w.WriteHeader(http.StatusNoContent)
	}), slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		_ = srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	silent := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for m := range l.members {
			m.lastByte.Store(time.Now().Add(-time.Hour).UnixNano())
		}
	}
	status := func(c net.Conn) int {
		t.Helper()
		a, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = a.Body.Close()
		return a.StatusCode
	}
	const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

	first := call(t, l)
	if _, err := io.WriteString(first, request); err != nil {
		t.Fatal(err)
	}
	<-begun
	silent()
	if got := status(call(t, l)); got != http.StatusServiceUnavailable {
		t.Errorf("a newcomer meanwhile: %d", got)
	}
	close(end)
	if got := status(first); got != http.StatusNoContent {
		t.Errorf("the request under way: %d", got)
	}
	for l.busy() { // until the connection is kept for later
		if t.Context().Err() != nil {
			t.Fatal("the connection stays busy")
		}
	}
	silent()
	late := call(t, l)
	if _, err := io.WriteString(late, request); err != nil {
		t.Fatal(err)
	}
	if got := status(late); got != http.StatusNoContent || l.evicted.Load() != 1 || refused.Load() != 1 {
		t.Errorf("a newcomer afterwards: %d; %d evicted, %d refused", got, l.evicted.Load(), refused.Load())
	}
}

// busy tells whether a request is under way on any connection.
func (l *connLimiter) busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for m := range l.members {
		if m.busy.Load() {
			return true
		}
	}
	return false
}
