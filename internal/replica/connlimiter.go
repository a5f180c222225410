package replica

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// evictAfter is how long a connection must have been silent in both directions before it can be closed for another
	// one. A connection with a request under way is never closed: a logout may wait for longer.
	evictAfter = 10 * time.Second
	// maxRefusals is how many connections are answered 503 at the same time. Further ones wait in the kernel's queue,
	// which has its own limit.
	maxRefusals = 256
	// refusalTime is how long sending that answer may take.
	refusalTime = time.Second
	// refusalRead is how many bytes of the request are read. A connection that is closed with unread data is reset, and
	// its client may never see the answer.
	refusalRead = 64 << 10
)

// writeBuffer is how many bytes of answers the kernel keeps for a client that does not read them. By default it would
// keep megabytes for each.
const writeBuffer = 64 << 10

// tooManyConns is the answer to a connection beyond the limit.
func tooManyConns() string {
	const body = `{"detail":"Service temporarily unavailable","error":"temporarily_unavailable",` +
		`"error_description":"The replica has too many connections; retry in a moment."}`
	return "HTTP/1.1 503 Service Unavailable\r\n" +
		"Content-Type: application/json; charset=utf-8\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n" +
		"Retry-After: 1\r\nConnection: close\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
}

// connLimiter is a listener that holds a limited number of connections. When it is full, it closes the connection that
// has been silent for longest and has no request under way. If none has been silent for evictAfter, it answers the new
// connection with refusal and closes it. The limit for each client is for the load balancer to set, which knows the
// clients.
type connLimiter struct {
	net.Listener
	refusal  string // "": close without an answer
	refused  func() // called for each connection that is refused
	slots    chan struct{}
	refusing chan struct{} // holds a value for each refusal under way
	closed   chan struct{}
	once     sync.Once
	// ended is closed when Accept has returned the last connection.
	ended   chan struct{}
	endOnce sync.Once
	// grpc says that a connection counts as answered when the first call on it begins, which callAddr notices, and not
	// at the first write.
	grpc bool

	open, evicted atomic.Int64

	mu      sync.Mutex
	members map[*limitedConn]struct{}
}

func newConnLimiter(l net.Listener, limit int, refusal string, refused func()) *connLimiter {
	return &connLimiter{
		Listener: l, refusal: refusal, refused: refused,
		slots: make(chan struct{}, limit), refusing: make(chan struct{}, maxRefusals), closed: make(chan struct{}), ended: make(chan struct{}),
		members: map[*limitedConn]struct{}{},
	}
}

// Accept waits for the next connection that there is room for.
func (l *connLimiter) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				l.endOnce.Do(func() { close(l.ended) })
			}
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return l.admit(c), nil
		default:
		}
		l.evict(time.Now())
		select {
		case l.slots <- struct{}{}:
			return l.admit(c), nil
		default:
		}
		l.refused()
		select {
		case l.refusing <- struct{}{}: // also after Close
			go l.refuse(c)
			continue
		default:
		}
		select {
		case l.slots <- struct{}{}:
			return l.admit(c), nil
		case l.refusing <- struct{}{}:
			go l.refuse(c)
		case <-l.closed:
			_ = c.Close()
		}
	}
}

// Close closes the listener, not its connections.
func (l *connLimiter) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

func (l *connLimiter) admit(c net.Conn) net.Conn {
	if tcp, ok := c.(interface{ SetWriteBuffer(int) error }); ok {
		_ = tcp.SetWriteBuffer(writeBuffer) // the connection may be gone already: reading tells
	}
	m := &limitedConn{Conn: c, limiter: l, since: time.Now()}
	m.touch()
	l.open.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.members[m] = struct{}{}
	return m
}

// firstRequest is how long a connection may take to send its first request.
const firstRequest = 5 * time.Second

// settle closes the listener and waits until each connection that it accepted has been answered once, is closed, or has
// had firstRequest to send a request; or until ctx ends. It is called before [http.Server.Shutdown], which closes
// connections whose request it has not read, and before gRPC's GracefulStop, which closes those that it has not begun
// to read.
func (l *connLimiter) settle(ctx context.Context) {
	_ = l.Close()
	select {
	case <-l.ended:
	case <-ctx.Done():
		return
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for l.unanswered(time.Now()) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// unanswered reports whether a connection is still owed its first answer.
func (l *connLimiter) unanswered(now time.Time) bool {
	if len(l.refusing) > 0 {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for m := range l.members {
		if !m.answered.Load() && now.Sub(m.since) < firstRequest {
			return true
		}
	}
	return false
}

// evict closes the connection that has been silent for longest, if that is evictAfter or more.
func (l *connLimiter) evict(now time.Time) {
	var oldest *limitedConn
	before := now.Add(-evictAfter).UnixNano()
	l.mu.Lock()
	for m := range l.members {
		if at := m.lastByte.Load(); at <= before && !m.busy.Load() {
			oldest, before = m, at
		}
	}
	l.mu.Unlock()
	if oldest != nil {
		l.evicted.Add(1)
		_ = oldest.Close()
	}
}

// refuse answers a connection for which there is no room.
func (l *connLimiter) refuse(c net.Conn) {
	defer func() { <-l.refusing }()
	defer func() { _ = c.Close() }()
	if l.refusal == "" || c.SetDeadline(time.Now().Add(refusalTime)) != nil {
		return
	}
	if _, err := io.WriteString(c, l.refusal); err != nil {
		return
	}
	if half, ok := c.(interface{ CloseWrite() error }); ok && half.CloseWrite() != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c, refusalRead) // until it closes, or the time is over
}

// limitedConn is one connection of a connLimiter.
type limitedConn struct {
	net.Conn
	limiter  *connLimiter
	since    time.Time
	answered atomic.Bool  // at least once
	busy     atomic.Bool  // a request is under way
	lastByte atomic.Int64 // Unix nanoseconds
	once     sync.Once
	err      error
}

// noteBusy is the ConnState of an [http.Server]. The server's own timeouts limit how long a connection is busy.
func noteBusy(c net.Conn, s http.ConnState) {
	if m, ok := c.(*limitedConn); ok {
		m.busy.Store(s == http.StateActive)
	}
}

func (m *limitedConn) touch() { m.lastByte.Store(time.Now().UnixNano()) }

func (m *limitedConn) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.touch()
	return n, err
}

func (m *limitedConn) Write(p []byte) (int, error) {
	m.touch()
	if !m.limiter.grpc {
		m.answered.Store(true)
	}
	return m.Conn.Write(p)
}

// RemoteAddr is the client's address. ExtAuthz calls CallBegins on it when a call begins.
func (m *limitedConn) RemoteAddr() net.Addr {
	if !m.limiter.grpc {
		return m.Conn.RemoteAddr()
	}
	return callAddr{m.Conn.RemoteAddr(), m}
}

// callAddr implements [handlers.CallAddr].
type callAddr struct {
	net.Addr
	m *limitedConn
}

// CallBegins implements [handlers.CallAddr].
func (a callAddr) CallBegins() { a.m.answered.Store(true) }

// CloseWrite is called by net/http at the end of a connection, so that the last answer arrives.
func (m *limitedConn) CloseWrite() error {
	if half, ok := m.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Close closes the connection and makes room for another.
func (m *limitedConn) Close() error {
	m.once.Do(func() {
		m.err = m.Conn.Close()
		m.limiter.mu.Lock()
		delete(m.limiter.members, m)
		m.limiter.mu.Unlock()
		m.limiter.open.Add(-1)
		<-m.limiter.slots
	})
	return m.err
}
