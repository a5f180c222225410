package handlers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/dpop/dpoptest"
)

// envoy is a client that asks as Envoy does, over a real connection.
type envoy struct {
	*fleet
	service *handlers.ExtAuthz
	conn    *grpc.ClientConn
	metrics *handlers.Metrics
	served  chan error
}

// extAuthz serves ext_authz beside the fleet's first replica.
func extAuthz(t *testing.T, s setup) *envoy {
	t.Helper()
	s.replicas = 1
	f := start(t, s)
	metrics := handlers.NewMetrics("test", "go", f.hasher.Depth)
	verifier, err := edge.New(edge.Options{Revocations: f.replicas[0].store.Revocations, Ring: f.ring, Issuer: issuer, Audience: audience})
	f.check(err)
	settings := handlers.Settings{Issuer: issuer, Audience: audience, ClientID: clientID, AllowedOrigins: []string{"https://app.example.com"}}
	if s.settings != nil {
		s.settings(&settings)
	}
	e := &envoy{fleet: f, metrics: metrics, served: make(chan error, 1)}
	dependencies := handlers.Dependencies{
		Verifier: verifier, Metrics: metrics, Settings: settings, Store: f.replicas[0].store, Signer: accesstoken.NewSigner(f.ring), Passwords: f.hasher,
		Log: slog.New(slog.NewJSONHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if s.dependencies != nil {
		s.dependencies(&dependencies)
	}
	api, err := handlers.New(dependencies)
	f.check(err)
	e.service = api.ExtAuthz()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	f.check(err)
	go func() { e.served <- e.service.Serve(l) }()
	t.Cleanup(e.service.Close)
	e.conn, err = grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	f.check(err)
	t.Cleanup(func() { _ = e.conn.Close() })
	return e
}

// asks is a request as Envoy tells of it.
func asks(method string, headers map[string]string, extensions ...string) *authv3.CheckRequest {
	all := map[string]string{":method": method, ":path": "/orders?scope=admin", ":authority": "shop.example.com"}
	maps.Copy(all, headers)
	req := &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Method: method, Host: "shop.example.com", Path: "/orders?scope=admin", Scheme: "https", Headers: all,
		}},
	}}
	for pair := range slices.Chunk(extensions, 2) {
		req.Attributes.ContextExtensions = map[string]string{pair[0]: pair[1]}
	}
	return req
}

func (e *envoy) check(req *authv3.CheckRequest) *authv3.CheckResponse {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.Context(), 10*time.Second)
	defer cancel()
	answer, err := authv3.NewAuthorizationClient(e.conn).Check(ctx, req)
	if err != nil {
		e.Fatal(err)
	}
	return answer
}

// accepted checks an acceptance and returns the headers that Envoy removes.
func (e *envoy) accepted(answer *authv3.CheckResponse, access string) []string {
	e.Helper()
	ok := answer.GetOkResponse()
	if answer.GetStatus().GetCode() != int32(codes.OK) || ok == nil {
		e.Fatalf("refused: %v", answer)
	}
	exp, _ := e.claims(access)["exp"].(float64)
	want := map[string]string{
		"x-auth-subject": e.claim(access, "sub"), "x-auth-session": e.claim(access, "sid"), "x-auth-scope": e.claim(access, "scope"),
		"x-auth-expires": strconv.FormatInt(int64(exp), 10),
	}
	if got := setHeaders(e, ok.GetHeaders()); !maps.Equal(got, want) {
		e.Errorf("sets %q, want %q", got, want)
	}
	for name := range want {
		if slices.Contains(ok.GetHeadersToRemove(), name) {
			e.Errorf("sets %s and removes it: Envoy removes last", name)
		}
	}
	return ok.GetHeadersToRemove()
}

func setHeaders(e *envoy, options []*corev3.HeaderValueOption) map[string]string {
	e.Helper()
	got := map[string]string{}
	for _, o := range options {
		if o.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			e.Errorf("%s leaves the client's in place", o.GetHeader().GetKey())
		}
		got[o.GetHeader().GetKey()] = o.GetHeader().GetValue()
	}
	return got
}

// refused checks a refusal and returns its headers.
func (e *envoy) refused(answer *authv3.CheckResponse, status int, code string) map[string]string {
	e.Helper()
	no := answer.GetDeniedResponse()
	if answer.GetStatus().GetCode() == int32(codes.OK) || no == nil {
		e.Fatalf("accepted: %v", answer)
	}
	if got := int(no.GetStatus().GetCode()); got != status {
		e.Errorf("status %d, want %d", got, status)
	}
	var p map[string]string
	if err := json.Unmarshal([]byte(no.GetBody()), &p); err != nil || p["error"] != code || p["error_description"] == "" || p["detail"] == "" || len(p) != 3 {
		e.Errorf("body %q (%v), want error %s", no.GetBody(), err, code)
	}
	h := setHeaders(e, no.GetHeaders())
	if h["content-type"] != "application/json; charset=utf-8" || h["cache-control"] != "no-store" {
		e.Errorf("headers: %q", h)
	}
	challenged := status == http.StatusUnauthorized || code == "insufficient_scope"
	challenge := strings.Replace(h["www-authenticate"], "DPoP", "Bearer", 1)
	if challenged != strings.HasPrefix(challenge, `Bearer realm="latchkey"`) {
		e.Errorf("%d with www-authenticate %q", status, h["www-authenticate"])
	}
	if (status == http.StatusServiceUnavailable) != (h["retry-after"] == "1") {
		e.Errorf("%d with retry-after %q", status, h["retry-after"])
	}
	return h
}

func authorized(token string) map[string]string {
	return map[string]string{"authorization": "Bearer " + token}
}

func TestExtAuthz(t *testing.T) {
	t.Parallel()
	e := extAuthz(t, setup{})
	s := e.login(0)
	for _, method := range []string{"GET", "POST", "PROPFIND"} {
		e.accepted(e.check(asks(method, authorized(s.access))), s.access)
	}
	// The client's query demands nothing; the route's extension does.
	e.accepted(e.check(asks("GET", authorized(s.access), "scope", "write read")), s.access)
	e.accepted(e.check(asks("GET", authorized(s.access), "other", "admin")), s.access)
	h := e.refused(e.check(asks("GET", authorized(s.access), "scope", "read admin")), 403, "insufficient_scope")
	if !strings.HasSuffix(h["www-authenticate"], `scope="read admin"`) {
		t.Errorf("www-authenticate: %s", h["www-authenticate"])
	}
	e.refused(e.check(asks("GET", authorized(s.access), "scope", "")), 400, "invalid_request")

	e.refused(e.check(asks("GET", nil)), 401, "unauthorized")
	e.refused(e.check(asks("GET", authorized("garbage"))), 401, "invalid_token")
	e.refused(e.check(asks("GET", map[string]string{"authorization": "Bearer " + s.access + ",Bearer " + s.access})), 401, "invalid_token")
	e.refused(e.check(asks("GET", map[string]string{"cookie": accessCookie + "=" + s.access})), 401, "unauthorized") // it is off
	e.refused(e.check(&authv3.CheckRequest{}), 401, "unauthorized")

	// As encode_raw_headers has them.
	raw := asks("GET", nil)
	raw.Attributes.Request.Http.Headers = nil
	raw.Attributes.Request.Http.HeaderMap = &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "authorization", RawValue: []byte("Bearer " + s.access)}}}
	e.accepted(e.check(raw), s.access)
	raw.Attributes.Request.Http.HeaderMap.Headers = append(raw.Attributes.Request.Http.HeaderMap.Headers, &corev3.HeaderValue{Key: "authorization", RawValue: []byte("Bearer x")})
	e.refused(e.check(raw), 400, "invalid_request")

	e.post(0, "/auth/logout", bearer(s.access)).is(http.StatusOK)
	e.refused(e.check(asks("GET", authorized(s.access))), 401, "invalid_token")

	families, err := e.metrics.Registry.Gather()
	e.fleet.check(err)
	got := map[string]float64{}
	for _, family := range families {
		if family.GetName() != "latchkey_http_requests_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			var label []string
			for _, l := range m.GetLabel() {
				label = append(label, l.GetValue())
			}
			got[strings.Join(label, " ")] = m.GetCounter().GetValue()
		}
	}
	want := map[string]float64{"200 GET ext_authz": 4, "200 POST ext_authz": 1, "200 other ext_authz": 1, "400 GET ext_authz": 2, "401 GET ext_authz": 5, "401 other ext_authz": 1, "403 GET ext_authz": 1}
	if !maps.Equal(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

func TestExtAuthzRemovesWhatIsSpoofed(t *testing.T) {
	t.Parallel()
	e := extAuthz(t, setup{})
	s := e.login(0)
	spoofs := []string{"x-auth_subject", "x_auth_subject", "x_auth-scope", "x.auth.subject", "x-auth-admin", "x-auth~expires", "x-auth-"}
	mine := []string{"x-auth-subject", "x-auth-scope", "x-auth-session", "x-auth-expires"} // overwritten
	others := []string{"x-authorization", "authorization", "x-author", "fox-auth-x"}
	headers := authorized(s.access)
	for _, name := range slices.Concat(spoofs, mine, others[:1], others[2:]) {
		headers[name] = "admin"
	}
	removed := e.accepted(e.check(asks("GET", headers)), s.access)
	for _, name := range spoofs {
		if !slices.Contains(removed, name) {
			t.Errorf("%s reaches the service", name)
		}
	}
	for _, name := range others {
		if slices.Contains(removed, name) {
			t.Errorf("%s is removed", name)
		}
	}
	// Also where Envoy does not send them.
	removed = e.accepted(e.check(asks("GET", authorized(s.access))), s.access)
	for _, last := range []string{"subject", "session", "scope", "expires"} {
		for _, name := range []string{"x_auth_" + last, "x-auth_" + last, "x_auth-" + last} {
			if !slices.Contains(removed, name) {
				t.Errorf("%s is not removed", name)
			}
		}
	}
}

// A key that is only recognised admits nobody.
func TestExtAuthzAndARetiredKey(t *testing.T) {
	t.Parallel()
	e := extAuthz(t, setup{})
	s := e.login(0)
	e.accepted(e.check(asks("GET", authorized(s.access))), s.access)
	old := e.ring.Active()
	e.ring.Remove(old.ID())
	e.ring.Recognise(old)
	e.refused(e.check(asks("GET", authorized(s.access))), 401, "invalid_token")
}

func TestExtAuthzAccessCookie(t *testing.T) {
	t.Parallel()
	e := extAuthz(t, setup{settings: func(s *handlers.Settings) { s.AccessCookie = accessCookie }})
	s := e.login(0)
	with := func(pairs ...string) map[string]string {
		h := map[string]string{"cookie": "a=b; " + accessCookie + "=" + s.access}
		for pair := range slices.Chunk(pairs, 2) {
			h[pair[0]] = pair[1]
		}
		return h
	}
	e.accepted(e.check(asks("GET", with())), s.access)
	e.accepted(e.check(asks("POST", with("origin", "https://shop.example.com"))), s.access)
	e.accepted(e.check(asks("POST", with("sec-fetch-site", "same-site", "origin", "https://app.example.com"))), s.access)
	e.accepted(e.check(asks("GET", with("sec-fetch-site", "cross-site"))), s.access)
	e.refused(e.check(asks("POST", with("sec-fetch-site", "cross-site"))), 403, "access_denied")
	e.refused(e.check(asks("POST", with("origin", "https://evil.example"))), 403, "access_denied")
	e.refused(e.check(asks("POST", with("origin", "https://evil.example", "x-forwarded-method", "GET"))), 403, "access_denied")
	e.refused(e.check(asks("GET", with("authorization", "Bearer x"))), 401, "invalid_token")
	for _, mark := range webSocketHeaders() {
		name := strings.ToLower(mark[0])
		e.accepted(e.check(asks("GET", with(name, mark[1]))), s.access)
		e.accepted(e.check(asks("GET", with(name, mark[1], "origin", "https://shop.example.com"))), s.access)
		e.refused(e.check(asks("GET", with(name, mark[1], "origin", "https://evil.example"))), 403, "access_denied")
		e.refused(e.check(asks("GET", with(name, mark[1], "sec-fetch-site", "same-site"))), 403, "access_denied")
	}
	e.refused(e.check(asks("CONNECT", with("origin", "https://evil.example"))), 403, "access_denied")
}

// Nobody can tell: that is a refusal, and no error that Envoy might let through.
func TestExtAuthzFailsClosed(t *testing.T) {
	t.Parallel()
	e := extAuthz(t, setup{impatient: true})
	s := e.login(0)
	e.accepted(e.check(asks("GET", authorized(s.access))), s.access)
	e.redis.Pause(t)
	e.refused(e.check(asks("GET", authorized(s.access))), 503, "temporarily_unavailable")
	e.refused(e.check(asks("GET", authorized("garbage"))), 401, "invalid_token")
	e.redis.Resume(t)
	e.accepted(e.check(asks("GET", authorized(s.access))), s.access)
}

// A check that Envoy gives up is no failure of the service.
func TestExtAuthzThatIsGivenUpIsNoFailure(t *testing.T) {
	t.Parallel()
	e := extAuthz(t, setup{})
	s := e.login(0)
	gone, giveUp := context.WithCancel(t.Context())
	giveUp()
	answer, err := e.service.Check(gone, asks("GET", authorized(s.access)))
	e.fleet.check(err)
	e.refused(answer, http.StatusServiceUnavailable, "temporarily_unavailable")
	w := record(handlers.NewAdmin(handlers.AdminOptions{Metrics: e.metrics, Ready: func() error { return nil }}), request(t, "GET", "/metrics"))
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, "latchkey_http_requests_total{") && !strings.Contains(line, `code="499"`) {
			t.Errorf("counted: %s", line)
		}
	}
	if strings.Contains(e.log.String(), `"level":"ERROR"`) {
		t.Errorf("logged: %s", e.log)
	}
}

func TestExtAuthzBounds(t *testing.T) {
	t.Parallel()
	e := extAuthz(t, setup{})
	s := e.login(0)
	h := authorized(s.access)
	h["x-large"] = strings.Repeat("x", 128<<10)
	e.accepted(e.check(asks("GET", h)), s.access)
	h["x-large"] = strings.Repeat("x", 1<<20)
	_, err := authv3.NewAuthorizationClient(e.conn).Check(t.Context(), asks("GET", h))
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a megabyte: %v", err)
	}
}

func TestExtAuthzHealthAndShutdown(t *testing.T) {
	t.Parallel()
	e := extAuthz(t, setup{})
	s := e.login(0)
	client := healthv1.NewHealthClient(e.conn)
	for _, ready := range []bool{false, true, false, true} {
		e.service.SetReady(ready)
		for _, service := range []string{"", "envoy.service.auth.v3.Authorization"} {
			got, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
			e.fleet.check(err)
			if (got.GetStatus() == healthv1.HealthCheckResponse_SERVING) != ready {
				t.Errorf("ready %v: %q is %v", ready, service, got.GetStatus())
			}
		}
	}
	e.accepted(e.check(asks("GET", authorized(s.access))), s.access)

	// A check under way is answered: Redis comes back after the shutdown began.
	e.redis.Pause(t)
	before := e.replicas[0].trips.n.Load()
	under := make(chan error, 1)
	go func() {
		answer, err := authv3.NewAuthorizationClient(e.conn).Check(context.Background(), asks("GET", authorized(s.access)))
		if err == nil && answer.GetStatus().GetCode() != int32(codes.OK) {
			err = fmt.Errorf("refused: %v", answer)
		}
		under <- err
	}()
	for e.replicas[0].trips.n.Load() == before { // the check has come so far as to ask Redis
		if t.Context().Err() != nil {
			t.Fatal("the check did not begin")
		}
	}
	ended := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		ended <- e.service.Shutdown(ctx)
	}()
	e.redis.Resume(t)
	for what, ch := range map[string]chan error{"the check": under, "Shutdown": ended, "Serve": e.served} {
		select {
		case err := <-ch:
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("%s does not end", what)
		}
	}
	_, err := authv3.NewAuthorizationClient(e.conn).Check(t.Context(), asks("GET", nil))
	if status.Code(err) != codes.Unavailable {
		t.Errorf("after the shutdown: %v", err)
	}
}

// A shutdown does not wait for longer than it may.
func TestExtAuthzShutdownIsBounded(t *testing.T) {
	t.Parallel()
	e := extAuthz(t, setup{})
	stream, err := healthv1.NewHealthClient(e.conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	e.fleet.check(err)
	_, err = stream.Recv() // a stream that does not end by itself
	e.fleet.check(err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.service.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := <-e.served; err != nil {
		t.Error(err)
	}
}

// What is refused here is recorded as where a proxy asks over HTTP: in the log, in the
// audit stream and in the metrics, with the address of the client and not of Envoy.
func TestExtAuthzRefusalsAreEvents(t *testing.T) {
	t.Parallel()
	stream := &logBuffer{}
	e := extAuthz(t, setup{
		settings: func(s *handlers.Settings) {
			s.AccessCookie, s.TrustedProxies = accessCookie, prefixes(t, "10.0.0.0/8")
		},
		dependencies: func(d *handlers.Dependencies) { d.Audit = slog.NewJSONHandler(stream, nil) },
	})
	from := func(req *authv3.CheckRequest, address string) *authv3.CheckRequest {
		req.Attributes.Source = &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
			SocketAddress: &corev3.SocketAddress{Address: address},
		}}}
		return req
	}
	k := dpoptest.NewKey(t, "ES256")
	s, bound := e.login(0), e.bound(k)
	cookie := func(pairs ...string) map[string]string {
		h := map[string]string{"cookie": accessCookie + "=" + s.access, "origin": "https://evil.example"}
		for pair := range slices.Chunk(pairs, 2) {
			h[pair[0]] = pair[1]
		}
		return h
	}
	proven := func(changes ...dpoptest.Change) map[string]string {
		return map[string]string{"authorization": "DPoP " + bound.access, "dpop": k.Proof("GET", "https://shop.example.com/orders", bound.access, changes...)}
	}
	good := proven()
	e.accepted(e.check(from(asks("GET", good), "192.0.2.1")), bound.access)
	for _, c := range []struct {
		name   string
		req    *authv3.CheckRequest
		status int
		code   string
		want   map[string]any
	}{
		{
			"another site's page", from(asks("POST", cookie("x-request-id", "mine")), "192.0.2.7"), 403, "access_denied",
			map[string]any{"event": "cross_site_refused", "address": "192.0.2.7", "request_id": "mine"},
		},
		{
			"through a trusted proxy", from(asks("POST", cookie("x-forwarded-for", "198.51.100.9, 192.0.2.8, 10.1.1.1")), "10.0.0.1"), 403, "access_denied",
			map[string]any{"event": "cross_site_refused", "address": "192.0.2.8"},
		},
		{
			"through one that is not", from(asks("POST", cookie("x-forwarded-for", "198.51.100.9")), "192.0.2.8"), 403, "access_denied",
			map[string]any{"event": "cross_site_refused", "address": "192.0.2.8"},
		},
		{
			"Envoy does not say from where", asks("POST", cookie("x-request-id", "<x>")), 403, "access_denied",
			map[string]any{"event": "cross_site_refused", "address": "127.0.0.1"},
		},
		{
			"a bad proof", from(asks("GET", proven(dpoptest.With("htm", "PUT"))), "2001:db8::1"), 401, "invalid_dpop_proof",
			map[string]any{"event": "proof_refused", "address": "2001:db8::1", "reason": "invalid"},
		},
		{
			"a proof used twice", from(asks("GET", good), "192.0.2.1"), 401, "invalid_dpop_proof",
			map[string]any{"event": "proof_refused", "address": "192.0.2.1", "reason": "replayed"},
		},
	} {
		before, streamed := len(e.lines()), len(stream.String())
		e.refused(e.check(c.req), c.status, c.code)
		var events []map[string]any
		for _, l := range e.lines()[before:] {
			if l["msg"] == "security" {
				events = append(events, l)
			}
		}
		if len(events) != 1 {
			t.Errorf("%s: %d events in the log: %v", c.name, len(events), events)
			continue
		}
		for name, value := range c.want {
			if events[0][name] != value {
				t.Errorf("%s: %s is %v, want %v", c.name, name, events[0][name], value)
			}
		}
		e.wellFormed(events[0])
		if id, _ := events[0]["id"].(string); !strings.Contains(stream.String()[streamed:], id) {
			t.Errorf("%s: the audit stream does not have it: %s", c.name, stream.String()[streamed:])
		}
	}
	families, err := e.metrics.Registry.Gather()
	e.fleet.check(err)
	counted := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == "latchkey_security_events_total" {
				counted[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	if counted["cross_site_refused"] != 4 || counted["proof_refused"] != 2 {
		t.Errorf("counted %v", counted)
	}
}
