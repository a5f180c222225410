package main

import (
	"errors"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// lastCallers is a listener that forgets nobody: connections that the kernel had
// completed when it is closed, and which nobody had accepted, are handed out yet.
// The kernel would reset them, with the request that may already be on them; and a
// balancer that sees a login's connection reset cannot send that login again.
type lastCallers struct {
	*net.TCPListener
	once sync.Once
	err  error
	rest chan net.Conn // filled and closed by Close
}

// gracious returns a listener whose Close loses no connection.
func gracious(l net.Listener) net.Listener {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return l
	}
	return &lastCallers{TCPListener: tcp, rest: make(chan net.Conn, unix.SOMAXCONN)}
}

// Accept waits for the next connection; after Close, it returns those that were
// left and then net.ErrClosed.
func (l *lastCallers) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if !errors.Is(err, net.ErrClosed) {
		return c, err
	}
	if c, ok := <-l.rest; ok {
		return c, nil
	}
	return nil, err
}

// Close closes the listener. Connections that come in the microseconds between the
// last look and the closing are lost.
func (l *lastCallers) Close() error {
	l.once.Do(func() {
		defer close(l.rest)
		var left []int
		if raw, err := l.SyscallConn(); err == nil {
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
