package bench

import (
	"context"
	"strings"
	"testing"
	"time"
)

// lateContext is past its deadline and has not noticed yet.
type lateContext struct{ context.Context }

func (lateContext) Deadline() (time.Time, bool) { return time.Now(), true }

func TestBenchGoesByTheClock(t *testing.T) {
	t.Parallel()
	b := newRunner(Options{Timeout: time.Second, Parallel: 1})
	if err := b.cutShort(lateContext{t.Context()}); err == nil || !strings.Contains(err.Error(), "--timeout 1s was over") {
		t.Errorf("past the deadline, before the context says so: %v", err)
	}
	if err := b.cutShort(t.Context()); err != nil {
		t.Errorf("without a deadline: %v", err)
	}
}

func TestBar(t *testing.T) {
	t.Parallel()
	if got := bar(0.5, 3, "·"); got != "█▌·" {
		t.Errorf("bar: %q", got)
	}
}
