package handlers_test

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
)

const revocationsToken = "canary-revocations-token-0123456789abcdef"

// streaming adds a replica that serves GET /revocations.
func (f *fleet) streaming() (*httptest.Server, *edge.Feed) {
	f.Helper()
	f.secrets.add(revocationsToken)
	store := f.replicas[0].store
	verifier, err := edge.New(edge.Options{Revocations: store.Revocations, Ring: f.ring, Issuer: issuer, Audience: audience})
	f.check(err)
	feed := edge.NewFeed(edge.FeedOptions{Revocations: store.Revocations})
	settings := handlers.Settings{Issuer: issuer, Audience: audience, RevocationsToken: []byte(revocationsToken), Version: "test"}
	api, err := handlers.New(handlers.Dependencies{
		Store: store, Verifier: verifier, Confirmer: edge.NewConfirmer(store.Revocations, time.Second),
		Signer: accesstoken.NewSigner(f.ring), Refresh: f.codec, Passwords: f.hasher,
		Metrics: handlers.NewMetrics("test", "go", f.hasher.Depth), Log: slog.New(slog.NewJSONHandler(f.log, nil)),
		Rand: rand.Reader, Revocations: feed,
		Settings: settings,
	})
	f.check(err)
	srv := httptest.NewUnstartedServer(documented(f, api, settings))
	limits(srv.Config)
	srv.Config.ReadTimeout, srv.Config.WriteTimeout = 300*time.Millisecond, 300*time.Millisecond
	srv.Config.RegisterOnShutdown(feed.Close)
	srv.Start()
	f.Cleanup(func() {
		feed.Close()
		srv.Close()
	})
	return srv, feed
}

// An API that has nothing but the addresses and the token learns of logouts.
func TestALogoutReachesARemoteAPI(t *testing.T) {
	t.Parallel()
	f := usual(t)
	srv, feed := f.streaming()
	client := &http.Client{Transport: &http.Transport{}}
	keys, err := edge.KeysFromURL(srv.URL+"/.well-known/jwks.json", edge.KeysOptions{Client: client})
	f.check(err)
	remote, err := edge.NewRemoteFollower(edge.RemoteOptions{URL: srv.URL + "/revocations", Token: revocationsToken, Client: client})
	f.check(err)
	verifier, err := edge.New(edge.Options{Keys: keys, Remote: remote, Issuer: issuer, Audience: audience})
	f.check(err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		remote.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		client.CloseIdleConnections()
	})
	select {
	case <-remote.Ready():
	case <-time.After(2 * time.Minute):
		t.Fatal("never up to date")
	}
	api := edge.Middleware(verifier)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _ := edge.ClaimsFrom(r.Context())
		_, _ = w.Write([]byte(c.Subject))
	}))
	call := func(access string) *httptest.ResponseRecorder {
		return record(api, request(t, http.MethodGet, "/", bearer(access)))
	}
	s := f.login(1)
	if w := call(s.access); w.Code != http.StatusOK || w.Body.String() != alice {
		t.Fatalf("before: %d %s", w.Code, w.Body)
	}
	f.post(2, "/auth/logout", bearer(s.access)).is(http.StatusOK)
	start := time.Now()
	for call(s.access).Code != http.StatusUnauthorized {
		if time.Since(start) > 5*time.Second {
			t.Fatal("not known after the bound")
		}
	}
	t.Logf("known after %v", time.Since(start))

	// A shutdown waits for requests: the streams end for it.
	start = time.Now()
	f.check(srv.Config.Shutdown(t.Context()))
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the shutdown took %v", took)
	}
	if open, _ := feed.Streams(); open != 0 {
		t.Errorf("%d streams are left", open)
	}
}

func TestRevocationsAreForThoseWithTheToken(t *testing.T) {
	t.Parallel()
	f := usual(t)
	srv, feed := f.streaming()
	get := func(options ...option) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/revocations", http.NoBody)
		f.check(err)
		for _, o := range options {
			o(req)
		}
		resp, err := f.client.Do(req)
		f.check(err)
		f.check(resp.Body.Close())
		return resp.StatusCode, resp.Header.Get("WWW-Authenticate")
	}
	for name, o := range map[string]option{
		"none":           func(*http.Request) {},
		"another":        bearer(revocationsToken + "x"),
		"a part":         bearer(revocationsToken[:20]),
		"a user's token": bearer(f.login(0).access),
	} {
		if status, challenge := get(o); status != http.StatusUnauthorized || challenge == "" {
			t.Errorf("%s: %d %q", name, status, challenge)
		}
	}
	if status, _ := get(bearer(revocationsToken)); status != http.StatusOK {
		t.Errorf("the token: %d", status)
	}
	f.get(0, "/revocations", bearer(revocationsToken)).fails(http.StatusNotFound, "not_found", "") // not set there
	feed.Close()
	if status, _ := get(bearer(revocationsToken)); status != http.StatusServiceUnavailable {
		t.Errorf("after the end: %d", status)
	}
}

// The adapter for Gin in docs/edge.md.
func TestTheMiddlewareUnderGin(t *testing.T) {
	t.Parallel()
	f := usual(t)
	verifier, err := edge.New(edge.Options{Revocations: f.replicas[0].store.Revocations, Ring: f.ring, Issuer: issuer, Audience: audience})
	f.check(err)
	guard := edge.Middleware(verifier, edge.RequireScope("read"))
	router := gin.New()
	router.Use(func(c *gin.Context) {
		admitted := false
		guard(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			c.Request, admitted = r, true
		})).ServeHTTP(c.Writer, c.Request)
		if !admitted {
			c.Abort()
		}
	})
	router.GET("/", func(c *gin.Context) {
		claims, _ := edge.ClaimsFrom(c.Request.Context())
		c.String(http.StatusOK, claims.Subject)
	})
	s := f.login(0)
	if w := record(router, request(t, http.MethodGet, "/", bearer(s.access))); w.Code != http.StatusOK || w.Body.String() != alice {
		t.Errorf("with a token: %d %s", w.Code, w.Body)
	}
	if w := record(router, request(t, http.MethodGet, "/")); w.Code != http.StatusUnauthorized {
		t.Errorf("without: %d %s", w.Code, w.Body)
	}
}
