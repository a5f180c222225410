package redistest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const orphanEnv = "REDISTEST_ORPHAN"

// TestOrphanProgram is the program that TestKilledTestLeavesNoServer kills; in an ordinary run it does nothing.
func TestOrphanProgram(t *testing.T) {
	if os.Getenv(orphanEnv) == "" {
		return
	}
	s := Start(t)
	fmt.Printf("\nserver %s\n", s.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin) // until killed, or until whoever should kill it is gone
}

func TestKilledTestLeavesNoServer(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOrphanProgram$")
	cmd.Env = append(os.Environ(), orphanEnv+"=1", "TMPDIR="+t.TempDir()) // its cleanups will not run
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close() }()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr := ""
	for lines := bufio.NewScanner(stdout); addr == "" && lines.Scan(); {
		if after, ok := strings.CutPrefix(lines.Text(), "server "); ok {
			addr = after
		}
	}
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatalf("dial the orphan-to-be at %q: %v", addr, err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, len("+PONG\r\n"))); err != nil {
		t.Fatal(err)
	}

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed"
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the server at %s outlived the test that started it (%d, %v)", addr, n, err)
	}
}

// The parent-death signal comes when the starting thread ends, so the thread of whoever called Start may not matter.
func TestServerOutlivesTheThreadOfStart(t *testing.T) {
	t.Parallel()
	var s *Server
	thread := 0
	for thread == 0 || thread == os.Getpid() { // the main thread never ends before the process
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // and never unlocked: the runtime ends the thread with the goroutine
			thread = unix.Gettid()
			s = Start(t)
		}()
		<-done
	}
	task := "/proc/self/task/" + strconv.Itoa(thread)
	for deadline := time.Now().Add(2 * time.Minute); ; runtime.Gosched() {
		if _, err := os.Stat(task); errors.Is(err, os.ErrNotExist) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the thread did not end")
		}
	}
	if err := s.Client().Ping(t.Context()).Err(); err != nil {
		t.Errorf("the server ended with the thread: %v", err)
	}
}
