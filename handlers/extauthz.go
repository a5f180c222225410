package handlers

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/latchkey-auth/latchkey/internal/session"
)

const (
	// extAuthzRoute is what Check counts as among the routes of HTTP.
	extAuthzRoute = "ext_authz"
	// maxCheck is the largest CheckRequest, in bytes: Envoy's default for a
	// request's headers is 60 KiB, and it can send them in two forms. A larger one
	// is a gRPC error, which Envoy answers as its configuration says.
	maxCheck = 256 << 10
	// checkTimeout bounds a check whose caller sets no deadline.
	checkTimeout = 5 * time.Second
	// maxChecks is how many checks are under way at once, over all connections.
	// They take longer than a look into memory where Redis has to be asked.
	maxChecks = 4096
)

// ExtAuthz answers Envoy's external authorization over gRPC,
// envoy.service.auth.v3.Authorization/Check, as verify answers other proxies. It
// also serves grpc.health.v1.
//
// A refusal says what the client is answered: 401, 403, 503 and so on with the
// headers and body of the HTTP API. That nobody can tell now is such a refusal,
// too, so that no setting of Envoy's turns an outage into an acceptance.
type ExtAuthz struct {
	authv3.UnimplementedAuthorizationServer
	api    *api
	checks class
	server *grpc.Server
	health *health.Server
}

// ExtAuthz returns the service. It is not ready yet, see SetReady.
func (a *API) ExtAuthz() *ExtAuthz {
	e := &ExtAuthz{api: a.api, checks: class{name: ShedExtAuthz, limit: maxChecks}, health: health.NewServer()}
	e.server = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxCheck),
		grpc.MaxHeaderListSize(16<<10),
		grpc.MaxConcurrentStreams(1024),
		grpc.ConnectionTimeout(5*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: 10 * time.Minute,
			// Connections end now and then, so that replicas that were added get some.
			MaxConnectionAge: 30 * time.Minute, MaxConnectionAgeGrace: 30 * time.Second,
			Time: time.Minute, Timeout: 20 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(e.recover),
	)
	authv3.RegisterAuthorizationServer(e.server, e)
	healthv1.RegisterHealthServer(e.server, e.health)
	e.SetReady(false)
	return e
}

// SetReady sets what the health service answers.
func (e *ExtAuthz) SetReady(ready bool) {
	s := healthv1.HealthCheckResponse_NOT_SERVING
	if ready {
		s = healthv1.HealthCheckResponse_SERVING
	}
	e.health.SetServingStatus("", s)
	e.health.SetServingStatus(authv3.Authorization_ServiceDesc.ServiceName, s)
}

// CallAddr may be implemented by the remote addresses of a listener's connections:
// CallBegins is called whenever a call begins on the connection.
type CallAddr interface {
	net.Addr
	CallBegins()
}

// Serve accepts connections until Shutdown or Close, or until l is closed, and closes
// l. None of these ends is an error.
func (e *ExtAuthz) Serve(l net.Listener) error {
	if err := e.server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("ext_authz: %w", err)
	}
	return nil
}

// Shutdown stops accepting and returns when the checks under way are answered.
// When ctx ends before, it ends them and returns the error of ctx.
func (e *ExtAuthz) Shutdown(ctx context.Context) error {
	e.health.Shutdown()
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.server.GracefulStop()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		e.server.Stop() // ends GracefulStop, too
		<-done
		return ctx.Err()
	}
}

// Close ends the service at once.
func (e *ExtAuthz) Close() {
	e.health.Shutdown()
	e.server.Stop()
}

// recover makes a panic an error, which Envoy takes for a refusal, and counts it. It
// also tells the connection that a call begins.
func (e *ExtAuthz) recover(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
	if p, ok := peer.FromContext(ctx); ok {
		if a, ok := p.Addr.(CallAddr); ok {
			a.CallBegins()
		}
	}
	defer func() {
		if v := recover(); v != nil {
			e.api.Metrics.panics.Inc()
			e.api.Log.LogAttrs(ctx, slog.LevelError, "panic", slog.String("route", extAuthzRoute), slog.String("panic", fmt.Sprintf("%T", v)))
			answer, err = nil, status.Error(codes.Internal, "internal error")
		}
	}()
	return handle(ctx, req)
}

// Check implements Envoy's service. A route's context extension "scope" names
// what the token must have been granted.
func (e *ExtAuthz) Check(ctx context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	asked := req.GetAttributes().GetRequest().GetHttp()
	answer, code := e.check(ctx, req.GetAttributes(), headersOf(asked))
	e.api.Metrics.request(extAuthzRoute, method(asked.GetMethod()), code, time.Since(start))
	return answer, nil
}

func (e *ExtAuthz) check(ctx context.Context, attributes *authv3.AttributeContext, h http.Header) (*authv3.CheckResponse, int) {
	nonce := make(http.Header)
	if !e.checks.enter() {
		e.api.shed(e.checks.name)
		return e.refuse(ctx, errOverload, h, nonce)
	}
	defer e.checks.leave()
	v, err := e.decide(ctx, attributes, h, nonce)
	if err != nil {
		return e.refuse(ctx, err, h, nonce)
	}
	var toClient []*corev3.HeaderValueOption
	for name, values := range nonce {
		toClient = append(toClient, overwrite(name, values[0]))
	}
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: int32(codes.OK)},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{
				overwrite(headerSubject, v[0]), overwrite(headerSession, v[1]),
				overwrite(headerScope, v[2]), overwrite(headerExpires, v[3]),
			},
			HeadersToRemove: spoofed(h), ResponseHeadersToAdd: toClient,
		}},
	}, http.StatusOK
}

// decide is verify, for a request that Envoy describes. What the client is to be told
// besides goes into answer. Refusals that HTTP makes security events of are events here,
// too.
func (e *ExtAuthz) decide(ctx context.Context, attributes *authv3.AttributeContext, h, answer http.Header) (*identity, error) {
	asked := attributes.GetRequest().GetHttp()
	var required []string
	if scope, ok := attributes.GetContextExtensions()["scope"]; ok {
		var err error
		if required, err = session.ScopeNames(scope); err != nil {
			return nil, err
		}
	}
	shown, err := e.api.shownToken(ctx, &http.Request{Header: h})
	if err != nil {
		return nil, err
	}
	if shown.ByCookie {
		if err := e.api.ownRequest(asked.GetMethod(), asked.GetHost(), h); err != nil {
			e.api.sessions.Record(ctx, e.originOf(ctx, attributes, h), session.EventCrossSite)
			return nil, err
		}
	}
	if !shown.Bound {
		return e.api.authorize(ctx, shown.Token, required)
	}
	// Envoy describes the request as it has received it: it speaks for itself here, and not
	// for a client.
	proof := e.api.proofFor(answer, h, asked.GetMethod(), asked.GetScheme()+"://"+asked.GetHost()+asked.GetPath())
	claims, err := e.api.sessions.AuthorizeBound(ctx, e.originOf(ctx, attributes, h), shown.Token, proof, required)
	if err != nil {
		return nil, err
	}
	return identityOf(&claims), nil
}

// originOf is where the request comes from that Envoy describes. Its source is who
// connected to Envoy: if that is a trusted proxy, the client is in X-Forwarded-For, as
// for the HTTP API. A description without a source counts as from Envoy itself.
func (e *ExtAuthz) originOf(ctx context.Context, attributes *authv3.AttributeContext, h http.Header) session.Origin {
	id := h.Get(headerRequestID)
	if !harmless(id) {
		id = newRequestID()
	}
	address := attributes.GetSource().GetAddress().GetSocketAddress().GetAddress()
	if p, ok := peer.FromContext(ctx); ok && address == "" {
		if tcp, ok := p.Addr.(*net.TCPAddr); ok {
			address = tcp.IP.String()
		}
	}
	return session.Origin{RequestID: id, Address: e.api.clientAddress(address, strings.Join(h.Values("X-Forwarded-For"), ","))}
}

// clientAddress is the address of the client behind a peer: that of the peer, or if it is
// a trusted proxy, the last in X-Forwarded-For that is none. It is what gin.Context's
// ClientIP returns for a request of our own.
func (a *api) clientAddress(peer, forwardedFor string) string {
	trusted := func(text string) bool {
		ip, err := netip.ParseAddr(text)
		return err == nil && slices.ContainsFunc(a.Settings.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(ip.Unmap()) })
	}
	if !trusted(peer) {
		return peer
	}
	hops := strings.Split(forwardedFor, ",")
	for i, hop := range slices.Backward(hops) {
		hop = strings.TrimSpace(hop)
		if _, err := netip.ParseAddr(hop); err != nil {
			break
		}
		if i == 0 || !trusted(hop) {
			return hop
		}
	}
	return peer
}

// refuse is what the HTTP API answers to an error of a request, besides what is in header,
// and the status that is counted.
func (e *ExtAuthz) refuse(ctx context.Context, err error, request, header http.Header) (*authv3.CheckResponse, int) {
	p, known := problemOf(err)
	gone := clientGone(ctx, err)
	if !gone && (!known || (p.status == http.StatusServiceUnavailable && !errors.Is(err, errOverload) && e.api.loud())) {
		e.api.Log.LogAttrs(ctx, slog.LevelError, "request failed",
			slog.String("route", extAuthzRoute), slog.Int("status", p.status), slog.String("cause", err.Error()))
	}
	header.Set("Content-Type", "application/json; charset=utf-8")
	header.Set("Cache-Control", "no-store")
	p.explain(err, request, header)
	var options []*corev3.HeaderValueOption
	for name, values := range header {
		options = append(options, overwrite(name, values[0]))
	}
	slices.SortFunc(options, func(a, b *corev3.HeaderValueOption) int { return cmp.Compare(a.Header.Key, b.Header.Key) })
	body, _ := json.Marshal(p.body()) // three strings
	counted := p.status
	if gone {
		counted = statusClientGone
	}
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: rpcCode(p.status), Message: p.code},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(p.status)}, //nolint:gosec // three digits
			Headers: options,
			Body:    string(body),
		}},
	}, counted
}

// rpcCode is the gRPC code of a refusal. Envoy asks only whether it is OK.
func rpcCode(status int) int32 {
	switch status {
	case http.StatusUnauthorized:
		return int32(codes.Unauthenticated)
	case http.StatusForbidden:
		return int32(codes.PermissionDenied)
	case http.StatusBadRequest:
		return int32(codes.InvalidArgument)
	case http.StatusServiceUnavailable:
		return int32(codes.Unavailable)
	}
	return int32(codes.Internal)
}

// overwrite sets a header whatever was there.
func overwrite(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: strings.ToLower(name), Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// headersOf are the headers that Envoy tells of: joined by commas under lower-case
// names, or, with its encode_raw_headers, as they came.
func headersOf(r *authv3.AttributeContext_HttpRequest) http.Header {
	h := make(http.Header, len(r.GetHeaders()))
	for name, value := range r.GetHeaders() {
		h.Add(name, value)
	}
	for _, v := range r.GetHeaderMap().GetHeaders() {
		value := v.GetValue()
		if raw := v.GetRawValue(); len(raw) > 0 {
			value = string(raw)
		}
		h.Add(v.GetKey(), value)
	}
	return h
}

// spoofed are the headers that Envoy is to take out of the request: those of the
// X-Auth- family, however separated, since some servers see no difference
// between X-Auth-Subject and X_Auth_Subject. The four that are set are not among
// them: Envoy removes after it sets.
func spoofed(h http.Header) []string {
	list := make([]string, 0, 16)
	for _, name := range [...]string{headerSubject, headerSession, headerScope, headerExpires} {
		// Also where Envoy was told not to send all headers.
		_, last, _ := strings.Cut(strings.ToLower(name), "x-auth-")
		list = append(list, "x-auth_"+last, "x_auth-"+last, "x_auth_"+last)
	}
	for name := range h {
		name = strings.ToLower(name)
		plain := strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
				return r
			}
			return '-'
		}, name)
		switch {
		case !strings.HasPrefix(plain, "x-auth-"), slices.Contains(list, name):
		case name == "x-auth-subject", name == "x-auth-session", name == "x-auth-scope", name == "x-auth-expires":
		default:
			list = append(list, name)
		}
	}
	slices.Sort(list[12:])
	return list
}
