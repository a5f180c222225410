//go:build unix

package loadbalancers_test

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// burstGrace is long: a burst on a busy machine must not outlast it.
const burstGrace = time.Minute

// TestBursts: the requests of one client meet a 401 at once, and each refreshes by
// itself. However many there are and in whatever order they arrive, through nginx with
// TLS over three replicas, all of them go on, and the session rotates once. A copy of
// the token from before is a theft once the grace is over. BURSTS says how many bursts of
// each size there are.
func TestBursts(t *testing.T) {
	t.Parallel()
	bursts, err := strconv.Atoi(cmp.Or(os.Getenv("BURSTS"), "1"))
	if err != nil {
		t.Fatalf("BURSTS: %v", err)
	}
	server, certs := redistest.Start(t), redistest.NewCertificates(t)
	fleet := stacktest.NewFleet(
		t, stacktest.Build(t, "../.."), 3, server.URL(),
		"LATCHKEY_TRUSTED_PROXIES=127.0.0.1", "LATCHKEY_COOKIE_SECURE=true", "LATCHKEY_REFRESH_GRACE="+burstGrace.String(),
		"LATCHKEY_PASSWORD_MEMORY=7168", "LATCHKEY_PASSWORD_ITERATIONS=1", "LATCHKEY_REDIS_TIMEOUT=5s", "LATCHKEY_LOG_LEVEL=error",
	)
	fleet.Command(t, password+"\n", "user", "add", username(0))
	b := &burster{T: t, rdb: server.Client(), front: "https://" + stacktest.NginxTLS(t, "nginx.conf", fleet.Backends(), certs.ServerCertFile, certs.ServerKeyFile)}
	for _, h2 := range []bool{false, true} {
		transport := &http.Transport{TLSClientConfig: certs.Client.Clone(), MaxIdleConnsPerHost: 200, MaxConnsPerHost: 200, ForceAttemptHTTP2: h2}
		t.Cleanup(transport.CloseIdleConnections)
		b.http = append(b.http, &http.Client{Transport: transport, Timeout: time.Minute})
	}
	gone, err := b.login(newHolder(t, false))
	b.check(err)
	b.check(client{b.http[0]}.logout(t.Context(), b.front, gone))
	b.refused = gone

	for _, cookies := range []bool{true, false} {
		for _, size := range []int{4, 16, 50, 200} {
			lost, unseen := 0, 0
			for range bursts {
				stole, found := b.burst(size, cookies)
				if !stole {
					lost++
				}
				if !found {
					unseen++
				}
			}
			t.Logf("by cookie %-5t: %d bursts of %3d: %d sessions lost, %d thefts not found", cookies, bursts, size, lost, unseen)
			if lost > 0 || unseen > 0 {
				t.Errorf("by cookie %t, bursts of %d: %d of %d sessions lost, %d thefts not found", cookies, size, lost, bursts, unseen)
			}
		}
	}
	reuses := 0
	for _, r := range fleet.Replicas {
		reuses += b.reuses(r)
	}
	if want := 2 * 4 * bursts; reuses != want {
		t.Errorf("%d reuses were counted, want %d: one theft of each session", reuses, want)
	}
}

type burster struct {
	*testing.T
	rdb     *redis.Client
	front   string
	http    []*http.Client // of HTTP/1.1, of HTTP/2
	refused string         // an access token that is refused
}

func (b *burster) check(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// holder is what all requests of one client share: a browser's cookies, or a variable.
type holder struct {
	jar http.CookieJar // nil: the token is in the body

	mu    sync.Mutex
	token string
}

func newHolder(t *testing.T, cookies bool) *holder {
	t.Helper()
	h := &holder{}
	if cookies {
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		h.jar = jar
	}
	return h
}

// request is a POST with the refresh token that the client holds now.
func (b *burster) request(ctx context.Context, h *holder, path string, form url.Values) (*http.Request, error) {
	h.mu.Lock()
	if h.jar == nil && h.token != "" {
		form.Set("refresh_token", h.token)
	}
	h.mu.Unlock()
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, b.front+path, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if h.jar != nil {
		for _, c := range h.jar.Cookies(q.URL) {
			q.AddCookie(c)
		}
	}
	return q, nil
}

// exchange sends a request and stores the refresh token of the answer.
func (b *burster) exchange(q *http.Request, h *holder) (access, refresh string, err error) {
	c := b.http[0]
	if h.jar != nil {
		c = b.http[1]
	}
	a, err := c.Do(q)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = a.Body.Close() }()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		return "", "", err
	}
	if a.StatusCode != http.StatusOK {
		return "", "", &unexpected{q.URL.Path, answer{status: a.StatusCode, header: a.Header, Error: string(text)}}
	}
	var got answer
	if err := json.Unmarshal(text, &got); err != nil {
		return "", "", err
	}
	if h.jar == nil {
		h.mu.Lock()
		h.token = got.Next
		h.mu.Unlock()
		return got.Access, got.Next, nil
	}
	h.jar.SetCookies(q.URL, a.Cookies())
	for _, set := range a.Cookies() {
		if strings.HasPrefix(set.Value, "lkr1_") {
			return got.Access, set.Value, nil
		}
	}
	return "", "", errors.New("no refresh cookie was set")
}

func (b *burster) login(h *holder) (access string, err error) {
	form := url.Values{"username": {username(0)}, "password": {password}}
	if h.jar == nil {
		form.Set("refresh_delivery", "body")
	}
	q, err := b.request(b.Context(), h, "/auth/token", form)
	if err != nil {
		return "", err
	}
	access, _, err = b.exchange(q, h)
	return access, err
}

// burst has n requests of a new session refresh, and tells whether the session is still
// alive, and whether a copy of its first refresh token ends it once the grace is over.
func (b *burster) burst(n int, cookies bool) (lives, found bool) {
	b.Helper()
	ctx, h := b.Context(), newHolder(b.T, cookies)
	in, err := b.login(h)
	b.check(err)
	copied, err := b.request(ctx, h, "/auth/refresh", url.Values{})
	b.check(err)

	var answered atomic.Int64
	after := make([]chan struct{}, n+1) // after[i] is closed when i refreshes have been answered
	for i := range after {
		after[i] = make(chan struct{})
	}
	close(after[0])
	tokens := make([]string, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		// Half of the requests meet their 401 at once and refresh. Of the others some
		// meet it late, when a refresh has been answered and stored; some have read what
		// the client holds, and are held up on their way until others were answered.
		meets, arrives := 0, 0
		switch i % 8 {
		case 2, 5:
			meets = 1
		case 3, 6:
			arrives = min(n/2, 2+i%5)
		case 7:
			meets, arrives = 1, n/3
		}
		wg.Go(func() {
			defer func() { close(after[answered.Add(1)]) }()
			tokens[i], errs[i] = b.meet401(ctx, h, after[meets], after[arrives])
		})
	}
	wg.Wait()
	lives = true
	for i := range n {
		if errs[i] != nil || tokens[i] != tokens[0] {
			b.Logf("request %d of %d: %v", i, n, errs[i])
			lives = false
		}
	}
	// The grace passes; the client refreshes, and then somebody shows the copy.
	b.check(b.rdb.HIncrBy(ctx, sessionKey(b.T, in), "rot", -(burstGrace + time.Second).Milliseconds()).Err())
	q, err := b.request(ctx, h, "/auth/refresh", url.Values{})
	b.check(err)
	if _, _, err := b.exchange(q, h); err != nil {
		b.Logf("the client afterwards: %v", err)
		lives = false
	}
	_, _, thief := b.exchange(copied, newHolder(b.T, cookies))
	q, err = b.request(ctx, h, "/auth/refresh", url.Values{})
	b.check(err)
	_, _, owner := b.exchange(q, h)
	return lives, isStatus(thief, http.StatusUnauthorized) && isStatus(owner, http.StatusUnauthorized)
}

// meet401 is one request: it is refused, refreshes, and is made again. meets is closed
// when the refusal arrives, and arrives when the refresh is sent on.
func (b *burster) meet401(ctx context.Context, h *holder, meets, arrives <-chan struct{}) (refresh string, err error) {
	c := client{b.http[0]}
	if h.jar != nil {
		c = client{b.http[1]}
	}
	if err := c.verify(ctx, http.StatusUnauthorized, b.front, b.refused); err != nil {
		return "", err
	}
	<-meets
	q, err := b.request(ctx, h, "/auth/refresh", url.Values{})
	if err != nil {
		return "", err
	}
	<-arrives
	access, refresh, err := b.exchange(q, h)
	if err != nil {
		return "", err
	}
	return refresh, c.verify(ctx, http.StatusNoContent, b.front, access)
}

func isStatus(err error, status int) bool {
	var u *unexpected
	return errors.As(err, &u) && u.status == status
}

// sessionKey names the key of an access token's session in Redis.
func sessionKey(t *testing.T, access string) string {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(access, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims struct{ SID string }
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	sid, err := base64.RawURLEncoding.DecodeString(claims.SID)
	if err != nil || len(sid) == 0 {
		t.Fatalf("the sid %q: %v", claims.SID, err)
	}
	return fmt.Sprintf("lk:{%d}:rt:%s", sid[0], claims.SID)
}

// reuses is how many thefts a replica has counted.
func (b *burster) reuses(r *stacktest.Replica) int {
	b.Helper()
	q, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://"+r.Admin+"/metrics", http.NoBody)
	b.check(err)
	a, err := b.http[0].Do(q)
	b.check(err)
	defer func() { _ = a.Body.Close() }()
	text, err := io.ReadAll(a.Body)
	b.check(err)
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(line, `latchkey_refreshes_total{outcome="reuse"} `); ok {
			f, err := strconv.ParseFloat(strings.TrimSpace(n), 64)
			b.check(err)
			return int(f)
		}
	}
	return 0
}
