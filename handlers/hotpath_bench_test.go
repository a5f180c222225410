package handlers_test

import (
	"context"
	"net/http"
	"testing"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/handlers"
)

// discard is a response writer that keeps nothing.
type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

// BenchmarkVerifyHandler is GET /auth/verify without the network: what the
// product adds to Gin.
func BenchmarkVerifyHandler(b *testing.B) {
	var d handlers.Dependencies
	f := start(b, setup{replicas: 1, dependencies: func(of *handlers.Dependencies) { d = *of }})
	d.Verifier = following(b, f)
	latchkey, err := handlers.New(d)
	f.check(err)
	bare := gin.New()
	bare.GET("/auth/verify", func(c *gin.Context) { c.Status(http.StatusNoContent) })
	token := f.login(0).access
	for name, h := range map[string]http.Handler{"bare": bare, "latchkey": latchkey} {
		b.Run(name, func(b *testing.B) {
			req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "/auth/verify", http.NoBody)
			if err != nil {
				b.Fatal(err)
			}
			req.RemoteAddr = "127.0.0.1:1"
			req.Header.Set("Authorization", "Bearer "+token)
			b.ReportAllocs()
			for b.Loop() {
				w := &discard{h: make(http.Header, 8)}
				h.ServeHTTP(w, req)
			}
		})
	}
}

// following returns a verifier that answers from a copy of the denylist, as the program's does by default.
func following(b *testing.B, f *fleet) *edge.Verifier {
	b.Helper()
	store := f.replicas[0].store
	follower := edge.NewFollower(edge.FollowerOptions{Revocations: store.Revocations})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		follower.Run(ctx)
	}()
	b.Cleanup(func() {
		cancel()
		<-ended
	})
	<-follower.Ready()
	v, err := edge.New(edge.Options{Revocations: store.Revocations, Ring: f.ring, Issuer: issuer, Audience: audience, Follower: follower})
	f.check(err)
	return v
}
