package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/latchkey-auth/latchkey/internal/replica"
	"github.com/latchkey-auth/latchkey/test/redistest"
)

// otlpReceiver is a collector: it keeps what it is sent.
type otlpReceiver struct {
	*httptest.Server
	mu      sync.Mutex
	raw     []byte // every request's body, as sent
	header  http.Header
	spans   []*tracepb.Span
	service map[string]string // of the resource
}

func newReceiver(t *testing.T) *otlpReceiver {
	t.Helper()
	c := &otlpReceiver{service: map[string]string{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var body io.Reader = r.Body
		if r.Header.Get("Content-Encoding") == "gzip" {
			body, _ = gzip.NewReader(r.Body)
		}
		b, err := io.ReadAll(body)
		var req collector.ExportTraceServiceRequest
		if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(b, &req) != nil {
			t.Errorf("not an OTLP request: %s %v", r.URL, err)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.raw, c.header = append(c.raw, b...), r.Header.Clone()
		for _, rs := range req.GetResourceSpans() {
			for _, a := range rs.GetResource().GetAttributes() {
				c.service[a.GetKey()] = a.GetValue().GetStringValue()
			}
			for _, ss := range rs.GetScopeSpans() {
				c.spans = append(c.spans, ss.GetSpans()...)
			}
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// trace returns the spans of a trace by name.
func (c *otlpReceiver) trace(id string) map[string]*tracepb.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	spans := map[string]*tracepb.Span{}
	for _, s := range c.spans {
		if hex.EncodeToString(s.GetTraceId()) == id {
			spans[s.GetName()] = s
		}
	}
	return spans
}

func attributes(s *tracepb.Span) map[string]any {
	m := map[string]any{}
	for _, a := range s.GetAttributes() {
		if v := a.GetValue(); v.GetStringValue() != "" {
			m[a.GetKey()] = v.GetStringValue()
		} else {
			m[a.GetKey()] = v.GetIntValue()
		}
	}
	return m
}

// traced sends a request as part of a caller's trace.
func traced(t *testing.T, method, target, traceparent, access, refresh string, form url.Values) (int, []byte, []*http.Cookie) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Traceparent", traceparent)
	req.Header.Set("Baggage", "canary=canary-in-the-baggage")
	req.Header.Set("User-Agent", "canary-user-agent")
	if access != "" {
		req.Header.Set("Authorization", "Bearer "+access)
	}
	if refresh != "" {
		req.AddCookie(&http.Cookie{Name: "refresh_token", Value: refresh})
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b, resp.Cookies()
}

// A real replica, a real Redis, and a receiver that speaks OTLP: one trace from
// the caller through the request to the script, and no secret in any of it.
func TestTraces(t *testing.T) {
	t.Parallel()
	bin, server, c := program(t), redistest.Start(t), newReceiver(t)
	account(t, server.URL())
	p := launch(t, bin, server.URL(), "LATCHKEY_TRACES=otlp", "OTEL_TRACES_SAMPLER=parentbased_always_off",
		"OTEL_EXPORTER_OTLP_ENDPOINT="+c.URL, "OTEL_EXPORTER_OTLP_HEADERS=x-api-key=canary-collector-key",
		"OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test", "OTEL_BSP_SCHEDULE_DELAY=100")

	const (
		loginTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
		verifyTrace = "4bf92f3577b34da6a3ce929d0e0e4737"
		unsampled   = "4bf92f3577b34da6a3ce929d0e0e4738"
		caller      = "00f067aa0ba902b7"
	)
	status, body, cookies := traced(t, "POST", p.api+"/auth/token?canary=canary-in-the-query", "00-"+loginTrace+"-"+caller+"-01", "", "", login())
	var grant struct {
		Access string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &grant); err != nil || status != 200 {
		t.Fatal(status, string(body))
	}
	refresh := ""
	for _, k := range cookies {
		if k.Name == "refresh_token" {
			refresh = k.Value
		}
	}
	traced(t, "GET", p.api+"/auth/verify/canary-in-the-path", "00-"+verifyTrace+"-"+caller+"-01", grant.Access, "", nil)
	traced(t, "POST", p.api+"/auth/refresh", "00-"+unsampled+"-"+caller+"-00", "", refresh, nil)
	traced(t, "POST", p.api+"/auth/refresh", "00-canary-hostile-traceparent-01", "", refresh, nil)
	server.Kill(t)
	outage := "4bf92f3577b34da6a3ce929d0e0e4739"
	traced(t, "POST", p.api+"/auth/token", "00-"+outage+"-"+caller+"-01", "", "", login())
	p.ends(t) // which sends what is left

	root := c.trace(loginTrace)["POST /auth/token"]
	if root == nil {
		t.Fatalf("no span of the login; the log:\n%s", p.logged())
	}
	if hex.EncodeToString(root.GetParentSpanId()) != caller || root.GetKind() != tracepb.Span_SPAN_KIND_SERVER {
		t.Errorf("the login's span: %v", root)
	}
	if a := attributes(root); a["http.route"] != "/auth/token" || a["http.request.method"] != "POST" || a["http.response.status_code"] != int64(200) || len(a) != 3 {
		t.Errorf("attributes: %v", a)
	}
	for _, name := range []string{"redis lookup", "redis login"} {
		s := c.trace(loginTrace)[name]
		if s == nil || !bytes.Equal(s.GetParentSpanId(), root.GetSpanId()) || s.GetKind() != tracepb.Span_SPAN_KIND_CLIENT {
			t.Errorf("%s: %v", name, s)
			continue
		}
		if a := attributes(s); a["db.system.name"] != "redis" || a["db.stored_procedure.name"] != strings.TrimPrefix(name, "redis ") || len(a) != 2 {
			t.Errorf("%s: attributes %v", name, a)
		}
	}
	if c.trace(verifyTrace)["GET /auth/verify/*path"] == nil {
		t.Errorf("no span of the check: %v", c.trace(verifyTrace))
	}
	if n := len(c.trace(unsampled)); n != 0 {
		t.Errorf("%d spans of a trace that its caller did not sample", n)
	}
	for _, name := range []string{"POST /auth/token", "redis lookup"} {
		if s := c.trace(outage)[name]; s.GetStatus().GetCode() != tracepb.Status_STATUS_CODE_ERROR || s.GetStatus().GetMessage() != "" {
			t.Errorf("%s in the outage: %v", name, s)
		}
	}
	// Of nobody's request, and with a ratio of 0, there are no spans: the follower's work is not traced.
	for _, s := range c.spans {
		if len(s.GetParentSpanId()) == 0 {
			t.Errorf("a root span: %v", s)
		}
	}
	if c.service["service.name"] != "latchkey" || c.service["deployment.environment.name"] != "test" || c.header.Get("X-Api-Key") != "canary-collector-key" {
		t.Errorf("resource %v, header %v", c.service, c.header)
	}
	if !strings.Contains(p.logged(), `"trace_id":"`+loginTrace+`"`) {
		t.Error("the log does not name the trace")
	}
	for _, secret := range []string{"canary", "secret", testSecret, "johndoe", grant.Access, refresh, strings.Split(grant.Access, ".")[1], "127.0.0.1"} {
		if bytes.Contains(c.raw, []byte(secret)) {
			t.Errorf("the traces hold %.8s...", secret)
		}
	}
	if strings.Contains(p.logged(), "canary-collector-key") {
		t.Error("the log holds the collector's key")
	}
}

// Traces are off unless they are asked for, whatever the OTEL_ variables say.
func TestTracesAreOff(t *testing.T) {
	t.Parallel()
	bin, server, c := program(t), redistest.Start(t), newReceiver(t)
	p := launch(t, bin, server.URL(), "OTEL_EXPORTER_OTLP_ENDPOINT="+c.URL, "OTEL_TRACES_SAMPLER=always_on")
	traced(t, "POST", p.api+"/auth/refresh", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "", "garbage", nil)
	p.ends(t)
	if len(c.spans) != 0 || strings.Contains(p.logged(), "trace_id") {
		t.Errorf("%d spans", len(c.spans))
	}
}

// Of requests that start a trace, the ratio decides; a collector that is away
// costs spans only, and the log says so.
func TestTracesWithoutACollector(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	account(t, server.URL())
	p := launch(t, bin, server.URL(), "LATCHKEY_TRACES=otlp", "OTEL_TRACES_SAMPLER=parentbased_always_on",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_BSP_SCHEDULE_DELAY=50")
	want(t, "login", ask(t, "POST", p.api+"/auth/token", login(), "", ""), 200)
	began := time.Now()
	p.ends(t)
	if took := time.Since(began); took > replica.TracesFlush+3*time.Second {
		t.Errorf("the end took %v", took)
	}
	if !strings.Contains(p.logged(), `"trace_id"`) || !strings.Contains(p.logged(), `"msg":"traces"`) {
		t.Errorf("the log: %s", p.logged())
	}
}

// ends asks a replica to end, and waits until it has.
func (p *process) ends(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	select {
	case err := <-p.done:
		if err != nil {
			t.Errorf("the replica ended: %v", err)
		}
	case <-ctx.Done():
		t.Fatal("the replica does not end")
	}
}
