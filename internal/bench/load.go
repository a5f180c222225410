package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/latchkey-auth/latchkey/internal/terminal"
)

// session is one login: what a client keeps.
type session struct{ access, refresh string }

// runner runs the phases one after the other.
type runner struct {
	Options
	client   *http.Client
	sessions []session        // without those whose login failed
	refused  map[string][]int // the lines of --users whose login failed, by reason
	phases   []*phase
	shown    int          // tokens shown again at the end
	accepted int          // of these, still accepted
	unclear  int          // of these, neither accepted nor refused
	again    atomic.Int64 // requests that were sent again after a 503
}

// phase is one kind of request, and how it went.
type phase struct {
	name   string
	took   time.Duration
	mu     sync.Mutex
	times  *hdrhistogram.Histogram // microseconds, to three digits
	failed map[string]int64        // by reason
}

const (
	requestTimeout = 10 * time.Second
	// maxLogins is how many log in at once: a password's hash takes a CPU of the
	// server, and more logins would only wait for one, and some in vain.
	maxLogins = 4
)

func newRunner(o Options) *runner {
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: o.Parallel, DisableCompression: true,
		TLSHandshakeTimeout: requestTimeout, DialContext: (&net.Dialer{Timeout: requestTimeout}).DialContext,
	}
	return &runner{Options: o, refused: map[string][]int{}, client: &http.Client{
		Transport: t, Timeout: requestTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// run loads the URLs. An error says why there is nothing to show.
func (b *runner) run(ctx context.Context) error {
	first, err := b.logIn(ctx, b.URLs[0], b.Users[0])
	if err != nil && b.cutShort(ctx) != nil {
		return b.cutShort(ctx)
	}
	if err != nil {
		return fmt.Errorf("the first login, of %s at %s, did not work: %w%s", b.Users[0], b.URLs[0], err, throttled(err))
	}
	var kept sync.Mutex
	b.phase(ctx, "log in", min(b.Parallel, maxLogins), b.Sessions, 0, func(ctx context.Context, n int) error {
		user := b.Users[n%len(b.Users)]
		s, err := b.logIn(ctx, b.at(n), user)
		kept.Lock()
		defer kept.Unlock()
		switch {
		case err == nil:
			b.sessions = append(b.sessions, s)
		case ctx.Err() == nil && user.Line > 0:
			b.refused[err.Error()] = append(b.refused[err.Error()], user.Line)
		}
		return err
	})
	for reason, lines := range b.refused {
		b.refused[reason] = slices.Compact(slices.Sorted(slices.Values(lines)))
	}
	if ctx.Err() == nil && len(b.sessions) > 0 {
		b.phase(ctx, "verify", b.Parallel, 0, b.Duration, func(ctx context.Context, n int) error {
			_, err := b.ask(ctx, http.MethodGet, b.at(n)+"/auth/verify", nil, b.sessions[n%len(b.sessions)].access, http.StatusNoContent)
			return err
		})
		b.refresh(ctx)
		b.phase(ctx, "log out", b.Parallel, len(b.sessions), 0, func(ctx context.Context, n int) error {
			s := &b.sessions[n]
			_, err := b.ask(ctx, http.MethodPost, b.at(n)+"/auth/logout", url.Values{"refresh_token": {s.refresh}}, s.access, http.StatusOK)
			return err
		})
		b.showAgain(ctx)
	}
	// The login that tried things out; what becomes of it is nobody's figure.
	_, _ = b.ask(context.WithoutCancel(ctx), http.MethodPost, b.URLs[0]+"/auth/logout", url.Values{"refresh_token": {first.refresh}}, first.access, http.StatusOK)
	return b.cutShort(ctx)
}

// cutShort tells why the run ended early, if it did. It goes by the clock: a socket may
// see the deadline before the context does.
func (b *runner) cutShort(ctx context.Context) error {
	end, limited := ctx.Deadline()
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return errors.New("interrupted; sessions that were logged in end by themselves, or with: latchkey session revoke")
	case limited && !time.Now().Before(end):
		return fmt.Errorf("--timeout %s was over before the end: take fewer --sessions, a shorter --duration, or more time", b.Timeout)
	}
	return nil
}

// at spreads requests over the URLs.
func (b *runner) at(n int) string { return b.URLs[n%len(b.URLs)] }

// phase runs a request again and again, by some clients at once: count times, or
// else for a duration.
func (b *runner) phase(ctx context.Context, name string, parallel, count int, d time.Duration, request func(ctx context.Context, n int) error) {
	if ctx.Err() != nil {
		return
	}
	p := &phase{name: name, times: hdrhistogram.New(1, requestTimeout.Microseconds()*2, 3), failed: map[string]int64{}}
	b.phases = append(b.phases, p)
	began := time.Now()
	var next, done atomic.Int64
	shown := b.progress(name, func() (share, perSecond float64) {
		took, n := time.Since(began), float64(done.Load())
		if count > 0 {
			return n / float64(count), n / took.Seconds()
		}
		return took.Seconds() / d.Seconds(), n / took.Seconds()
	})
	var clients sync.WaitGroup
	for range parallel {
		clients.Go(func() {
			for ctx.Err() == nil {
				n := int(next.Add(1)) - 1
				if count > 0 && n >= count || count == 0 && time.Since(began) >= d {
					return
				}
				start := time.Now()
				err := request(ctx, n)
				if ctx.Err() == nil { // what was cut short tells nothing
					p.note(time.Since(start), err)
				}
				done.Add(1)
			}
		})
	}
	clients.Wait()
	p.took = time.Since(began)
	shown()
}

// refresh has each session refreshed by one client at a time, as its owner does.
func (b *runner) refresh(ctx context.Context) {
	idle := make(chan int, len(b.sessions))
	for i := range b.sessions {
		idle <- i
	}
	b.phase(ctx, "refresh", b.Parallel, 0, b.Duration, func(ctx context.Context, n int) error {
		var i int
		select {
		case i = <-idle:
		case <-ctx.Done():
			return ctx.Err()
		}
		defer func() { idle <- i }()
		s, err := b.grant(ctx, b.at(n)+"/auth/refresh", url.Values{"refresh_token": {b.sessions[i].refresh}})
		if err == nil {
			b.sessions[i] = s
		}
		return err
	})
}

// showAgain shows every token to every URL after its logout.
func (b *runner) showAgain(ctx context.Context) {
	var clients sync.WaitGroup
	var mu sync.Mutex
	jobs := make(chan [2]string)
	for range b.Parallel {
		clients.Go(func() {
			for j := range jobs {
				status, err := b.ask(ctx, http.MethodGet, j[0]+"/auth/verify", nil, j[1], http.StatusUnauthorized)
				mu.Lock()
				b.shown++
				switch {
				case status == http.StatusNoContent:
					b.accepted++
				case err != nil:
					b.unclear++
				}
				mu.Unlock()
			}
		})
	}
	for _, s := range b.sessions {
		for _, u := range b.URLs {
			jobs <- [2]string{u, s.access}
		}
	}
	close(jobs)
	clients.Wait()
}

func (b *runner) logIn(ctx context.Context, base string, u User) (session, error) {
	return b.grant(ctx, base+"/auth/token", url.Values{"username": {u.Name}, "password": {u.Password}, "refresh_delivery": {"body"}})
}

// grant sends a request that is answered with tokens.
func (b *runner) grant(ctx context.Context, target string, form url.Values) (session, error) {
	var s session
	body, _, err := b.send(ctx, http.MethodPost, target, form, "", http.StatusOK)
	if err != nil {
		return s, err
	}
	var g struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
	}
	if err := json.Unmarshal(body, &g); err != nil || g.Access == "" || g.Refresh == "" {
		return s, errors.New("the answer holds no tokens: is this Latchkey?")
	}
	return session{g.Access, g.Refresh}, nil
}

func (b *runner) ask(ctx context.Context, method, target string, form url.Values, bearer string, want int) (int, error) {
	_, status, err := b.send(ctx, method, target, form, bearer, want)
	return status, err
}

// maxTries is how often a request is sent that is answered 503 each time.
const maxTries = 5

// send sends a request, and once more after each 503 that says when (RFC 9110, section
// 10.2.3), as a client should. It returns the body and the status. Any status but the one
// wanted is an error, whose text is short and the same for the same reason.
func (b *runner) send(ctx context.Context, method, target string, form url.Values, bearer string, want int) ([]byte, int, error) {
	for tries := 1; ; tries++ {
		body, status, err := b.sendOnce(ctx, method, target, form, bearer, want)
		wait, ok := retryAfter(err)
		if !ok || tries == maxTries {
			return body, status, err
		}
		select {
		case <-time.After(wait):
			b.again.Add(1)
		case <-ctx.Done():
			return nil, status, err
		}
	}
}

// retryAfter tells whether an error is a 503 that may be sent again, and when.
func retryAfter(err error) (time.Duration, bool) {
	var e *refusal
	if !errors.As(err, &e) || e.status != http.StatusServiceUnavailable {
		return 0, false
	}
	seconds, err := strconv.Atoi(e.retryAfter)
	return time.Duration(seconds) * time.Second, err == nil && seconds >= 0 && seconds <= int(requestTimeout.Seconds())
}

func (b *runner) sendOnce(ctx context.Context, method, target string, form url.Values, bearer string, want int) ([]byte, int, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, 0, err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return nil, 0, terminal.NetError(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, resp.StatusCode, terminal.NetError(err)
	}
	if resp.StatusCode != want {
		refusal := &refusal{status: resp.StatusCode, retryAfter: resp.Header.Get("Retry-After")}
		_ = json.Unmarshal(body, refusal) // not every answer is ours
		return nil, resp.StatusCode, refusal
	}
	return body, resp.StatusCode, nil
}

// refusal is an answer that is not the one wanted.
type refusal struct {
	Detail     string
	status     int
	retryAfter string // seconds
}

func (e *refusal) Error() string {
	return strings.TrimRight(fmt.Sprintf("%d %s", e.status, e.Detail), " ")
}

// throttled says what to do about an error, if it is that too many logins failed
// before; else it is empty.
func throttled(err error) string {
	var e *refusal
	if !errors.As(err, &e) || e.status != http.StatusTooManyRequests {
		return ""
	}
	return fmt.Sprintf("; too many logins of this account or from this address failed before: try again in %s s", cmp.Or(e.retryAfter, "some"))
}

// note counts one request.
func (p *phase) note(took time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.failed[err.Error()]++
		return
	}
	_ = p.times.RecordValue(max(1, min(took.Microseconds(), p.times.HighestTrackableValue())))
}

// failures is how many requests of the phase failed.
func (p *phase) failures() int64 {
	var n int64
	for _, k := range p.failed {
		n += k
	}
	return n
}

// faults is how much of what was done is not as it should be.
func (b *runner) faults() int64 {
	n := int64(b.accepted + b.unclear)
	for _, p := range b.phases {
		n += p.failures()
	}
	return n
}
