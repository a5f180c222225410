package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/latchkey-auth/latchkey/internal/credential"
)

// helperWorks says that a helper is of use: that the kernel can be told to prefer others.
const helperWorks = true

// yieldCPU has every thread of this process run on CPU that nobody else wants (SCHED_IDLE,
// sched(7)). In a container this is about the other threads in it.
func yieldCPU() error {
	for {
		changed, err := yieldThreads()
		if err != nil || !changed {
			return err
		}
		// A thread inherits from the one that starts it, which may not have been told yet.
	}
}

// yieldThreads reports whether there was any thread to be told.
func yieldThreads() (changed bool, err error) {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return false, err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return false, err
		}
		attr, err := unix.SchedGetAttr(id, 0)
		if err == nil && attr.Policy != unix.SCHED_IDLE {
			changed = true
			err = unix.SchedSetAttr(id, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) { // it has just ended
			return false, fmt.Errorf("the priority of thread %d: %w", id, err)
		}
	}
	return changed, nil
}

// runHelper runs a helper until ctx ends. It returns why it ended before.
func runHelper(ctx context.Context, h *credential.Helper, s split) error {
	// The file may be another by now, or gone; what runs is still there.
	cmd := exec.CommandContext(ctx, "/proc/self/exe", helperName)
	cmd.Args[0] = "latchkey"
	// No secrets. One thread more collects garbage.
	cmd.Env = []string{"GOMAXPROCS=" + strconv.Itoa(s.threads+1), "GOMEMLIMIT=" + strconv.FormatInt(s.share, 10)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's interrupt is not for it
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.Cancel = in.Close
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	said := &firstBytes{}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		return err
	}
	err = h.Attach(out, in, s.threads, s.apart)
	_ = in.Close()
	if waited := cmd.Wait(); waited != nil {
		err = fmt.Errorf("%w: %w", err, waited)
	}
	if line, _, _ := bytes.Cut(said.kept, []byte("\n")); len(line) > 0 {
		err = fmt.Errorf("%w: %q", err, line)
	}
	return err
}

// firstBytes keeps the beginning of what is written to it.
type firstBytes struct{ kept []byte }

// Write implements [io.Writer].
func (f *firstBytes) Write(p []byte) (int, error) {
	f.kept = append(f.kept, p[:min(len(p), 512-len(f.kept))]...)
	return len(p), nil
}
