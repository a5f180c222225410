package stacktest

import "syscall"

// attributes of a child: a group of its own, and killed when the thread that
// started it ends, as at the end of a test binary that ran out of time.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
