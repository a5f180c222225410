package refreshtoken

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func secretOf(b byte) []byte { return bytes.Repeat([]byte{b}, MinSecret) }

func mustNew(tb testing.TB, secrets ...[]byte) *Codec {
	tb.Helper()
	c, err := New(secrets...)
	if err != nil {
		tb.Fatalf("New: %v", err)
	}
	return c
}

// example is a token of known parts: sid 00..0f, uid 10..1f, secret 20..3f.
func example() Token {
	t := Token{Gen: 1}
	for i := range t.SID {
		t.SID[i] = byte(i)
		t.UID[i] = byte(0x10 + i)
	}
	for i := range t.Secret {
		t.Secret[i] = byte(0x20 + i)
	}
	return t
}

// TestKnownAnswer pins the format and the derivation. If it fails, a replica of
// the new build would not understand the tokens of the old one, or would derive
// other successors and so end sessions as stolen: change the code, not the vector.
func TestKnownAnswer(t *testing.T) {
	c := mustNew(t, []byte("latchkey known answer root secret"))
	first := example()

	const wantFirst = "lkr1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8AAAABICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj_7f0FK1iGc9_3P5Lshe5ee"
	const wantHash = "72dbb7336c76780023f83da4c355f2eeea85733b13d3477697917790c1229084"
	const wantSecond = "lkr1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8AAAACnclkgvazi94bx2QCUs_96myhlI04vp1jr7Op-c8UoGFafl8irojqiBmgPbpWlolN"

	if got := c.Encode(first); got != wantFirst {
		t.Errorf("Encode = %s, want %s", got, wantFirst)
	}
	hash := first.Hash()
	if got := hex.EncodeToString(hash[:]); got != wantHash {
		t.Errorf("Hash = %s, want %s", got, wantHash)
	}
	second, err := c.Next(first)
	if err != nil {
		t.Fatalf("Next: %v", err)
	}
	if got := c.Encode(second); got != wantSecond {
		t.Errorf("Encode(Next) = %s, want %s", got, wantSecond)
	}
}

// TestFormatByHand builds a token and its successor from the primitives as the
// package comment describes them, so that the vector above is no mere snapshot.
func TestFormatByHand(t *testing.T) {
	root := secretOf(7)
	c := mustNew(t, root)
	code := func(info string, body []byte) []byte {
		key, err := hkdf.Key(sha256.New, root, nil, info, 32)
		if err != nil {
			t.Fatal(err)
		}
		h := hmac.New(sha256.New, key)
		h.Write(body)
		return h.Sum(nil)
	}
	text := func(body []byte) string {
		mac := code("latchkey refresh token v1 mac", body)[:16]
		return "lkr1_" + base64.RawURLEncoding.EncodeToString(append(body[:len(body):len(body)], mac...))
	}

	tok := example()
	ids := append(append([]byte{}, tok.SID[:]...), tok.UID[:]...)
	body := append(append(ids[:32:32], 0, 0, 0, 1), tok.Secret[:]...)
	if got, want := c.Encode(tok), text(body); got != want {
		t.Errorf("Encode = %s, want %s", got, want)
	}
	parentSecret := append(append(ids[:32:32], 0, 0, 0, 2), tok.Secret[:]...)
	child := append(append(ids[:32:32], 0, 0, 0, 2), code("latchkey refresh token v1 derive", parentSecret)...)
	next, err := c.Next(tok)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Encode(next), text(child); got != want {
		t.Errorf("Encode(Next) = %s, want %s", got, want)
	}
	if got, want := next.Hash(), sha256.Sum256(child[36:]); got != want {
		t.Errorf("Hash = %x, want %x", got, want)
	}
}

func TestNewRefusesSecrets(t *testing.T) {
	for name, secrets := range map[string][][]byte{
		"none":         nil,
		"nil":          {nil},
		"short":        {secretOf(1)[:MinSecret-1]},
		"second short": {secretOf(1), []byte("short")},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := New(secrets...)
			if !errors.Is(err, ErrSecret) || c != nil {
				t.Errorf("New = %v, %v, want nil, %v", c, err, ErrSecret)
			}
		})
	}
}

func TestNewDoesNotRetainSecret(t *testing.T) {
	secret := secretOf(1)
	c := mustNew(t, secret)
	before := c.Encode(example())
	clear(secret)
	// Several goroutines, so that the pool makes fresh states.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got := c.Encode(example()); got != before {
				t.Error("Encode changed when the caller cleared its slice")
			}
		})
	}
	wg.Wait()
}

func TestFirst(t *testing.T) {
	c := mustNew(t, secretOf(1))
	want := example()

	got, err := c.First(want.SID, want.UID, bytes.NewReader(want.Secret[:]))
	if err != nil || got != want {
		t.Errorf("First = %#v, %v, want the example", got, err)
	}

	a, errA := c.First(want.SID, want.UID, nil)
	b, errB := c.First(want.SID, want.UID, nil)
	if errA != nil || errB != nil {
		t.Fatalf("First: %v, %v", errA, errB)
	}
	if a.Secret == b.Secret || a.Secret == ([32]byte{}) {
		t.Error("First with the default source drew the same or an empty secret")
	}

	if got, err := c.First(want.SID, want.UID, bytes.NewReader(want.Secret[:31])); !errors.Is(err, io.ErrUnexpectedEOF) || got != (Token{}) {
		t.Errorf("First with a short source = %#v, %v, want zero, %v", got, err, io.ErrUnexpectedEOF)
	}
}

func TestNextDependsOnEveryPart(t *testing.T) {
	c := mustNew(t, secretOf(1))
	parent := example()
	child := func(t Token) [32]byte {
		n, err := c.Next(t)
		if err != nil {
			panic(err)
		}
		return n.Secret
	}
	base := child(parent)
	for name, change := range map[string]func(*Token){
		"sid":    func(t *Token) { t.SID[15] ^= 1 },
		"uid":    func(t *Token) { t.UID[15] ^= 1 },
		"gen":    func(t *Token) { t.Gen++ },
		"secret": func(t *Token) { t.Secret[31] ^= 1 },
	} {
		t.Run(name, func(t *testing.T) {
			other := parent
			change(&other)
			if child(other) == base {
				t.Errorf("the successor's secret does not depend on %s", name)
			}
		})
	}
	if child(parent) != base {
		t.Error("Next is not deterministic")
	}
	if c2 := mustNew(t, secretOf(2)); func() bool { n, _ := c2.Next(parent); return n.Secret == base }() {
		t.Error("the successor's secret does not depend on the root secret")
	}
}

func TestNextAtLastGeneration(t *testing.T) {
	c := mustNew(t, secretOf(1))
	last := example()
	last.Gen = math.MaxUint32 - 1
	next, err := c.Next(last)
	if err != nil || next.Gen != math.MaxUint32 {
		t.Fatalf("Next = gen %d, %v, want the last generation", next.Gen, err)
	}
	if got, err := c.Next(next); !errors.Is(err, ErrExhausted) || got != (Token{}) {
		t.Errorf("Next of the last = %#v, %v, want zero, %v", got, err, ErrExhausted)
	}
}

func TestParseRefuses(t *testing.T) {
	c := mustNew(t, secretOf(1))
	good := c.Encode(example())
	if _, err := c.Parse(good); err != nil {
		t.Fatalf("Parse of a good token: %v", err)
	}
	at := func(i int, s string) string { return good[:i] + s + good[i+len(s):] }

	tests := []struct {
		name string
		text string
		want error
	}{
		{"empty", "", ErrMalformed},
		{"json object", "{}", ErrMalformed},
		{"prefix alone", prefix, ErrMalformed},
		{"body without prefix", good[len(prefix):], ErrMalformed},
		{"other version", at(3, "2"), ErrMalformed},
		{"upper-case prefix", at(0, "LKR1_"), ErrMalformed},
		{"one short", good[:Length-1], ErrMalformed},
		{"one long", good + "A", ErrMalformed},
		{"padded", good + "=", ErrMalformed},
		{"padding in place of the last", good[:Length-1] + "=", ErrMalformed},
		{"leading space", " " + good, ErrMalformed},
		{"trailing newline", good + "\n", ErrMalformed},
		{"newline in place of a character", at(60, "\n"), ErrMalformed},
		{"CRLF in place of characters", at(60, "\r\n"), ErrMalformed},
		{"four newlines in place of a quantum", at(Length-4, "\n\r\n\r"), ErrMalformed},
		{"NUL", at(60, "\x00"), ErrMalformed},
		{"not UTF-8", at(60, "\xff"), ErrMalformed},
		{"standard alphabet plus", at(60, "+"), ErrMalformed},
		{"standard alphabet slash", at(60, "/"), ErrMalformed},
		{"all dots", strings.Repeat(".", Length), ErrMalformed},
		{"100 kB of dots", strings.Repeat(".", 100_000), ErrMalformed},
		{"10 MB of prefix", strings.Repeat(prefix, 2_000_000), ErrMalformed},
		{"all zero bits", prefix + strings.Repeat("A", Length-len(prefix)), ErrForged},
		{"other sid, as a session killer would try", at(len(prefix), "B"), ErrForged},
		{"other secret", at(70, string(good[70]^1)), ErrForged},
		{"made under another root", mustNew(t, secretOf(2)).Encode(example()), ErrForged},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := c.Parse(tt.text)
			if !errors.Is(err, tt.want) || !errors.Is(err, ErrInvalid) {
				t.Errorf("Parse error = %v, want %v", err, tt.want)
			}
			if got != (Token{}) {
				t.Errorf("Parse returned a token beside the error")
			}
		})
	}
}

// TestSecretRotation walks a session through a change of the root secret: every
// replica, whatever its order of secrets, must name the same successor.
func TestSecretRotation(t *testing.T) {
	old, fresh := secretOf(1), secretOf(2)
	before, after := mustNew(t, old, fresh), mustNew(t, fresh, old)

	text := mustNew(t, old).Encode(example())
	for gen := uint32(2); gen < 5; gen++ {
		var texts []string
		for _, c := range []*Codec{before, after} {
			parent, err := c.Parse(text)
			if err != nil {
				t.Fatalf("Parse: %v", err)
			}
			child, err := c.Next(parent)
			if err != nil || child.Gen != gen {
				t.Fatalf("Next = gen %d, %v, want gen %d", child.Gen, err, gen)
			}
			texts = append(texts, c.Encode(child))
		}
		if texts[0] != texts[1] {
			t.Fatalf("generation %d: replicas of different secret order disagree on the successor", gen)
		}
		text = texts[0]
	}

	first, err := after.First(example().SID, example().UID, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mustNew(t, fresh).Parse(after.Encode(first)); err != nil {
		t.Errorf("a new session was not made under the first secret: %v", err)
	}
	if _, err := mustNew(t, fresh).Parse(text); !errors.Is(err, ErrForged) {
		t.Errorf("Parse after the old secret was dropped = %v, want %v", err, ErrForged)
	}
}

func drawToken(t *rapid.T) Token {
	fill := func(dst []byte, label string) {
		copy(dst, rapid.SliceOfN(rapid.Byte(), len(dst), len(dst)).Draw(t, label))
	}
	tok := Token{Gen: rapid.Uint32().Draw(t, "gen")}
	fill(tok.SID[:], "sid")
	fill(tok.UID[:], "uid")
	fill(tok.Secret[:], "secret")
	return tok
}

func TestParseInvertsEncode(t *testing.T) {
	c := mustNew(t, secretOf(1), secretOf(2))
	rapid.Check(t, func(t *rapid.T) {
		tok := drawToken(t)
		text := c.Encode(tok)
		if len(text) != Length {
			t.Fatalf("length %d, want %d", len(text), Length)
		}
		got, err := c.Parse(text)
		if err != nil || got != tok {
			t.Fatalf("Parse(Encode(t)) = %v, want t", err)
		}
	})
}

func TestAnyFlippedBitIsRefused(t *testing.T) {
	c := mustNew(t, secretOf(1), secretOf(2))
	rapid.Check(t, func(t *rapid.T) {
		text := []byte(c.Encode(drawToken(t)))
		for i := range len(text) * 8 {
			text[i/8] ^= 1 << (i % 8)
			if _, err := c.Parse(string(text)); !errors.Is(err, ErrInvalid) {
				t.Fatalf("bit %d of byte %d flipped: %v, want a refusal", i%8, i/8, err)
			}
			text[i/8] ^= 1 << (i % 8)
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	c := mustNew(t, secretOf(1))
	text := c.Encode(example())
	want, err := c.Next(example())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				tok, err := c.Parse(text)
				if err != nil {
					t.Errorf("Parse: %v", err)
					return
				}
				if next, err := c.Next(tok); err != nil || next != want {
					t.Errorf("Next differs under concurrency: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func FuzzParse(f *testing.F) {
	c := mustNew(f, secretOf(1), secretOf(2))
	good := c.Encode(example())
	f.Add(good)
	f.Add(mustNew(f, secretOf(2)).Encode(example()))
	f.Add(mustNew(f, secretOf(3)).Encode(example()))
	f.Add(good[:Length-2] + "\r\n")
	f.Add(good + "=")
	f.Add("")
	f.Add("{}")
	f.Add(strings.Repeat(".", Length))
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := c.Parse(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || tok.SID != ([16]byte{}) {
				t.Fatalf("Parse = %v with a token or without the base error", err)
			}
			return
		}
		if c.Encode(tok) != s {
			t.Fatal("a text was accepted that Encode would not write")
		}
	})
}

// FuzzVerify gives arbitrary parts a code of the fuzzer's choice: only the right
// one may pass, and a token that passes must survive a round trip.
func FuzzVerify(f *testing.F) {
	c := mustNew(f, secretOf(1))
	tok := example()
	f.Add(tok.SID[:], tok.UID[:], tok.Gen, tok.Secret[:], make([]byte, macSize))
	f.Add([]byte{}, []byte{0xff}, uint32(math.MaxUint32), []byte{}, bytes.Repeat([]byte{0xff}, macSize))
	f.Fuzz(func(t *testing.T, sid, uid []byte, gen uint32, secret, mac []byte) {
		tok := Token{Gen: gen}
		copy(tok.SID[:], sid)
		copy(tok.UID[:], uid)
		copy(tok.Secret[:], secret)
		text := c.Encode(tok)
		got, err := c.Parse(text)
		if err != nil || got != tok {
			t.Fatalf("Parse(Encode(t)) = %v, want t", err)
		}

		raw := make([]byte, bodySize+macSize)
		tok.body((*[bodySize]byte)(raw))
		copy(raw[bodySize:], mac)
		forged := prefix + base64.RawURLEncoding.EncodeToString(raw)
		if _, err := c.Parse(forged); forged != text && !errors.Is(err, ErrForged) {
			t.Fatalf("Parse of a wrong code = %v, want %v", err, ErrForged)
		}
	})
}
