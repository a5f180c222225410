package replica

import (
	"errors"
	"math"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// handshakeTime is how long a handshake that is under way when the listener closes may take to complete. It is longer
// than a round trip to a load balancer nearby, and not much longer: a client that connects meanwhile is refused only a
// second later.
const handshakeTime = 5 * time.Millisecond

// drainingListener is a listener whose Close loses no connection. When a listener closes, the kernel resets the
// connections that are complete but not accepted, with the requests on them, and a load balancer cannot repeat a login
// whose connection was reset. So Close tells the kernel to start no further connection, waits handshakeTime for those
// that are starting, and only then closes the listener. Accept returns all of them.
type drainingListener struct {
	*net.TCPListener
	once sync.Once
	err  error
	rest chan net.Conn // accepted by Close, which also closes the channel
}

// acceptBeforeClose returns a listener that accepts the last connections before it closes.
func acceptBeforeClose(l net.Listener) net.Listener {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return l
	}
	return &drainingListener{TCPListener: tcp, rest: make(chan net.Conn, unix.SOMAXCONN)}
}

// Accept waits for the next connection; after Close, it returns those that were
// left and then net.ErrClosed.
func (l *drainingListener) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if !errors.Is(err, net.ErrClosed) {
		return c, err
	}
	if c, ok := <-l.rest; ok {
		return c, nil
	}
	return nil, err
}

// Close closes the listener. A connection is lost only if its handshake took longer
// than handshakeTime.
func (l *drainingListener) Close() error {
	l.once.Do(func() {
		defer close(l.rest)
		var left []int
		if raw, err := l.SyscallConn(); err == nil {
			var dropping error
			_ = raw.Control(func(fd uintptr) { dropping = dropSYN(int(fd)) })
			if dropping == nil {
				time.Sleep(handshakeTime) // Accept goes on meanwhile
			}
			_ = raw.Control(func(fd uintptr) {
				for len(left) < cap(l.rest) {
					c, _, err := unix.Accept4(int(fd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
					if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
						continue
					}
					if err != nil { // EAGAIN: none is left
						return
					}
					left = append(left, c)
				}
			})
		}
		l.err = l.TCPListener.Close()
		for _, fd := range left {
			f := os.NewFile(uintptr(fd), "connection")
			if c, err := net.FileConn(f); err == nil {
				l.rest <- c
			}
			_ = f.Close() // FileConn has its own
		}
	})
	return l.err
}

// dropSYN makes a listening socket ignore requests for new connections. The client's kernel sends each again after a
// second, and is then refused.
func dropSYN(fd int) error {
	const (
		flags   = 13   // where a TCP header has them
		syn     = 0x02 // the first segment of a handshake has this flag
		ack     = 0x10 // and not this one
		drop    = 0
		deliver = math.MaxUint32
	)
	program := [5]unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: flags},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: syn | ack},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: syn, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: drop},
		{Code: unix.BPF_RET | unix.BPF_K, K: deliver},
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}
