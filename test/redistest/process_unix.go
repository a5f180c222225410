//go:build unix && !linux

package redistest

import "syscall"

// attributes of a child: its own group. These systems have no parent-death signal: a test binary that is killed
// outright leaves its servers to be ended by hand.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// awaitStopped returns at once: SIGSTOP to a child takes effect before its next instruction in user space.
func (*process) awaitStopped() error { return nil }
