package replica

import (
	"errors"
	"net"
	"testing"
)

func TestAClosedListenerForgetsNobody(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := acceptBeforeClose(tcp)
	const callers = 5
	for i := range callers {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := c.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // twice, as the replica does
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[byte]bool{}
	for range callers {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1)
		if _, err := c.Read(b); err != nil {
			t.Errorf("a connection is lost: %v", err)
		}
		seen[b[0]] = true
		_ = c.Close()
	}
	if len(seen) != callers {
		t.Errorf("%d of %d callers", len(seen), callers)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the last: %v, want net.ErrClosed", err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("the listener is open")
	}
}
