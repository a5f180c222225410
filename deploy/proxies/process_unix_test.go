//go:build unix && !linux

package proxies_test

import "syscall"

// attributes of a child: a group of its own.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
