package zero

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/stacktest"
)

const (
	secret   = "a secret of this test alone of 32 bytes and more"
	issuer   = "http://zero.example"
	audience = "http://api.zero.example"
)

// fleet is the replicas that run now.
type fleet struct {
	t     *testing.T
	bin   string
	redis string
	next  int
	live  atomic.Pointer[[]*replica]
}

func newFleet(t *testing.T, redisURL string) *fleet {
	t.Helper()
	f := &fleet{t: t, bin: stacktest.Build(t, "../.."), redis: redisURL}
	f.live.Store(&[]*replica{})
	return f
}

func (f *fleet) all() []*replica { return *f.live.Load() }

// replica is one process of the program.
type replica struct {
	number int
	addr   string
	admin  string
	cmd    *exec.Cmd
	done   chan struct{}
	idle   chan *conn

	mu  sync.Mutex
	log bytes.Buffer
}

// add starts a replica and returns when it serves.
func (f *fleet) add() {
	f.t.Helper()
	r := &replica{number: f.next, done: make(chan struct{}), idle: make(chan *conn, 256)}
	f.next++
	r.cmd = exec.CommandContext(context.Background(), f.bin, "serve")
	r.cmd.Env = []string{
		"LATCHKEY_SECRET=" + secret, "LATCHKEY_REDIS_URL=" + f.redis, "LATCHKEY_ADDR=127.0.0.1:0",
		"LATCHKEY_ADMIN_ADDR=127.0.0.1:0", "LATCHKEY_COOKIE_SECURE=false", "LATCHKEY_ISSUER=" + issuer, "LATCHKEY_AUDIENCE=" + audience,
		// A login that its replica did not live to answer stays charged.
		"LATCHKEY_LOGIN_LIMIT_CLIENT=100000/1m", "LATCHKEY_LOGIN_LIMIT_ACCOUNT=100000/1m", "LATCHKEY_LOGIN_LIMIT_ADDRESS=100000/1m",
		"LATCHKEY_VERIFY=follow", "LATCHKEY_LOG_LEVEL=info", "HOME=" + f.t.TempDir(),
	}
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	started, serving := make(chan error, 1), make(chan struct{})
	go func() {
		// The signal at the parent's death is that of the thread that made the
		// child: it is kept for as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(r.done)
		err := r.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		r.read(bufio.NewScanner(stderr), serving)
		_ = r.cmd.Wait()
	}()
	if err := <-started; err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		_ = r.cmd.Process.Signal(syscall.SIGCONT)
		_ = r.cmd.Process.Kill()
		<-r.done
		if f.t.Failed() {
			f.t.Logf("replica %d:\n%s", r.number, r.tail())
		}
	})
	select {
	case <-serving:
	case <-r.done:
		f.t.Fatalf("replica %d ended:\n%s", r.number, r.tail())
	case <-time.After(2 * time.Minute):
		f.t.Fatalf("replica %d does not serve:\n%s", r.number, r.tail())
	}
	live := append(slices.Clone(f.all()), r)
	f.live.Store(&live)
}

// read keeps the log and finds the addresses in it.
func (r *replica) read(lines *bufio.Scanner, serving chan<- struct{}) {
	for lines.Scan() {
		r.mu.Lock()
		if r.log.Len() < 1<<20 {
			r.log.WriteString(lines.Text() + "\n")
		}
		r.mu.Unlock()
		if r.addr != "" {
			continue
		}
		var line struct{ Msg, Address, Admin string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
			r.addr, r.admin = line.Address, line.Admin
			close(serving)
		}
	}
}

func (r *replica) tail() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(r.log.String()), "\n")
	var kept []string
	for _, l := range lines {
		if !strings.Contains(l, `"msg":"logout"`) && !strings.Contains(l, `"event":"logout"`) {
			kept = append(kept, l)
		}
	}
	return strings.Join(kept[max(0, len(kept)-20):], "\n")
}

// drop takes a replica out of the fleet and kills it.
func (f *fleet) drop(r *replica, sig syscall.Signal) {
	live := slices.DeleteFunc(slices.Clone(f.all()), func(other *replica) bool { return other == r })
	f.live.Store(&live)
	_ = r.cmd.Process.Signal(sig)
	<-r.done
}

func (r *replica) freeze() { _ = r.cmd.Process.Signal(syscall.SIGSTOP) }
func (r *replica) thaw()   { _ = r.cmd.Process.Signal(syscall.SIGCONT) }

// conn is one connection that is kept alive. It speaks as much of HTTP/1.1 as
// these questions need, and unlike a library never sends a request twice.
type conn struct {
	net.Conn
	in *bufio.Reader
}

// hearing is for how long an answer is waited for: longer than any pause.
const hearing = 10 * time.Second

// ask sends requests in one write and calls answered for each answer as it comes
// in. It stops at the first that does not come.
func (r *replica) ask(requests []string, sent func(), answered func(i, status int)) error {
	var c *conn
	select {
	case c = <-r.idle:
	default:
		n, err := (&net.Dialer{Timeout: hearing}).DialContext(context.Background(), "tcp", r.addr)
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
	deadline := time.Now().Add(2 * time.Minute)
	for _, r := range f.all() {
		admin := &replica{addr: r.admin, idle: make(chan *conn, 1)}
		for status := 0; status != 200; {
			if time.Now().After(deadline) {
				f.t.Fatalf("replica %d is not ready: %d\n%s", r.number, status, r.tail())
			}
			_ = admin.ask([]string{"GET /readyz HTTP/1.1\r\nHost: zero.example\r\n\r\n"}, func() {}, func(_, s int) { status = s })
			<-time.After(10 * time.Millisecond) // between two looks at another process
		}
		select {
		case c := <-admin.idle:
			_ = c.Close()
		default:
		}
	}
}

// requests for a session.
func verifyRequest(token string) string {
	return "GET /auth/verify HTTP/1.1\r\nHost: zero.example\r\nAuthorization: Bearer " + token + "\r\n\r\n"
}

func logoutRequest(token string) string {
	return "POST /auth/logout HTTP/1.1\r\nHost: zero.example\r\nAuthorization: Bearer " + token + "\r\nContent-Length: 0\r\n\r\n"
}

func env(name, standard string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return standard
}
