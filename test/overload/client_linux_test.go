package overload

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// hearing is for how long an answer is waited for.
const hearing = time.Minute

// client keeps connections to one address. It speaks as much of HTTP/1.1 as these
// questions need, which costs a fraction of what net/http's client costs: the CPU
// is wanted by the replica. It never sends a request twice.
type client struct {
	addr string
	idle chan *conn
}

type conn struct {
	net.Conn
	in *bufio.Reader
}

func newClient(t testing.TB, addr string, keep int) *client {
	c := &client{addr: addr, idle: make(chan *conn, keep)}
	t.Cleanup(c.close)
	return c
}

func (c *client) close() {
	for {
		select {
		case n := <-c.idle:
			_ = n.Close()
		default:
			return
		}
	}
}

// answer is a response, read to its end.
type answer struct {
	status     int
	retryAfter string
	last       bool // Connection: close
	body       []byte
}

var errAnswer = errors.New("not an answer of HTTP/1.1")

// ask sends one request.
func (c *client) ask(request string) (answer, error) {
	var n *conn
	select {
	case n = <-c.idle:
	default:
		raw, err := (&net.Dialer{Timeout: hearing}).DialContext(context.Background(), "tcp", c.addr)
		if err != nil {
			return answer{}, err
		}
		n = &conn{raw, bufio.NewReader(raw)}
	}
	a, err := n.exchange(request)
	if err != nil || a.last {
		_ = n.Close()
		return a, err
	}
	select {
	case c.idle <- n:
	default:
		_ = n.Close()
	}
	return a, nil
}

func (n *conn) exchange(request string) (answer, error) {
	if err := n.SetDeadline(time.Now().Add(hearing)); err != nil {
		return answer{}, err
	}
	if _, err := n.Write([]byte(request)); err != nil {
		return answer{}, err
	}
	return n.read()
}

// read reads one answer.
func (n *conn) read() (answer, error) {
	var a answer
	line, err := n.in.ReadSlice('\n')
	if err != nil {
		return a, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return a, errAnswer
	}
	if a.status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return a, errAnswer
	}
	length := 0
	for {
		if line, err = n.in.ReadSlice('\n'); err != nil {
			return a, err
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			break
		}
		value = bytes.TrimSpace(value)
		switch string(bytes.ToLower(name)) {
		case "content-length":
			if length, err = strconv.Atoi(string(value)); err != nil {
				return a, errAnswer
			}
		case "retry-after":
			a.retryAfter = string(value)
		case "connection":
			a.last = bytes.EqualFold(value, []byte("close"))
		case "transfer-encoding":
			return a, errAnswer
		}
	}
	if length > 0 {
		a.body = make([]byte, length)
		_, err = readFull(n.in, a.body)
	}
	return a, err
}

func readFull(r *bufio.Reader, b []byte) (int, error) {
	for n := 0; n < len(b); {
		m, err := r.Read(b[n:])
		if err != nil {
			return n, err
		}
		n += m
	}
	return len(b), nil
}

// The requests.

func get(path, token string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: overload.example\r\nAuthorization: Bearer " + token + "\r\n\r\n"
}

func post(path, token string, form url.Values) string {
	body := form.Encode()
	auth := ""
	if token != "" {
		auth = "Authorization: Bearer " + token + "\r\n"
	}
	return "POST " + path + " HTTP/1.1\r\nHost: overload.example\r\n" + auth +
		"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
}

func loginRequest(username string) string {
	return post("/auth/token", "", url.Values{"username": {username}, "password": {password}, "refresh_delivery": {"body"}})
}

// session is what a login or a refresh answers.
type session struct {
	Access  string `json:"access_token"`
	Refresh string `json:"refresh_token"`
}

func (a answer) session() (session, error) {
	var s session
	if a.status != 200 {
		return s, fmt.Errorf("answered %d: %s", a.status, a.body)
	}
	err := json.Unmarshal(a.body, &s)
	return s, err
}

func (s session) refresh() string {
	return post("/auth/refresh", "", url.Values{"refresh_token": {s.Refresh}})
}

// login logs in, and waits for its turn.
func (c *client) login(t testing.TB) session {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		a, err := c.ask(loginRequest(user))
		if err != nil {
			t.Fatal(err)
		}
		if a.status == 503 && time.Now().Before(deadline) {
			continue
		}
		s, err := a.session()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

// times are how long the answers of one kind took.
type times struct {
	mu   sync.Mutex
	took []time.Duration
}

func (l *times) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.took = append(l.took, d)
}

// quantile returns 0 if there is nothing.
func (l *times) quantile(q float64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.took) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(l.took))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
