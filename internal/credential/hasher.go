package credential

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"
)

// Defaults of Options. The cost is the least that the OWASP Password Storage Cheat Sheet recommends for argon2id.
const (
	DefaultMemoryKiB   = 19456
	DefaultIterations  = 2
	DefaultParallelism = 1
	DefaultQueue       = 64
	DefaultMaxWait     = 2 * time.Second
)

const (
	saltLength = 16 // RFC 9106, section 3.1
	keyLength  = 32
)

// Options of a Hasher. A zero field takes its default.
type Options struct {
	MemoryKiB   uint32        // memory of one new hash, in KiB; default 19456, at most MaxMemoryKiB
	Iterations  uint32        // passes over that memory; default 2, at most MaxIterations
	Parallelism uint8         // lanes, each of which runs on a CPU of its own; default 1, at most MaxParallelism
	Workers     int           // hashes of one lane computed at once; default three quarters of GOMAXPROCS, at least 1
	Queue       int           // callers that may wait for their turn; default 64
	MaxWait     time.Duration // how long one may wait; default 2 s
	Rand        io.Reader     // source of salts; default crypto/rand
}

// Result of a verification.
type Result struct {
	// Match says that the password is the one that was hashed.
	Match bool
	// Upgrade says that the password matched and that its hash is of another kind than a new one's, or weaker: the
	// caller, who holds the password now, should store a new Hash of it.
	Upgrade bool
}

// Hasher computes and verifies password hashes under a budget of CPU and memory. It is safe for concurrent use.
//
// The budget is Workers × MemoryKiB. A hash of today's parameters and one lane takes one worker's share of it; one
// with more memory or more lanes takes as many shares as it needs, and one that needs more than there is runs alone.
// So the memory in use at once is at most the budget, or that of a single imported hash, which ValidateHash bounds.
// This is what keeps a burst of logins from exhausting the machine: golang.org/x/crypto/argon2 allocates the memory
// of each hash anew and leaves it to the garbage collector, so the heap's peak is a few times what is in use
// (GOMEMLIMIT bounds that multiple).
//
// Callers beyond the budget wait in order of arrival, for at most MaxWait or as long as their context lasts; callers
// beyond the queue are refused at once. Both get ErrBusy, and cost no hash. A hash that has begun runs to its end.
type Hasher struct {
	params params
	decoy  encoded
	budget *budget
	rand   io.Reader
}

// NewHasher returns a Hasher, or an error that names each option out of bounds.
func NewHasher(o Options) (*Hasher, error) {
	o = o.withDefaults()
	p := params{kind: argon2id, memory: o.MemoryKiB, iterations: o.Iterations, lanes: o.Parallelism}
	var faults []error
	if err := p.check(); err != nil {
		faults = append(faults, err)
	}
	if o.Workers < 0 {
		faults = append(faults, fmt.Errorf("workers %d: give a positive number, or 0 for three quarters of the CPUs", o.Workers))
	}
	if o.Queue < 0 {
		faults = append(faults, fmt.Errorf("queue %d: give a positive number, or 0 for %d", o.Queue, DefaultQueue))
	}
	if o.MaxWait < 0 {
		faults = append(faults, fmt.Errorf("longest wait %v: give a positive duration, or 0 for %v", o.MaxWait, DefaultMaxWait))
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("password hashing: %w", errors.Join(faults...))
	}
	h := &Hasher{
		params: p,
		budget: newBudget(o.Workers, o.MemoryKiB, o.Queue, o.MaxWait),
		rand:   o.Rand,
	}
	// A random key is as good as the hash of a password that nobody knows.
	h.decoy = encoded{params: p, salt: make([]byte, saltLength), key: make([]byte, keyLength)}
	for _, b := range [][]byte{h.decoy.salt, h.decoy.key} {
		if _, err := io.ReadFull(h.rand, b); err != nil {
			return nil, fmt.Errorf("password hashing: reading random bytes: %w", err)
		}
	}
	return h, nil
}

func (o Options) withDefaults() Options {
	if o.MemoryKiB == 0 {
		o.MemoryKiB = DefaultMemoryKiB
	}
	if o.Iterations == 0 {
		o.Iterations = DefaultIterations
	}
	if o.Parallelism == 0 {
		o.Parallelism = DefaultParallelism
	}
	if o.Workers == 0 {
		// A hash holds its CPU for some 30 ms. The rest is for what must not wait behind it.
		n := runtime.GOMAXPROCS(0)
		o.Workers = max(1, n-max(1, n/4))
	}
	if o.Queue == 0 {
		o.Queue = DefaultQueue
	}
	if o.MaxWait == 0 {
		o.MaxWait = DefaultMaxWait
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	return o
}

// Hash returns the argon2id hash of password under today's parameters and a new salt, as a PHC string of about 100
// bytes. Errors: those of ValidatePassword, ErrBusy, and a failed source of randomness.
func (h *Hasher) Hash(ctx context.Context, password string) (phc string, err error) {
	if err := ValidatePassword(password); err != nil {
		return "", err
	}
	salt := make([]byte, saltLength)
	if _, err := io.ReadFull(h.rand, salt); err != nil {
		return "", fmt.Errorf("reading a salt: %w", err)
	}
	leave, err := h.budget.enter(ctx, h.params)
	if err != nil {
		return "", err
	}
	defer leave()
	key := h.params.derive(password, salt, keyLength)
	return encoded{params: h.params, salt: salt, key: key}.text(), nil
}

// Verify compares password with a stored hash, in the same steps and time whether it matches or not. Errors: those of
// ValidatePassword, ErrHash when the stored hash cannot be used, and ErrBusy; in none of them is anything known about
// the password.
//
// A bcrypt hash matches no password that bcrypt itself could not tell from another: of more than 72 bytes (it reads no
// more) or with a NUL byte (it ends there, and begins again).
func (h *Hasher) Verify(ctx context.Context, stored, password string) (Result, error) {
	if err := ValidatePassword(password); err != nil {
		return Result{}, err
	}
	e, err := parse(stored)
	if err != nil {
		return Result{}, err
	}
	return h.verify(ctx, e, password)
}

// VerifyNobody does the work of Verify for an account that does not exist, so that the answer to an unknown username
// takes as long as that to a known one whose hash begins with cost, such as "$2b$12". A cost that cannot be used, like
// "", stands for today's parameters. It returns the errors that Verify would return; nil means that the login is to be
// refused like one with a wrong password.
func (h *Hasher) VerifyNobody(ctx context.Context, cost, password string) error {
	if err := ValidatePassword(password); err != nil {
		return err
	}
	_, err := h.verify(ctx, h.decoyOf(cost), password)
	return err
}

// decoyOf is a hash of a password that nobody knows.
func (h *Hasher) decoyOf(cost string) encoded {
	b64 := base64.RawStdEncoding
	argon2 := "$" + b64.EncodeToString(h.decoy.salt) + "$" + b64.EncodeToString(h.decoy.key)
	for _, rest := range []string{argon2, "$" + strings.Repeat(".", bcryptLength-len("$2b$12$"))} {
		if e, err := parse(cost + rest); err == nil {
			return e
		}
	}
	return h.decoy
}

func (h *Hasher) verify(ctx context.Context, e encoded, password string) (Result, error) {
	leave, err := h.budget.enter(ctx, e.params)
	if err != nil {
		return Result{}, err
	}
	defer leave()
	match, upgrade := e.matches(password), e.weakerThan(h.params)
	return Result{Match: match, Upgrade: match && upgrade}, nil
}

// Depth is the number of callers that wait for their turn or have it.
func (h *Hasher) Depth() int { return h.budget.depth() }

// Capacity is how many callers there may be at once, those that wait included: one worker each, and the queue.
func (h *Hasher) Capacity() int { return h.Workers() + int(h.budget.queue) }

// Workers is how many hashes of today's parameters are computed at once.
func (h *Hasher) Workers() int { return int(h.budget.capacity / h.budget.share) }
