package credential

import (
	"bytes"
	"context"
	"errors"
	"io"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/crypto/bcrypt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cheap are options for tests that are about something else than the cost.
var cheap = Options{MemoryKiB: 64, Iterations: 1, Workers: 2}

func newHasher(t testing.TB, o Options) *Hasher {
	t.Helper()
	h, err := NewHasher(o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func hash(t testing.TB, h *Hasher, password string) string {
	t.Helper()
	encoded, err := h.Hash(t.Context(), password)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

func verify(t testing.TB, h *Hasher, encoded, password string) Result {
	t.Helper()
	r, err := h.Verify(t.Context(), encoded, password)
	if err != nil {
		t.Fatalf("Verify: %v", err)
	}
	return r
}

func TestHashIsVerified(t *testing.T) {
	t.Parallel()
	h := newHasher(t, cheap)
	for _, password := range []string{
		"secret", " ", " secret ", "\x00", "a\x00b", "\xff\xfe", "{}", "\r\n", "e\u0301", "\u00e9",
		strings.Repeat("x", 72), strings.Repeat("x", 73), strings.Repeat("x", MaxPassword),
	} {
		encoded := hash(t, h, password)
		if r := verify(t, h, encoded, password); r != (Result{Match: true}) {
			t.Errorf("%q: %+v; want a match and no upgrade", password, r)
		}
		for _, other := range []string{password + "x", "x" + password, password + "\x00", password + " ", strings.ToUpper(password) + "!"} {
			if len(other) > MaxPassword {
				continue
			}
			if r := verify(t, h, encoded, other); r != (Result{}) {
				t.Errorf("%q verified as %q: %+v", password, other, r)
			}
		}
	}
	if r := verify(t, h, hash(t, h, "e\u0301"), "\u00e9"); r.Match {
		t.Error("the password was normalised")
	}
	long := strings.Repeat("x", MaxPassword-1)
	if r := verify(t, h, hash(t, h, long+"a"), long+"b"); r.Match {
		t.Error("the last byte of a password of 1 KiB does not count")
	}
}

func TestHashForm(t *testing.T) {
	t.Parallel()
	h := newHasher(t, Options{})
	encoded := hash(t, h, "secret")
	form := regexp.MustCompile(`^\$argon2id\$v=19\$m=19456,t=2,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$`)
	if !form.MatchString(encoded) {
		t.Errorf("Hash = %q; want the OWASP parameters, a salt of 16 bytes and a key of 32", encoded)
	}
	if again := hash(t, h, "secret"); again == encoded {
		t.Error("two hashes of one password are equal: the salt is not random")
	}
}

func TestHashSaltComesFromRand(t *testing.T) {
	t.Parallel()
	o := cheap
	o.Rand = bytes.NewReader(bytes.Repeat([]byte{'s'}, saltLength+keyLength+saltLength)) // decoy, then one salt
	h := newHasher(t, o)
	if got := hash(t, h, "secret"); !strings.Contains(got, "$c3Nzc3Nzc3Nzc3Nzc3Nzcw$") {
		t.Errorf("Hash = %q; want the salt that Rand gave", got)
	}
	if _, err := h.Hash(t.Context(), "secret"); !errors.Is(err, io.EOF) {
		t.Errorf("Hash with an exhausted Rand: %v; want its error", err)
	}
}

func TestVerifyVectors(t *testing.T) {
	t.Parallel()
	h := newHasher(t, Options{})
	for _, v := range append(argon2Vectors, bcryptVectors...) {
		if err := ValidateHash(v.encoded); err != nil {
			t.Errorf("%s: %v", v.encoded, err)
			continue
		}
		if r := verify(t, h, v.encoded, v.password); !r.Match {
			t.Errorf("%s does not match %q", v.encoded, v.password)
		}
		if r := verify(t, h, v.encoded, v.password+"x"); r != (Result{}) {
			t.Errorf("%s: wrong password: %+v", v.encoded, r)
		}
	}
}

func TestVerifyUpgrade(t *testing.T) {
	t.Parallel()
	today := Options{MemoryKiB: 64, Iterations: 2}
	made := func(o Options) string { return hash(t, newHasher(t, o), "password") }
	for _, tt := range []struct {
		name, encoded string
		want          bool
	}{
		{"today's", made(today), false},
		{"more memory", made(Options{MemoryKiB: 128, Iterations: 2}), false},
		{"more iterations", made(Options{MemoryKiB: 64, Iterations: 3}), false},
		{"more lanes", made(Options{MemoryKiB: 64, Iterations: 2, Parallelism: 2}), false},
		{"less memory", made(Options{MemoryKiB: 32, Iterations: 4}), true},
		{"fewer iterations", made(Options{MemoryKiB: 128, Iterations: 1}), true},
		{"short salt", argon2Vectors[0].encoded, true},
		{"argon2i", argon2Vectors[3].encoded, true},
		{"bcrypt", mustBcrypt(t, "password", bcrypt.MinCost), true},
	} {
		h := newHasher(t, today)
		if got, want := verify(t, h, tt.encoded, "password"), (Result{Match: true, Upgrade: tt.want}); got != want {
			t.Errorf("%s: %+v; want %+v", tt.name, got, want)
		}
		// Whoever does not know the password cannot replace the hash.
		if got := verify(t, h, tt.encoded, "wrong"); got != (Result{}) {
			t.Errorf("%s: wrong password: %+v", tt.name, got)
		}
	}
}

func mustBcrypt(t testing.TB, password string, cost int) string {
	t.Helper()
	b, err := bcrypt.GenerateFromPassword([]byte(password), cost)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestVerifyBcryptNeverTruncates(t *testing.T) {
	t.Parallel()
	h := newHasher(t, cheap)
	if r := verify(t, h, hash72, first72); !r.Match {
		t.Error("a password of 72 bytes does not match")
	}
	for _, tail := range []string{"x", "\x00", "chars after 72 are ignored", strings.Repeat("x", MaxPassword-72)} {
		if r := verify(t, h, hash72, first72+tail); r != (Result{}) {
			t.Errorf("72 bytes and %q: %+v", tail, r)
		}
	}
}

func TestVerifyBcryptNeverRepeats(t *testing.T) {
	t.Parallel()
	h := newHasher(t, cheap)
	const password = "U*U"
	twice := password + "\x00" + password
	if err := bcrypt.CompareHashAndPassword([]byte(bcryptVectors[0].encoded), []byte(twice)); err != nil {
		t.Fatalf("bcrypt tells %q from %q now: this test and its guard can go", password, twice)
	}
	if r := verify(t, h, bcryptVectors[0].encoded, twice); r != (Result{}) {
		t.Errorf("%q passed for %q: %+v", twice, password, r)
	}
}

func TestPasswordBounds(t *testing.T) {
	t.Parallel()
	h := newHasher(t, cheap)
	encoded := hash(t, h, "secret")
	for password, want := range map[string]error{"": ErrPasswordEmpty, strings.Repeat("x", MaxPassword+1): ErrPasswordTooLong} {
		if _, err := h.Hash(t.Context(), password); !errors.Is(err, want) {
			t.Errorf("Hash: %v; want %v", err, want)
		}
		if _, err := h.Verify(t.Context(), encoded, password); !errors.Is(err, want) {
			t.Errorf("Verify: %v; want %v", err, want)
		}
		// The password is judged before the hash: the answer may not tell a broken account from none.
		if _, err := h.Verify(t.Context(), "broken", password); !errors.Is(err, want) {
			t.Errorf("Verify of a broken hash: %v; want %v", err, want)
		}
		if err := h.VerifyNobody(t.Context(), "", password); !errors.Is(err, want) {
			t.Errorf("VerifyNobody: %v; want %v", err, want)
		}
	}
	if _, err := h.Verify(t.Context(), "broken", "secret"); !errors.Is(err, ErrHash) {
		t.Errorf("Verify of a broken hash: %v; want ErrHash", err)
	}
}

func TestDecoyCostsWhatANewHashCosts(t *testing.T) {
	t.Parallel()
	h := newHasher(t, Options{MemoryKiB: 128, Iterations: 3, Parallelism: 2})
	e, err := parse(hash(t, h, "secret"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(e.params, h.decoy.params, cmp.AllowUnexported(params{})); diff != "" {
		t.Errorf("parameters of a new hash (-) and of the decoy (+):\n%s", diff)
	}
	if len(e.salt) != len(h.decoy.salt) || len(e.key) != len(h.decoy.key) {
		t.Errorf("salt and key have %d and %d bytes, the decoy's %d and %d", len(e.salt), len(e.key), len(h.decoy.salt), len(h.decoy.key))
	}
}

// A cost is what stands in front of the salt of an encoded hash. The decoy of that cost takes
// the same work as the hash.
func TestDecoyCostsWhatAHashOfItsCostDoes(t *testing.T) {
	t.Parallel()
	h := newHasher(t, Options{MemoryKiB: 128})
	older := newHasher(t, Options{MemoryKiB: 64, Iterations: 3, Parallelism: 2})
	for cost, stored := range map[string]string{
		"$argon2id$v=19$m=64,t=3,p=2":       hash(t, older, "secret"),
		hash72[:6]:                          hash72,
		"$2b$12":                            "$2b$12" + hash72[6:],
		"":                                  hash(t, h, "secret"), // and all that is no cost
		"$2b$99":                            hash(t, h, "secret"),
		"$2b$12$":                           hash(t, h, "secret"),
		"$argon2id$v=19$m=99999999,t=3,p=2": hash(t, h, "secret"),
		"$argon2id$v=19$m=64,t=3,p=2$c2FsdHNhbHQ$a2V5a": hash(t, h, "secret"),
	} {
		want, err := parse(stored)
		if err != nil {
			t.Fatal(err)
		}
		got := h.decoyOf(cost)
		if got.params != want.params || (got.kind == bcrypted && got.bcrypt[3:7] != want.bcrypt[3:7]) {
			t.Errorf("%q: %+v, want %+v", cost, got, want)
		}
	}
}

// allocated returns the KiB that f allocates: argon2 takes its memory anew for each hash, so this tells whether one
// was computed. It counts the whole process: callers do not run in parallel.
func allocated(f func()) int {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int((after.TotalAlloc - before.TotalAlloc) / 1024)
}

func TestWorkIsTheSameForAll(t *testing.T) { // not parallel: allocated counts the whole process
	const memory = 8192
	h := newHasher(t, Options{MemoryKiB: memory, Iterations: 1})
	encoded := hash(t, h, "secret")
	for name, f := range map[string]func(){
		"right password": func() { verify(t, h, encoded, "secret") },
		"wrong password": func() { verify(t, h, encoded, "wrong") },
		"unknown user": func() {
			if err := h.VerifyNobody(t.Context(), "", "secret"); err != nil {
				t.Error(err)
			}
		},
	} {
		if got := allocated(f); got < memory || got > memory+memory/4 {
			t.Errorf("%s: %d KiB allocated; want the %d of one hash", name, got, memory)
		}
	}

	// bcrypt has no such mark, but its allocations tell whether it was run at all;
	// the rest of the process may add a few.
	right := testing.AllocsPerRun(3, func() { verify(t, h, hash72, first72) })
	for name, password := range map[string]string{"wrong": "wrong", "too long": first72 + "x", "with a NUL": "a\x00b"} {
		if got := testing.AllocsPerRun(3, func() { verify(t, h, hash72, password) }); got < right/2 {
			t.Errorf("bcrypt, password %s: %v allocations; the right one takes %v", name, got, right)
		}
	}
}

// occupy takes the whole budget, as hashes under way would.
func occupy(t testing.TB, h *Hasher) (leave func()) {
	t.Helper()
	leave, err := h.budget.enter(t.Context(), params{memory: uint32(h.budget.capacity), lanes: 1})
	if err != nil {
		t.Fatal(err)
	}
	return leave
}

func TestWaiterGivesUpAfterMaxWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := cheap
		o.MaxWait = 3 * time.Second
		h := newHasher(t, o)
		defer occupy(t, h)()
		began := time.Now()
		_, err := h.Hash(t.Context(), "secret")
		if !errors.Is(err, ErrBusy) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Hash: %v; want ErrBusy, and not as if the caller's time were up", err)
		}
		if waited := time.Since(began); waited != o.MaxWait {
			t.Errorf("waited %v; want %v", waited, o.MaxWait)
		}
		if h.Depth() != 1 {
			t.Errorf("depth %d; want the one under way", h.Depth())
		}
	})
}

func TestWaiterIsServedInTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHasher(t, cheap)
		encoded := hash(t, h, "secret")
		leave := occupy(t, h)
		done := make(chan error, 3)
		go func() { _, err := h.Hash(t.Context(), "secret"); done <- err }()
		go func() { _, err := h.Verify(t.Context(), encoded, "secret"); done <- err }()
		go func() { done <- h.VerifyNobody(t.Context(), "", "secret") }()
		synctest.Wait()
		if h.Depth() != 4 || len(done) != 0 {
			t.Errorf("depth %d, %d done; want one under way and three waiting", h.Depth(), len(done))
		}
		leave()
		for range 3 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if h.Depth() != 0 {
			t.Errorf("depth %d at the end", h.Depth())
		}
	})
}

func TestFullQueueRefusesAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := cheap
		o.Queue = 2
		h := newHasher(t, o)
		leave := occupy(t, h)
		done := make(chan error, o.Queue)
		for range o.Queue {
			go func() { done <- h.VerifyNobody(t.Context(), "", "secret") }()
		}
		synctest.Wait()
		began := time.Now()
		for range 3 { // a refusal leaves no trace in the queue
			if err := h.VerifyNobody(t.Context(), "", "secret"); !errors.Is(err, ErrBusy) {
				t.Errorf("queue full: %v; want ErrBusy", err)
			}
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("refused after %v", waited)
		}
		if want := 1 + o.Queue; h.Depth() != want {
			t.Errorf("depth %d; want %d", h.Depth(), want)
		}
		leave()
		for range o.Queue {
			if err := <-done; err != nil {
				t.Errorf("a waiter within the queue: %v", err)
			}
		}
	})
}

func TestCancelledWaiterLeavesTheQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := cheap
		o.Queue = 1
		h := newHasher(t, o)
		leave := occupy(t, h)
		ctx, cancel := context.WithCancel(t.Context())
		cancelled := make(chan error, 1)
		go func() { cancelled <- h.VerifyNobody(ctx, "", "secret") }()
		synctest.Wait()
		cancel()
		synctest.Wait()
		select {
		case err := <-cancelled:
			if !errors.Is(err, ErrBusy) || !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled waiter: %v; want ErrBusy and context.Canceled", err)
			}
		default:
			t.Fatal("the cancelled waiter still waits")
		}
		if h.Depth() != 1 {
			t.Errorf("depth %d after the cancellation; want 1", h.Depth())
		}

		// Its place is free for another.
		served := make(chan error, 1)
		go func() { served <- h.VerifyNobody(t.Context(), "", "secret") }()
		synctest.Wait()
		leave()
		if err := <-served; err != nil {
			t.Errorf("the next waiter: %v", err)
		}
	})
}

func TestCancelledCallCostsNoHash(t *testing.T) { // not parallel: allocated counts the whole process
	const memory = 8192
	h := newHasher(t, Options{MemoryKiB: memory, Iterations: 1, Workers: 1})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got := allocated(func() {
		if _, err := h.Hash(ctx, "secret"); !errors.Is(err, context.Canceled) {
			t.Errorf("Hash: %v; want context.Canceled", err)
		}
		leave := occupy(t, h)
		defer leave()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- h.VerifyNobody(ctx, "", "secret") }()
		for h.Depth() < 2 && len(done) == 0 {
			runtime.Gosched()
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("VerifyNobody: %v; want context.Canceled", err)
		}
	})
	if got >= memory {
		t.Errorf("%d KiB allocated: a hash was computed for nobody", got)
	}
}

func TestDeadlineOfTheCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHasher(t, cheap)
		defer occupy(t, h)()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		began := time.Now()
		if err := h.VerifyNobody(ctx, "", "secret"); !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v; want ErrBusy and context.DeadlineExceeded", err)
		}
		if waited := time.Since(began); waited != 10*time.Millisecond {
			t.Errorf("waited %v", waited)
		}
	})
}

func TestBudgetWeighs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		params params
		fit    int // how many run at once, of four workers of 100 KiB
	}{
		{"today's", params{kind: argon2id, memory: 100, lanes: 1}, 4},
		{"little memory still takes a worker", params{kind: argon2id, memory: 8, lanes: 1}, 4},
		{"bcrypt takes a worker", params{kind: bcrypted, memory: bcryptMemoryKiB, lanes: 1}, 4},
		{"twice the memory", params{kind: argon2id, memory: 200, lanes: 1}, 2},
		{"a little more memory than two", params{kind: argon2id, memory: 201, lanes: 1}, 1},
		{"two lanes", params{kind: argon2id, memory: 100, lanes: 2}, 2},
		{"more than all memory runs alone", params{kind: argon2id, memory: MaxMemoryKiB, lanes: 1}, 1},
		{"more than all CPUs runs alone", params{kind: argon2id, memory: 128, lanes: 16}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBudget(4, 100, 1, time.Second)
				var leaves []func()
				for range tt.fit {
					leave, err := b.enter(t.Context(), tt.params)
					if err != nil {
						t.Fatalf("%d of %d: %v", len(leaves)+1, tt.fit, err)
					}
					leaves = append(leaves, leave)
				}
				if _, err := b.enter(t.Context(), tt.params); !errors.Is(err, ErrBusy) {
					t.Errorf("one more: %v; want ErrBusy", err)
				}
				for _, leave := range leaves {
					leave()
				}
				if b.depth() != 0 || !b.shares.TryAcquire(b.capacity) {
					t.Errorf("depth %d; not all was given back", b.depth())
				}
			})
		})
	}
}

func TestHeavyHashIsNotStarved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(2, 100, 8, time.Minute)
		light, heavy := params{memory: 100, lanes: 1}, params{memory: MaxMemoryKiB, lanes: 1}
		leaveFirst, err := b.enter(t.Context(), light)
		if err != nil {
			t.Fatal(err)
		}
		order := make(chan string, 2)
		go func() {
			leave, err := b.enter(t.Context(), heavy)
			if err != nil {
				t.Error(err)
				return
			}
			order <- "heavy"
			leave()
		}()
		synctest.Wait()
		go func() { // would fit now, but came later
			leave, err := b.enter(t.Context(), light)
			if err != nil {
				t.Error(err)
				return
			}
			order <- "light"
			leave()
		}()
		synctest.Wait()
		if len(order) != 0 {
			t.Errorf("%s went ahead", <-order)
		}
		leaveFirst()
		if first, second := <-order, <-order; first != "heavy" || second != "light" {
			t.Errorf("order %s, %s", first, second)
		}
	})
}

func TestNewHasherReportsAllFaults(t *testing.T) {
	t.Parallel()
	_, err := NewHasher(Options{MemoryKiB: MaxMemoryKiB + 1, Workers: -1, Queue: -1, MaxWait: -1})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"memory", "workers", "queue", "wait"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not speak of %s", err, want)
		}
	}
	if _, err := NewHasher(Options{MemoryKiB: 8, Parallelism: 2}); err == nil {
		t.Error("too little memory for two lanes was accepted")
	}
	if _, err := NewHasher(Options{Rand: strings.NewReader("short")}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short Rand: %v", err)
	}
}

func BenchmarkHash(b *testing.B) {
	h := newHasher(b, Options{})
	b.ReportAllocs()
	for b.Loop() {
		hash(b, h, "correct horse battery staple")
	}
}

// BenchmarkWrongPassword compares a known user with an unknown one of the same cost.
func BenchmarkWrongPassword(b *testing.B) {
	h := newHasher(b, Options{})
	older := newHasher(b, Options{MemoryKiB: 9216, Iterations: 4})
	for name, stored := range map[string]string{
		"today": hash(b, h, "secret"), "older": hash(b, older, "secret"), "bcrypt12": "$2b$12" + hash72[6:],
	} {
		cost := stored[:6]
		if name != "bcrypt12" {
			cost = strings.Join(strings.SplitN(stored, "$", 5)[:4], "$")
		}
		b.Run(name+"/known", func(b *testing.B) {
			for b.Loop() {
				verify(b, h, stored, "wrong")
			}
		})
		b.Run(name+"/unknown", func(b *testing.B) {
			for b.Loop() {
				if err := h.VerifyNobody(b.Context(), cost, "wrong"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
