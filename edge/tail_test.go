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

// silentTail lets the connection on which one command is sent, the next after silence was
// set, go unanswered from then on: it stays open. waits is told how long the client is
// willing to wait for an answer.
type silentTail struct {
	command string
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
	silent atomic.Bool
	told   atomic.Bool
}

func (c *silentConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(c.proxy.command)) && c.proxy.silence.CompareAndSwap(true, false) {
		c.silent.Store(true)
	}
	if c.silent.Load() {
		return len(b), nil // it never arrives
	}
	return c.Conn.Write(b)
}

func (c *silentConn) SetReadDeadline(t time.Time) error {
	if c.silent.Load() && c.told.CompareAndSwap(false, true) {
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
		feed    bool
		command string
		most    time.Duration
	}{
		"follower": {false, "subscribe", lease},
		"feed":     {true, "xread", lease/3 + 3*timeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := silentTail{command: tt.command, waits: make(chan time.Duration, 1)}
			p.silence.Store(!tt.feed)
			server := startRedis(t)
			o := nodeOptions{lease: lease, timeout: timeout, dial: p.dial, strict: tt.feed}
			n := newNode(t, server.URL(), newRing(t), o)
			verify := n.verify
			if tt.feed {
				feed := NewFeed(FeedOptions{Revocations: n.store.Revocations, Lease: lease})
				verify = newRemote(t, feedServer(t, feed).URL, n, RemoteOptions{}, 0).wait(t).verify
				p.silence.Store(true)
			} else {
				n.ready()
			}
			select {
			case patience := <-p.waits:
				if patience > tt.most {
					t.Errorf("it waits %v for an answer, want %v at most", patience, tt.most)
				}
			case <-time.After(2 * time.Minute):
				t.Fatal("nobody reads the tail")
			}
			s := n.login("alice")
			eventually(t, "the logout is answered", func() bool { return n.logout(s) == nil })
			eventually(t, "the logout is known", func() bool { return errors.Is(verify(s), ErrRevoked) })
			if !tt.feed {
				eventually(t, "it listens again", func() bool {
					return server.Client().PubSubNumSub(t.Context(), "lk:log").Val()["lk:log"] == 1
				})
			}
		})
	}
}
