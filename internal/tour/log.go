package tour

import (
	"bytes"
	"io"
	"sync"
)

// heldLog keeps what the replicas log out of the tour. It holds the lines back
// until it is told what to do with them.
type heldLog struct {
	mu      sync.Mutex
	to      io.Writer
	through bool // lines are passed on as they come
	held    bytes.Buffer
}

// Write takes one line of log.
func (l *heldLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.through {
		return l.to.Write(p)
	}
	return l.held.Write(p)
}

// release prints what was held back: it tells why the tour failed.
func (l *heldLog) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = l.held.WriteTo(l.to)
}

// pass drops what was held back and passes on what comes from now on.
func (l *heldLog) pass() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held.Reset()
	l.through = true
}
