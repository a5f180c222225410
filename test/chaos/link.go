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
	drops  int // how often all connections were dropped
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

// Drop ends all connections, and what is under way on them is lost: for when the server
// has died, before Heal can let it pass.
func (l *Link) Drop() { l.set(func() { l.drops++ }) }

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
	over := make(chan struct{})
	on := line{peer: sync.OnceValue(func() Peer { return l.who(port(client.RemoteAddr()), l.Port()) }), over: over}
	if on.born, err = l.keep(client, server); err != nil {
		return
	}
	defer l.forget(client, server)
	var both sync.WaitGroup
	end := sync.OnceFunc(func() {
		close(over)
		_ = client.Close()
		_ = server.Close()
	})
	both.Go(func() { l.carry(client, server, on, true); end() })
	both.Go(func() { l.carry(server, client, on, false); end() })
	both.Wait()
}

// keep returns how often connections had been dropped when these began.
func (l *Link) keep(conns ...net.Conn) (born int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, net.ErrClosed
	}
	for _, c := range conns {
		l.conns[c] = struct{}{}
	}
	return l.drops, nil
}

func (l *Link) forget(conns ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		delete(l.conns, c)
	}
}

// line is one connection.
type line struct {
	peer func() Peer
	born int
	over <-chan struct{}
}

// parcel is some bytes and when they came.
type parcel struct {
	bytes []byte
	came  time.Time
}

// carry carries bytes one way. Answers that are not due when the server ends are
// lost.
func (l *Link) carry(from, to net.Conn, on line, request bool) {
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
				case <-on.over:
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
		case <-on.over:
			return
		case <-ended:
			select {
			case next = <-parcels:
			default:
				return
			}
		}
		if !l.pass(next, on, request, ended) {
			return
		}
		if _, err := to.Write(next.bytes); err != nil {
			return
		}
	}
}

// state is how the link is for a connection, until change is closed.
func (l *Link) state(on line) (cut bool, delay time.Duration, change <-chan struct{}, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.cut)+len(l.delay) > 0 {
		// Who it is, is a long question. Nobody else may have to wait for its answer.
		l.mu.Unlock()
		who := on.peer()
		l.mu.Lock()
		cut, delay = l.cut[who], l.delay[who]
	}
	return cut, delay, l.change, l.closed || l.drops != on.born
}

// pass waits until a parcel may go on, and reports whether it may.
func (l *Link) pass(x parcel, on line, request bool, ended <-chan struct{}) bool {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		cut, delay, change, closed := l.state(on)
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
		case <-on.over:
			return false
		case <-ended:
			return false
		}
	}
}
