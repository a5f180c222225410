package credential

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"strconv"
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

// usual is about how long the work takes a CPU of today.
func (j *job) usual() time.Duration {
	if j.Kind == bcrypted {
		cost, _ := strconv.Atoi(j.Bcrypt[4:6]) // parsed before
		return 50 * time.Microsecond << cost
	}
	return time.Duration(j.Memory) * time.Duration(j.Iterations) * 600 * time.Nanosecond
}

const (
	// helperFactor is how many times the usual a helper may take: it has the CPU that is
	// left over.
	helperFactor = 8
	// helperPatience is the longest that anybody waits for a helper. What could take
	// longer it is not asked for.
	helperPatience = 2 * time.Second
	// After it was too late a helper is not asked for so long; twice as long each time
	// that it is too late again, up to the second.
	helperPause, helperLongestPause = time.Second, 30 * time.Second
)

// Helper has another process compute hashes, which the kernel can then give what CPU
// is left over by everything else. It is never relied on: what it has not answered in
// time, because it has ended or the machine has no CPU to spare, is computed here, and so
// is what comes for a while after. The zero Helper has no process yet; it is safe for
// concurrent use.
type Helper struct {
	mu      sync.Mutex
	send    chan<- *job // nil: there is no process
	threads int         // of the process
	waiting map[uint64]chan []byte
	last    uint64        // ID
	late    int           // how many jobs are overdue
	pause   time.Duration // the next one
	resume  time.Time     // when the helper may be asked again
}

// Attach has the process at the other end of two pipes compute hashes, as [Help] does, on
// so many threads. It calls ready when the process has said that it is there, and returns
// when it has ended. The caller then closes out.
func (h *Helper) Attach(in io.Reader, out io.Writer, threads int, ready func()) error {
	dec := gob.NewDecoder(in)
	var a answer
	if err := dec.Decode(&a); err != nil {
		return fmt.Errorf("it did not start: %w", err)
	}
	send := make(chan *job, 4*threads)
	go func() { // nobody waits for a process that does not read
		enc := gob.NewEncoder(out)
		for j := range send {
			_ = enc.Encode(j) // if it has ended, reading tells
		}
	}()
	ready()
	h.mu.Lock()
	h.send, h.threads, h.waiting = send, threads, map[uint64]chan []byte{}
	h.late, h.pause, h.resume = 0, helperPause, time.Time{}
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
	close(h.send)
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
	h.pause = helperPause
	ch <- a.Found
}

// ask has the helper do a job. It reports false if it did not, in time or at all.
func (h *Helper) ask(j *job) ([]byte, bool) {
	ch, id, patience := h.submit(j)
	if ch == nil {
		return nil, false
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case found, ok := <-ch:
		return found, ok
	case <-timer.C:
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.waiting[id]; !ok {
		found, ok := <-ch // just now, or closed
		return found, ok
	}
	h.waiting[id] = nil
	h.late++
	if now := time.Now(); now.After(h.resume) { // of several that are late at once, one counts
		h.resume = now.Add(h.pause)
		h.pause = min(2*h.pause, helperLongestPause)
	}
	return nil, false
}

// submit sends a job, and returns where its answer comes and how long to wait for it. It
// sends none that is too heavy, none when each of the helper's threads has four, and none
// while one is overdue or for a while after.
func (h *Helper) submit(j *job) (ch chan []byte, id uint64, patience time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.send == nil || h.late > 0 || time.Now().Before(h.resume) {
		return nil, 0, 0
	}
	turns := (len(h.waiting)*int(j.lanes()) + int(j.lanes()) + h.threads - 1) / h.threads
	patience = helperFactor * j.usual() * time.Duration(turns)
	if turns > 4 || patience > helperPatience {
		return nil, 0, 0
	}
	sent := *j
	sent.ID = h.last + 1
	select {
	case h.send <- &sent:
	default: // it does not even read
		return nil, 0, 0
	}
	h.last++
	ch = make(chan []byte, 1)
	h.waiting[sent.ID] = ch
	return ch, sent.ID, max(patience, 100*time.Millisecond)
}

func (j *job) lanes() uint8 { return max(j.Lanes, 1) }

// Help is the other process: it computes the hashes that are asked for on in, all of them
// at once, until in ends. What is under way then nobody waits for.
func Help(in io.Reader, out io.Writer) error {
	dec, enc := gob.NewDecoder(in), gob.NewEncoder(out)
	if err := enc.Encode(answer{}); err != nil {
		return err
	}
	var writing sync.Mutex
	for {
		var j job
		if err := dec.Decode(&j); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		go func() {
			a := answer{ID: j.ID, Found: j.compute()}
			writing.Lock()
			defer writing.Unlock()
			_ = enc.Encode(a) // if nobody reads, in ends, too
		}()
	}
}
