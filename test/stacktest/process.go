//go:build unix

// Package stacktest runs Latchkey as it is deployed, for tests: the program itself
// in several processes, the load balancers of deploy/loadbalancers before them, and
// whatever other program a test needs.
//
// What is missing fails the test and says how it is installed. The package ends no
// process that it did not start.
package stacktest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Process is a running program.
type Process struct {
	cmd  *exec.Cmd
	out  *lockedBuffer
	done chan struct{} // closed when it has been reaped
}

// lockedBuffer collects what a process writes.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// Launch starts a program, in an environment of nothing but env. It ends with the
// test, which shows its output if it failed.
func Launch(t testing.TB, env []string, bin string, args ...string) *Process {
	t.Helper()
	p := &Process{out: &lockedBuffer{}, done: make(chan struct{})}
	p.cmd = exec.CommandContext(context.Background(), bin, args...) // its cleanup ends it
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr, p.cmd.SysProcAttr = env, p.out, p.out, attributes()
	p.cmd.WaitDelay = 5 * time.Second
	started := make(chan error, 1)
	go func() { // the thread that starts it must live as long as it does
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // how it ended is in its state
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(bin), p.tail())
		}
	})
	return p
}

// tail is the end of the output: a replica under load logs every logout.
func (p *Process) tail() string {
	lines := slices.Collect(strings.Lines(p.Output()))
	return strings.Join(lines[max(0, len(lines)-40):], "")
}

// Output is what the process has written until now, errors included.
func (p *Process) Output() string { return p.out.String() }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode is how the process ended: -1 by a signal. Read it after Done.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// PID is the process's id: another's, perhaps, once it has ended.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends sig to the process; one that has ended gets none.
func (p *Process) Signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
}

// Kill ends the process and its children, and waits until it has ended.
func (p *Process) Kill() {
	select {
	case <-p.done: // its id may be another's by now
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
}

// Freeze stops the process, and returns when it has stopped.
func (p *Process) Freeze(t testing.TB) {
	t.Helper()
	p.Signal(t, syscall.SIGSTOP)
	var status syscall.WaitStatus
	for err := error(syscall.EINTR); errors.Is(err, syscall.EINTR); {
		_, err = syscall.Wait4(p.cmd.Process.Pid, &status, syscall.WUNTRACED, nil)
	}
	if !status.Stopped() {
		t.Fatalf("the process has not stopped: %v", status)
	}
}

// Thaw lets a frozen process go on.
func (p *Process) Thaw(t testing.TB) {
	t.Helper()
	p.Signal(t, syscall.SIGCONT)
}

// Installed finds a program of Debian's, whose path is not on every user's PATH.
func Installed(t testing.TB, name, pkg string) string {
	t.Helper()
	if testing.Short() {
		t.Skipf("left out by -short: it needs %s; make test runs it", name)
	}
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name} {
		if bin, err := exec.LookPath(candidate); err == nil {
			return bin
		}
	}
	t.Fatalf("%s is not installed, and this test needs the real one; on Debian or Ubuntu: sudo apt-get install -y --no-install-recommends %s", name, pkg)
	return ""
}

// Go runs the go command, in this environment and env, and returns what it prints.
func Go(t testing.TB, env []string, args ...string) string {
	t.Helper()
	return Run(t, append(os.Environ(), env...), "", "go", args...)
}

// Run runs a program to its end, which must be a success, with this standard
// input, and returns its standard output.
func Run(t testing.TB, env []string, stdin, bin string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env, cmd.Stdin = env, strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(bin), strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// FreePort is one below the range that the system hands out for connections, so
// that none of them takes it before the program does, and none that was returned
// before. Of 600 in a row each is in a ten of its own.
func FreePort(t testing.TB) string {
	t.Helper()
	for range portRange {
		n := int(nextPort.Add(1)) % portRange
		port := strconv.Itoa(10_000 + n%tens*10 + n/tens)
		if l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:"+port); err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

const (
	portRange = 6_000
	tens      = portRange / 10
)

// nextPort begins anywhere: tests run in several processes at once.
var nextPort = func() *atomic.Int64 {
	n := new(atomic.Int64)
	n.Store(time.Now().UnixNano() % portRange)
	return n
}()

// Eventually waits up to two minutes for what another process does: a busy machine is slow.
func Eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !done(); time.Sleep(20 * time.Millisecond) { // a poll, not a timing
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 2 minutes", what)
		}
	}
}
