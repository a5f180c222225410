//go:build unix

package redistest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
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
	programEnv = "REDIS_SERVER" // names another server, such as valkey-server
	program    = "redis-server"

	startTimeout = 15 * time.Second      // for one process to answer, on a machine busy with other tests
	portAttempts = 10                    // ports tried by Start, and starts on the same port tried by Restart
	pollInterval = 10 * time.Millisecond // between two questions to a server that does not answer yet
	logTail      = 30                    // lines of the log in a failure
)

// errPortTaken says that another process had the port when the server wanted to bind it.
var errPortTaken = errors.New("port taken")

// Options are how servers are started, alone or in a topology.
type Options struct {
	// Args are redis-server options, "--maxmemory", "5mb", and rule over the defaults.
	Args []string
	// TLS makes the server listen with TLS only and demand a client certificate.
	TLS *Certificates
	// ACL are the rules of the user [User], such as "~lk:* &* +@all -@admin". Then the default user is off, and the
	// tests' own clients are an administrator. Empty: no users.
	ACL string
	// Front, if set, is called for each server before it starts and returns the port of 127.0.0.1 at which all others
	// are to reach it, such as that of a proxy that makes faults; addr is where the server itself will then listen.
	// It is what the servers announce and what URLs name. The tests' own clients go straight to the server.
	Front func(addr func() string) (port int)
	// Env is added to the servers' environment.
	Env []string
}

// Who the servers' users are when [Options.ACL] is set.
const (
	User     = "latchkey"
	Password = "p@ss:/word of latchkey"

	admin         = "admin"
	adminPassword = "administrator"
)

// Server is one redis-server, or one Sentinel: a port and a folder, and the process that now serves them, if any. Its
// methods may be called from several goroutines; those that can fail the test belong, like [testing.T.Fatal], in the
// test's own.
type Server struct {
	bin      string
	args     []string
	password string // of --requirepass
	acl      bool
	tls      *Certificates
	sentinel string // configuration of a Sentinel but for port and folder; "" for a server
	cluster  bool
	dir      string // log, users, what a node knows of its Cluster
	data     string // what RestartEmpty removes
	env      []string
	port     int
	front    int // [Options.Front]; 0 for none
	bus      int // of a Cluster's node
	t        testing.TB

	mu     sync.Mutex
	proc   *process // nil while killed
	paused bool
}

// Start runs redis-server on a free port of 127.0.0.1, in a temporary folder, and returns when it answers. Nothing is
// persisted unless args say so; args are [Options.Args]. The server is killed when the test ends. If it cannot be
// started the test fails, with the last lines of its log.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return StartWith(t, Options{Args: args})
}

// StartWith is [Start] with TLS or users.
func StartWith(t testing.TB, o Options) *Server {
	t.Helper()
	s := newServer(t, o)
	startAll(t, s)
	return s
}

// newServer prepares a server: its program, its folder, its end with the test.
func newServer(t testing.TB, o Options) *Server {
	t.Helper()
	dir := t.TempDir()
	s := &Server{
		bin:      lookUp(t),
		password: option(o.Args, "--requirepass"),
		acl:      o.ACL != "",
		tls:      o.TLS,
		dir:      dir,
		data:     filepath.Join(dir, "data"),
		env:      o.Env,
		t:        t,
	}
	if o.Front != nil {
		s.front = o.Front(s.Addr)
	}
	if err := os.Mkdir(s.data, 0o700); err != nil {
		t.Fatalf("redistest: %v", err)
	}
	if s.acl {
		s.args = append(s.args, "--aclfile", filepath.Join(dir, "users.acl"), "--masteruser", admin, "--masterauth", adminPassword)
		users := fmt.Sprintf("user default off\nuser %s on #%x ~* &* +@all\nuser %s on #%x %s\n",
			admin, sha256.Sum256([]byte(adminPassword)), User, sha256.Sum256([]byte(Password)), o.ACL)
		if err := os.WriteFile(filepath.Join(dir, "users.acl"), []byte(users), 0o600); err != nil {
			t.Fatalf("redistest: %v", err)
		}
	}
	if s.tls != nil {
		s.args = append(s.args, "--tls-replication", "yes")
	}
	s.args = append(s.args, o.Args...)
	t.Cleanup(s.stop)
	return s
}

// lookUp finds the program, and fails the test when it is missing.
func lookUp(t testing.TB) string {
	t.Helper()
	NotShort(t)
	name := cmp.Or(os.Getenv(programEnv), program)
	bin, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed, and these tests need the real one; install it: apt-get update && apt-get install -y %s", name, name)
	}
	return bin
}

// NotShort skips a test that needs a real Redis if -short says to leave those out.
func NotShort(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("left out by -short: it needs a real redis-server; make test runs it")
	}
}

// startAll starts servers at once, each on a free port of its own, and fails the test if one does not start.
func startAll(t testing.TB, servers ...*Server) {
	t.Helper()
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() { errs[i] = s.startAnywhere() })
	}
	wg.Wait()
	for i, s := range servers {
		if errs[i] != nil {
			t.Fatalf("redistest: %v\n%s", errs[i], s.tail())
		}
	}
}

// startAnywhere starts the server on a port that is free.
func (s *Server) startAnywhere() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for range portAttempts {
		if s.port, err = freePort(); err != nil {
			return err
		}
		if s.cluster {
			if s.bus, err = freePort(); err != nil {
				return err
			}
		}
		if err = s.start(); !errors.Is(err, errPortTaken) {
			return err
		}
		if err := s.empty(); err != nil { // a Sentinel's file holds the port
			return err
		}
	}
	return err
}

// Addr is the server's address, "127.0.0.1:port", the same for its whole life.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// URL is the server's address as redis.ParseURL reads it, with the password if --requirepass set one, or that of [User].
func (s *Server) URL() string {
	u := url.URL{Scheme: s.scheme(), Host: s.publicAddr(), Path: "/0", User: s.userinfo()}
	return u.String()
}

// public is the port at which others reach the server.
func (s *Server) public() int { return cmp.Or(s.front, s.port) }

func (s *Server) publicAddr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.public())) }

func (s *Server) scheme() string {
	if s.tls != nil {
		return "rediss"
	}
	return "redis"
}

func (s *Server) userinfo() *url.Userinfo {
	switch {
	case s.acl:
		return url.UserPassword(User, Password)
	case s.password != "":
		return url.UserPassword("", s.password)
	}
	return nil
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
		err = s.empty()
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

// empty removes what the server had written.
func (s *Server) empty() error {
	if err := os.RemoveAll(s.data); err != nil {
		return err
	}
	return os.Mkdir(s.data, 0o700)
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

	args, err := s.arguments()
	if err != nil {
		return err
	}
	// No context: the process ends with the test's cleanup, which must be able to look at it first.
	cmd := exec.CommandContext(context.Background(), s.bin, args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = out, out, append(os.Environ(), s.env...)
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

// arguments are the command line of the next process.
func (s *Server) arguments() ([]string, error) {
	listen := []string{"--port", strconv.Itoa(s.port)}
	if s.tls != nil {
		listen = []string{
			"--port", "0", "--tls-port", strconv.Itoa(s.port), "--tls-auth-clients", "yes",
			"--tls-ca-cert-file", s.tls.CAFile, "--tls-cert-file", s.tls.ServerCertFile, "--tls-key-file", s.tls.ServerKeyFile,
		}
	}
	if s.sentinel != "" {
		// A Sentinel keeps what it knows in its configuration file, which it also finds when it is started again.
		path := filepath.Join(s.data, "sentinel.conf")
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			conf := "dir " + s.data + "\nbind 127.0.0.1\n" + s.sentinel
			if s.front != 0 {
				conf += fmt.Sprintf("sentinel announce-ip 127.0.0.1\nsentinel announce-port %d\n", s.front)
			}
			if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
				return nil, err
			}
		}
		return append(append([]string{path}, listen...), append(s.args, "--sentinel")...), nil
	}
	args := append([]string{
		"--bind", "127.0.0.1",
		"--dir", s.data,
		"--daemonize", "no",
		"--save", "",
		"--appendonly", "no",
	}, listen...)
	if s.cluster {
		args = append(args,
			"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(s.bus),
			"--cluster-config-file", filepath.Join(s.dir, "nodes.conf"))
	}
	if s.front != 0 {
		for _, kind := range []string{"replica", "cluster"} {
			args = append(args, "--"+kind+"-announce-ip", "127.0.0.1", "--"+kind+"-announce-port", strconv.Itoa(s.front))
		}
	}
	return append(args, s.args...), nil
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
			return fmt.Errorf("%s on %s ended: %w", s.bin, s.Addr(), errors.Join(p.err, last))
		case <-ctx.Done():
			return fmt.Errorf("%s on %s does not answer after %v: %w", s.bin, s.Addr(), startTimeout, last)
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
		s.t.Logf("%s on %s:\n%s", filepath.Base(s.bin), s.Addr(), s.tail())
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
	o := &redis.Options{
		Addr:                     s.Addr(),
		Password:                 s.password,
		Protocol:                 2,
		DisableIdentity:          true,
		ContextTimeoutEnabled:    true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	if s.acl {
		o.Username, o.Password = admin, adminPassword
	}
	if s.tls != nil {
		o.TLSConfig = s.tls.Client.Clone()
	}
	return o
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
