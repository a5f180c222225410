package credential

import (
	"encoding/base64"
	"encoding/gob"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// other is the other end of a helper's pipes.
type other struct {
	in  *io.PipeReader // what is asked
	out *io.PipeWriter
	// ended is what Attach returned.
	ended chan error
}

// attach gives a helper a process at the other end. It is there when the helper has heard
// from it.
func attach(t *testing.T, h *Helper) *other {
	t.Helper()
	in, asks := io.Pipe()
	answers, out := io.Pipe()
	o := &other{in, out, make(chan error, 1)}
	go func() {
		err := h.Attach(answers, asks, 2, func() {})
		_ = asks.Close()
		o.ended <- err
	}()
	t.Cleanup(func() {
		_ = out.Close()
		_ = in.Close()
	})
	return o
}

// helps has the other end do as [Help] does.
func (o *other) helps(t *testing.T, h *Helper) {
	t.Helper()
	go func() { _ = Help(o.in, o.out) }()
	o.isThere(t, h)
}

func (o *other) isThere(t *testing.T, h *Helper) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		h.mu.Lock()
		there := h.send != nil
		h.mu.Unlock()
		if there {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the helper has not heard from its process")
		}
	}
}

func withHelper(h *Helper) Options {
	o := cheap
	o.Helper = h
	return o
}

// computed checks by whom hashes were computed.
func computed(t *testing.T, h *Hasher, helped, own uint64) {
	t.Helper()
	if a, b := h.Computed(); a != helped || b != own {
		t.Errorf("computed by the helper %d, here %d; want %d, %d", a, b, helped, own)
	}
}

// Whoever computes it, a hash is the same. On a busy machine a helper is late at times,
// here as below, and some are computed here that it was asked for.
func TestAHelperHashesAlike(t *testing.T) {
	t.Parallel()
	var helper Helper
	alone, helped := newHasher(t, cheap), newHasher(t, withHelper(&helper))
	attach(t, &helper).helps(t, &helper)
	imported, err := bcrypt.GenerateFromPassword([]byte("secret"), MinBcryptCost)
	if err != nil {
		t.Fatal(err)
	}
	heavier := newHasher(t, Options{MemoryKiB: 128, Iterations: 3, Parallelism: 2})
	argon2i := "$argon2i$v=19$m=64,t=2,p=1$c29tZXNhbHQ$" // its key is found below
	key := (&job{Kind: "argon2i", Memory: 64, Iterations: 2, Lanes: 1, Length: 16, Salt: []byte("somesalt"), Password: []byte("secret")}).compute()
	n := uint64(0)
	for _, stored := range []string{hash(t, alone, "secret"), hash(t, helped, "secret"), hash(t, heavier, "secret"), string(imported), argon2i + b64(key)} {
		for password, match := range map[string]bool{"secret": true, "Secret": false, "secret\x00": false, strings.Repeat("s", MaxPassword): false} {
			want, got := verify(t, alone, stored, password), verify(t, helped, stored, password)
			if got != want || got.Match != match {
				t.Errorf("%s, %.10q: %+v, alone %+v", stored, password, got, want)
			}
			n++
		}
	}
	if err := helped.VerifyNobody(t.Context(), "", "secret"); err != nil {
		t.Error(err)
	}
	if byHelper, own := helped.Computed(); byHelper == 0 || byHelper+own != n+2 {
		t.Errorf("of %d the helper computed %d, this process %d", n+2, byHelper, own)
	}
}

func TestAHelperIsAskedByManyAtOnce(t *testing.T) {
	t.Parallel()
	var helper Helper
	o := withHelper(&helper)
	o.Workers, o.Queue, o.MaxWait = 8, 1000, time.Minute
	h := newHasher(t, o)
	stored := map[string]string{"one": hash(t, h, "one"), "two": hash(t, h, "two")}
	attach(t, &helper).helps(t, &helper)
	var wg sync.WaitGroup
	for range 100 {
		for password, own := range stored {
			for _, s := range stored {
				wg.Go(func() {
					if r, err := h.Verify(t.Context(), s, password); err != nil || r.Match != (s == own) {
						t.Errorf("%q: %v %v", password, r, err)
					}
				})
			}
		}
	}
	wg.Wait()
	for deadline := time.Now().Add(time.Minute); ; { // it may have been too late with the first
		helped, own := h.Computed()
		if helped > 0 && helped+own >= 402 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("computed by the helper %d, here %d", helped, own)
		}
		verify(t, h, stored["one"], "one")
	}
}

// A helper that gets no CPU holds nobody up, and is asked again when it has caught up.
func TestAHelperThatIsBehindIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var helper Helper
		h := newHasher(t, withHelper(&helper))
		o := attach(t, &helper)
		asked := make(chan job, 10)
		enc := gob.NewEncoder(o.out)
		go func() {
			dec := gob.NewDecoder(o.in)
			for {
				var j job
				if dec.Decode(&j) != nil {
					close(asked)
					return
				}
				asked <- j
			}
		}()
		if err := enc.Encode(answer{}); err != nil {
			t.Fatal(err)
		}
		o.isThere(t, &helper)
		stored := hash(t, newHasher(t, cheap), "secret")

		began := time.Now()
		if !verify(t, h, stored, "secret").Match {
			t.Error("no match")
		}
		if took := time.Since(began); took != 100*time.Millisecond {
			t.Errorf("it was waited for %v", took)
		}
		began = time.Now()
		for range 3 {
			if verify(t, h, stored, "wrong").Match {
				t.Error("a match")
			}
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("while it is behind it was waited for %v", took)
		}
		computed(t, h, 0, 4)

		time.Sleep(time.Minute)
		if !verify(t, h, stored, "secret").Match || len(asked) != 1 {
			t.Errorf("of its work it has done nothing, and was asked for %d more", len(asked)-1)
		}
		// It has caught up: it is left alone, and twice as long each time that it is late again.
		answers := func(j job) {
			t.Helper()
			if err := enc.Encode(answer{j.ID, j.compute()}); err != nil {
				t.Error(err)
			}
			synctest.Wait()
		}
		answers(<-asked)
		if !verify(t, h, stored, "secret").Match { // late once more
			t.Error("no match")
		}
		own := uint64(6)
		for _, pause := range []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second} {
			if len(asked) != 1 {
				t.Fatalf("it was asked %d times while it was behind", len(asked))
			}
			answers(<-asked)
			time.Sleep(pause - 101*time.Millisecond) // of which 100 were its patience
			if !verify(t, h, stored, "secret").Match || len(asked) != 0 {
				t.Errorf("after %v: it was asked too early, or there is no match", pause)
			}
			time.Sleep(102 * time.Millisecond)
			if !verify(t, h, stored, "secret").Match {
				t.Error("no match")
			}
			own += 2
			computed(t, h, 0, own)
		}
		answers(<-asked)
		time.Sleep(31 * time.Second)
		go func() {
			j := <-asked
			_ = enc.Encode(answer{j.ID + 7, []byte("nobody's")})
			_ = enc.Encode(answer{j.ID, j.compute()})
		}()
		if !verify(t, h, stored, "secret").Match {
			t.Error("no match")
		}
		computed(t, h, 1, own)
		_, _ = o.out.Close(), o.in.Close()
		if err := <-o.ended; err == nil {
			t.Error("Attach returned nil")
		}
	})
}

// What a helper takes to its grave is computed here, and the next one is asked again.
func TestAHelperMayEnd(t *testing.T) {
	t.Parallel()
	var helper Helper
	h := newHasher(t, withHelper(&helper))
	stored := hash(t, h, "secret") // without a process
	computed(t, h, 0, 1)
	o := attach(t, &helper)
	go func() {
		_ = gob.NewEncoder(o.out).Encode(answer{})
		_ = gob.NewDecoder(o.in).Decode(&job{})
		_ = o.out.Close()
	}()
	o.isThere(t, &helper)
	if !verify(t, h, stored, "secret").Match {
		t.Error("no match")
	}
	if err := <-o.ended; err == nil || !strings.Contains(err.Error(), "it has ended") {
		t.Errorf("Attach: %v", err)
	}
	if verify(t, h, stored, "wrong").Match {
		t.Error("a match")
	}
	computed(t, h, 0, 3)
	attach(t, &helper).helps(t, &helper)
	for deadline := time.Now().Add(time.Minute); ; {
		if !verify(t, h, stored, "secret").Match {
			t.Fatal("no match")
		}
		if helped, _ := h.Computed(); helped > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the next one was not asked within a minute")
		}
	}
}

// Nobody is ever stuck behind one that does not even read.
func TestAHelperThatDoesNotReadHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	var helper Helper
	o := withHelper(&helper)
	o.Workers = 64
	h := newHasher(t, o)
	in, out, hello := pipes(t)
	go func() { _ = helper.Attach(hello, out, 8, func() {}) }()
	(&other{}).isThere(t, &helper)
	stored := hash(t, newHasher(t, cheap), "secret")
	began := time.Now()
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if r, err := h.Verify(t.Context(), stored, strings.Repeat("x", MaxPassword)); err != nil || r.Match {
				t.Error(r, err)
			}
		})
	}
	wg.Wait()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	computed(t, h, 0, 64)
	_ = in.Close()
}

// What would keep somebody waiting for long, or takes more memory than was set apart, is
// not for a helper.
func TestAHelperIsNotAskedForWhatIsTooHeavy(t *testing.T) {
	t.Parallel()
	var helper Helper
	h := newHasher(t, withHelper(&helper))
	attach(t, &helper).helps(t, &helper)
	heavier := newHasher(t, Options{MemoryKiB: 2 * cheap.MemoryKiB, Iterations: 1})
	wide := newHasher(t, Options{MemoryKiB: 128, Iterations: 1, Parallelism: 9})
	for i, stored := range []string{hash(t, heavier, "secret"), hash(t, wide, "secret")} {
		if !verify(t, h, stored, "secret").Match {
			t.Error("no match")
		}
		computed(t, h, 0, uint64(i)+1)
	}
	for what, j := range map[string]*job{
		"bcrypt of cost 13":      {Kind: bcrypted, Bcrypt: "$2b$13$"},
		"2 s of argon2":          {Kind: argon2id, Memory: 1 << 19, Iterations: 1, Lanes: 1},
		"9 lanes on two threads": {Kind: argon2id, Memory: 128, Iterations: 1, Lanes: 9},
	} {
		if ch, _, _ := helper.submit(j); ch != nil {
			t.Errorf("%s is handed over", what)
		}
	}
	for what, j := range map[string]*job{
		"bcrypt of cost 12":      {Kind: bcrypted, Bcrypt: "$2b$12$", Password: []byte("x")},
		"today's":                {Kind: argon2id, Memory: DefaultMemoryKiB, Iterations: DefaultIterations, Lanes: 1, Length: 32},
		"8 lanes on two threads": {Kind: argon2id, Memory: 128, Iterations: 1, Lanes: 8, Length: 32},
	} {
		var idle Helper
		attach(t, &idle).helps(t, &idle)
		if ch, _, patience := idle.submit(j); ch == nil || patience < 4*j.usual() || patience > helperPatience {
			t.Errorf("%s: %v, patience %v", what, ch, patience)
		}
	}
}

func TestAHelperThatSpeaksAnotherLanguage(t *testing.T) {
	t.Parallel()
	for _, said := range []string{"", "latchkey: unknown command\n", "\x00\x01\x02", strings.Repeat("\xff", 100)} {
		var helper Helper
		err := helper.Attach(strings.NewReader(said), io.Discard, 2, func() { t.Error("it is ready") })
		if err == nil || !strings.Contains(err.Error(), "it did not start") {
			t.Errorf("%q: %v", said, err)
		}
	}
	if err := Help(strings.NewReader("latchkey: unknown command\n"), io.Discard); err == nil {
		t.Error("Help understands anything")
	}
}

// pipes are a pipe of the kernel's that nobody reads yet, and what a process says first.
func pipes(t *testing.T) (in, out *os.File, hello io.Reader) {
	t.Helper()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	hello, said := io.Pipe()
	go func() { _ = gob.NewEncoder(said).Encode(answer{}) }()
	t.Cleanup(func() { _, _, _ = said.Close(), in.Close(), out.Close() })
	return in, out, hello
}

func b64(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }
