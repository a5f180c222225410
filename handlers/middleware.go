package handlers

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/session"
)

const headerRequestID = "X-Request-Id" // in its canonical form, as all header names here

// identify gives a request its id before anything is done for it.
func identify(c *gin.Context) { requestID(c) }

// requestID is the id of a request under way: the caller's, if it is a harmless
// one. It is kept in the header of the response.
func requestID(c *gin.Context) string {
	header := c.Writer.Header()
	if kept := header[headerRequestID]; kept != nil {
		return kept[0]
	}
	id := c.Request.Header.Get(headerRequestID)
	if !harmless(id) {
		id = newRequestID()
	}
	header[headerRequestID] = []string{id}
	return id
}

// newRequestID returns 80 random bits. A count would tell each client how much
// traffic a replica has.
func newRequestID() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // it does not fail: the program would end
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// harmless reports whether an id is 1 to 64 characters that mean nothing to a
// log or a shell.
func harmless(id string) bool {
	if id == "" || len(id) > 64 {
		return false
	}
	for _, r := range id {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
		default:
			return false
		}
	}
	return true
}

// logger is the log with the request's id.
func (a *api) logger(c *gin.Context) *slog.Logger {
	return a.Log.With(slog.String("request_id", requestID(c)))
}

// measure counts and times every request by its route's template: never by its
// path, which a client chooses.
func (a *api) measure(c *gin.Context) {
	start := time.Since(a.began) // which reads one clock, where time.Now reads two
	c.Next()
	route := c.FullPath()
	if route == "" {
		route = "none"
	}
	a.Metrics.request(route, method(c.Request.Method), c.Writer.Status(), time.Since(a.began)-start)
}

// method keeps the label set closed: a method is whatever a client writes.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodPost, http.MethodDelete, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodPatch:
		return m
	}
	return "other"
}

// recover answers 500 after a panic. The log has the stack, whose frames show
// no values, and of the panic only what the runtime says: a value that some
// code panicked with may hold anything.
func (a *api) recover(c *gin.Context) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(v)
		}
		what := fmt.Sprintf("%T", v)
		if err, ok := v.(runtime.Error); ok {
			what = err.Error()
		}
		a.Metrics.panics.Inc()
		a.logger(c).LogAttrs(c.Request.Context(), slog.LevelError, "panic",
			slog.String("route", c.FullPath()), slog.String("panic", what), slog.String("stack", string(debug.Stack())))
		if !c.Writer.Written() {
			a.fail(c, errors.New("panic"))
		}
		c.Abort()
	}()
	c.Next()
}

// bound limits what a request may send and forbids keeping what it is answered.
func (a *api) bound(c *gin.Context) {
	c.Writer.Header()["Cache-Control"] = a.noStore
	if c.Request.Body != http.NoBody {
		c.Request.Body = http.MaxBytesReader(c.Writer, c.Request.Body, maxBody)
	}
}

// noSniff sets X-Content-Type-Options: nosniff.
func noSniff(c *gin.Context) { c.Writer.Header()["X-Content-Type-Options"] = []string{"nosniff"} }

// sameOrigin refuses a request that a browser made for a page of another
// origin, by Fetch metadata or else the Origin header. Other clients send neither.
func (a *api) sameOrigin(c *gin.Context) {
	if err := a.crossOrigin.Check(c.Request); err != nil {
		a.note(c, session.EventCrossSite)
		a.fail(c, errCrossSite)
	}
}
