package main

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
	// silence is after how long without a byte in either direction a connection
	// makes room for another, unless a request is under way on it: a logout may wait
	// for longer than that.
	silence = 10 * time.Second
	// maxRefusals is how many connections are being told 503 at once. While there
	// are so many, further ones wait in the kernel's queue, which has its own bound.
	maxRefusals = 256
	// refusalTime is how long one of them may take to hear it.
	refusalTime = time.Second
	// refusalRead is how much of what it has sent is read: a connection that is
	// closed with data unread is reset, and its client may never see the answer.
	refusalRead = 64 << 10
)

// writeBuffer is how much of its answers the kernel keeps for a client that does
// not read them, in bytes. Left to itself it would keep megabytes for each.
const writeBuffer = 64 << 10

// tooMany is the answer to a connection beyond the bound.
func tooMany() string {
	const body = `{"detail":"Service temporarily unavailable","error":"temporarily_unavailable",` +
		`"error_description":"The replica has too many connections; retry in a moment."}`
	return "HTTP/1.1 503 Service Unavailable\r\n" +
		"Content-Type: application/json; charset=utf-8\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n" +
		"Retry-After: 1\r\nConnection: close\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
}

// crowd is a listener that holds a bounded number of connections. When it is full,
// the one that has been silent for longest goes, of those without a request under way;
// if none has been for long enough, the newcomer is answered and closed. How many one client may have is for the
// balancer to say, which knows the clients.
type crowd struct {
	net.Listener
	refusal string // "" to close without a word
	refused func()
	slots   chan struct{}
	telling chan struct{}
	closed  chan struct{}
	once    sync.Once
	// ended is closed when Accept has returned the last connection.
	ended   chan struct{}
	endOnce sync.Once
	// calls tells that a connection was answered by the begin of a call on it, of
	// which callAddr hears, and not by the first write.
	calls bool

	open, evicted atomic.Int64

	mu      sync.Mutex
	members map[*member]struct{}
}

func newCrowd(l net.Listener, limit int, refusal string, refused func()) *crowd {
	return &crowd{
		Listener: l, refusal: refusal, refused: refused,
		slots: make(chan struct{}, limit), telling: make(chan struct{}, maxRefusals), closed: make(chan struct{}), ended: make(chan struct{}),
		members: map[*member]struct{}{},
	}
}

// Accept waits for the next connection that there is room for.
func (l *crowd) Accept() (net.Conn, error) {
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
		case l.telling <- struct{}{}: // also once the listener is closed
			go l.refuse(c)
			continue
		default:
		}
		select {
		case l.slots <- struct{}{}:
			return l.admit(c), nil
		case l.telling <- struct{}{}:
			go l.refuse(c)
		case <-l.closed:
			_ = c.Close()
		}
	}
}

// Close closes the listener, not its connections.
func (l *crowd) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

func (l *crowd) admit(c net.Conn) net.Conn {
	if tcp, ok := c.(interface{ SetWriteBuffer(int) error }); ok {
		_ = tcp.SetWriteBuffer(writeBuffer) // the connection may be gone already: reading tells
	}
	m := &member{Conn: c, crowd: l, since: time.Now()}
	m.stir()
	l.open.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.members[m] = struct{}{}
	return m
}

// firstRequest is how long a connection may take to send its first request.
const firstRequest = 5 * time.Second

// settle closes the listener and waits until each connection that it accepted has
// been answered once, is closed, or has had firstRequest to send a request; or until
// ctx ends. [http.Server.Shutdown] would close those whose request it has not read,
// and gRPC's GracefulStop those on which it has not begun to read.
func (l *crowd) settle(ctx context.Context) {
	_ = l.Close()
	select {
	case <-l.ended:
	case <-ctx.Done():
		return
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for l.owes(time.Now()) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// owes tells whether settle must wait.
func (l *crowd) owes(now time.Time) bool {
	if len(l.telling) > 0 {
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

// evict closes the connection that has been silent for longest, if that is long.
func (l *crowd) evict(now time.Time) {
	var oldest *member
	before := now.Add(-silence).UnixNano()
	l.mu.Lock()
	for m := range l.members {
		if at := m.stirred.Load(); at <= before && !m.busy.Load() {
			oldest, before = m, at
		}
	}
	l.mu.Unlock()
	if oldest != nil {
		l.evicted.Add(1)
		_ = oldest.Close()
	}
}

// refuse tells a connection that there is no room.
func (l *crowd) refuse(c net.Conn) {
	defer func() { <-l.telling }()
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

// member is one connection of a crowd.
type member struct {
	net.Conn
	crowd    *crowd
	since    time.Time
	answered atomic.Bool  // once
	busy     atomic.Bool  // a request is under way
	stirred  atomic.Int64 // Unix nanoseconds
	once     sync.Once
	err      error
}

// noteBusy is an [http.Server]'s ConnState. The server's own timeouts bound how long
// a connection is busy.
func noteBusy(c net.Conn, s http.ConnState) {
	if m, ok := c.(*member); ok {
		m.busy.Store(s == http.StateActive)
	}
}

func (m *member) stir() { m.stirred.Store(time.Now().UnixNano()) }

func (m *member) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.stir()
	return n, err
}

func (m *member) Write(p []byte) (int, error) {
	m.stir()
	if !m.crowd.calls {
		m.answered.Store(true)
	}
	return m.Conn.Write(p)
}

// RemoteAddr is the client's address, by which ExtAuthz tells that a call has begun.
func (m *member) RemoteAddr() net.Addr {
	if !m.crowd.calls {
		return m.Conn.RemoteAddr()
	}
	return callAddr{m.Conn.RemoteAddr(), m}
}

// callAddr implements [handlers.CallAddr].
type callAddr struct {
	net.Addr
	m *member
}

func (a callAddr) CallBegins() { a.m.answered.Store(true) }

// CloseWrite is for net/http, which ends a connection so that its last answer arrives.
func (m *member) CloseWrite() error {
	if half, ok := m.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Close closes the connection and makes room for another.
func (m *member) Close() error {
	m.once.Do(func() {
		m.err = m.Conn.Close()
		m.crowd.mu.Lock()
		delete(m.crowd.members, m)
		m.crowd.mu.Unlock()
		m.crowd.open.Add(-1)
		<-m.crowd.slots
	})
	return m.err
}
