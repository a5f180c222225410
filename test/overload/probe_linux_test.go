package overload

import (
	"bytes"
	"context"
	"net/netip"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// probe asks a hundred times a second, on one connection, until the function is called
// that it returns. Its thread is preferred to all others, where that is allowed (to
// root), and waits in the kernel: what it sees is the replica's time and no client's.
func probe(t *testing.T, addr, request string) func() *times {
	t.Helper()
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	seen := &times{}
	go func() {
		defer close(ended)
		defer func() { _ = unix.Close(fd) }()
		runtime.LockOSThread() // and never unlocked: the thread ends with its priority
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -20)
		out, in := []byte(request), make([]byte, 4096)
		for ctx.Err() == nil {
			begun := time.Now()
			if n, err := unix.Write(fd, out); err != nil || n < len(out) {
				t.Errorf("the probe's request: %d bytes, %v", n, err)
				return
			}
			// Raw: Go would give the thread's turn away, and have it wait for another.
			n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&in[0])), uintptr(len(in))) //nolint:gosec // as read(2) wants it
			took := time.Since(begun)
			if errno != 0 || !bytes.HasPrefix(in[:n], []byte("HTTP/1.1 204")) || !bytes.HasSuffix(in[:n], []byte("\r\n\r\n")) {
				t.Errorf("the probe's answer: %q, %v", in[:n], errno)
				return
			}
			seen.add(took)
			pause := unix.NsecToTimespec(int64(10 * time.Millisecond))
			_ = unix.Nanosleep(&pause, nil)
		}
	}()
	return func() *times {
		cancel()
		<-ended
		return seen
	}
}
