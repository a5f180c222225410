//go:build unix

package redistest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	program = "redis-server"
	install = "apt-get update && apt-get install -y redis-server"

	startTimeout = 15 * time.Second      // for one process to answer, on a machine busy with other tests
	portAttempts = 10                    // ports tried by Start, and starts on the same port tried by Restart
	pollInterval = 10 * time.Millisecond // between two questions to a server that does not answer yet
	logTail      = 30                    // lines of the log in a failure
)

// errPortTaken says that another process had the port when the server wanted to bind it.
var errPortTaken = errors.New("port taken")

// Server is one redis-server: a port and a folder, and the process that now serves them, if any. Its methods may be
// called from several goroutines; those that can fail the test belong, like [testing.T.Fatal], in the test's own.
type Server struct {
	bin      string
	args     []string
	password string
	dir      string // log
	data     string // what RestartEmpty removes
	port     int
	t        testing.TB

	mu     sync.Mutex
	proc   *process // nil while killed
	paused bool
}

// Start runs redis-server on a free port of 127.0.0.1, in a temporary folder, and returns when it answers. Nothing is
// persisted unless args say so; args are redis-server options, "--maxmemory", "5mb", and rule over the defaults. The
// server is killed when the test ends. If it cannot be started the test fails, with the last lines of its log.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	bin, err := exec.LookPath(program)
	if err != nil {
		t.Fatalf("%s is not installed, and these tests need the real one; install it: %s", program, install)
	}
	dir := t.TempDir()
	s := &Server{
		bin:      bin,
		args:     slices.Clone(args),
		password: option(args, "--requirepass"),
		dir:      dir,
		data:     filepath.Join(dir, "data"),
		t:        t,
	}
	if err := os.Mkdir(s.data, 0o700); err != nil {
		t.Fatalf("redistest: %v", err)
	}
	t.Cleanup(s.stop)

	s.mu.Lock()
	defer s.mu.Unlock()
	for range portAttempts {
		if s.port, err = freePort(); err != nil {
			break
		}
		if err = s.start(); !errors.Is(err, errPortTaken) {
			break
		}
	}
	if err != nil {
		t.Fatalf("redistest: %v\n%s", err, s.tail())
	}
	return s
}

// Addr is the server's address, "127.0.0.1:port", the same for its whole life.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// URL is the server's address as redis.ParseURL reads it, with the password if --requirepass set one.
func (s *Server) URL() string {
	u := url.URL{Scheme: "redis", Host: s.Addr(), Path: "/0"}
	if s.password != "" {
		u.User = url.UserPassword("", s.password)
	}
	return u.String()
}

// Client returns a new client of the server, closed with the test. Once connected it sends
// only what it is told to, so that a command count shows the test's commands.
func (s *Server) Client() *redis.Client {
	c := redis.NewClient(s.options())
	s.t.Cleanup(func() { _ = c.Close() }) // a test may have closed it already
	return c
}

// Pause stops the process (SIGSTOP) as a frozen machine would: connections stay open and nothing answers. It returns
// when the process has stopped. Pausing a paused server does nothing.
func (s *Server) Pause(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		t.Fatal("redistest: Pause: the server was killed; Restart it first")
	}
	if s.paused {
		return
	}
	if err := s.proc.signal(syscall.SIGSTOP); err != nil {
		t.Fatalf("redistest: Pause: %v\n%s", err, s.tail())
	}
	if err := s.proc.awaitStopped(); err != nil {
		t.Fatalf("redistest: Pause: %v\n%s", err, s.tail())
	}
	s.paused = true
}

// Resume lets a paused process go on (SIGCONT). Resuming a server that is not paused does nothing.
func (s *Server) Resume(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.resume(); err != nil {
		t.Fatalf("redistest: Resume: %v\n%s", err, s.tail())
	}
}

// Kill ends the process at once (SIGKILL), paused or not, and returns when it is gone and its port refuses
// connections. What it had not written to disk is lost. Killing a killed server does nothing.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.kill(); err != nil {
		t.Fatalf("redistest: Kill: %v\n%s", err, s.tail())
	}
}

// Restart kills the process if it runs and starts another on the same port and folder. It returns when that one
// answers. The new process is empty unless the arguments of [Start] asked for persistence.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.restart(t, false)
}

// RestartEmpty is [Server.Restart] after removing everything the server had written: a Redis that lost its data.
func (s *Server) RestartEmpty(t testing.TB) {
	t.Helper()
	s.restart(t, true)
}

func (s *Server) restart(t testing.TB, empty bool) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.kill()
	if err == nil && empty {
		if err = os.RemoveAll(s.data); err == nil {
			err = os.Mkdir(s.data, 0o700)
		}
	}
	if err != nil {
		t.Fatalf("redistest: Restart: %v\n%s", err, s.tail())
	}
	for range portAttempts {
		if err = s.start(); !errors.Is(err, errPortTaken) {
			break
		}
		<-time.After(10 * pollInterval) // somebody else has the port: it may be given back
	}
	if err != nil {
		t.Fatalf("redistest: Restart: %v\n%s", err, s.tail())
	}
}

// start runs one process on s.port and returns when it answers. The caller holds s.mu.
func (s *Server) start() error {
	out, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }() // the process has its own descriptor
	began, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}

	args := append([]string{
		"--bind", "127.0.0.1",
		"--port", strconv.Itoa(s.port),
		"--dir", s.data,
		"--daemonize", "no",
		"--save", "",
		"--appendonly", "no",
	}, s.args...)
	// No context: the process ends with the test's cleanup, which must be able to look at it first.
	cmd := exec.CommandContext(context.Background(), s.bin, args...)
	cmd.Stdout, cmd.Stderr = out, out
	p, err := run(cmd)
	if err != nil {
		return err
	}
	s.proc, s.paused = p, false
	if err := s.await(p); err != nil {
		_ = s.kill() // err says more
		if s.logSince(began, "Address already in use") {
			return fmt.Errorf("%w: %s", errPortTaken, s.Addr())
		}
		return err
	}
	return nil
}

// await returns when p itself answers. The process id in the answer tells it from another Redis that took the port
// first, whose PONG would otherwise look like ours in the moment before p gives up.
func (s *Server) await(p *process) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	c := redis.NewClient(s.options())
	defer func() { _ = c.Close() }() // nothing was written
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	ours := fmt.Sprintf("process_id:%d\r\n", p.pid())
	var last error
	for {
		var info string
		if info, last = s.ask(ctx, c); last == nil && strings.Contains(info, ours) {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s on %s ended: %w", program, s.Addr(), errors.Join(p.err, last))
		case <-ctx.Done():
			return fmt.Errorf("%s on %s does not answer after %v: %w", program, s.Addr(), startTimeout, last)
		case <-tick.C:
		}
	}
}

// ask returns the server's INFO once it takes commands. It dials by itself first: the client would log each refusal.
func (s *Server) ask(ctx context.Context, c *redis.Client) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.Addr())
	if err != nil {
		return "", err
	}
	_ = conn.Close()                          // nothing was written
	if err := c.Ping(ctx).Err(); err != nil { // refused while a data file is loading
		return "", err
	}
	return c.Info(ctx, "server").Result()
}

// stop is the cleanup: no failure of the test itself can leave a process behind.
func (s *Server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.t.Failed() {
		s.t.Logf("redis-server on %s:\n%s", s.Addr(), s.tail())
	}
	if err := s.resume(); err != nil {
		s.t.Logf("redistest: resume: %v", err)
	}
	if err := s.kill(); err != nil {
		s.t.Errorf("redistest: stop: %v", err)
	}
}

func (s *Server) resume() error {
	if s.proc == nil || !s.paused {
		return nil
	}
	s.paused = false
	return s.proc.signal(syscall.SIGCONT)
}

func (s *Server) kill() error {
	if s.proc == nil {
		return nil
	}
	err := s.proc.signal(syscall.SIGKILL)
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.proc.done
	s.proc, s.paused = nil, false
	return nil
}

func (s *Server) options() *redis.Options {
	return &redis.Options{
		Addr:                     s.Addr(),
		Password:                 s.password,
		Protocol:                 2,
		DisableIdentity:          true,
		ContextTimeoutEnabled:    true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
}

func (s *Server) logPath() string { return filepath.Join(s.dir, "redis.log") }

// logSince reports whether the log holds text behind its first offset bytes.
func (s *Server) logSince(offset int64, text string) bool {
	b, err := os.ReadFile(s.logPath())
	return err == nil && int64(len(b)) >= offset && strings.Contains(string(b[offset:]), text)
}

// tail returns the last lines of the log.
func (s *Server) tail() string {
	b, err := os.ReadFile(s.logPath())
	if err != nil {
		return fmt.Sprintf("(no log: %v)", err)
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-logTail):], "\n")
}

// option returns the last value of a redis-server option in args, or "".
func option(args []string, name string) string {
	value := ""
	for i := 0; i+1 < len(args); i++ {
		if args[i] == name {
			value = args[i+1]
		}
	}
	return value
}
