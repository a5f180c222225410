package chaos

import (
	"bufio"
	"context"
	"net"
	"testing"
	"time"
)

// echo answers each line with itself, until the test ends or it is killed.
func echo(t *testing.T) (addr string, kill func()) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(ctx, func() { _ = c.Close() })
			go func() {
				for in := bufio.NewReader(c); ; {
					line, err := in.ReadString('\n')
					if err != nil {
						return
					}
					_, _ = c.Write([]byte(line))
				}
			}()
		}
	}()
	kill = func() { cancel(); _ = l.Close() }
	t.Cleanup(kill)
	return l.Addr().String(), kill
}

// call is a connection over a link, and what comes back on it.
type call struct {
	net.Conn
	lines chan string
}

func newLink(t *testing.T, addr string) (*Link, func() call) {
	t.Helper()
	l, err := NewLink(func() string { return addr }, func(int, int) Peer { return 1 })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l, func() call { return dialLink(t, l) }
}

func dialLink(t *testing.T, l *Link) call {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	lines := make(chan string, 10)
	go func() {
		defer close(lines)
		for in := bufio.NewReader(c); ; {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			lines <- line
		}
	}()
	return call{c, lines}
}

func (c call) say(t *testing.T, line string) {
	t.Helper()
	if _, err := c.Write([]byte(line + "\n")); err != nil {
		t.Fatal(err)
	}
}

func (c call) hear(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-c.lines:
		if got != want+"\n" {
			t.Errorf("heard %q, not %q", got, want)
		}
	case <-time.After(2 * time.Minute):
		t.Fatalf("%q does not arrive", want)
	}
}

func (c call) silent(t *testing.T) {
	t.Helper()
	select {
	case got, ok := <-c.lines:
		t.Errorf("heard %q (%v)", got, ok)
	case <-time.After(50 * time.Millisecond):
	}
}

func TestALinkThatIsCutLosesNothingWhenItHeals(t *testing.T) {
	t.Parallel()
	addr, _ := echo(t)
	l, dial := newLink(t, addr)
	old := dial()
	old.say(t, "a")
	old.hear(t, "a")
	l.Cut(1)
	old.say(t, "b")
	young := dial()
	young.say(t, "c")
	old.silent(t)
	young.silent(t)
	l.Heal()
	old.hear(t, "b")
	young.hear(t, "c")
}

// A command that its client gave up is carried out all the same: that is what
// makes it dangerous.
func TestALinkThatIsCutDeliversWhatItsClientGaveUp(t *testing.T) {
	t.Parallel()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	link, dial := newLink(t, l.Addr().String())
	link.Cut(1)
	c := dial()
	c.say(t, "a")
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(server).ReadString('\n')
		heard <- line
	}()
	_ = c.Close()
	select {
	case line := <-heard:
		t.Fatalf("heard %q over a link that is cut", line)
	case <-time.After(50 * time.Millisecond):
	}
	link.Heal()
	select {
	case line := <-heard:
		if line != "a\n" {
			t.Errorf("heard %q", line)
		}
	case <-time.After(2 * time.Minute):
		t.Error("it does not arrive")
	}
}

func TestALinkIsCutForOnePeerAlone(t *testing.T) {
	t.Parallel()
	addr, _ := echo(t)
	l, dial := newLink(t, addr)
	l.Cut(Node)
	l.Cut(2)
	c := dial()
	c.say(t, "a")
	c.hear(t, "a")
}

func TestASlowLinkLosesWhatIsUnderWayWhenTheServerDies(t *testing.T) {
	t.Parallel()
	addr, kill := echo(t)
	l, dial := newLink(t, addr)
	c := dial()
	l.Slow(1, 30*time.Millisecond)
	began := time.Now()
	c.say(t, "a")
	c.hear(t, "a")
	if took := time.Since(began); took < 30*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	l.Slow(1, time.Hour)
	c.say(t, "b")
	c.silent(t)
	kill()
	select {
	case got, ok := <-c.lines:
		if ok {
			t.Errorf("heard %q", got)
		}
	case <-time.After(2 * time.Minute):
		t.Error("the connection does not end with the server")
	}
}

// Whoever heals the links at once after a server's death must not deliver what died
// with it.
func TestWhatIsDroppedStaysLostWhenTheLinkHeals(t *testing.T) {
	t.Parallel()
	addr, _ := echo(t)
	l, dial := newLink(t, addr)
	for range 20 {
		c := dial()
		c.say(t, "a")
		c.hear(t, "a")
		l.Slow(1, time.Hour)
		c.say(t, "b")
		l.Drop()
		l.Heal()
		select {
		case got, ok := <-c.lines:
			if ok {
				t.Fatalf("heard %q", got)
			}
		case <-time.After(2 * time.Minute):
			t.Fatal("the connection does not end")
		}
	}
}
