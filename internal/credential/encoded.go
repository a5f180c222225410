package credential

import (
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// Bounds of a hash that may be imported and verified. They admit the usual defaults of other systems (libsodium's
// "moderate", for one, takes 256 MiB and 3 passes) and keep one hash to about a second and 256 MiB.
const (
	MaxMemoryKiB   = 256 << 10 // argon2: 256 MiB
	MaxIterations  = 64        // argon2
	MaxParallelism = 16        // argon2
	MaxWorkKiB     = 1 << 20   // argon2: memory × iterations
	MinBcryptCost  = 4
	MaxBcryptCost  = 16

	maxEncoded = 256 // bytes; more than the longest string within the bounds below
	minSalt    = 8   // bytes: the least of the reference implementation
	maxSalt    = 64
	minKey     = 16
	maxKey     = 64

	bcryptLength    = 60 // bytes of an encoded hash
	bcryptReads     = 72 // bytes of a password
	bcryptMemoryKiB = 5  // Blowfish's four S-boxes and its P-array, with their copies
	bcryptAlphabet  = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
)

type kind string

const (
	argon2id kind = "argon2id"
	argon2i  kind = "argon2i"
	bcrypted kind = "bcrypt"
)

// params are what a hash costs.
type params struct {
	kind       kind
	memory     uint32 // KiB
	iterations uint32 // 0 for bcrypt
	lanes      uint8
}

// check returns which bound of an argon2 hash the parameters break.
func (p params) check() error {
	switch {
	case p.lanes < 1 || p.lanes > MaxParallelism:
		return fmt.Errorf("parallelism p=%d is not within 1 and %d", p.lanes, MaxParallelism)
	case p.memory < 8*uint32(p.lanes): // RFC 9106, section 3.1
		return fmt.Errorf("memory m=%d KiB is less than 8 for each of %d lanes", p.memory, p.lanes)
	case p.memory > MaxMemoryKiB:
		return fmt.Errorf("memory m=%d KiB is more than %d", p.memory, MaxMemoryKiB)
	case p.iterations < 1 || p.iterations > MaxIterations:
		return fmt.Errorf("iterations t=%d is not within 1 and %d", p.iterations, MaxIterations)
	case uint64(p.memory)*uint64(p.iterations) > MaxWorkKiB:
		return fmt.Errorf("memory × iterations %d KiB is more than %d", uint64(p.memory)*uint64(p.iterations), MaxWorkKiB)
	}
	return nil
}

// encoded is a parsed hash.
type encoded struct {
	params
	salt, key []byte
	bcrypt    string // the whole string of a bcrypt hash, which has no salt and key here
}

// text is the stored form: for argon2 the PHC string.
func (e encoded) text() string {
	if e.kind == bcrypted {
		return e.bcrypt
	}
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$%s$v=%d$m=%d,t=%d,p=%d$%s$%s", e.kind, argon2.Version,
		e.memory, e.iterations, e.lanes, b64.EncodeToString(e.salt), b64.EncodeToString(e.key))
}

// derive computes the argon2 key of a password. It allocates p.memory.
func (p params) derive(password string, salt []byte, length int) []byte {
	key := argon2.IDKey
	if p.kind == argon2i {
		key = argon2.Key
	}
	return key([]byte(password), salt, p.iterations, p.memory, p.lanes, uint32(length)) //nolint:gosec // length is at most maxKey
}

// matches reports whether the hash is one of the password. It computes the hash before it looks at anything else, so
// the time it takes depends on the hash alone.
func (e encoded) matches(password string) bool {
	if e.kind != bcrypted {
		return subtle.ConstantTimeCompare(e.derive(password, e.salt, len(e.key)), e.key) == 1
	}
	// bcrypt ignores what is behind its 72nd byte, and takes the password as a string that ends with a NUL and repeats:
	// "a" and "a\x00a" are one to it. Both would be a match of a password that was never set.
	exact := len(password) <= bcryptReads && strings.IndexByte(password, 0) < 0
	read := []byte(password[:min(len(password), bcryptReads)])
	return bcrypt.CompareHashAndPassword([]byte(e.bcrypt), read) == nil && exact
}

// weakerThan says that a new hash under today's parameters is better than this one. One that is stronger stays as it
// is: a login must not weaken what was imported.
func (e encoded) weakerThan(today params) bool {
	return e.kind != today.kind || e.memory < today.memory || e.iterations < today.iterations ||
		len(e.salt) < saltLength || len(e.key) < keyLength
}

// ValidateHash returns nil for a hash that Verify can check within its bounds, else an error that wraps ErrHash and
// says what is wrong, without the hash. Use it before storing a hash that comes from elsewhere. It accepts
//
//   - PHC strings of argon2id and argon2i, version 19, in their one canonical form: at most 256 MiB, 64 passes, 16
//     lanes and 1 GiB of memory × passes, a salt of 8 to 64 bytes, a key of 16 to 64 bytes;
//   - bcrypt, "$2a$", "$2b$" or "$2y$", of cost 4 to 16.
func ValidateHash(encoded string) error {
	_, err := parse(encoded)
	return err
}

func parse(s string) (encoded, error) {
	var e encoded
	var err error
	switch {
	case len(s) > maxEncoded:
		err = fmt.Errorf("it is longer than %d bytes", maxEncoded)
	case strings.HasPrefix(s, "$2"):
		e, err = parseBcrypt(s)
	case strings.HasPrefix(s, "$argon2id$"):
		e, err = parseArgon2(argon2id, strings.TrimPrefix(s, "$argon2id$"))
	case strings.HasPrefix(s, "$argon2i$"):
		e, err = parseArgon2(argon2i, strings.TrimPrefix(s, "$argon2i$"))
	default:
		err = errors.New("its kind is not known here; give argon2id, argon2i or bcrypt, or set a new password")
	}
	if err == nil && e.text() != s {
		// What decoders are lenient about, line breaks, leading zeros, loose bits, is refused in one place.
		err = errors.New("it is not in canonical form; encode it as the PHC string format says, without spaces, line breaks or padding")
	}
	if err != nil {
		return encoded{}, fmt.Errorf("%w: %w", ErrHash, err)
	}
	return e, nil
}

// parseArgon2 reads what follows the kind: v=19$m=19456,t=2,p=1$salt$key.
func parseArgon2(k kind, s string) (encoded, error) {
	e := encoded{params: params{kind: k}}
	fields := strings.Split(s, "$")
	if len(fields) != 4 {
		// Version 16 had no version field: its strings have one part less.
		return e, fmt.Errorf("it does not have the parts $%s$v=%d$m=,t=,p=$salt$key; export it as a PHC string, or set a new password", k, argon2.Version)
	}
	if fields[0] != "v="+strconv.Itoa(argon2.Version) {
		return e, fmt.Errorf("its version is not %d; set a new password", argon2.Version)
	}
	if err := e.parseParams(fields[1]); err != nil {
		return e, err
	}
	if err := e.check(); err != nil {
		return e, fmt.Errorf("%w; hash the password again at a lower cost", err)
	}
	var err error
	if e.salt, err = decode("salt", fields[2], minSalt, maxSalt); err != nil {
		return e, err
	}
	e.key, err = decode("key", fields[3], minKey, maxKey)
	return e, err
}

func (p *params) parseParams(s string) error {
	fields := strings.Split(s, ",")
	if len(fields) != 3 {
		return errors.New("its parameters are not m=,t=,p=")
	}
	var values [3]uint64
	for i, name := range []string{"m=", "t=", "p="} {
		digits, ok := strings.CutPrefix(fields[i], name)
		bits := 32
		if name == "p=" {
			bits = 8
		}
		n, err := strconv.ParseUint(digits, 10, bits)
		if !ok || err != nil {
			return fmt.Errorf("its parameter %q is missing, not a number or too large", name)
		}
		values[i] = n
	}
	p.memory, p.iterations, p.lanes = uint32(values[0]), uint32(values[1]), uint8(values[2]) //nolint:gosec // ParseUint kept them in range
	return nil
}

func decode(name, s string, least, most int) ([]byte, error) {
	b, err := base64.RawStdEncoding.Strict().DecodeString(s)
	if err != nil {
		// The decoder's error gives an offset only, but the text is part of a secret: say no more than which part.
		return nil, fmt.Errorf("its %s is not base64 (standard alphabet, no padding)", name)
	}
	if len(b) < least || len(b) > most {
		return nil, fmt.Errorf("its %s has %d bytes, not %d to %d", name, len(b), least, most)
	}
	return b, nil
}

// parseBcrypt reads $2b$12$ and 53 characters: 22 of salt, 31 of hash.
func parseBcrypt(s string) (encoded, error) {
	e := encoded{params: params{kind: bcrypted, memory: bcryptMemoryKiB, lanes: 1}, bcrypt: s}
	if len(s) != bcryptLength {
		return e, fmt.Errorf("a bcrypt hash has %d characters, this has %d; check that it was not cut", bcryptLength, len(s))
	}
	switch s[:4] {
	case "$2a$", "$2b$", "$2y$":
	default: // $2$ and $2x$ are of implementations with known faults
		return e, errors.New("its bcrypt version is not 2a, 2b or 2y; set a new password")
	}
	cost, err := strconv.ParseUint(s[4:6], 10, 8)
	if err != nil || s[6] != '$' {
		return e, errors.New("its bcrypt cost is not two digits and a $")
	}
	if cost < MinBcryptCost || cost > MaxBcryptCost {
		return e, fmt.Errorf("bcrypt cost %d is not within %d and %d; hash the password again", cost, MinBcryptCost, MaxBcryptCost)
	}
	if strings.Trim(s[7:], bcryptAlphabet) != "" {
		return e, errors.New("its bcrypt salt or hash has a character outside ./A-Za-z0-9")
	}
	return e, nil
}
