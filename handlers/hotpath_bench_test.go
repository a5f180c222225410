package handlers_test

import (
	"net/http"
	"testing"
)

// discard is a response writer that keeps nothing.
type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

// BenchmarkVerifyHandler is GET /auth/verify without the network: what the
// product adds to Gin.
func BenchmarkVerifyHandler(b *testing.B) {
	f := newFloors(b)
	for name, h := range map[string]http.Handler{"bare": bareVerify(), "latchkey": f.api(true)} {
		b.Run(name, func(b *testing.B) {
			if f.where == "" {
				f.api(true)
			}
			req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "/auth/verify", http.NoBody)
			if err != nil {
				b.Fatal(err)
			}
			req.RemoteAddr = "127.0.0.1:1"
			req.Header.Set("Authorization", "Bearer "+f.login())
			b.ReportAllocs()
			for b.Loop() {
				w := &discard{h: make(http.Header, 8)}
				h.ServeHTTP(w, req)
			}
		})
	}
}
