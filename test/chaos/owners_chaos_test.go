//go:build linux && chaos

package chaos

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// owners tells which replica of the service a connection is from. To Redis, and to
// the links, all are 127.0.0.1; the kernel knows whose the sockets are.
type owners struct {
	mu    sync.Mutex
	pids  map[Peer]int
	known map[uint32]Peer // by inode
}

func (o *owners) set(p Peer, pid int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.pids == nil {
		o.pids = map[Peer]int{}
	}
	o.pids[p], o.known = pid, nil
}

// of looks up which replica has the client's end of a connection. A look through all
// files of all replicas, which takes milliseconds, tells of all their connections.
func (o *owners) of(from, to int) Peer {
	inode, err := inodeOf(from, to)
	if err != nil {
		return Node // it is over already
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if p, ok := o.known[inode]; ok {
		return p
	}
	if o.known == nil {
		o.known = map[uint32]Peer{}
	}
	o.known[inode] = Node
	for p, pid := range o.pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // the process has ended
		}
		for _, fd := range fds {
			link, _ := os.Readlink(filepath.Join(dir, fd.Name())) // one that is gone is none
			number, _ := strings.CutPrefix(link, "socket:[")
			if socket, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 32); err == nil {
				o.known[uint32(socket)] = p
			}
		}
	}
	return o.known[inode]
}

// inodeOf asks the kernel for the socket of the connection between two ports of
// 127.0.0.1 (sock_diag(7)). /proc/net/tcp would tell too, after listing them all.
func inodeOf(from, to int) (uint32, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	const header, request = unix.NLMSG_HDRLEN, 56 // struct inet_diag_req_v2
	b := make([]byte, header+request)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	q := b[header:]
	q[0], q[1] = unix.AF_INET, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(q[4:], ^uint32(0)) // in any state
	binary.BigEndian.PutUint16(q[8:], uint16(from))
	binary.BigEndian.PutUint16(q[10:], uint16(to))
	copy(q[12:], []byte{127, 0, 0, 1})
	copy(q[28:], []byte{127, 0, 0, 1})
	binary.NativeEndian.PutUint64(q[48:], ^uint64(0)) // no cookie
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	reply := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, reply, 0)
	if err != nil {
		return 0, err
	}
	const inode = header + 68 // in struct inet_diag_msg
	if n < inode+4 || binary.NativeEndian.Uint16(reply[4:]) != unix.SOCK_DIAG_BY_FAMILY {
		return 0, unix.ENOENT
	}
	return binary.NativeEndian.Uint32(reply[inode:]), nil
}

// A partition of one replica must be one of that replica.
func TestOwnersOfConnections(t *testing.T) {
	addr, _ := echo(t)
	o := &owners{}
	seen := make(chan Peer, 1)
	l, err := NewLink(func() string { return addr }, func(from, to int) Peer {
		p := o.of(from, to)
		seen <- p
		return p
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	l.Cut(99) // else nobody asks
	for _, tt := range []struct {
		pid  int
		want Peer
	}{{os.Getppid(), Node}, {os.Getpid(), 3}} {
		o.set(3, tt.pid)
		c := dialLink(t, l)
		c.say(t, "a")
		if got := <-seen; got != tt.want {
			t.Errorf("a connection of process %d is from %d, not %d", tt.pid, got, tt.want)
		}
		c.hear(t, "a")
	}
}
