//go:build unix && !linux

package stacktest

import "syscall"

// attributes of a child: a group of its own.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
