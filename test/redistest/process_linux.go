package redistest

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// cldStopped is CLD_STOPPED of <signal.h>, which no Go package has: si_code of a child that a signal stopped.
const cldStopped = 5

// attributes of a child: its own group, and killed when this process ends without its cleanups having run.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// awaitStopped returns when the kernel has stopped the process: kill(2) only asks for it. WNOWAIT leaves the event,
// and the reaping, to others.
func (p *process) awaitStopped() error {
	var info unix.Siginfo
	err := error(unix.EINTR)
	for errors.Is(err, unix.EINTR) {
		err = unix.Waitid(unix.P_PID, p.pid(), &info, unix.WEXITED|unix.WSTOPPED|unix.WNOWAIT, nil)
	}
	if err != nil {
		return fmt.Errorf("waiting for process %d to stop: %w", p.pid(), err)
	}
	if info.Code != cldStopped {
		return os.ErrProcessDone
	}
	return nil
}
