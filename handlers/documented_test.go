package handlers_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/handlers"
)

// documented puts the OpenAPI document that the API serves between it and the tests:
// every exchange that goes over a socket is checked against it. APIs of the same
// settings serve the same document, which is read once: that takes longer than most tests.
func documented(t testing.TB, api http.Handler, settings handlers.Settings) http.Handler {
	key := fmt.Sprint(settings.Issuer, settings.CookieName, settings.CookieSecure, settings.CookieDomain, settings.CookiePath, settings.AccessCookie,
		len(settings.RevocationsToken) > 0, settings.Docs, settings.StatusListTTL > 0, settings.Version)
	first, _ := documents.LoadOrStore(key, sync.OnceValues(func() (*apiDocument, error) { return readDocument(api) }))
	served, _ := first.(func() (*apiDocument, error))
	_, _ = served() // now, and not within some test's time limit
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen := &exchange{ResponseWriter: w, request: r.Clone(context.WithoutCancel(r.Context())), status: http.StatusOK}
		if r.Body != http.NoBody {
			r.Body = &tee{ReadCloser: r.Body, to: &seen.sent}
		}
		api.ServeHTTP(seen, r)
		if seen.status == 499 && r.Context().Err() != nil {
			return // the client has gone, and receives nothing
		}
		document, err := served()
		if err == nil {
			err = document.check(seen)
		}
		if err != nil {
			t.Errorf("%s %s: %d: the exchange is not as documented: %v", r.Method, r.URL, seen.status, err)
		}
	})
}

// documents are those that were read, by what they depend on.
var documents sync.Map //nolint:gochecknoglobals // of the tests, which share nothing else

// exchange is a request and its response, kept as they pass.
type exchange struct {
	http.ResponseWriter
	request  *http.Request
	sent     bytes.Buffer // what was read of the request's body
	status   int
	wrote    bool
	received bytes.Buffer
}

func (e *exchange) WriteHeader(status int) {
	if !e.wrote {
		e.status, e.wrote = status, true
	}
	e.ResponseWriter.WriteHeader(status)
}

func (e *exchange) Write(p []byte) (int, error) {
	e.wrote = true
	e.received.Write(p)
	return e.ResponseWriter.Write(p)
}

// Unwrap is for [http.ResponseController].
func (e *exchange) Unwrap() http.ResponseWriter { return e.ResponseWriter }

// Flush is for what knows no [http.ResponseController].
func (e *exchange) Flush() { _ = http.NewResponseController(e.ResponseWriter).Flush() }

type tee struct {
	io.ReadCloser
	to *bytes.Buffer
}

func (t *tee) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.to.Write(p[:n])
	return n, err
}

// apiDocument is an OpenAPI document, ready to judge exchanges.
type apiDocument struct {
	*openapi3.T
	good sync.Map // responses that were found to be as documented, by all that is judged of one
}

// readDocument asks an API for its document.
func readDocument(api http.Handler) (*apiDocument, error) {
	w := httptest.NewRecorder()
	api.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/openapi.json", http.NoBody))
	if w.Code != http.StatusOK {
		return nil, fmt.Errorf("GET /openapi.json: %d", w.Code)
	}
	document, err := openapi3.NewLoader().LoadFromData(w.Body.Bytes())
	return &apiDocument{T: document}, err
}

// find returns the path of the document that a request is for, and what it says of it.
func (d *apiDocument) find(path string) (template string, item *openapi3.PathItem, params map[string]string) {
	if item := d.Paths.Value(path); item != nil {
		return path, item, nil
	}
	for template, item := range d.Paths.Map() {
		before, name, found := strings.Cut(template, "{")
		if rest, ok := strings.CutPrefix(path, before); found && ok {
			// Of verify all that follows belongs to the parameter; elsewhere one segment does.
			if marked(item, "x-any-method") || rest != "" && !strings.Contains(rest, "/") {
				return template, item, map[string]string{strings.TrimSuffix(name, "}"): cmp.Or(rest, "/")}
			}
		}
	}
	return "", nil, nil
}

// marked reports whether a path has an extension of the document's own.
func marked(item *openapi3.PathItem, extension string) bool {
	on, _ := item.Extensions[extension].(bool)
	return on
}

// methods are those that a path is documented to answer.
func methods(item *openapi3.PathItem) []string {
	var list []string
	for method := range item.Operations() {
		list = append(list, method)
	}
	if marked(item, "x-head") {
		list = append(list, http.MethodHead)
	}
	slices.Sort(list)
	return list
}

// check tells in what an exchange is not as documented.
func (d *apiDocument) check(e *exchange) error {
	r, header := e.request, e.Header()
	if r.Method == http.MethodOptions && e.status == http.StatusNoContent && header.Get("Access-Control-Allow-Origin") != "" {
		return nil // a preflight (CORS) is no call of the API
	}
	template, item, params := d.find(r.URL.EscapedPath())
	if item == nil {
		return d.elsewhere(e, http.StatusNotFound)
	}
	method := r.Method
	if marked(item, "x-any-method") || marked(item, "x-head") && method == http.MethodHead {
		method = http.MethodGet
	}
	operation := item.Operations()[method]
	if operation == nil {
		allowed := strings.Split(header.Get("Allow"), ", ")
		slices.Sort(allowed)
		if !slices.Equal(allowed, methods(item)) {
			return fmt.Errorf("methods %q are allowed, and %q are documented", allowed, methods(item))
		}
		return d.elsewhere(e, http.StatusMethodNotAllowed)
	}
	route := &routers.Route{Spec: d.T, Path: template, PathItem: item, Method: method, Operation: operation}
	// Tests get the same answers again and again, and to judge one takes longer than to give it.
	same := fmt.Sprint(method, template, e.status, e.request.Method, e.received.String())
	for _, name := range slices.Sorted(maps.Keys(header)) {
		same += "\n" + name
		if name != "Date" && name != "X-Request-Id" {
			same += fmt.Sprint(header[name])
		}
	}
	if _, good := d.good.Load(same); good {
		return d.checkRequest(e, route, params)
	}
	if err := d.checkResponse(e, route); err != nil {
		return errors.Join(d.checkRequest(e, route, params), err)
	}
	d.good.Store(same, nil)
	return d.checkRequest(e, route, params)
}

// elsewhere is the check of an answer that no operation gives.
func (d *apiDocument) elsewhere(e *exchange, status int) error {
	if e.status == http.StatusForbidden && e.Header().Get("Access-Control-Allow-Origin") == "" {
		return fmt.Errorf("got 403 where nothing is documented")
	}
	if e.status != status {
		return fmt.Errorf("got %d where nothing is documented, want %d", e.status, status)
	}
	return nil
}

// checkRequest accepts whatever was refused: requests of tests are hostile.
func (d *apiDocument) checkRequest(e *exchange, route *routers.Route, params map[string]string) error {
	if e.status >= 300 {
		return nil
	}
	r := e.request
	r.Body = io.NopCloser(bytes.NewReader(e.sent.Bytes()))
	if e.sent.Len() == 0 {
		r.Body = http.NoBody
	}
	r.Header.Set("Content-Type", strings.ToLower(r.Header.Get("Content-Type")))
	if r.Header.Get("Content-Type") == "" {
		r.Header.Del("Content-Type")
	}
	err := openapi3filter.ValidateRequest(r.Context(), &openapi3filter.RequestValidationInput{
		Request: r, Route: route, PathParams: params,
		Options: &openapi3filter.Options{AuthenticationFunc: shows, SkipSettingDefaults: true},
	})
	if err != nil {
		return fmt.Errorf("the request: %w", err)
	}
	return nil
}

// shows fails unless a request carries the credential of a security scheme.
func shows(_ context.Context, in *openapi3filter.AuthenticationInput) error {
	r := in.RequestValidationInput.Request
	switch s := in.SecurityScheme; {
	case s.Type == "apiKey" && s.In == "cookie":
		_, err := r.Cookie(s.Name)
		return err
	case s.Type == "http":
		scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if strings.EqualFold(scheme, s.Scheme) {
			return nil
		}
	}
	return errors.New("the request does not show " + in.SecuritySchemeName)
}

// everywhere are the headers that belong to HTTP or to CORS and not to an operation.
func everywhere(name string) bool {
	return strings.HasPrefix(name, "Access-Control-") ||
		slices.Contains([]string{"Connection", "Content-Length", "Content-Type", "Date", "Vary", "Allow"}, name)
}

// checkResponse holds a response against what is documented: its status, each of
// its headers, its type and its body.
func (d *apiDocument) checkResponse(e *exchange, route *routers.Route) error {
	header := e.Header()
	wanted := route.Operation.Responses.Status(e.status)
	if wanted == nil {
		return fmt.Errorf("the status is not documented: %s", e.received.String())
	}
	var faults []error
	for name, values := range header {
		if everywhere(name) {
			continue
		}
		var schema *openapi3.Schema
		for documented, h := range wanted.Value.Headers {
			if http.CanonicalHeaderKey(documented) == name {
				schema = h.Value.Schema.Value
			}
		}
		if schema == nil {
			faults = append(faults, fmt.Errorf("the header %s is not documented", name))
			continue
		}
		for _, v := range values { // the validator looks at the first of them only
			if p := schema.Pattern; p != "" && !regexp.MustCompile(p).MatchString(v) {
				faults = append(faults, fmt.Errorf("the header %s: %q does not match %s", name, v, p))
			}
		}
	}
	body := e.received.Bytes()
	kind, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	documented := wanted.Value.Content[kind] != nil
	if e.request.Method != http.MethodHead && (len(body) > 0) != documented {
		if e.status != http.StatusPartialContent && e.status != http.StatusRequestedRangeNotSatisfiable {
			faults = append(faults, fmt.Errorf("a body of %d bytes and of type %q", len(body), kind))
		}
	}
	input := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: e.request, Route: route},
		Status:                 e.status, Header: header,
		Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true, ExcludeResponseBody: !strings.HasSuffix(kind, "json")},
	}
	input.SetBodyBytes(body)
	if err := openapi3filter.ValidateResponse(e.request.Context(), input); err != nil {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// A route without a document, and a path of the document without a route, each fail.
func TestEveryRouteIsDocumented(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*handlers.Settings){
		"by default": func(*handlers.Settings) {},
		"everything": func(s *handlers.Settings) {
			s.Issuer, s.AccessCookie, s.RevocationsToken, s.Docs = "https://example.com/auth/v1", "access", []byte(revocationsToken), true
			s.StatusListTTL = 30 * time.Second
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t, setup{replicas: 1, settings: change, dependencies: func(d *handlers.Dependencies) {
				d.Revocations = edge.NewFeed(edge.FeedOptions{Revocations: d.Store.Revocations})
				t.Cleanup(d.Revocations.Close)
			}})
			document, err := readDocument(f.replicas[0].handler)
			f.check(err)
			if err := document.Validate(t.Context(), openapi3.EnableExamplesValidation()); err != nil {
				t.Error(err)
			}
			var routes, paths []string
			for _, r := range f.replicas[0].handler.(*handlers.API).Routes() {
				routes = append(routes, r.Method+" "+regexp.MustCompile("[:*]([a-z]+)").ReplaceAllString(r.Path, "{$1}"))
			}
			for path, item := range document.Paths.Map() {
				list := methods(item)
				if marked(item, "x-any-method") {
					list = []string{"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
				}
				for _, m := range list {
					paths = append(paths, m+" "+path)
				}
			}
			for _, r := range routes {
				if !slices.Contains(paths, r) {
					t.Errorf("there is %s, which is not documented", r)
				}
			}
			for _, p := range paths {
				if !slices.Contains(routes, p) {
					t.Errorf("%s is documented, and there is no such route", p)
				}
			}
			if len(routes) < 20 {
				t.Errorf("only %d routes were found", len(routes))
			}
		})
	}
}
