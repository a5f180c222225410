package credential

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// job is the work of one hash. Its fields are what travels to a helper.
type job struct {
	ID         uint64
	Kind       kind
	Memory     uint32 // KiB
	Iterations uint32
	Lanes      uint8
	Length     uint32 // of an argon2 key, in bytes
	Salt       []byte // of argon2
	Bcrypt     string // what to compare with
	Password   []byte
}

// answer is what a helper found: an argon2 key, or for bcrypt one byte, 1 for a match.
// The one with the ID 0 says that the helper is there.
type answer struct {
	ID    uint64
	Found []byte
}

// compute does the work. It allocates j.Memory.
func (j *job) compute() []byte {
	switch j.Kind {
	case bcrypted:
		if bcrypt.CompareHashAndPassword([]byte(j.Bcrypt), j.Password) != nil {
			return []byte{0}
		}
		return []byte{1}
	case argon2i:
		return argon2.Key(j.Password, j.Salt, j.Iterations, j.Memory, j.Lanes, j.Length)
	default:
		return argon2.IDKey(j.Password, j.Salt, j.Iterations, j.Memory, j.Lanes, j.Length)
	}
}

// patience is how long a helper may take over a job: several times what a slow CPU
// needs for it (2 us for a KiB of one pass, 0.2 ms for one of bcrypt's rounds).
func (j *job) patience() time.Duration {
	const least = 250 * time.Millisecond
	if j.Kind == bcrypted {
		var cost int
		_, _ = fmt.Sscanf(j.Bcrypt[4:6], "%d", &cost) // parsed before
		return least + 200*time.Microsecond<<cost
	}
	return least + time.Duration(j.Memory)*time.Duration(j.Iterations)*2*time.Microsecond
}

// Helper has another process compute hashes, which the kernel can then give what CPU
// is left over by everything else. It is never relied on: what it has not answered in
// time, because it has ended or the machine has no CPU to spare, is computed here, and so
// is what comes while it is behind. The zero Helper has no process yet; it is safe for
// concurrent use.
type Helper struct {
	mu      sync.Mutex
	send    *gob.Encoder // nil: there is no process
	waiting map[uint64]chan []byte
	last    uint64 // ID
	late    int    // how many jobs are overdue
}

// Attach has the process at the other end of two pipes compute hashes, as [Help] does.
// It returns when that has ended.
func (h *Helper) Attach(in io.Reader, out io.Writer) error {
	dec := gob.NewDecoder(in)
	var a answer
	if err := dec.Decode(&a); err != nil {
		return fmt.Errorf("it did not start: %w", err)
	}
	h.mu.Lock()
	h.send, h.waiting, h.late = gob.NewEncoder(out), map[uint64]chan []byte{}, 0
	h.mu.Unlock()
	defer h.detach()
	for {
		a = answer{}
		if err := dec.Decode(&a); err != nil {
			return fmt.Errorf("it has ended: %w", err)
		}
		h.answered(a)
	}
}

func (h *Helper) detach() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, ch := range h.waiting {
		if ch != nil {
			close(ch)
		}
	}
	h.send, h.waiting = nil, nil
}

// answered hands an answer to whoever waits for it.
func (h *Helper) answered(a answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ch, ok := h.waiting[a.ID]
	if !ok {
		return
	}
	delete(h.waiting, a.ID)
	if ch == nil { // overdue: nobody waits any more
		h.late--
		return
	}
	ch <- a.Found
}

// ask has the helper do a job. It reports false if it did not, in time or at all.
func (h *Helper) ask(j *job) ([]byte, bool) {
	ch, id, ok := h.submit(j)
	if !ok {
		return nil, false
	}
	timer := time.NewTimer(j.patience())
	defer timer.Stop()
	select {
	case found, ok := <-ch:
		return found, ok
	case <-timer.C:
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.waiting[id]; ok {
		h.waiting[id] = nil
		h.late++
		return nil, false
	}
	found, ok := <-ch // just now, or closed
	return found, ok
}

// mostOut is how many jobs a helper has at once: so many fit into a pipe of 64 KiB, and
// nobody waits for one to be read.
const mostOut = 32

// submit sends a job. While one is overdue none is sent.
func (h *Helper) submit(j *job) (chan []byte, uint64, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.send == nil || h.late > 0 || len(h.waiting) >= mostOut {
		return nil, 0, false
	}
	h.last++
	sent := *j
	sent.ID = h.last
	if err := h.send.Encode(&sent); err != nil {
		h.send = nil // Attach is about to find out why
		return nil, 0, false
	}
	ch := make(chan []byte, 1)
	h.waiting[sent.ID] = ch
	return ch, sent.ID, true
}

// Help is the other process: it computes the hashes that are asked for on in, all of them
// at once, until in ends.
func Help(in io.Reader, out io.Writer) error {
	dec, enc := gob.NewDecoder(in), gob.NewEncoder(out)
	if err := enc.Encode(answer{}); err != nil {
		return err
	}
	var writing sync.Mutex
	var jobs sync.WaitGroup
	defer jobs.Wait()
	for {
		var j job
		if err := dec.Decode(&j); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		jobs.Go(func() {
			a := answer{ID: j.ID, Found: j.compute()}
			writing.Lock()
			defer writing.Unlock()
			_ = enc.Encode(a) // if nobody reads, in ends, too
		})
	}
}
