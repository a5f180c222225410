package chaos

import (
	"context"
	"net"
	"sync"
	"time"
)

// Peer is who has opened a connection: a replica of the service by its number, or [Node].
type Peer int

// Node is every other: the servers of Redis and the Sentinels.
const Node Peer = -1

// Link is how a server is reached: a TCP proxy before it that can be made slow, or
// cut. It is safe for concurrent use.
type Link struct {
	listener net.Listener
	target   func() string           // where the server listens
	who      func(from, to int) Peer // has the connection between these ports; asked when it matters
	running  sync.WaitGroup

	mu     sync.Mutex
	closed bool
	cut    map[Peer]bool
	delay  map[Peer]time.Duration
	change chan struct{} // closed, and replaced, when any of these change
	conns  map[net.Conn]struct{}
}

// NewLink listens at a free port of 127.0.0.1 for whoever wants to reach target.
func NewLink(target func() string, who func(from, to int) Peer) (*Link, error) {
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &Link{
		listener: listener, target: target, who: who,
		cut: map[Peer]bool{}, delay: map[Peer]time.Duration{}, change: make(chan struct{}), conns: map[net.Conn]struct{}{},
	}
	l.running.Go(l.accept)
	return l, nil
}

// Port is where the link listens.
func (l *Link) Port() int { return port(l.listener.Addr()) }

func port(a net.Addr) int {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.Port
	}
	return 0
}

// Cut stops all traffic with a peer, as a network that loses it does: connections
// stay open, new ones are made and nobody answers. What was sent meanwhile arrives
// after [Link.Heal], as it does when TCP sends it again, requests even if the
// client has closed the connection meanwhile.
func (l *Link) Cut(p Peer) { l.set(func() { l.cut[p] = true }) }

// Slow has what the server sends to a peer arrive d later. What is still under way
// when the server dies is lost.
func (l *Link) Slow(p Peer, d time.Duration) { l.set(func() { l.delay[p] = d }) }

// Heal ends what Cut and Slow have done.
func (l *Link) Heal() {
	l.set(func() {
		clear(l.cut)
		clear(l.delay)
	})
}

func (l *Link) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.change)
	l.change = make(chan struct{})
}

// Close ends the link and all connections over it.
func (l *Link) Close() {
	l.set(func() {
		l.closed = true
		_ = l.listener.Close()
		for c := range l.conns {
			_ = c.Close()
		}
	})
	l.running.Wait()
}

func (l *Link) accept() {
	for {
		c, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.running.Go(func() { l.serve(c) })
	}
}

// serve carries one connection until either side ends it.
func (l *Link) serve(client net.Conn) {
	defer func() { _ = client.Close() }()
	server, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "tcp", l.target())
	if err != nil {
		time.Sleep(20 * time.Millisecond) // or those who try again at once would keep the machine busy
		return
	}
	defer func() { _ = server.Close() }()
	p := sync.OnceValue(func() Peer { return l.who(port(client.RemoteAddr()), l.Port()) })
	if !l.keep(client, server) {
		return
	}
	defer l.forget(client, server)
	over := make(chan struct{})
	var both sync.WaitGroup
	end := sync.OnceFunc(func() {
		close(over)
		_ = client.Close()
		_ = server.Close()
	})
	both.Go(func() { l.carry(client, server, p, true, over); end() })
	both.Go(func() { l.carry(server, client, p, false, over); end() })
	both.Wait()
}

func (l *Link) keep(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		l.conns[c] = struct{}{}
	}
	return !l.closed
}

func (l *Link) forget(conns ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		delete(l.conns, c)
	}
}

// parcel is some bytes and when they came.
type parcel struct {
	bytes []byte
	came  time.Time
}

// carry carries bytes one way. Answers that are not due when the server ends are
// lost.
func (l *Link) carry(from, to net.Conn, p func() Peer, request bool, over <-chan struct{}) {
	parcels := make(chan parcel, 1024)
	ended := make(chan struct{})
	l.running.Go(func() {
		defer close(ended)
		for {
			b := make([]byte, 16<<10)
			n, err := from.Read(b)
			if n > 0 {
				select {
				case parcels <- parcel{b[:n], time.Now()}:
				case <-over:
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	for {
		var next parcel
		select {
		case next = <-parcels:
		case <-over:
			return
		case <-ended:
			select {
			case next = <-parcels:
			default:
				return
			}
		}
		if !l.pass(next, p, request, ended, over) {
			return
		}
		if _, err := to.Write(next.bytes); err != nil {
			return
		}
	}
}

// state is how the link is for a peer, until change is closed.
func (l *Link) state(p func() Peer) (cut bool, delay time.Duration, change <-chan struct{}, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.cut)+len(l.delay) > 0 {
		// Who it is, is a long question. Nobody else may have to wait for its answer.
		l.mu.Unlock()
		who := p()
		l.mu.Lock()
		cut, delay = l.cut[who], l.delay[who]
	}
	return cut, delay, l.change, l.closed
}

// pass waits until a parcel may go on, and reports whether it may.
func (l *Link) pass(x parcel, p func() Peer, request bool, ended, over <-chan struct{}) bool {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		cut, delay, change, closed := l.state(p)
		if closed {
			return false
		}
		if request {
			// What a client has sent arrives even if it has given up since.
			delay, ended = 0, nil
		}
		left := time.Until(x.came.Add(delay))
		if !cut && left <= 0 {
			return true
		}
		var due <-chan time.Time
		if !cut {
			timer.Reset(left)
			due = timer.C
		}
		select {
		case <-due:
		case <-change:
		case <-over:
			return false
		case <-ended:
			return false
		}
	}
}
