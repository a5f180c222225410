//go:build unix

package proxies_test

import (
	"cmp"
	"context"
	"fmt"
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
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

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

// hopByHop are the headers that neither passes on, but for the upgrade of a request
// that asks for one, which the service gets and Latchkey does not.
func hopByHop() []string {
	return []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}
}

// proxied serves as a proxy: decide refuses (false) after it answered, or lets the
// request through as it changed it.
func (w *world) proxied(decide func(rw http.ResponseWriter, r *http.Request) bool) {
	pass := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.SetURL(&url.URL{Scheme: "http", Host: w.service})
		p.Out.URL.RawQuery = p.In.URL.RawQuery // as it came
		p.Out.Host = p.In.Host
	}}
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		upgrade := ""
		if strings.Contains(strings.ToLower(strings.Join(r.Header["Connection"], ",")), "upgrade") {
			upgrade = r.Header.Get("Upgrade")
		}
		for _, name := range hopByHop() {
			r.Header.Del(name)
		}
		if upgrade != "" {
			r.Header["Connection"], r.Header["Upgrade"] = []string{"Upgrade"}, []string{upgrade}
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
	for _, name := range hopByHop() {
		q.Header.Del(name)
	}
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
			IPAllowList struct {
				SourceRange      []string `yaml:"sourceRange"`
				RejectStatusCode int      `yaml:"rejectStatusCode"`
			} `yaml:"ipAllowList"`
		}
		Routers  map[string]traefikRouter
		Services map[string]struct {
			LoadBalancer struct {
				Servers []struct{ URL string }
			} `yaml:"loadBalancer"`
		}
	}
}

type traefikRouter struct {
	Rule        string
	Priority    int
	EntryPoints []string `yaml:"entryPoints"`
	Middlewares []string
	Service     string
}

// matcher is a part of a rule.
var matcher = regexp.MustCompile("(!?)(\\w+)\\(`([^`]*)`(?:, `([^`]*)`)?\\)|(&&)|(\\|\\|)")

// matches evaluates the rule (pkg/muxer/http) for a request to the host of these tests,
// whose path Traefik has decoded for routing.
func (r traefikRouter) matches(t testing.TB, path string, h http.Header) bool {
	t.Helper()
	whole, all := false, true
	for _, m := range matcher.FindAllStringSubmatch(r.Rule, -1) {
		var is bool
		switch {
		case m[5] != "":
			continue
		case m[6] != "":
			whole, all = whole || all, true
			continue
		case m[2] == "Host":
			is = m[3] == "shop.example.com"
		case m[2] == "PathRegexp":
			is = regexp.MustCompile(m[3]).MatchString(path)
		case m[2] == "HeaderRegexp":
			is = slices.ContainsFunc(h.Values(m[3]), regexp.MustCompile(m[4]).MatchString)
		default:
			t.Fatalf("%s: what is %s?", r.Rule, m[0])
		}
		all = all && is != (m[1] == "!")
	}
	return whole || all
}

// route is the router that a request takes: of those that match the one with the
// highest priority, which is the length of the rule unless it is set. None is a 404.
func (c *traefik) route(t testing.TB, path string, h http.Header) (router traefikRouter, found bool) {
	t.Helper()
	for _, r := range c.HTTP.Routers {
		r.Priority = cmp.Or(r.Priority, len(r.Rule))
		if r.matches(t, path, h) && (!found || r.Priority > router.Priority) {
			router, found = r, true
		}
	}
	return router, found
}

// traefikPath is what Traefik 3.4.1 and later do to a URL: unreserved characters are
// decoded and escapes put in capitals (normalizePath, pkg/server), and, unless that was
// switched off, dot segments and empty ones removed (sanitizePath). Rules then see a
// path with all but reserved characters and % decoded (withRoutingPath,
// pkg/muxer/http).
func traefikPath(u *url.URL, sanitize bool) (passed *url.URL, routing string) {
	out := *u
	escape := regexp.MustCompile("%[0-9A-Fa-f]{2}")
	if u.RawPath != "" {
		out.RawPath = escape.ReplaceAllStringFunc(u.RawPath, func(e string) string {
			if plain, _ := url.PathUnescape(e); regexp.MustCompile("^[-0-9A-Za-z._~]$").MatchString(plain) {
				return plain
			}
			return strings.ToUpper(e)
		})
		out.Path, _ = url.PathUnescape(out.RawPath)
	}
	passed = &out
	if sanitize {
		passed = passed.JoinPath()
	}
	return passed, escape.ReplaceAllStringFunc(passed.EscapedPath(), func(e string) string {
		plain, _ := url.PathUnescape(e)
		if reserved := ":/?#[]@!$&'()*+,;=%"; strings.Contains(reserved, plain) {
			return e
		}
		return plain
	})
}

func (w *world) traefik() *traefik {
	w.Helper()
	raw, err := os.ReadFile(w.configured(w.TempDir(), "traefik.yml", "127.0.0.1:8080", w.api))
	w.check(err)
	c := &traefik{}
	w.check(yaml.UnmarshalWithOptions(raw, c, yaml.Strict()))
	return c
}

// startTraefik is Traefik's ForwardAuth (pkg/middlewares/auth/forward.go): a GET
// without a body to the address, with the request's headers and X-Forwarded-*; of
// a 2xx the headers that match replace the request's; all else is the answer.
func startTraefik(w *world) {
	c := w.traefik()
	w.proxied(func(rw http.ResponseWriter, r *http.Request) bool {
		passed, routing := traefikPath(r.URL, true)
		r.URL, r.RequestURI = passed, passed.RequestURI()
		router, found := c.route(w, routing, r.Header)
		if !found {
			rw.WriteHeader(http.StatusNotFound)
			return false
		}
		middleware := c.HTTP.Middlewares[router.Middlewares[0]]
		if code := middleware.IPAllowList.RejectStatusCode; code != 0 {
			rw.WriteHeader(code) // nobody has the address
			return false
		}
		auth := middleware.ForwardAuth
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

// arrives is what Envoy does to a request before its filters. It reports whether it
// goes on with it, or refuses it.
func (e envoy) arrives(rw http.ResponseWriter, r *http.Request) bool {
	if upgrade := r.Header.Get("Upgrade"); upgrade != "" && !slices.ContainsFunc(e.manager.GetUpgradeConfigs(), func(c *hcmv3.HttpConnectionManager_UpgradeConfig) bool {
		return strings.EqualFold(c.GetUpgradeType(), upgrade)
	}) {
		rw.WriteHeader(http.StatusForbidden)
		return false
	}
	target, ok := envoyPath(e.manager, r.RequestURI)
	u, err := url.ParseRequestURI(target)
	if !ok || err != nil {
		rw.WriteHeader(http.StatusBadRequest)
		return false
	}
	r.URL, r.RequestURI = u, target
	drop := e.manager.GetCommonHttpProtocolOptions().GetHeadersWithUnderscoresAction().String() == "DROP_HEADER"
	maps.DeleteFunc(r.Header, func(name string, _ []string) bool {
		return drop && strings.Contains(name, "_") || slices.Contains(e.removed, strings.ToLower(name))
	})
	return true
}

// envoyPath is what Envoy's connection manager does to a request target, with the
// settings of the file (maybeNormalizePath): refuse a fragment and escaped slashes,
// decode unreserved characters, take a backslash for a slash, escape what is not ASCII,
// remove dot segments, merge slashes. It returns false for what it refuses.
func envoyPath(m *hcmv3.HttpConnectionManager, target string) (string, bool) {
	if _, rest, found := strings.Cut(target, "://"); found && target[0] != '/' {
		_, path, _ := strings.Cut(rest, "/")
		target = "/" + path
	}
	path, query, asked := strings.Cut(target, "?")
	if strings.Contains(target, "#") || !strings.HasPrefix(path, "/") {
		return "", false
	}
	if m.GetPathWithEscapedSlashesAction() == hcmv3.HttpConnectionManager_REJECT_REQUEST && regexp.MustCompile("(?i)%2f|%5c").MatchString(path) {
		return "", false
	}
	if m.GetNormalizePath().GetValue() {
		path = regexp.MustCompile("%[0-9A-Fa-f]{2}").ReplaceAllStringFunc(path, func(e string) string {
			if b, _ := strconv.ParseUint(e[1:], 16, 8); regexp.MustCompile("^[-0-9A-Za-z._~]$").MatchString(string([]byte{byte(b)})) {
				return string([]byte{byte(b)})
			}
			return e
		})
		path = strings.ReplaceAll(path, "\\", "/")
		var escaped strings.Builder
		for _, b := range []byte(path) {
			if b <= ' ' || b >= 0x7f {
				fmt.Fprintf(&escaped, "%%%02X", b)
			} else {
				escaped.WriteByte(b)
			}
		}
		var segments []string
		all := strings.Split(escaped.String()[1:], "/")
		for i, segment := range all {
			switch segment {
			case "..":
				segments = segments[:max(0, len(segments)-1)]
				fallthrough
			case ".":
				if i == len(all)-1 {
					segments = append(segments, "")
				}
			default:
				segments = append(segments, segment)
			}
		}
		path = "/" + strings.Join(segments, "/")
	}
	if m.GetMergeSlashes() {
		path = regexp.MustCompile("/+").ReplaceAllString(path, "/")
	}
	if asked {
		path += "?" + query
	}
	return path, true
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
		if !e.arrives(rw, r) {
			return false
		}
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
		if !e.arrives(rw, r) {
			return false
		}
		scope, refused := e.route(w, r.RequestURI)
		if refused != 0 {
			rw.WriteHeader(refused)
			return false
		}
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
			ContextExtensions: scope,
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

// route is the route that a target takes: its context extensions, or the status that it
// answers by itself.
func (e envoy) route(t testing.TB, target string) (extensions map[string]string, status int) {
	t.Helper()
	path, _, _ := strings.Cut(target, "?")
	for _, route := range e.manager.GetRouteConfig().GetVirtualHosts()[0].GetRoutes() {
		match := route.GetMatch()
		switch prefix := match.GetPrefix(); {
		case match.GetSafeRegex() != nil: // of the whole path
			if !regexp.MustCompile("^(?:" + match.GetSafeRegex().GetRegex() + ")$").MatchString(path) {
				continue
			}
		case match.GetCaseSensitive() != nil && !match.GetCaseSensitive().GetValue():
			if len(path) < len(prefix) || !strings.EqualFold(path[:len(prefix)], prefix) {
				continue
			}
		case !strings.HasPrefix(path, prefix):
			continue
		}
		if answer := route.GetDirectResponse(); answer != nil {
			return nil, int(answer.GetStatus())
		}
		per := &extauthzv3.ExtAuthzPerRoute{}
		if c := route.GetTypedPerFilterConfig()["envoy.filters.http.ext_authz"]; c != nil {
			if err := c.UnmarshalTo(proto.Message(per)); err != nil {
				t.Error(err)
			}
		}
		return per.GetCheckSettings().GetContextExtensions(), 0
	}
	return nil, http.StatusNotFound
}

// However the path is written, it is refused or needs the scope: also in the forms that
// the server of this test would not have let through, and with each proxy's own
// normalisation switched off.
func TestRoutesOfTraefikAndEnvoy(t *testing.T) {
	t.Parallel()
	w := &world{T: t, api: "127.0.0.1:1"}
	c, e := w.traefik(), w.listener("by_grpc")
	raw := proto.CloneOf(e.manager)
	raw.NormalizePath, raw.MergeSlashes, raw.PathWithEscapedSlashesAction = nil, false, 0
	for _, target := range spellings() {
		for _, sanitize := range []bool{true, false} {
			u, err := url.ParseRequestURI(target)
			if err != nil {
				continue // so does Traefik's server
			}
			if opaque(target) {
				continue // README.md tells
			}
			passed, routing := traefikPath(u, sanitize)
			router, found := c.route(t, routing, nil)
			if found && router.Service != "noop@internal" && router.Middlewares[0] != "latchkey-admin" {
				t.Errorf("Traefik, sanitizePath %t: %q, as %q, takes %s", sanitize, target, passed.EscapedPath(), router.Rule)
			}
		}
		for _, m := range []*hcmv3.HttpConnectionManager{e.manager, raw} {
			path, ok := envoyPath(m, target)
			// What Envoy passes on counts; and RE2 matches no invalid UTF-8.
			if !ok || !inAdmin(lenient(path)) || m == raw && !utf8.ValidString(path) {
				continue
			}
			if extensions, status := e.route(t, path); status != 400 && extensions["scope"] != "admin" {
				t.Errorf("Envoy, normalize_path %t: %q, as %q, needs no scope", m.GetNormalizePath().GetValue(), target, path)
			}
		}
	}
	for _, target := range honest() {
		u, err := url.ParseRequestURI(target)
		w.check(err)
		_, routing := traefikPath(u, true)
		if router, _ := c.route(t, routing, nil); router.Service != "service" || router.Middlewares[0] != "latchkey" {
			t.Errorf("Traefik: %q takes %s", target, router.Rule)
		}
		path, ok := envoyPath(e.manager, target)
		if extensions, status := e.route(t, path); !ok || status != 0 || extensions != nil {
			t.Errorf("Envoy: %q is answered %d, or needs %v", target, status, extensions)
		}
	}
}

// One expression says which paths are ambiguous, in all files but Traefik's.
func TestAmbiguousPathsAreTheSameEverywhere(t *testing.T) {
	t.Parallel()
	const ambiguous = `^([^/]|$|[^?]*(//|/[.]+([/?]|$)|/[.]*(;|%3b|%20)|[^]!$-[^-~]|%(.?$|[^0-9a-f]|.[^0-9a-f]|[01]|2[5def]|3[0-9]|4[1-9a-f]|5[0-9acf]|6[1-9a-f]|7[0-9aef]|c[01]|e0%[89]|f0%8|f[5-9a-f])))`
	for _, file := range []string{"nginx.conf", "haproxy.cfg", "Caddyfile", "envoy.yaml"} {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(raw), ambiguous) {
			t.Errorf("%s does not refuse %s", file, ambiguous)
		}
	}
}
