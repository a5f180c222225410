//go:build unix

package redistest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a test that notes its failure. Its cleanups and folders are the real test's.
type recorder struct {
	testing.TB
	fatal string
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.fatal = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// failure runs f as a test would and returns what it failed with, "" if it did not.
func failure(t *testing.T, f func(t testing.TB)) string {
	t.Helper()
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r.fatal
}

func set(t *testing.T, c *redis.Client, key, value string) {
	t.Helper()
	if err := c.Set(t.Context(), key, value, 0).Err(); err != nil {
		t.Fatalf("SET %s: %v", key, err)
	}
}

func TestStartAnswersOnItsOwnPort(t *testing.T) {
	t.Parallel()
	a, b := Start(t), Start(t)
	if a.Addr() == b.Addr() {
		t.Fatalf("two servers share %s", a.Addr())
	}
	set(t, a.Client(), "k", "of a")
	if n, err := b.Client().Exists(t.Context(), "k").Result(); n != 0 || err != nil {
		t.Errorf("the second server holds the first one's key: %d, %v", n, err)
	}
	opts, err := redis.ParseURL(a.URL())
	if err != nil {
		t.Fatalf("ParseURL(%q): %v", a.URL(), err)
	}
	c := redis.NewClient(opts)
	defer func() { _ = c.Close() }()
	if got, err := c.Get(t.Context(), "k").Result(); got != "of a" || err != nil {
		t.Errorf("by URL: GET = %q, %v", got, err)
	}
}

func TestStartPassesArguments(t *testing.T) {
	t.Parallel()
	s := Start(t, "--maxmemory", "5mb", "--requirepass", "p@ss:/word")
	got, err := s.Client().ConfigGet(t.Context(), "maxmemory").Result()
	if err != nil || got["maxmemory"] != "5242880" {
		t.Errorf("maxmemory = %v, %v; want 5242880", got, err)
	}
	opts, err := redis.ParseURL(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	if opts.Password != "p@ss:/word" {
		t.Errorf("the URL's password is %q", opts.Password)
	}
}

func TestStartFailsWithTheLog(t *testing.T) {
	t.Parallel()
	got := failure(t, func(t testing.TB) { Start(t, "--maxmemory", "a lot") })
	if !strings.Contains(got, "maxmemory") || !strings.Contains(got, "argument must be a memory value") {
		t.Errorf("failure = %q; want redis-server's own words", got)
	}
}

func TestStartFailsWithoutTheProgram(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("REDIS_SERVER", "")
	got := failure(t, func(t testing.TB) { Start(t) })
	if !strings.Contains(got, "apt-get update && apt-get install -y redis-server") {
		t.Errorf("failure = %q; want the install line", got)
	}
}

func TestPauseAnswersNothing(t *testing.T) {
	t.Parallel()
	s := Start(t)
	set(t, s.Client(), "k", "v")
	for range 3 { // a second pause must wait for its own stop, not see the first one's
		s.Pause(t)
		s.Pause(t)                                                             // again: nothing
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Addr()) // the kernel accepts for a stopped process
		if err != nil {
			t.Fatalf("dial while paused: %v", err)
		}
		if _, err := conn.Write([]byte("PING\r\n")); err != nil {
			t.Fatalf("write while paused: %v", err)
		}
		buf := make([]byte, 7)
		if err := conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a paused server answered %q, %v", buf[:n], err)
		}
		s.Resume(t)
		s.Resume(t) // again: nothing
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "+PONG\r\n" {
			t.Fatalf("after Resume: %q, %v", buf, err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKillRefusesConnections(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]func(*Server, testing.TB){
		"running": func(*Server, testing.TB) {},
		"paused":  (*Server).Pause,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := Start(t)
			before(s, t)
			s.Kill(t)
			s.Kill(t) // again: nothing
			if conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
				if err == nil {
					_ = conn.Close()
				}
				t.Fatalf("dial after Kill: %v; want refused", err)
			}
			s.Restart(t)
			if err := s.Client().Ping(t.Context()).Err(); err != nil {
				t.Errorf("PING after Restart: %v", err)
			}
		})
	}
}

func TestRestartKeepsThePort(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		args    []string
		restart func(*Server, testing.TB)
		kept    int64
	}{
		{"nothing persisted", nil, (*Server).Restart, 0},
		{"append-only file", []string{"--appendonly", "yes", "--appendfsync", "always"}, (*Server).Restart, 1},
		{"append-only file removed", []string{"--appendonly", "yes", "--appendfsync", "always"}, (*Server).RestartEmpty, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := Start(t, tt.args...)
			c, addr := s.Client(), s.Addr()
			set(t, c, "k", "v")
			tt.restart(s, t)
			if s.Addr() != addr {
				t.Errorf("restarted on %s, was on %s", s.Addr(), addr)
			}
			n, err := s.Client().Exists(t.Context(), "k").Result()
			if err != nil || n != tt.kept {
				t.Errorf("EXISTS k = %d, %v; want %d", n, err, tt.kept)
			}
		})
	}
}

// A port taken between picking and binding must show as that, not as the answer of the server that has it.
func TestStartTellsItsServerFromAnother(t *testing.T) {
	t.Parallel()
	other := Start(t)
	s := Start(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.kill(); err != nil {
		t.Fatal(err)
	}
	s.port = other.port
	if err := s.start(); !errors.Is(err, errPortTaken) {
		t.Errorf("start on another server's port: %v; want errPortTaken", err)
	}
	if s.proc != nil {
		t.Error("the process that could not bind is still there")
	}
}

func TestStopLeavesNoProcess(t *testing.T) {
	t.Parallel()
	var s *Server
	var p *process
	t.Run("paused at its end", func(t *testing.T) {
		s = Start(t)
		p = s.proc
		s.Pause(t)
	})
	select {
	case <-p.done:
	default:
		t.Error("the server outlived its test")
	}
}

func TestMini(t *testing.T) {
	t.Parallel()
	var addr string
	t.Run("answers", func(t *testing.T) {
		addr = Mini(t).Addr()
		c := redis.NewClient(&redis.Options{Addr: addr})
		defer func() { _ = c.Close() }()
		if err := c.Set(t.Context(), "whose", "this test's", 0).Err(); err != nil {
			t.Error(err)
		}
	})
	// The port may be another's by now.
	c := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, DialerRetries: 1})
	defer func() { _ = c.Close() }()
	if c.Get(t.Context(), "whose").Val() != "" {
		t.Error("miniredis outlived its test")
	}
}
