//go:build unix

package redistest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
)

// Shared is a [testing.TB] for servers that the tests of a package take turns on: they end with [Shared.Close], which
// TestMain calls, and not with a test. What would fail a test ends the run.
type Shared struct {
	testing.TB // nil: nothing else of it is called

	mu       sync.Mutex
	cleanups []func()
}

// Helper does nothing.
func (*Shared) Helper() {}

// Context never ends.
func (*Shared) Context() context.Context { return context.Background() }

// Failed is false: there is no test.
func (*Shared) Failed() bool { return false }

// Logf writes to standard error.
func (*Shared) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// Errorf is Fatalf.
func (s *Shared) Errorf(format string, args ...any) { s.Fatalf(format, args...) }

// Fatalf ends the run.
func (*Shared) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// TempDir returns a new folder, removed by Close.
func (s *Shared) TempDir() string {
	dir, err := os.MkdirTemp("", "redistest")
	if err != nil {
		s.Fatalf("redistest: %v", err)
	}
	s.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Cleanup has f called by Close; the last comes first.
func (s *Shared) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

// Close ends the servers.
func (s *Shared) Close() {
	s.mu.Lock()
	list := s.cleanups
	s.cleanups = nil
	s.mu.Unlock()
	for i := len(list) - 1; i >= 0; i-- {
		list[i]()
	}
}
