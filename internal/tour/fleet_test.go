package tour

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/internal/terminal"
)

// These tests are not parallel: each sets the process's one go-redis logger.

// noLeaks fails the test if it leaves goroutines behind.
func noLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

// wholeToken matches an access or a refresh token that was printed in full, or
// enough of one to matter.
var wholeToken = regexp.MustCompile(`eyJ[\w-]{16,}|lkr1_[\w-]{16,}|[\w-]{40,}`)

func TestDevVerboseShowsTheLog(t *testing.T) {
	noLeaks(t)
	var out, log bytes.Buffer
	if err := Run(t.Context(), Options{Addr: "127.0.0.1:0", Replicas: 3, Exit: true, Verbose: true, Out: &out, Log: &log}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "event=logout") || !strings.Contains(log.String(), "replica=C") {
		t.Errorf("the log does not tell of the logout at replica C: %s", &log)
	}
	if found := wholeToken.FindString(log.String()); found != "" {
		t.Errorf("the log shows a token: %s", found)
	}
}

// openFleet starts a fleet on free ports.
func openFleet(t *testing.T, o Options) *Fleet {
	t.Helper()
	o.Addr, o.Replicas = "127.0.0.1:0", 3
	f, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return f
}

// A step that fails ends the tour, is shown with what the replicas logged, and
// makes the exit status 1.
func TestDevFailingStep(t *testing.T) {
	noLeaks(t)
	var out, log bytes.Buffer
	o := Options{Exit: true, Out: &out, Log: &log}
	f := openFleet(t, o)
	f.redis.SetError("LOADING Redis is loading the dataset in memory")
	err := f.present(o)
	if !errors.Is(err, ErrFailed) {
		t.Fatalf("got error %v, want the one that makes the exit status 1", err)
	}
	text := out.String()
	if !strings.Contains(text, "✗ replica A answered 503 and not 200") || !strings.Contains(text, "The tour failed: step 1") {
		t.Errorf("the failure is not shown:\n%s", text)
	}
	if strings.Contains(text, "2  Show") {
		t.Errorf("the tour went on after a step had failed:\n%s", text)
	}
	if !strings.Contains(log.String(), "LOADING") {
		t.Errorf("the log does not tell the cause: %q", &log)
	}
}

// The tour is a test of the promise, not a show: if the logout is left out, the
// step that follows it fails.
func TestTourNoticesALogoutThatDidNotHappen(t *testing.T) {
	noLeaks(t)
	var out bytes.Buffer
	f := openFleet(t, Options{Log: &out})
	tr := newTour(f, &terminal.Printer{W: &out})
	for _, s := range tr.steps() {
		if strings.HasPrefix(s.title, "Log out") {
			continue
		}
		_, err := tr.perform(t.Context(), s)
		if strings.HasPrefix(s.title, "Show the access token to every") {
			if err == nil || !strings.Contains(err.Error(), "answered 200 and not 401") {
				t.Fatalf("%s: got %v, want a failure\n%s", s.title, err, &out)
			}
			if _, err := tr.keysEnded(t.Context(), nil); err == nil {
				t.Error("the refresh key of a living session passes for deleted")
			}
			return
		}
		if err != nil {
			t.Fatalf("%s: %v\n%s", s.title, err, &out)
		}
	}
	t.Fatal("the tour has no step that shows the access token after the logout")
}

// signalled tells when a text has been written.
type signalled struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	want string
	seen chan struct{}
}

func (s *signalled) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := strings.Contains(s.buf.String(), s.want)
	n, err := s.buf.Write(p)
	if !before && strings.Contains(s.buf.String(), s.want) {
		close(s.seen)
	}
	return n, err
}

func (s *signalled) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// Without --exit the replicas go on serving, and an interrupt ends them in order.
func TestDevServesUntilInterrupted(t *testing.T) {
	noLeaks(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out := &signalled{want: "Serving until Ctrl-C", seen: make(chan struct{})}
	log := &signalled{want: "event=login", seen: make(chan struct{})}
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{Addr: "127.0.0.1:0", Replicas: 2, Out: out, Log: log})
	}()
	select {
	case <-out.seen:
	case err := <-ended:
		t.Fatalf("dev ended: %v\n%s", err, out)
	}
	base := regexp.MustCompile(`replica B +(http://\S+)`).FindStringSubmatch(out.String())
	if base == nil {
		t.Fatalf("where replica B is does not show:\n%s", out)
	}
	wire := &http.Transport{DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base[1]+"/auth/token",
		strings.NewReader(url.Values{"username": {"johndoe"}, "password": {"secret"}}.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := wire.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("login after the tour: %d", resp.StatusCode)
	}
	<-log.seen // what happens after the tour is shown
	interrupt()
	if err := <-ended; err != nil {
		t.Errorf("after an interrupt dev returned %v", err)
	}
}

func TestDevAddressInUse(t *testing.T) {
	noLeaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var out bytes.Buffer
	err = Run(t.Context(), Options{Addr: l.Addr().String(), Replicas: 1, Exit: true, Out: &out, Log: &out})
	if err == nil || !strings.Contains(err.Error(), l.Addr().String()+" is in use") || !strings.Contains(err.Error(), "--addr 127.0.0.1:0") {
		t.Errorf("got %v; want what is in use and what to do", err)
	}
}

func TestDevAddrs(t *testing.T) {
	for _, tt := range []struct {
		first string
		n     int
		want  []string
		fault string
	}{
		{"127.0.0.1:8080", 3, []string{"127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:8082"}, ""},
		{"127.0.0.1:0", 2, []string{"127.0.0.1:0", "127.0.0.1:0"}, ""},
		{"localhost:9000", 1, []string{"localhost:9000"}, ""},
		{"[::1]:9000", 2, []string{"[::1]:9000", "[::1]:9001"}, ""},
		{"127.0.0.1:65535", 1, []string{"127.0.0.1:65535"}, ""},
		{"127.0.0.1:65535", 2, nil, "not ports between"},
		{"127.0.0.1:http", 1, nil, "not ports between"},
		{"127.0.0.1", 1, nil, "write host:port"},
		{":8080", 3, nil, "loopback interface alone"},
		{"0.0.0.0:8080", 3, nil, "loopback interface alone"},
		{"192.0.2.1:8080", 3, nil, "loopback interface alone"},
		{"example.com:8080", 3, nil, "loopback interface alone"},
		{"127.0.0.1:8080", 0, nil, "--replicas 0"},
		{"127.0.0.1:8080", 10, nil, "--replicas 10"},
	} {
		t.Run(fmt.Sprintf("%s x%d", tt.first, tt.n), func(t *testing.T) {
			got, err := devAddrs(tt.first, tt.n)
			if tt.fault != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fault) {
					t.Errorf("got %v, %v; want an error with %q", got, err, tt.fault)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("error %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// The settings of dev are good ones but for the secret, which serve refuses.
func TestDevConfig(t *testing.T) {
	addrs, err := devAddrs("127.0.0.1:8080", 3)
	if err != nil {
		t.Fatal(err)
	}
	cfg := devConfig(addrs, 0, "127.0.0.1:6379")
	if err := cfg.ValidateDev(); err != nil {
		t.Errorf("as settings of dev: %v", err)
	}
	var faults config.Faults
	if err := cfg.Validate(); !errors.As(err, &faults) || len(faults) != 1 || !strings.Contains(err.Error(), "LATCHKEY_SECRET") {
		t.Errorf("as settings of serve: got %v, want the secret to be refused", err)
	}
}

// TTLs of the embedded Redis run by themselves, and by the clock that TIME tells.
func TestDevRedisClock(t *testing.T) {
	noLeaks(t)
	m, err := startRedis()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	c := redis.NewClient(&redis.Options{Addr: m.Addr()})
	defer func() { _ = c.Close() }()
	ctx := t.Context()

	t.Run("by itself", func(t *testing.T) {
		const life = 50 * time.Millisecond
		start, err := c.Time(ctx).Result()
		if err != nil {
			t.Fatal(err)
		}
		if off := time.Since(start).Abs(); off > time.Minute {
			t.Errorf("TIME is %v off this machine's clock", off)
		}
		if err := c.Set(ctx, "brief", "v", life).Err(); err != nil {
			t.Fatal(err)
		}
		for c.Exists(ctx, "brief").Val() == 1 {
			if time.Since(start) > 10*time.Second {
				t.Fatalf("a key of %v is still there after 10 s: TTLs stand still", life)
			}
		}
		end, err := c.Time(ctx).Result()
		if err != nil {
			t.Fatal(err)
		}
		if end.Sub(start) < life {
			t.Errorf("a key of %v was gone after %v", life, end.Sub(start))
		}
	})

	t.Run("with TIME", func(t *testing.T) {
		now := time.Now().Truncate(time.Second)
		m.SetTime(now)
		if err := c.Set(ctx, "session", "v", time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct{ after, left time.Duration }{
			{20 * time.Minute, 40 * time.Minute},
			{time.Hour - time.Second, time.Second},
			{time.Hour, -2}, // gone
		} {
			m.SetTime(now.Add(tt.after))
			told, err := c.Time(ctx).Result()
			if err != nil || !told.Equal(now.Add(tt.after)) {
				t.Errorf("after %v: TIME is %v (%v)", tt.after, told, err)
			}
			if left := c.PTTL(ctx, "session").Val(); left != tt.left {
				t.Errorf("after %v: %v left, want %v", tt.after, left, tt.left)
			}
		}
	})
}
