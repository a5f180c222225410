package handlers_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/latchkey-auth/latchkey/handlers"
)

// eventSchema reads the published schema.
var eventSchema = sync.OnceValues(func() (*jsonschema.Schema, error) {
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	return c.Compile("../docs/audit-events.schema.json")
})

// wellFormed fails unless a security event is as the schema says.
func (f *fleet) wellFormed(event map[string]any) {
	f.Helper()
	schema, err := eventSchema()
	f.check(err)
	if err := schema.Validate(event); err != nil {
		f.Errorf("a security event is not as docs/audit-events.schema.json says: %v\n%v", event, err)
	}
}

// The schema lists the events that there are, and a mistake in one is noticed.
func TestAuditSchema(t *testing.T) {
	schema, err := eventSchema()
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("../internal/session/event.go")
	if err != nil {
		t.Fatal(err)
	}
	var declared []string
	for _, m := range regexp.MustCompile(`Event = "(\w+)"`).FindAllStringSubmatch(string(source), -1) {
		declared = append(declared, m[1])
	}
	text, err := os.ReadFile("../docs/audit-events.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var published struct {
		Properties struct {
			Event struct{ Enum []string }
		}
	}
	if err := json.Unmarshal(text, &published); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(declared, published.Properties.Event.Enum) {
		t.Errorf("declared %q\npublished %q", declared, published.Properties.Event.Enum)
	}

	whole := func() map[string]any {
		return map[string]any{
			"time": "2026-01-02T03:04:05.678Z", "level": "INFO", "msg": "security", "schema": 2, "id": "abcdefghijklmn",
			"event": "login", "request_id": "r", "address": "192.0.2.1", "sub": "alice", "sid": "AAAAAAAAAAAAAAAAAAAAAA",
		}
	}
	if err := schema.Validate(whole()); err != nil {
		t.Error(err)
	}
	for what, spoil := range map[string]func(map[string]any){
		"a member that is not listed":    func(e map[string]any) { e["refresh_token"] = "lkr1_" },
		"an event that is not listed":    func(e map[string]any) { e["event"] = "logon" },
		"no subject":                     func(e map[string]any) { delete(e, "sub") },
		"another version":                func(e map[string]any) { e["schema"] = 1 },
		"no time":                        func(e map[string]any) { e["time"] = "now" },
		"theft that warns nobody":        func(e map[string]any) { e["event"] = "refresh_reuse"; delete(e, "sub") },
		"a name that was typed":          func(e map[string]any) { e["event"] = "login_failed"; e["reason"] = "unknown_user"; delete(e, "sid") },
		"a reason of another event":      func(e map[string]any) { e["event"] = "refresh_refused"; e["reason"] = "password"; delete(e, "sub") },
		"a logout of which nobody knows": func(e map[string]any) { e["event"] = "logout_all"; delete(e, "sid"); e["confirmed"] = true },
		"an end, confirmed or not":       func(e map[string]any) { e["event"] = "session_ended" },
		"a login that is confirmed":      func(e map[string]any) { e["confirmed"] = true },
	} {
		e := whole()
		spoil(e)
		if schema.Validate(e) == nil {
			t.Errorf("%s is accepted: %v", what, e)
		}
	}
}

// audited is a replica that also writes the audit stream, and what ends the writing.
func audited(t *testing.T, keep int) (f *fleet, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	f = start(t, setup{replicas: 1, impatient: true, dependencies: func(d *handlers.Dependencies) {
		s := handlers.NewAuditStream(d.Store.Audit, keep, d.Metrics, d.Log)
		d.Audit = s.Handler()
		// The stream has the events whatever the log's level.
		d.Log = slog.New(slog.DiscardHandler)
		running.Go(func() { s.Run(ctx) })
	}})
	end = func() { cancel(); running.Wait() }
	t.Cleanup(end)
	return f, end
}

// stream reads the audit stream.
func (f *fleet) stream() []map[string]any {
	f.Helper()
	entries, err := f.rdb.XRange(context.WithoutCancel(f.Context()), "lk:audit", "-", "+").Result()
	f.check(err)
	var list []map[string]any
	for _, entry := range entries {
		text, _ := entry.Values["event"].(string)
		for _, secret := range f.secrets.all() {
			if strings.Contains(text, secret) {
				f.Errorf("the audit stream shows a secret: %s...", secret[:8])
			}
		}
		var e map[string]any
		f.check(json.Unmarshal([]byte(text), &e))
		f.wellFormed(e)
		list = append(list, e)
	}
	return list
}

func awaitTrue(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !done(); time.Sleep(5 * time.Millisecond) { // a poll, not a timing
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 2 min", what)
		}
	}
}

// What happened is in the stream, in order, and what waits when the replica ends
// is written too.
func TestAuditStream(t *testing.T) {
	t.Parallel()
	f, end := audited(t, 1000)
	s := f.login(0)
	f.attempt(0, alice, "wrong-password")
	s = f.refresh(0, s)
	f.post(0, "/auth/logout", cookie(s.refresh)).is(http.StatusOK)
	end()
	var got []string
	ids := map[any]bool{}
	for _, e := range f.stream() {
		got = append(got, e["event"].(string))
		ids[e["id"]] = true
	}
	if want := []string{"login", "login_failed", "refresh", "logout"}; !slices.Equal(got, want) || len(ids) != len(want) {
		t.Errorf("got %q with %d ids, want %q", got, len(ids), want)
	}
	if n := f.series()["latchkey_audit_written_total"]; n != 4 {
		t.Errorf("%v written", n)
	}
}

// The stream is bounded.
func TestAuditStreamIsTrimmed(t *testing.T) {
	t.Parallel()
	f, end := audited(t, 100)
	for range 500 {
		f.post(0, "/auth/refresh", cookie("garbage")).is(http.StatusUnauthorized)
	}
	end()
	// Redis trims whole nodes of 100 entries.
	if n := len(f.stream()); n < 100 || n > 300 {
		t.Errorf("%d entries of 500, to keep about 100", n)
	}
}

// A stream that cannot be written fails no login and delays none: events wait
// up to a bound, and are dropped and counted beyond.
func TestAuditStreamBroken(t *testing.T) {
	t.Parallel()
	f, end := audited(t, 1000)
	f.check(f.rdb.Set(t.Context(), "lk:audit", "not a stream", 0).Err())
	f.login(0)
	const n = 4096 + 600 // the queue, a batch under way, and some
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for range n / 4 {
				_, _ = f.try(0, http.MethodPost, "/auth/refresh", cookie("garbage"))
			}
		})
	}
	clients.Wait()
	f.login(0)
	if dropped := f.series()["latchkey_audit_dropped_total"]; dropped < n+2-4096-256 || dropped > n+2-4096 {
		t.Errorf("%v dropped of %d", dropped, n+2)
	}
	f.check(f.rdb.Del(t.Context(), "lk:audit").Err())
	awaitTrue(t, "the queue is written once the stream can be", func() bool { return f.series()["latchkey_audit_written_total"] > 4000 })
	end()
	total := f.series()["latchkey_audit_written_total"] + f.series()["latchkey_audit_dropped_total"]
	if total != n+2 {
		t.Errorf("%v events written or dropped, of %d", total, n+2)
	}
}

// With Redis away, a request takes no longer because of the stream.
func TestAuditStreamWithoutRedis(t *testing.T) {
	t.Parallel()
	f, _ := audited(t, 1000)
	f.redis.Pause(t)
	began := time.Now()
	for range 50 { // refused before Redis is asked
		f.post(0, "/auth/refresh", cookie("garbage")).is(http.StatusUnauthorized)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("50 requests took %v", took)
	}
	f.redis.Resume(t)
	awaitTrue(t, "the events arrive", func() bool { return f.series()["latchkey_audit_written_total"] == 50 })
}
