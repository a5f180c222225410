package chaos

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/stacktest"
)

const (
	secret   = "a secret of this test alone of 32 bytes and more"
	issuer   = "http://latchkey.example"
	audience = "http://api.latchkey.example"
)

// fleet is the replicas that run now.
type fleet struct {
	t       *testing.T
	started *stacktest.Fleet
	live    atomic.Pointer[[]*asked]
}

func newFleet(t *testing.T, redisURL string) *fleet {
	t.Helper()
	f := &fleet{t: t, started: stacktest.NewFleetOf(
		t, stacktest.Build(t, "../.."), 0,
		"LATCHKEY_SECRET="+secret, "LATCHKEY_REDIS_URL="+redisURL, "LATCHKEY_COOKIE_SECURE=false", "LATCHKEY_ISSUER="+issuer, "LATCHKEY_AUDIENCE="+audience,
		"LATCHKEY_VERIFY=follow", "LATCHKEY_LOG_LEVEL=error",
	)}
	f.live.Store(&[]*asked{})
	return f
}

func (f *fleet) all() []*asked { return *f.live.Load() }

// asked is a replica, and the connections to it that are kept.
type asked struct {
	*stacktest.Replica
	number int
	idle   chan *conn
}

// add starts a replica and returns when it is ready.
func (f *fleet) add() {
	f.t.Helper()
	r := &asked{Replica: f.started.Add(f.t), number: len(f.started.Replicas), idle: make(chan *conn, 256)}
	r.AwaitReady(f.t)
	live := append(slices.Clone(f.all()), r)
	f.live.Store(&live)
}

// leave takes a replica out of the fleet, which is about to end.
func (f *fleet) leave(r *asked) {
	live := slices.DeleteFunc(slices.Clone(f.all()), func(other *asked) bool { return other == r })
	f.live.Store(&live)
}

// conn is one connection that is kept alive. It speaks as much of HTTP/1.1 as
// these questions need, and unlike a library never sends a request twice.
type conn struct {
	net.Conn
	in *bufio.Reader
}

// ask sends requests in one write and calls answered for each answer as it comes
// in. It stops at the first that does not come.
func (r *asked) ask(requests []string, sent func(), answered func(i, status int)) error {
	var c *conn
	select {
	case c = <-r.idle:
	default:
		n, err := (&net.Dialer{Timeout: hearing}).DialContext(context.Background(), "tcp", r.Addr)
		if err != nil {
			sent()
			return err
		}
		c = &conn{n, bufio.NewReader(n)}
	}
	err := c.exchange(requests, sent, answered)
	if err != nil {
		_ = c.Close()
		return err
	}
	select {
	case r.idle <- c:
	default:
		_ = c.Close()
	}
	return nil
}

func (c *conn) exchange(requests []string, sent func(), answered func(i, status int)) error {
	sent()
	if err := c.SetDeadline(time.Now().Add(hearing)); err != nil {
		return err
	}
	if _, err := c.Write([]byte(strings.Join(requests, ""))); err != nil {
		return err
	}
	for i := range requests {
		status, err := c.status()
		if err != nil {
			return err
		}
		answered(i, status)
	}
	return nil
}

var errAnswer = errors.New("not an answer of HTTP/1.1")

// status reads one answer to its end.
func (c *conn) status() (int, error) {
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return 0, errAnswer
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil {
		return 0, errAnswer
	}
	length := 0
	for {
		if line, err = c.in.ReadSlice('\n'); err != nil {
			return 0, err
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			break
		}
		if bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, errAnswer
			}
		}
		if bytes.EqualFold(name, []byte("Transfer-Encoding")) {
			return 0, errAnswer
		}
	}
	_, err = c.in.Discard(length)
	return status, err
}

// ready waits until every replica says that it is.
func (f *fleet) ready() {
	f.t.Helper()
	for _, r := range f.all() {
		r.AwaitReady(f.t)
	}
}

// requests for a session.
func verifyRequest(token string) string {
	return "GET /auth/verify HTTP/1.1\r\nHost: latchkey.example\r\nAuthorization: Bearer " + token + "\r\n\r\n"
}

func logoutRequest(token string) string {
	return "POST /auth/logout HTTP/1.1\r\nHost: latchkey.example\r\nAuthorization: Bearer " + token + "\r\nContent-Length: 0\r\n\r\n"
}
