package accesstoken

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
)

// The attacks on JWS that are known by a number or a section, each on a token that
// is good but for it. Those on the structure are the ones that Project Wycheproof's
// JWS vectors have; they are made here with keys and claims of our own, so that
// nothing but the attack can be what is refused.

// target is a good token under a key, in parts.
type target struct {
	key                    *Key
	head, body, sig        string // encoded
	headText, bodyText     string
	verifier               *Verifier
	signingInput, complete string
}

func targetOf(t *testing.T, alg Algorithm) target {
	t.Helper()
	k := generate(t, alg)
	ring := ringOf(t, k)
	token := mustSign(t, ring, testClaims())
	p := strings.Split(token, ".")
	head, err := base64.RawURLEncoding.DecodeString(p[0])
	if err != nil {
		t.Fatal(err)
	}
	body, err := base64.RawURLEncoding.DecodeString(p[1])
	if err != nil {
		t.Fatal(err)
	}
	g := target{
		key: k, head: p[0], body: p[1], sig: p[2], headText: string(head), bodyText: string(body),
		verifier: verifierOf(ring), signingInput: p[0] + "." + p[1], complete: token,
	}
	if _, err := g.verifier.Verify(token, issued); err != nil {
		t.Fatalf("the good token is refused: %v", err)
	}
	return g
}

// with returns the token with another signature.
func (g target) with(sig []byte) string {
	return g.signingInput + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// head returns the header with a member replaced or added.
func (g target) header(name string, value any) string {
	var h map[string]any
	if json.Unmarshal([]byte(g.headText), &h) != nil {
		panic("the header of a good token")
	}
	h[name] = value
	text, _ := json.Marshal(h)
	return string(text)
}

// hmacToken signs with HMAC under whatever bytes, header alg HS256 and the key's kid.
func (g target) hmacToken(secret []byte) string {
	input := b64(g.header("alg", "HS256")) + "." + g.body
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(input))
	return input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func (g target) refuses(t *testing.T, attack, token string) {
	t.Helper()
	t.Run(attack, func(t *testing.T) {
		if c, err := g.verifier.Verify(token, issued); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %+v, %v; want ErrInvalid", token, c, err)
		}
	})
}

func TestAttacksOnEveryAlgorithm(t *testing.T) {
	for _, alg := range []Algorithm{EdDSA, ES256, RS256, HS256} {
		t.Run(string(alg), func(t *testing.T) {
			g := targetOf(t, alg)
			flip := func(s string) string { // another first character
				return string("AB"[btoi(s[0] == 'A')]) + s[1:]
			}
			for attack, token := range map[string]string{
				"modified signature":                     g.signingInput + "." + flip(g.sig),
				"CVE-2020-28042 missing signature":       g.signingInput + ".",
				"missing signature and separator":        g.signingInput,
				"modified payload":                       g.head + "." + flip(g.body) + "." + g.sig,
				"missing payload":                        g.head + ".." + g.sig,
				"missing payload and separator":          g.head + "." + g.sig,
				"modified header":                        flip(g.head) + "." + g.body + "." + g.sig,
				"missing header":                         "." + g.body + "." + g.sig,
				"missing header and separator":           g.body + "." + g.sig,
				"missing header and signature":           "." + g.body + ".",
				"payload alone":                          g.body,
				"empty":                                  "",
				"separators alone":                       "..",
				"extra empty component":                  g.complete + ".",
				"extra component":                        g.complete + ".AAAA",
				"five components, as a JWE":              g.complete + ".AAAA.AAAA",
				"JSON serialization, flattened":          `{"payload":"` + g.body + `","protected":"` + g.head + `","signature":"` + g.sig + `"}`,
				"JSON serialization, general":            `{"payload":"` + g.body + `","signatures":[{"protected":"` + g.head + `","signature":"` + g.sig + `"}]}`,
				"CVE-2022-39227 JSON around a good one":  `{"` + g.head + `.` + b64(strings.Replace(g.bodyText, "johndoe", "admin", 1)) + `.":"","protected":"` + g.head + `","payload":"` + g.body + `","signature":"` + g.sig + `"}`,
				"padding":                                g.complete + "=",
				"line break":                             g.complete + "\n",
				"line break inside":                      g.head + ".\r\n" + g.body + "." + g.sig,
				"standard alphabet":                      g.head + "." + g.body + "." + strings.NewReplacer("-", "+", "_", "/").Replace("-_"+g.sig),
				"truncated signature":                    g.signingInput + "." + g.sig[:len(g.sig)-4],
				"longer signature":                       g.complete + "AAAA",
				"RFC 8725 2.1 unsecured, signature kept": b64(g.header("alg", "none")) + "." + g.body + "." + g.sig,
				"no alg":                                 b64(`{"kid":"`+g.key.ID()+`","typ":"at+jwt"}`) + "." + g.body + "." + g.sig,
				"alg null":                               b64(g.header("alg", nil)) + "." + g.body + "." + g.sig,
				"alg list":                               b64(g.header("alg", []string{string(alg)})) + "." + g.body + "." + g.sig,
			} {
				g.refuses(t, attack, token)
			}
			for _, none := range []string{"none", "None", "NONE", "nOnE", " none", "none ", ""} {
				g.refuses(t, fmt.Sprintf("CVE-2022-23540 alg %q, no signature", none), b64(g.header("alg", none))+"."+g.body+".")
			}
			// The rest is signed with the right key: what is wrong is what was signed.
			signed := func(attack, header, payload string) {
				t.Helper()
				g.refuses(t, attack, signText(t, g.key, header, payload))
			}
			claim := func(name string, value any) string {
				var c map[string]any
				if json.Unmarshal([]byte(g.bodyText), &c) != nil {
					t.Fatal("the claims of a good token")
				}
				c[name] = value
				text, err := json.Marshal(c)
				if err != nil {
					t.Fatal(err)
				}
				return string(text)
			}
			for _, other := range []string{"HS256", "HS384", "HS512", "RS256", "RS512", "PS256", "ES256", "ES256K", "ES384", "EdDSA", "Ed25519", "dir", "A256GCM"} {
				if other != string(alg) {
					signed("RFC 8725 3.1 alg "+other, g.header("alg", other), g.bodyText)
				}
			}
			for _, kid := range []string{"", "../../../../dev/null", "/dev/null", "' OR '1'='1", "|id", g.key.ID() + "\x00", strings.ToLower(g.key.ID()), "https://evil.example/k"} {
				signed(fmt.Sprintf("RFC 8725 3.10 kid %q", kid), g.header("kid", kid), g.bodyText)
			}
			signed("RFC 8725 3.11 typ JWT", g.header("typ", "JWT"), g.bodyText)
			signed("RFC 8725 3.11 an ID token's claims, no typ", `{"alg":"`+string(alg)+`","kid":"`+g.key.ID()+`"}`, g.bodyText)
			signed("RFC 8725 3.12 typ of a logout token", g.header("typ", "logout+jwt"), g.bodyText)
			signed("RFC 7515 4.1.11 unknown crit", g.header("crit", []string{"exp"}), g.bodyText)
			signed("RFC 7797 b64 false", strings.TrimSuffix(g.headText, "}")+`,"b64":false,"crit":["b64"]}`, g.bodyText)
			signed("RFC 7515 4 alg twice", `{"alg":"none",`+g.headText[1:], g.bodyText)
			signed("RFC 7519 4 sub twice", g.headText, `{"sub":"admin",`+g.bodyText[1:])
			signed("RFC 8725 3.8 other issuer", g.headText, claim("iss", "https://evil.example"))
			signed("RFC 8725 3.9 other audience", g.headText, claim("aud", "https://other.example"))
			signed("RFC 8725 3.9 no audience", g.headText, claim("aud", []string{}))
			signed("RFC 8725 2.4 exp not a number", g.headText, claim("exp", "9999999999"))
			signed("RFC 8725 3.7 not UTF-8", g.headText, strings.Replace(g.bodyText, "johndoe", "john\xffdoe", 1))
			signed("nested: the claims are a token", g.headText, g.complete)
			signed("not an object", g.headText, `["iss"]`)
		})
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A public key is no secret: what an attacker can know of it must not serve as the
// secret of an HMAC.
func TestPublicKeysAreNoSecrets(t *testing.T) {
	for _, alg := range []Algorithm{EdDSA, ES256, RS256} {
		t.Run(string(alg), func(t *testing.T) {
			g := targetOf(t, alg)
			der, err := x509.MarshalPKIXPublicKey(g.key.material().public)
			if err != nil {
				t.Fatal(err)
			}
			jwk, _ := g.key.PublicJWK()
			text, err := json.Marshal(jwk)
			if err != nil {
				t.Fatal(err)
			}
			pemText := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
			secrets := map[string][]byte{
				"CVE-2015-9235 PEM":                 pemText,
				"CVE-2016-5431 PEM without its end": bytes.TrimSpace(pemText),
				"CVE-2016-10555 DER":                der,
				"CVE-2022-29217 JWK":                text,
				"the key id":                        []byte(g.key.ID()),
				"empty":                             {},
				"x":                                 []byte(jwk.X),
				"n":                                 []byte(jwk.Modulus),
			}
			switch p := g.key.material().public.(type) {
			case ed25519.PublicKey:
				secrets["the bytes"] = p
			case *ecdsa.PublicKey:
				if secrets["the bytes"], err = p.Bytes(); err != nil {
					t.Fatal(err)
				}
			case *rsa.PublicKey:
				secrets["CVE-2016-5431 PKCS#1"] = x509.MarshalPKCS1PublicKey(p)
				secrets["the bytes"] = p.N.Bytes()
			}
			for attack, secret := range secrets {
				g.refuses(t, attack, g.hmacToken(secret))
			}
		})
	}
}

// The attacker signs with a key of his own and sends it along.
func TestKeysThatTheTokenBrings(t *testing.T) {
	for _, alg := range []Algorithm{EdDSA, ES256, RS256} {
		t.Run(string(alg), func(t *testing.T) {
			g := targetOf(t, alg)
			own := generate(t, alg)
			jwk, _ := own.PublicJWK()
			for attack, header := range map[string]string{
				"CVE-2018-0114 jwk":                      g.header("jwk", jwk),
				"RFC 8725 3.10 jku":                      g.header("jku", "https://evil.example/jwks.json"),
				"RFC 8725 3.10 x5u":                      g.header("x5u", "https://evil.example/cert.pem"),
				"RFC 7515 4.1.6 x5c":                     g.header("x5c", []string{"MIIB"}),
				"kid of the attacker, with jwk":          strings.Replace(g.header("jwk", jwk), `"kid":"`+g.key.ID(), `"kid":"`+own.ID(), 1),
				"the right kid and another key, no more": g.headText,
			} {
				g.refuses(t, attack, signText(t, own, header, g.bodyText))
			}
		})
	}
}

func TestAttacksOnES256(t *testing.T) {
	g := targetOf(t, ES256)
	sig, err := base64.RawURLEncoding.DecodeString(g.sig)
	if err != nil {
		t.Fatal(err)
	}
	r, s := new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])
	n, p := elliptic.P256().Params().N, elliptic.P256().Params().P
	pair := func(r, s *big.Int) []byte {
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
	der, err := g.key.material().private.(*ecdsa.PrivateKey).Sign(rand.Reader, digest(g.signingInput), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	zero, one := new(big.Int), big.NewInt(1)
	for attack, sig := range map[string][]byte{
		"CVE-2022-21449 r and s are 0":         pair(zero, zero),
		"CVE-2022-21449 r is 0":                pair(zero, s),
		"CVE-2022-21449 s is 0":                pair(r, zero),
		"CVE-2022-21449 r and s are the order": pair(n, n),
		"r and s are 1":                        pair(one, one),
		"r is the order less 1, s is 1":        pair(new(big.Int).Sub(n, one), one),
		"r is the field's prime":               pair(p, s),
		"r plus the order":                     append(new(big.Int).Add(r, n).FillBytes(make([]byte, 33)), sig[32:]...),
		"RFC 7518 3.4 DER":                     der,
		"r and s exchanged":                    pair(s, r),
		"with leading zeros":                   slices.Concat([]byte{0}, sig[:32], []byte{0}, sig[32:]),
		"r alone":                              sig[:32],
		"of P-384's length":                    append(slices.Clone(sig), make([]byte, 32)...),
	} {
		g.refuses(t, attack, g.with(sig))
	}
	// What the package comment says: it can be altered into another valid one.
	if _, err := g.verifier.Verify(g.with(pair(r, new(big.Int).Sub(n, s))), issued); err != nil {
		t.Errorf("the other signature of the same content: %v", err)
	}
}

func TestAttacksOnEdDSA(t *testing.T) {
	g := targetOf(t, EdDSA)
	sig, err := base64.RawURLEncoding.DecodeString(g.sig)
	if err != nil {
		t.Fatal(err)
	}
	// The order of the group, RFC 8032 section 5.1.
	order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	s := slices.Clone(sig[32:])
	slices.Reverse(s) // it is little-endian
	sum := new(big.Int).Add(new(big.Int).SetBytes(s), order).FillBytes(make([]byte, 32))
	slices.Reverse(sum)
	identity := append([]byte{1}, make([]byte, 31)...)
	ph, err := g.key.material().private.(ed25519.PrivateKey).Sign(rand.Reader, make([]byte, 64), &ed25519.Options{Hash: crypto.SHA512})
	if err != nil {
		t.Fatal(err)
	}
	for attack, sig := range map[string][]byte{
		"RFC 8032 5.1.7 S plus the order": append(slices.Clone(sig[:32]), sum...),
		"S is 0":                          append(slices.Clone(sig[:32]), make([]byte, 32)...),
		"R is the identity, S is 0":       append(identity, make([]byte, 32)...),
		"all zero":                        make([]byte, 64),
		"RFC 8032 5.1 Ed25519ph":          ph,
		"R alone":                         sig[:32],
	} {
		g.refuses(t, attack, g.with(sig))
	}
}

// Signatures whose PKCS #1 padding is not exactly that of RFC 8017 section 9.2. All
// are made with the private key, so that a lenient reader would accept them.
func TestAttacksOnRS256(t *testing.T) {
	g := targetOf(t, RS256)
	private := g.key.material().private.(*rsa.PrivateKey)
	size := private.Size()
	hash := digest(g.signingInput)
	info := func(oid string, null bool, hash []byte) []byte {
		params := ""
		if null {
			params = "\x05\x00"
		}
		algorithm := "\x06" + string(rune(len(oid))) + oid + params
		algorithm = "\x30" + string(rune(len(algorithm))) + algorithm
		text := algorithm + "\x04" + string(rune(len(hash))) + string(hash)
		return []byte("\x30" + string(rune(len(text))) + text)
	}
	const sha256OID, sha1OID = "\x60\x86\x48\x01\x65\x03\x04\x02\x01", "\x2b\x0e\x03\x02\x1a"
	good := info(sha256OID, true, hash)
	pad := func(kind, fill byte, n int, tail ...[]byte) []byte {
		em := append([]byte{0, kind}, bytes.Repeat([]byte{fill}, n)...)
		return slices.Concat(append([][]byte{em, {0}}, tail...)...)
	}
	full := size - 3 - len(good)
	raise := func(em []byte) []byte {
		c := new(big.Int).Exp(new(big.Int).SetBytes(em), private.D, private.N)
		return c.FillBytes(make([]byte, size))
	}
	if _, err := g.verifier.Verify(g.with(raise(pad(1, 0xff, full, good))), issued); err != nil {
		t.Fatalf("the padding of the RFC is refused: %v", err)
	}
	weak := sha1.Sum([]byte(g.signingInput))
	sha1Info := info(sha1OID, true, weak[:])
	bare := info(sha256OID, false, hash)
	holes := pad(1, 0xff, full, good)
	holes[20] = 0xfe
	for attack, em := range map[string][]byte{
		"CVE-2006-4339 garbage behind the hash": pad(1, 0xff, 8, good, bytes.Repeat([]byte{0xaa}, full-8)),
		"no NULL":                               pad(1, 0xff, size-3-len(bare), bare),
		"block type 2":                          pad(2, 0xff, full, good),
		"block type 0":                          pad(0, 0, full, good),
		"padding of zeros":                      pad(1, 0, full, good),
		"padding with a hole":                   holes,
		"RFC 8725 3.2 SHA-1":                    pad(1, 0xff, size-3-len(sha1Info), sha1Info),
		"no DigestInfo":                         pad(1, 0xff, size-3-len(hash), hash),
		"hash of another":                       pad(1, 0xff, full, info(sha256OID, true, digest("another"))),
	} {
		g.refuses(t, attack, g.with(raise(em)))
	}
	pss, err := rsa.SignPSS(rand.Reader, private, crypto.SHA256, hash, nil)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := base64.RawURLEncoding.DecodeString(g.sig)
	if err != nil {
		t.Fatal(err)
	}
	for attack, sig := range map[string][]byte{
		"PSS":              pss,
		"0":                make([]byte, size),
		"1":                big.NewInt(1).FillBytes(make([]byte, size)),
		"plus the modulus": new(big.Int).Add(new(big.Int).SetBytes(sig), private.N).FillBytes(make([]byte, size+1)),
		"a leading zero":   append([]byte{0}, sig...),
	} {
		g.refuses(t, attack, g.with(sig))
	}
}

func digest(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}
