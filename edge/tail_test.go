package edge

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// silentTail lets one XREAD, the next after silence was set, go unanswered: its connection
// stays open. waits is told how long the client is willing to wait for the answer.
type silentTail struct {
	silence atomic.Bool
	waits   chan time.Duration
}

func (p *silentTail) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &silentConn{Conn: conn, proxy: p}, nil
}

type silentConn struct {
	net.Conn
	proxy  *silentTail
	silent bool
}

func (c *silentConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("xread")) && c.proxy.silence.CompareAndSwap(true, false) {
		c.silent = true
		return len(b), nil // it never arrives
	}
	return c.Conn.Write(b)
}

func (c *silentConn) SetReadDeadline(t time.Time) error {
	if c.silent {
		c.silent = false
		c.proxy.waits <- time.Until(t)
	}
	return c.Conn.SetReadDeadline(t)
}

// A connection to Redis that dies without a word holds up neither a follower nor a feed for
// longer than any other operation: they go on over another connection.
func TestATailThatIsNotAnsweredIsGivenUp(t *testing.T) {
	t.Parallel()
	const lease, timeout = time.Second, time.Second
	for name, tt := range map[string]struct {
		feed  bool
		block time.Duration
	}{
		"follower": {false, tailBlock},
		"feed":     {true, lease / 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := silentTail{waits: make(chan time.Duration, 1)}
			o := nodeOptions{lease: lease, timeout: timeout, dial: p.dial, strict: tt.feed}
			n := newNode(t, startRedis(t).URL(), newRing(t), o)
			verify := n.verify
			if tt.feed {
				feed := NewFeed(FeedOptions{Store: n.store, Lease: lease})
				verify = newRemote(t, feedServer(t, feed).URL, n, RemoteOptions{}, 0).wait(t).verify
			} else {
				n.ready()
			}
			p.silence.Store(true)
			select {
			case patience := <-p.waits:
				if limit := tt.block + 3*timeout; patience > limit {
					t.Errorf("it waits %v for an answer, want %v at most", patience, limit)
				}
			case <-time.After(2 * time.Minute):
				t.Fatal("nobody reads the tail")
			}
			s := n.login("alice")
			eventually(t, "the logout is answered", func() bool { return n.logout(s) == nil })
			eventually(t, "the logout is known", func() bool { return errors.Is(verify(s), ErrRevoked) })
		})
	}
}
