//go:build unix

package redistest

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// process is a child of this one, reaped as soon as it ends.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has been reaped
	err  error         // how it ended; read it after done
}

// run starts cmd in a process group of its own (a Ctrl-C at the terminal ends the tests, whose end ends the server)
// and reaps it.
//
// The goroutine that starts the child keeps its OS thread for as long as the child lives. Linux sends the parent-death
// signal when the *thread* that made the child ends, not the process (prctl(2), PR_SET_PDEATHSIG), and the Go runtime
// ends threads: one whose goroutine was locked to it and returned. Held like this, the thread ends with the process
// only, be it by os.Exit, a panic or SIGKILL.
func run(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = attributes()
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// signal sends sig to this process alone; os.ErrProcessDone when it has ended.
func (p *process) signal(sig syscall.Signal) error {
	select {
	case <-p.done:
		return os.ErrProcessDone
	default:
		return p.cmd.Process.Signal(sig)
	}
}
