//go:build unix

package proxies_test

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3" // named in envoy.yaml
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3" // named in envoy.yaml
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/goccy/go-yaml"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// These do what Traefik's ForwardAuth and Envoy's ext_authz do, with the settings
// of this folder's files, for want of the programs themselves.

// hopByHop are the headers that neither passes on.
func hopByHop() []string {
	return []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}
}

// proxied serves as a proxy: decide refuses (false) after it answered, or lets the
// request through as it changed it.
func (w *world) proxied(decide func(rw http.ResponseWriter, r *http.Request) bool) {
	service, err := url.Parse(w.service.URL)
	w.check(err)
	pass := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.SetURL(service)
		p.Out.URL.RawQuery = p.In.URL.RawQuery // as it came
		p.Out.Host = p.In.Host
	}}
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		for _, name := range hopByHop() {
			r.Header.Del(name)
		}
		if decide(rw, r) {
			pass.ServeHTTP(rw, r)
		}
	}))
	w.Cleanup(srv.Close)
	w.front = srv.Listener.Addr().String()
}

// question sends a request to Latchkey as a proxy's own client does.
func (w *world) question(r *http.Request, method, target string, header http.Header) (answer, error) {
	ctx, cancel := context.WithTimeout(r.Context(), 3*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, method, target, http.NoBody)
	if err != nil {
		return answer{}, err
	}
	q.Header = header
	if host := header.Get("Host"); host != "" {
		q.Host = host
		header.Del("Host")
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(q)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, header: resp.Header, body: string(body)}, err
}

// traefik is what traefik.yml says that matters here.
type traefik struct {
	HTTP struct {
		Middlewares map[string]struct {
			ForwardAuth struct {
				Address                  string
				TrustForwardHeader       bool   `yaml:"trustForwardHeader"`
				AuthResponseHeadersRegex string `yaml:"authResponseHeadersRegex"`
			} `yaml:"forwardAuth"`
		}
		Routers map[string]struct {
			Rule        string
			EntryPoints []string `yaml:"entryPoints"`
			Middlewares []string
			Service     string
		}
		Services map[string]struct {
			LoadBalancer struct {
				Servers []struct{ URL string }
			} `yaml:"loadBalancer"`
		}
	}
}

// startTraefik is Traefik's ForwardAuth (pkg/middlewares/auth/forward.go): a GET
// without a body to the address, with the request's headers and X-Forwarded-*; of
// a 2xx the headers that match replace the request's; all else is the answer.
func startTraefik(w *world) {
	raw, err := os.ReadFile(w.configured(w.TempDir(), "traefik.yml", "127.0.0.1:8080", w.api))
	w.check(err)
	var c traefik
	w.check(yaml.UnmarshalWithOptions(raw, &c, yaml.Strict()))
	w.proxied(func(rw http.ResponseWriter, r *http.Request) bool {
		router := c.HTTP.Routers["service"]
		if strings.HasPrefix(r.URL.Path, "/admin/") {
			router = c.HTTP.Routers["service-admin"]
		}
		auth := c.HTTP.Middlewares[router.Middlewares[0]].ForwardAuth
		h := r.Header.Clone()
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		h.Set("X-Forwarded-For", host)
		h.Set("X-Forwarded-Method", r.Method)
		h.Set("X-Forwarded-Proto", "http")
		h.Set("X-Forwarded-Host", r.Host)
		h.Set("X-Forwarded-Uri", r.URL.RequestURI())
		h.Del("Content-Length")
		a, err := w.question(r, http.MethodGet, auth.Address, h)
		if err != nil {
			rw.WriteHeader(http.StatusInternalServerError)
			return false
		}
		if a.status < 200 || a.status >= 300 {
			maps.Copy(rw.Header(), a.header)
			rw.WriteHeader(a.status)
			_, _ = io.WriteString(rw, a.body)
			return false
		}
		family := regexp.MustCompile(auth.AuthResponseHeadersRegex)
		maps.DeleteFunc(r.Header, func(name string, _ []string) bool { return family.MatchString(name) })
		for name, values := range a.header {
			if family.MatchString(name) {
				r.Header[name] = values
			}
		}
		return true
	})
}

// bootstrap reads envoy.yaml as Envoy does: by its schema, with every constraint.
func (w *world) bootstrap() *bootstrapv3.Bootstrap {
	w.Helper()
	raw, err := os.ReadFile(w.configured(w.TempDir(), "envoy.yaml", "127.0.0.1:8080", w.api))
	w.check(err)
	text, err := yaml.YAMLToJSON(raw)
	w.check(err)
	b := &bootstrapv3.Bootstrap{}
	w.check(protojson.Unmarshal(text, b))
	w.check(b.ValidateAll())
	return b
}

// envoy is one listener's settings.
type envoy struct {
	manager *hcmv3.HttpConnectionManager
	authz   *extauthzv3.ExtAuthz
	removed []string // by early header mutation
}

func (w *world) listener(name string) envoy {
	w.Helper()
	all := w.bootstrap().GetStaticResources().GetListeners()
	i := slices.IndexFunc(all, func(l *listenerv3.Listener) bool { return l.GetName() == name })
	e := envoy{manager: &hcmv3.HttpConnectionManager{}, authz: &extauthzv3.ExtAuthz{}}
	w.check(all[i].GetFilterChains()[0].GetFilters()[0].GetTypedConfig().UnmarshalTo(e.manager))
	w.check(e.manager.ValidateAll())
	w.check(e.manager.GetHttpFilters()[0].GetTypedConfig().UnmarshalTo(e.authz))
	w.check(e.authz.ValidateAll())
	for _, ext := range e.manager.GetEarlyHeaderMutationExtensions() {
		m := &mutationv3.HeaderMutation{}
		w.check(ext.GetTypedConfig().UnmarshalTo(m))
		for _, one := range m.GetMutations() {
			e.removed = append(e.removed, one.GetRemove())
		}
	}
	return e
}

// arrives is what Envoy does to a request before its filters.
func (e envoy) arrives(r *http.Request) {
	drop := e.manager.GetCommonHttpProtocolOptions().GetHeadersWithUnderscoresAction().String() == "DROP_HEADER"
	maps.DeleteFunc(r.Header, func(name string, _ []string) bool {
		return drop && strings.Contains(name, "_") || slices.Contains(e.removed, strings.ToLower(name))
	})
}

// matches reports whether a list names a header.
func matches(list *matcherv3.ListStringMatcher, name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc(list.GetPatterns(), func(m *matcherv3.StringMatcher) bool {
		return m.GetExact() == name || m.GetPrefix() != "" && strings.HasPrefix(name, m.GetPrefix())
	})
}

// startEnvoyHTTP is Envoy's ext_authz over HTTP: the request's own method, the
// prefix and then its path, no body; of its headers Host, Authorization, and what
// is allowed.
func startEnvoyHTTP(w *world) {
	e := w.listener("by_http")
	settings := e.authz.GetHttpService()
	if e.authz.GetFailureModeAllow() {
		w.Fatal("it fails open")
	}
	w.proxied(func(rw http.ResponseWriter, r *http.Request) bool {
		e.arrives(r)
		r.Header.Set("X-Forwarded-Proto", "http")
		h := http.Header{"Host": {r.Host}}
		for name, values := range r.Header {
			if name == "Authorization" || matches(e.authz.GetAllowedHeaders(), name) {
				h[name] = []string{strings.Join(values, ",")}
			}
		}
		a, err := w.question(r, r.Method, "http://"+w.api+settings.GetPathPrefix()+r.RequestURI, h)
		if err != nil || a.status >= 500 && a.header.Get("Cache-Control") == "" {
			rw.Header().Set("Retry-After", "1") // the test's, which Envoy does not give
			rw.WriteHeader(int(e.authz.GetStatusOnError().GetCode()))
			return false
		}
		passed := settings.GetAuthorizationResponse()
		if a.status != http.StatusOK && a.status != http.StatusNoContent {
			for name, values := range a.header {
				if matches(passed.GetAllowedClientHeaders(), name) {
					rw.Header()[name] = values
				}
			}
			rw.WriteHeader(a.status)
			_, _ = io.WriteString(rw, a.body)
			return false
		}
		for name, values := range a.header {
			if matches(passed.GetAllowedUpstreamHeaders(), name) {
				r.Header[name] = values
			}
		}
		return true
	})
}

// startEnvoyGRPC is Envoy's ext_authz over gRPC: headers joined by commas; of an
// acceptance it sets headers and then removes some.
func startEnvoyGRPC(w *world) {
	e := w.listener("by_grpc")
	if e.authz.GetFailureModeAllow() {
		w.Fatal("it fails open")
	}
	conn, err := grpc.NewClient(w.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	w.check(err)
	w.Cleanup(func() { _ = conn.Close() })
	client := authv3.NewAuthorizationClient(conn)
	w.proxied(func(rw http.ResponseWriter, r *http.Request) bool {
		e.arrives(r)
		asked := &authv3.AttributeContext_HttpRequest{
			Method: r.Method, Host: r.Host, Path: r.RequestURI, Scheme: "http", Protocol: r.Proto,
			Headers: map[string]string{":method": r.Method, ":path": r.RequestURI, ":authority": r.Host},
		}
		for name, values := range r.Header {
			asked.Headers[strings.ToLower(name)] = strings.Join(values, ",")
		}
		ctx, cancel := context.WithTimeout(r.Context(), e.authz.GetGrpcService().GetTimeout().AsDuration())
		defer cancel()
		answer, err := client.Check(ctx, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			ContextExtensions: e.extensions(w.T, r.URL.Path),
			Request:           &authv3.AttributeContext_Request{Http: asked},
		}})
		if err != nil {
			rw.Header().Set("Retry-After", "1") // the test's, which Envoy does not give
			rw.WriteHeader(int(e.authz.GetStatusOnError().GetCode()))
			return false
		}
		if answer.GetStatus().GetCode() != int32(codes.OK) {
			no := answer.GetDeniedResponse()
			for _, o := range no.GetHeaders() {
				rw.Header().Set(o.GetHeader().GetKey(), o.GetHeader().GetValue())
			}
			rw.WriteHeader(int(no.GetStatus().GetCode()))
			_, _ = io.WriteString(rw, no.GetBody())
			return false
		}
		for _, o := range answer.GetOkResponse().GetHeaders() {
			r.Header.Set(o.GetHeader().GetKey(), o.GetHeader().GetValue())
		}
		for _, name := range answer.GetOkResponse().GetHeadersToRemove() {
			r.Header.Del(name)
		}
		return true
	})
}

// extensions are those of the route that a path takes.
func (e envoy) extensions(t *testing.T, path string) map[string]string {
	for _, route := range e.manager.GetRouteConfig().GetVirtualHosts()[0].GetRoutes() {
		if !strings.HasPrefix(path, route.GetMatch().GetPrefix()) {
			continue
		}
		per := &extauthzv3.ExtAuthzPerRoute{}
		if c := route.GetTypedPerFilterConfig()["envoy.filters.http.ext_authz"]; c != nil {
			if err := c.UnmarshalTo(proto.Message(per)); err != nil {
				t.Error(err)
			}
		}
		return per.GetCheckSettings().GetContextExtensions()
	}
	return nil
}
