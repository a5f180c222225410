package handlers_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Each security event, caused once: one line in the log and one count, and
// nobody else's.
func TestSecurityEvents(t *testing.T) {
	t.Parallel()
	login := func(f *fleet, username, password string, o ...option) {
		f.attempt(0, username, password, o...)
	}
	for _, c := range []struct {
		event, series string
		// prepare returns what causes the event.
		prepare func(f *fleet) func()
		want    map[string]any // of the line
	}{
		{"login", `latchkey_logins_total{outcome="ok"}`, func(f *fleet) func() {
			return func() { login(f, alice, password) }
		}, map[string]any{"sub": alice}},
		{"login_failed", `latchkey_logins_total{outcome="failed"}`, func(f *fleet) func() {
			return func() { login(f, alice, "wrong-password") }
		}, map[string]any{"sub": alice, "reason": "password"}},
		{"login_failed", `latchkey_logins_total{outcome="failed"}`, func(f *fleet) func() {
			// What was typed for a name may be a password: it is not repeated.
			f.secrets.add("typed-in-the-wrong-field")
			return func() { login(f, "typed-in-the-wrong-field", "x") }
		}, map[string]any{"sub": nil, "reason": "unknown_user"}},
		{"login_failed", `latchkey_logins_total{outcome="failed"}`, func(f *fleet) func() {
			f.account(tokenstore.Account{Username: "disabled", Disabled: true}, password)
			return func() { login(f, "disabled", password) }
		}, map[string]any{"sub": "disabled", "reason": "disabled"}},
		{"login_throttled", `latchkey_logins_total{outcome="throttled"}`, func(f *fleet) func() {
			for range 2 {
				login(f, "nobody", "wrong-password")
			}
			return func() { login(f, "nobody", "wrong-password") }
		}, nil},
		{"refresh", `latchkey_refreshes_total{outcome="rotated"}`, func(f *fleet) func() {
			s := f.login(0)
			return func() { f.refresh(0, s) }
		}, map[string]any{"sub": alice}},
		{"refresh_same", `latchkey_refreshes_total{outcome="same"}`, func(f *fleet) func() {
			s := f.login(0)
			f.refresh(0, s)
			return func() { f.refresh(0, s) }
		}, map[string]any{"sub": alice}},
		{"refresh_reuse", `latchkey_refreshes_total{outcome="reuse"}`, func(f *fleet) func() {
			s := f.login(0)
			f.rotate(0, f.refresh(0, s))
			return func() { f.post(0, "/auth/refresh", cookie(s.refresh)) }
		}, map[string]any{"level": "WARN"}},
		{"refresh_ambiguous", `latchkey_refreshes_total{outcome="ambiguous"}`, func(f *fleet) func() {
			one, two := f.login(0), f.login(0)
			return func() { f.post(0, "/auth/refresh", cookie(one.refresh), cookie(two.refresh)) }
		}, nil},
		{"refresh_rollback", `latchkey_refreshes_total{outcome="rollback"}`, func(f *fleet) func() {
			s := f.refresh(0, f.login(0))
			f.check(f.rdb.HSet(f.Context(), f.rtKey(s.access), "gen", 1).Err()) // a failover lost the rotation
			return func() {
				f.post(0, "/auth/refresh", cookie(s.refresh)).is(http.StatusUnauthorized)
				f.dead(s)
			}
		}, map[string]any{"level": "WARN"}},
		{"refresh_refused", `latchkey_refreshes_total{outcome="invalid"}`, func(f *fleet) func() {
			return func() { f.post(0, "/auth/refresh", cookie("garbage")) }
		}, map[string]any{"reason": "invalid"}},
		{"refresh_refused", `latchkey_refreshes_total{outcome="expired"}`, func(f *fleet) func() {
			s := f.login(0)
			f.check(f.rdb.Del(f.Context(), f.rtKey(s.access)).Err())
			return func() { f.post(0, "/auth/refresh", cookie(s.refresh)).is(http.StatusUnauthorized) }
		}, map[string]any{"reason": "expired"}},
		{"refresh_refused", `latchkey_refreshes_total{outcome="revoked"}`, func(f *fleet) func() {
			s := f.login(0)
			f.post(0, "/auth/logout", cookie(s.refresh))
			return func() { f.post(0, "/auth/refresh", cookie(s.refresh)).is(http.StatusUnauthorized) }
		}, map[string]any{"reason": "revoked"}},
		{"refresh_refused", `latchkey_refreshes_total{outcome="superseded"}`, func(f *fleet) func() {
			s := f.login(0)
			f.post(0, "/auth/logout-all", bearer(f.login(0).access)).is(http.StatusOK)
			return func() { f.post(0, "/auth/refresh", cookie(s.refresh)).is(http.StatusUnauthorized) }
		}, map[string]any{"reason": "superseded"}},
		{"logout", `latchkey_logouts_total{kind="session"}`, func(f *fleet) func() {
			s := f.login(0)
			return func() { f.post(0, "/auth/logout", cookie(s.refresh), bearer(s.access)) }
		}, nil},
		{"logout_all", `latchkey_logouts_total{kind="all"}`, func(f *fleet) func() {
			s := f.login(0)
			return func() { f.post(0, "/auth/logout-all", bearer(s.access)) }
		}, map[string]any{"sub": alice, "except_current": false}},
		{"session_ended", `latchkey_logouts_total{kind="other"}`, func(f *fleet) func() {
			s, other := f.login(0), f.login(0)
			return func() { f.do(0, http.MethodDelete, "/auth/sessions/"+f.claim(other.access, "sid"), bearer(s.access)) }
		}, map[string]any{"sub": alice}},
		{"password_changed", "", func(f *fleet) func() {
			s := f.login(0)
			f.secrets.add("another-password")
			return func() {
				f.post(0, "/users/me/password", bearer(s.access), form("current_password", password, "new_password", "another-password"))
			}
		}, map[string]any{"sub": alice}},
		{"password_refused", "", func(f *fleet) func() {
			s := f.login(0)
			return func() {
				f.post(0, "/users/me/password", bearer(s.access), form("current_password", "wrong-password", "new_password", "another-password"))
			}
		}, map[string]any{"sub": alice}},
		{"cross_site_refused", "", func(f *fleet) func() {
			return func() { f.post(0, "/auth/logout", header("Sec-Fetch-Site", "cross-site")) }
		}, nil},
	} {
		t.Run(c.event+" "+fmt.Sprint(c.want["reason"]), func(t *testing.T) {
			t.Parallel()
			f := start(t, setup{replicas: 1, mini: true, settings: func(s *handlers.Settings) {
				s.Limits = tokenstore.AttemptLimits{Client: tokenstore.Limit{Burst: 2, Period: time.Hour}}
			}})
			cause := c.prepare(f)
			lines, series := len(f.lines()), f.series()
			cause()
			var events []map[string]any
			for _, l := range f.lines()[lines:] {
				if l["event"] != nil {
					events = append(events, l)
				}
			}
			want := map[string]float64{`latchkey_security_events_total{event="` + c.event + `"}`: 1}
			if c.series != "" {
				want[c.series] = 1
			}
			extra := 0
			if c.event == "refresh_rollback" { // showing the tokens dead is refused, too
				extra = 1
				want[`latchkey_security_events_total{event="refresh_refused"}`] = 1
				want[`latchkey_refreshes_total{outcome="revoked"}`] = 1
			}
			got := map[string]float64{}
			for name, v := range f.series() {
				if d := v - series[name]; d != 0 && regexp.MustCompile(`_(events|logins|refreshes|logouts)_total`).MatchString(name) {
					got[name] = d
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("counts: -want +got\n%s", diff)
			}
			if len(events) != 1+extra {
				t.Fatalf("%d events: %v", len(events), events)
			}
			e := events[0]
			if e["event"] != c.event || e["msg"] != "security" || e["address"] != "127.0.0.1" || e["request_id"] == "" {
				t.Errorf("the line: %v", e)
			}
			for name, want := range c.want {
				if e[name] != want {
					t.Errorf("%s: got %v, want %v", name, e[name], want)
				}
			}
		})
	}
}

// series are the samples of the first replica's /metrics, by name and labels.
func (f *fleet) series() map[string]float64 {
	f.Helper()
	list := map[string]float64{}
	for line := range strings.Lines(f.metrics(0)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if i := strings.LastIndex(line, "} "); i >= 0 {
			name, value = line[:i+1], strings.TrimSpace(line[i+2:])
		}
		var v float64
		if _, err := fmt.Sscan(value, &v); err != nil || !ok {
			f.Fatalf("not a sample: %q", line)
		}
		list[name] = v
	}
	return list
}

// Whatever clients send, the label sets stay as they are.
func TestMetricsHaveClosedLabels(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	s := f.login(0)
	s = f.refresh(0, s)
	f.get(0, "/users/me", bearer(s.access))
	for i := range 20 {
		canary := fmt.Sprintf("canary-label-%d", i)
		f.secrets.add(canary)
		f.get(0, "/"+canary)
		f.do(0, strings.ToUpper(strings.ReplaceAll(canary, "-", "X")), "/users/me")
		f.do(0, http.MethodDelete, "/auth/sessions/"+canary, bearer(s.access))
		f.get(0, "/auth/verify?"+canary, bearer(canary), header("X-Request-Id", canary), header("User-Agent", canary), header("Host", canary))
		f.post(0, "/auth/token", form("username", canary, "password", canary, "scope", canary))
		f.post(0, "/auth/refresh", cookie(canary))
	}
	f.post(0, "/auth/logout", cookie(s.refresh))

	allowed := map[string]*regexp.Regexp{
		"route":   regexp.MustCompile(`^(none|/auth/(token|refresh|logout|logout-all|sessions|sessions/:sid|verify)|/users/me|/users/me/password|/openapi\.json)$`),
		"method":  regexp.MustCompile(`^(GET|POST|DELETE|HEAD|OPTIONS|PUT|PATCH|other)$`),
		"code":    regexp.MustCompile(`^[1-5]\d\d$`),
		"outcome": regexp.MustCompile(`^(ok|unavailable|canceled|failed|throttled|rotated|same|reuse|rollback|ambiguous|invalid|expired|revoked|superseded|foreign|key)$`),
		"operation": regexp.MustCompile(
			`^(login|rotate|revoke|revoke_user|verify|lookup|throttle_charge|throttle_refund|account_create|account_update|account_delete|client_create|client_check|client_rotate|client_delete|meta|keys|keys_sync|keys_put|keys_revoke|keys_reseal|revoke_key|renew|look|acknowledge|session|session_page|sessions|alive|ping)$`),
		"kind":       regexp.MustCompile(`^(session|all|other)$`),
		"class":      regexp.MustCompile(`^(login|refresh|session)$`),
		"event":      regexp.MustCompile(`^[a-z_]+$`),
		"le":         regexp.MustCompile(`^(\+Inf|[\d.e+-]+)$`),
		"version":    regexp.MustCompile(`^(test|go[\d.]+.*)$`),
		"go_version": regexp.MustCompile(`^go$`),
		"quantile":   regexp.MustCompile(`^[\d.]+$`),
	}
	families := map[string]bool{}
	label := regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)
	for name := range f.series() {
		family, labels, _ := strings.Cut(name, "{")
		families[family] = true
		for _, l := range label.FindAllStringSubmatch(labels, -1) {
			if re := allowed[l[1]]; re == nil || !re.MatchString(l[2]) {
				t.Errorf("%s: label %s=%q", family, l[1], l[2])
			}
		}
	}
	for _, want := range []string{
		"latchkey_http_requests_total", "latchkey_http_request_duration_seconds_bucket", "latchkey_store_operation_duration_seconds_bucket",
		"latchkey_logins_total", "latchkey_refreshes_total", "latchkey_logouts_total", "latchkey_security_events_total",
		"latchkey_panics_total", "latchkey_build_info", "latchkey_password_queue_depth", "go_goroutines", "process_start_time_seconds",
		"go_sched_latencies_seconds_bucket", "go_cpu_classes_gc_total_cpu_seconds_total", "go_cpu_classes_total_cpu_seconds_total",
	} {
		if !families[want] {
			t.Errorf("%s is missing; there are %v", want, slices.Sorted(maps.Keys(families)))
		}
	}
	for name, want := range map[string]float64{
		`latchkey_http_requests_total{code="200",method="POST",route="/auth/token"}`:           1,
		`latchkey_http_requests_total{code="401",method="POST",route="/auth/refresh"}`:         20,
		`latchkey_http_requests_total{code="404",method="GET",route="none"}`:                   20,
		`latchkey_http_requests_total{code="405",method="other",route="none"}`:                 20,
		`latchkey_http_requests_total{code="404",method="DELETE",route="/auth/sessions/:sid"}`: 20,
		`latchkey_http_request_duration_seconds_count{method="POST",route="/auth/logout"}`:     1,
		`latchkey_store_operation_duration_seconds_count{operation="rotate",outcome="ok"}`:     1,
		`latchkey_store_operation_duration_seconds_count{operation="login",outcome="ok"}`:      1,
		`latchkey_store_operation_duration_seconds_count{operation="revoke",outcome="ok"}`:     1,
		`latchkey_panics_total`: 0,
	} {
		if got := f.series()[name]; got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

// A client that goes away before there is an answer is no failure of the service: not in the
// status that is counted, not in the outcomes of what was done for it, and not in the log.
func TestAClientThatGoesAwayIsNoFailure(t *testing.T) {
	t.Parallel()
	h := newHook(t)
	f := start(t, setup{
		replicas: 1, statusLists: true, claims: h.Webhook,
		settings: func(s *handlers.Settings) { s.RevocationsToken, s.ClaimsOmit = []byte(revocationsToken), true },
		dependencies: func(d *handlers.Dependencies) {
			d.Revocations = edge.NewFeed(edge.FeedOptions{Revocations: d.Store.Revocations})
			t.Cleanup(d.Revocations.Close)
		},
	})
	s, client := f.login(0), f.service("full")
	status, _ := f.claims(s.access)["status"].(map[string]any)
	list, _ := status["status_list"].(map[string]any)
	uri, _ := list["uri"].(string)
	before := f.log.String()
	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	for _, r := range []struct {
		route, method, path string
		options             []option
	}{
		{"/auth/token", "POST", "/auth/token", []option{form("username", alice, "password", password)}},
		{"/auth/refresh", "POST", "/auth/refresh", []option{form("refresh_token", s.refresh)}}, // the webhook is asked first
		{"/auth/verify", "GET", "/auth/verify", []option{bearer(s.access)}},
		{"/users/me", "GET", "/users/me", []option{bearer(s.access)}},
		{"/auth/sessions", "GET", "/auth/sessions", []option{bearer(s.access)}},
		{"/auth/logout", "POST", "/auth/logout", []option{cookie(s.refresh)}}, // it is not confirmed
		{"/oauth2/token", "POST", "/oauth2/token", []option{client.basic(), form("grant_type", "client_credentials")}},
		{"/oauth2/introspect", "POST", "/oauth2/introspect", []option{client.basic(), form("token", s.access)}},
		{"/status-lists/:id", "GET", strings.TrimPrefix(uri, issuer), nil},
		{"/revocations", "GET", "/revocations", []option{bearer(revocationsToken)}},
	} {
		// There are two ways out of a stream that has not begun, and which one it takes is random.
		for range 20 {
			record(f.replicas[0].handler, request(t, r.method, r.path, r.options...).WithContext(gone))
		}
		if n := f.series()[fmt.Sprintf(`latchkey_http_requests_total{code="499",method=%q,route=%q}`, r.method, r.route)]; n == 0 {
			t.Errorf("%s %s: none is counted as gone", r.method, r.path)
		}
	}
	// One that goes away while the webhook is asked gets no session.
	const logins = `latchkey_logins_total{outcome="ok"}`
	opened := f.series()[logins]
	leaving, leave := context.WithCancel(t.Context())
	left := make(chan struct{})
	h.meanwhile(func() {
		leave()
		<-left // the webhook's answer must not come first
	})
	record(f.replicas[0].handler, request(t, "POST", "/auth/token", form("username", alice, "password", password)).WithContext(leaving))
	close(left)
	if n := f.series()[logins]; n != opened {
		t.Errorf("%v sessions were opened for a client that had gone", n-opened)
	}
	for name, n := range f.series() {
		if n > 0 && (strings.Contains(name, `code="5`) || strings.Contains(name, `outcome="unavailable"`) || strings.Contains(name, `outcome="failed"`) || strings.HasPrefix(name, "latchkey_shed_total")) {
			t.Errorf("%s: %v", name, n)
		}
	}
	for line := range strings.Lines(strings.TrimPrefix(f.log.String(), before)) {
		if strings.Contains(line, `"level":"WARN"`) || strings.Contains(line, `"level":"ERROR"`) {
			t.Errorf("logged: %s", line)
		}
	}
}

// explosive is randomness that panics, once it is armed, with a secret in hand.
type explosive struct {
	armed *atomic.Bool
	with  any
}

func (e explosive) Read(p []byte) (int, error) {
	if e.armed.Load() {
		panic(e.with)
	}
	return rand.Read(p)
}

// A panic is a 500 that tells nothing, in the answer or in the log, and the
// replica lives on.
func TestPanicLeaksNothing(t *testing.T) {
	t.Parallel()
	const canary = "canary-in-a-panic"
	for name, c := range map[string]struct {
		with any
		says string // in the log
	}{
		"a text":         {canary, "string"},
		"an error":       {errors.New(canary), "*errors.errorString"},
		"a value":        {struct{ secret string }{canary}, "struct { secret string }"},
		"of the runtime": {nil, "runtime error: index out of range"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			armed := &atomic.Bool{}
			f := start(t, setup{replicas: 1, mini: true, rand: func() io.Reader {
				if c.with == nil {
					return outOfRange{armed}
				}
				return explosive{armed, c.with}
			}})
			f.secrets.add(canary)
			s := f.login(0)
			armed.Store(true)
			a := f.post(0, "/auth/token", header("X-Request-Id", "the-one"), form("username", alice, "password", password))
			a.fails(http.StatusInternalServerError, "server_error", "Internal server error")
			if strings.Contains(a.text, canary) || strings.Contains(a.text, "goroutine") {
				t.Errorf("the answer tells: %s", a.text)
			}
			armed.Store(false)
			f.alive(s.access)
			f.login(0)
			panics := 0
			for _, l := range f.lines() {
				if l["msg"] != "panic" {
					continue
				}
				panics++
				what, _ := l["panic"].(string)
				stack, _ := l["stack"].(string)
				if !strings.HasPrefix(what, c.says) || !strings.Contains(stack, "handlers.") || l["request_id"] != "the-one" || l["route"] != "/auth/token" {
					t.Errorf("the line: %v", l)
				}
			}
			if panics != 1 || f.series()["latchkey_panics_total"] != 1 {
				t.Errorf("%d lines, %v counted", panics, f.series()["latchkey_panics_total"])
			}
		})
	}
}

type outOfRange struct{ armed *atomic.Bool }

func (o outOfRange) Read(p []byte) (int, error) {
	if beyond := len(p); o.armed.Load() {
		return int(p[beyond]), nil
	}
	return rand.Read(p)
}

// Without randomness there is no login, and the log says why.
func TestRandomnessThatFails(t *testing.T) {
	t.Parallel()
	armed := &atomic.Bool{}
	f := start(t, setup{replicas: 1, mini: true, rand: func() io.Reader { return failing{armed} }})
	armed.Store(true)
	f.post(0, "/auth/token", form("username", alice, "password", password)).fails(http.StatusInternalServerError, "server_error", "Internal server error")
	if !strings.Contains(f.log.String(), "no entropy") {
		t.Error("the log does not say why")
	}
	armed.Store(false)
	f.login(0)
}

type failing struct{ armed *atomic.Bool }

func (r failing) Read(p []byte) (int, error) {
	if r.armed.Load() {
		return 0, errors.New("no entropy")
	}
	return rand.Read(p)
}

// The admin listener: the process lives, whatever Redis does; readiness is what
// was found out last.
func TestAdmin(t *testing.T) {
	t.Parallel()
	var notReady error
	admin := handlers.NewAdmin(handlers.AdminOptions{
		Metrics: handlers.NewMetrics("v1.2.3", "go1", func() int { return 7 }), Ready: func() error { return notReady },
	})
	get := func(path string) *httptest.ResponseRecorder { return record(admin, request(t, http.MethodGet, path)) }
	if w := get("/healthz"); w.Code != 200 || w.Body.String() != "ok\n" {
		t.Errorf("/healthz: %d %q", w.Code, w.Body)
	}
	if w := get("/readyz"); w.Code != 200 || w.Body.String() != "ready\n" {
		t.Errorf("/readyz: %d %q", w.Code, w.Body)
	}
	notReady = errors.New("Redis is away")
	if w := get("/readyz"); w.Code != 503 || w.Body.String() != "not ready: Redis is away\n" {
		t.Errorf("/readyz: %d %q", w.Code, w.Body)
	}
	if w := get("/healthz"); w.Code != 200 {
		t.Errorf("/healthz: %d", w.Code)
	}
	text := get("/metrics").Body.String()
	for _, want := range []string{`latchkey_build_info{go_version="go1",version="v1.2.3"} 1`, "latchkey_password_queue_depth 7"} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics: no %s", want)
		}
	}
	for path, want := range map[string]int{"/debug/pprof/": 404, "/": 404, "/auth/token": 404} {
		if w := get(path); w.Code != want {
			t.Errorf("%s: got %d, want %d", path, w.Code, want)
		}
	}
	if w := record(admin, request(t, http.MethodPost, "/metrics")); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST /metrics: %d", w.Code)
	}
	profiled := handlers.NewAdmin(handlers.AdminOptions{Metrics: handlers.NewMetrics("", "", func() int { return 0 }), PProf: true})
	if w := record(profiled, request(t, http.MethodGet, "/debug/pprof/cmdline")); w.Code != 200 {
		t.Errorf("pprof by setting: %d", w.Code)
	}
}
