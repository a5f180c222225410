package tokenstore

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"syscall"
	"time"
)

// sentinelShare is the part of an attempt's time that a Sentinel gets to answer.
//
// go-redis asks the Sentinel that it knows three times, and again under a lock,
// before it turns to the others, all within the time to connect. One that is
// frozen together with the primary, as when they share a machine, would else use
// that time up, and each new connection would begin with it again.
const sentinelShare = 4

// sentinelDialer connects to Sentinels and to what they name.
func (o DialOptions) sentinelDialer(sentinels []string, config *tls.Config) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, o.Timeout)
		defer cancel()
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil && config != nil {
			conn, err = handshake(ctx, conn, addr, config)
		}
		sentinel := slices.Contains(sentinels, addr)
		switch {
		case err != nil && sentinel:
			return nil, err
		case err != nil:
			return newStillborn(addr, err), nil
		case sentinel:
			return impatient{conn, o.Timeout / sentinelShare}, nil
		default:
			return conn, nil
		}
	}
}

// handshake makes conn a TLS connection, or closes it.
func handshake(ctx context.Context, conn net.Conn, addr string, config *tls.Config) (net.Conn, error) {
	if config.ServerName == "" {
		config = config.Clone()
		config.ServerName, _, _ = net.SplitHostPort(addr)
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // err says more
		return nil, err
	}
	return secure, nil
}

// impatient is a connection whose answers must come sooner than its user allows.
type impatient struct {
	net.Conn
	most time.Duration
}

// SetReadDeadline brings a deadline forward; none stays none, for subscriptions.
func (c impatient) SetReadDeadline(t time.Time) error {
	if soon := time.Now().Add(c.most); t.After(soon) {
		t = soon
	}
	return c.Conn.SetReadDeadline(t)
}

// stillborn is a connection that could not be made, and says so when it is used.
//
// After as many failures to connect as the pool has room for, go-redis tries only
// once a second, and refuses everything in between: a second more for each
// failover, in which every refused dial was one to the primary that had died. A
// connection that fails is discarded like any that broke, and the next attempt
// asks the Sentinels anew.
type stillborn struct {
	net.Conn // one end of a pipe, for deadlines and Close
	addr     net.Addr
	err      error
}

func newStillborn(addr string, err error) *stillborn {
	end, _ := net.Pipe()
	return &stillborn{Conn: end, addr: named(addr), err: err}
}

func (c *stillborn) Read([]byte) (int, error)  { return 0, c.err }
func (c *stillborn) Write([]byte) (int, error) { return 0, c.err }

// RemoteAddr is whom it did not reach: the pool drops what is not the primary.
func (c *stillborn) RemoteAddr() net.Addr { return c.addr }

// SyscallConn is how the pool asks whether an idle connection is alive.
func (c *stillborn) SyscallConn() (syscall.RawConn, error) { return nil, c.err }

// named is an address that was not resolved.
type named string

// Network is tcp: Sentinels know no other.
func (named) Network() string  { return "tcp" }
func (a named) String() string { return string(a) }
