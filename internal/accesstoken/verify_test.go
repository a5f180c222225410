package accesstoken

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestSignThenVerify(t *testing.T) {
	for _, alg := range []Algorithm{EdDSA, ES256, RS256, HS256} {
		t.Run(string(alg), func(t *testing.T) {
			ring := ringOf(t, generate(t, alg))
			for name, edit := range map[string]func(*Claims){
				"full":          func(*Claims) {},
				"bare":          func(c *Claims) { c.Scope, c.LogEpoch, c.AuthTime, c.UserEpoch = "", "", 0, 0 },
				"two audiences": func(c *Claims) { c.Audience = []string{"other", testAudience} },
				"not before":    func(c *Claims) { c.NotBefore = c.IssuedAt },
				"escapes":       func(c *Claims) { c.Subject = "a\"b\\c/<&>\u2028\n\x00\U0001F511é" },
			} {
				t.Run(name, func(t *testing.T) {
					want := testClaims()
					edit(&want)
					got, err := verifierOf(ring).Verify(mustSign(t, ring, want), issued)
					if err != nil {
						t.Fatalf("Verify: %v", err)
					}
					if diff := cmp.Diff(named(want, ring), got); diff != "" {
						t.Errorf("claims differ (-signed +verified):\n%s", diff)
					}
				})
			}
		})
	}
}

// named are claims as they are read from a token that r has signed.
func named(c Claims, r *Ring) Claims {
	c.KeyID = r.Active().ID()
	return c
}

// TestTokenText pins what a token looks like to every other implementation.
func TestTokenText(t *testing.T) {
	k := fixedKey(t, 1)
	c := testClaims()
	c.NotBefore = c.IssuedAt
	parts := strings.Split(mustSign(t, ringOf(t, k), c), ".")
	for i, want := range []string{
		`{"alg":"EdDSA","kid":"` + k.ID() + `","typ":"at+jwt"}`,
		`{"iss":"https://auth.example.com","sub":"johndoe","aud":"https://api.example.com",` +
			`"exp":1700000900,"nbf":1700000000,"iat":1700000000,"auth_time":1699999940,` +
			`"jti":"AAECAwQFBgcICQoLDA0ODw","sid":"AP_-_fz7-vn49_b19PPy8Q","client_id":"latchkey",` +
			`"scope":"read write","ue":3,"le":"c2Vjb25k"}`,
	} {
		got, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil || string(got) != want {
			t.Errorf("segment %d = %s, %v, want %s", i, got, err, want)
		}
	}
}

func TestVerifyTime(t *testing.T) {
	ring := ringOf(t, fixedKey(t, 1))
	v := verifierOf(ring) // leeway 5 s
	strict := NewVerifier(ring, VerifierOptions{Issuer: testIssuer, Audience: testAudience, Leeway: -time.Hour})
	plain := mustSign(t, ring, testClaims())
	c := testClaims()
	c.NotBefore = c.IssuedAt + 100
	later := mustSign(t, ring, c)

	tests := []struct {
		name     string
		verifier *Verifier
		token    string
		at       time.Duration // after issue
		want     error
	}{
		{"at issue", v, plain, 0, nil},
		{"last nanosecond", v, plain, 900*time.Second - 1, nil},
		{"at exp: no leeway", v, plain, 900 * time.Second, ErrExpired},
		{"after exp", v, plain, time.Hour, ErrExpired},
		{"year 292 billion", v, plain, 1<<63 - 1, ErrExpired},
		{"iat ahead by the leeway", v, plain, -5 * time.Second, nil},
		{"iat ahead by more", v, plain, -5*time.Second - 1, ErrNotYetValid},
		{"iat ahead by half a second, leeway below", strict, plain, -time.Second / 2, ErrNotYetValid},
		{"negative leeway is none", strict, plain, 0, nil},
		{"nbf ahead by the leeway", v, later, 95 * time.Second, nil},
		{"nbf ahead by more", v, later, 95*time.Second - 1, ErrNotYetValid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := tt.verifier.Verify(tt.token, issued.Add(tt.at))
			if !errors.Is(err, tt.want) {
				t.Errorf("Verify = %v, want %v", err, tt.want)
			}
			if err != nil && !cmp.Equal(c, Claims{}) {
				t.Error("claims beside an error")
			}
			if _, err := tt.verifier.Authentic(tt.token); err != nil {
				t.Errorf("Authentic = %v, want nil at any time", err)
			}
		})
	}
	if _, err := v.Verify(plain, time.Time{}); !errors.Is(err, ErrNotYetValid) {
		t.Errorf("Verify at the zero time = %v, want %v", err, ErrNotYetValid)
	}
}

// TestHostile: each row is an attack by its name. Unless it says otherwise the
// signature is true, made with the ring's own key, so that nothing but the guard
// under test can refuse the token.
func TestHostile(t *testing.T) {
	ed, hs, es := fixedKey(t, 1), generate(t, HS256), generate(t, ES256)
	stranger := fixedKey(t, 2)
	ring := ringOf(t, ed, hs, es)
	verifier := verifierOf(ring)

	// asMAC is the Ed25519 public key put to use as an HMAC secret.
	publicBytes, err := base64.RawURLEncoding.DecodeString(ed.jwk.X)
	if err != nil {
		t.Fatal(err)
	}
	asMAC, err := newKey(publicBytes)
	if err != nil {
		t.Fatal(err)
	}

	good := mustSign(t, ring, testClaims())
	parts := strings.Split(good, ".")
	head := func(alg Algorithm, kid, more string) string {
		return fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"at+jwt"%s}`, alg, kid, more)
	}
	claims := testClaims()
	payloadBytes, err := claims.encode()
	if err != nil {
		t.Fatal(err)
	}
	payload := string(payloadBytes)
	// with replaces one piece of the payload, which must be there.
	with := func(piece, other string) string {
		t.Helper()
		if strings.Count(payload, piece) != 1 {
			t.Fatalf("%q is not once in %s", piece, payload)
		}
		return strings.Replace(payload, piece, other, 1)
	}
	header := func(h string) string { return signText(t, ed, h, payload) }
	content := func(p string) string { return signText(t, ed, head(EdDSA, ed.id, ""), p) }
	add := func(member string) string { return content(with(`{"iss"`, `{`+member+`,"iss"`)) }
	unsigned := func(h, sig string) string { return b64(h) + "." + parts[1] + "." + sig }
	lastBit := func(segment string) string {
		const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		last := strings.IndexByte(alphabet, segment[len(segment)-1])
		return segment[:len(segment)-1] + string(alphabet[last^1])
	}
	if len(parts[2])%4 == 0 {
		t.Fatal("the signature has no trailing bits to flip")
	}

	tests := []struct {
		name  string
		token string
		want  error // nil: accepted
	}{
		// Controls: what these tables are made of is accepted when left alone.
		{"control: signed by Sign", good, nil},
		{"control: header and payload by hand", signText(t, ed, head(EdDSA, ed.id, ""), payload), nil},
		{"control: other order and space in the header", header(" {\n\t\"typ\": \"at+jwt\" , \"kid\":\"" + ed.id + "\", \"alg\":\"EdDSA\" } "), nil},
		{"control: HS256 under its own kid", signText(t, hs, head(HS256, hs.id, ""), payload), nil},
		{"control: ES256 under its own kid", signText(t, es, head(ES256, es.id, ""), payload), nil},

		// Shape.
		{"RFC 8725 3.11: empty", "", ErrMalformed},
		{"RFC 8725 3.11: two dots", "..", ErrMalformed},
		{"RFC 8725 3.11: json object", "{}", ErrMalformed},
		{"RFC 8725 3.11: NUL", "\x00", ErrMalformed},
		{"RFC 8725 3.11: CRLF after the token", good + "\r\n", ErrMalformed},
		{"CVE-2025-30204: 100 kB of dots", strings.Repeat(".", 100_000), ErrMalformed},
		{"CVE-2025-30204: dots within the cap", strings.Repeat(".", MaxLength), ErrMalformed},
		{"CVE-2024-51744: 10 MB of A", strings.Repeat("A", 10_000_000), ErrMalformed},
		{"cap: one byte too long", good + strings.Repeat("A", MaxLength+1-len(good)), ErrMalformed},
		{"two segments", parts[0] + "." + parts[1], ErrMalformed},
		{"four segments", good + ".", ErrMalformed},
		{"JWE of five segments", good + "..", ErrMalformed},
		{"RFC 7515 7.2: JSON serialization", `{"protected":"` + parts[0] + `","payload":"` + parts[1] + `","signature":"` + parts[2] + `"}`, ErrMalformed},
		{"empty header", "." + parts[1] + "." + parts[2], ErrMalformed},
		{"Bearer in front", "Bearer " + good, ErrMalformed},

		// base64url.
		{"RFC 7515 2: padded signature", good + "==", ErrMalformed},
		{"RFC 7515 2: padded header", parts[0] + "=." + parts[1] + "." + parts[2], ErrMalformed},
		{"RFC 4648 3.5: flipped tail bit in the signature", parts[0] + "." + parts[1] + "." + lastBit(parts[2]), ErrMalformed},
		{"RFC 4648 3.1: newline in the signature", good[:len(good)-40] + "\n" + good[len(good)-40:], ErrMalformed},
		{"RFC 4648 3.1: CRs for the end of the signature", good[:len(good)-4] + "\r\r\r\r", ErrMalformed},
		{"RFC 4648 3.1: newline in the header", parts[0][:8] + "\n" + parts[0][8:] + "." + parts[1] + "." + parts[2], ErrMalformed},
		{"standard alphabet in the signature", parts[0] + "." + parts[1] + ".+/" + parts[2][2:], ErrMalformed},
		{"space in the signature", good[:len(good)-1] + " ", ErrMalformed},
		{"signature of one character", parts[0] + "." + parts[1] + ".A", ErrMalformed},

		// Algorithm.
		{"RFC 8725 2.1: alg none, no signature", unsigned(head("none", ed.id, ""), ""), ErrAlgorithm},
		{"RFC 8725 2.1: alg none, no kid", unsigned(`{"alg":"none","typ":"at+jwt"}`, ""), ErrAlgorithm},
		{"RFC 8725 2.1: alg None", unsigned(head("None", ed.id, ""), parts[2]), ErrAlgorithm},
		{"RFC 8725 2.1: alg nOnE", unsigned(head("nOnE", ed.id, ""), ""), ErrAlgorithm},
		{"RFC 8725 2.1: alg empty", unsigned(head("", ed.id, ""), ""), ErrAlgorithm},
		{"RFC 8725 2.1: alg absent", header(`{"kid":"` + ed.id + `","typ":"at+jwt"}`), ErrAlgorithm},
		{"RFC 8725 2.1: alg in upper-case name", header(`{"ALG":"EdDSA","kid":"` + ed.id + `","typ":"at+jwt"}`), ErrAlgorithm},
		{"RFC 8725 2.1: alg null", header(`{"alg":null,"kid":"` + ed.id + `","typ":"at+jwt"}`), ErrMalformed},
		{"RFC 8725 2.1: alg array", header(`{"alg":["EdDSA"],"kid":"` + ed.id + `","typ":"at+jwt"}`), ErrMalformed},
		{"CVE-2016-5431: HS256 with the Ed25519 public key bytes", signText(t, asMAC, head(HS256, ed.id, ""), payload), ErrAlgorithm},
		{"CVE-2016-5431: the same MAC under alg EdDSA", signText(t, asMAC, head(EdDSA, ed.id, ""), payload), ErrSignature},
		{"CVE-2016-5431: the same MAC under the HS256 kid", signText(t, asMAC, head(HS256, hs.id, ""), payload), ErrSignature},
		{"RFC 8725 3.1: EdDSA token under the ES256 kid", signText(t, ed, head(EdDSA, es.id, ""), payload), ErrAlgorithm},
		{"RFC 8725 3.1: alg ES256 under the EdDSA kid", header(head(ES256, ed.id, "")), ErrAlgorithm},
		{"RFC 8725 3.1: alg HS384", header(head("HS384", ed.id, "")), ErrAlgorithm},
		{"RFC 8725 3.1: alg RS1", header(head("RS1", ed.id, "")), ErrAlgorithm},
		{"RFC 8725 3.1: alg eddsa", header(head("eddsa", ed.id, "")), ErrAlgorithm},

		// Signature.
		{"CVE-2022-21449: ES256 of zeros", b64(head(ES256, es.id, "")) + "." + parts[1] + "." + b64(strings.Repeat("\x00", 64)), ErrSignature},
		{"CVE-2022-21449: EdDSA of zeros", parts[0] + "." + parts[1] + "." + b64(strings.Repeat("\x00", 64)), ErrSignature},
		{"empty signature", parts[0] + "." + parts[1] + ".", ErrSignature},
		{"short signature", parts[0] + "." + parts[1] + "." + b64("short"), ErrSignature},
		{"long signature", good[:len(good)-2] + strings.Repeat("A", 402), ErrSignature},
		{"other payload", parts[0] + "." + b64(with("johndoe", "janedoe")) + "." + parts[2], ErrSignature},
		{"payload empty", parts[0] + ".." + parts[2], ErrSignature},
		{"flipped tail bit in the payload", parts[0] + "." + lastBit(parts[1]) + "." + parts[2], ErrSignature},
		{"header exchanged for an equal one", unsigned(head(EdDSA, ed.id, `,"x":1`), parts[2]), ErrSignature},
		{"stranger's key under our kid", signText(t, stranger, head(EdDSA, ed.id, ""), payload), ErrSignature},

		// Key.
		{"stranger's key", signText(t, stranger, head(EdDSA, stranger.id, ""), payload), ErrUnknownKey},
		{"RFC 8725 3.10: kid as a path", header(head(EdDSA, "../../../../dev/null", "")), ErrUnknownKey},
		{"RFC 8725 3.10: kid as SQL", header(head(EdDSA, "x' UNION SELECT 'key", "")), ErrUnknownKey},
		{"RFC 8725 3.10: kid with CRLF", header(head(EdDSA, ed.id+"\r\n", "")), ErrUnknownKey},
		{"RFC 8725 3.10: kid in lower case", header(head(EdDSA, strings.ToLower(ed.id), "")), ErrUnknownKey},
		{"kid absent", header(`{"alg":"EdDSA","typ":"at+jwt"}`), ErrUnknownKey},
		{"kid a number", header(`{"alg":"EdDSA","kid":1,"typ":"at+jwt"}`), ErrMalformed},
		{"kid an object", header(`{"alg":"EdDSA","kid":{},"typ":"at+jwt"}`), ErrMalformed},
		{"CVE-2018-0114: embedded jwk", signText(t, stranger, head(EdDSA, ed.id, `,"jwk":{"kty":"OKP","crv":"Ed25519","x":"`+stranger.jwk.X+`"}`), payload), ErrSignature},
		{"CVE-2018-0114: embedded jwk under its own kid", signText(t, stranger, head(EdDSA, stranger.id, `,"jwk":{"kty":"OKP","crv":"Ed25519","x":"`+stranger.jwk.X+`"}`), payload), ErrUnknownKey},
		{"RFC 8725 3.10: jku under a strange kid", signText(t, stranger, head(EdDSA, stranger.id, `,"jku":"http://127.0.0.1:1/jwks.json"`), payload), ErrUnknownKey},
		{"RFC 8725 3.10: jku is ignored", header(head(EdDSA, ed.id, `,"jku":"http://127.0.0.1:1/jwks.json"`)), nil},
		{"RFC 8725 3.10: x5u and x5c are ignored", header(head(EdDSA, ed.id, `,"x5u":"http://127.0.0.1:1/","x5c":["AAAA"]`)), nil},

		// Other header members.
		{"RFC 7515 4.1.11: crit with an unknown name", header(head(EdDSA, ed.id, `,"crit":["exp"],"exp":1`)), ErrCritical},
		{"RFC 7515 4.1.11: crit empty", header(head(EdDSA, ed.id, `,"crit":[]`)), ErrCritical},
		{"RFC 7515 4.1.11: crit null", header(head(EdDSA, ed.id, `,"crit":null`)), ErrCritical},
		{"RFC 7797: b64 false", header(head(EdDSA, ed.id, `,"b64":false,"crit":["b64"]`)), ErrCritical},
		{"RFC 8725 3.11: typ JWT, an id token", header(`{"alg":"EdDSA","kid":"` + ed.id + `","typ":"JWT"}`), ErrTokenType},
		{"RFC 8725 3.11: typ absent", header(`{"alg":"EdDSA","kid":"` + ed.id + `"}`), ErrTokenType},
		{"RFC 8725 3.11: typ empty", header(`{"alg":"EdDSA","kid":"` + ed.id + `","typ":""}`), ErrTokenType},
		{"RFC 8725 3.11: typ logout+jwt", header(`{"alg":"EdDSA","kid":"` + ed.id + `","typ":"logout+jwt"}`), ErrTokenType},
		{"RFC 8725 3.11: typ text/at+jwt", header(`{"alg":"EdDSA","kid":"` + ed.id + `","typ":"text/at+jwt"}`), ErrTokenType},
		{"RFC 8725 3.11: typ application/ twice", header(`{"alg":"EdDSA","kid":"` + ed.id + `","typ":"application/application/at+jwt"}`), ErrTokenType},
		{"RFC 8725 3.11: typ with a space", header(`{"alg":"EdDSA","kid":"` + ed.id + `","typ":"at+jwt "}`), ErrTokenType},
		{"RFC 8725 3.11: typ an array", header(`{"alg":"EdDSA","kid":"` + ed.id + `","typ":["at+jwt"]}`), ErrMalformed},
		{"RFC 9068 4: typ in upper case is the same type", header(`{"alg":"EdDSA","kid":"` + ed.id + `","typ":"AT+JWT"}`), nil},
		{"RFC 7515 4.1.9: typ with application/ is the same type", header(`{"alg":"EdDSA","kid":"` + ed.id + `","typ":"Application/at+JWT"}`), nil},

		// JSON.
		{"RFC 7515 4: alg twice", header(head(EdDSA, ed.id, `,"alg":"none"`)), ErrMalformed},
		{"RFC 7515 4: kid twice", header(head(EdDSA, ed.id, `,"kid":"`+stranger.id+`"`)), ErrMalformed},
		{"RFC 7515 4: alg twice, once escaped", header(head(EdDSA, ed.id, `,"\u0061lg":"none"`)), ErrMalformed},
		{"RFC 7515 4: unknown member twice", header(head(EdDSA, ed.id, `,"x":1,"x":1`)), ErrMalformed},
		{"RFC 7519 4: sub twice", add(`"sub":"root"`), ErrMalformed},
		{"RFC 7519 4: sub twice, once escaped", add(`"\u0073ub":"root"`), ErrMalformed},
		{"RFC 7519 4: unknown claim twice", add(`"x":1,"x":2`), ErrMalformed},
		{"RFC 7519 4: sub in upper case is not sub", add(`"SUB":"root","Sub":"root","ſub":"root"`), nil},
		{"header: trailing data", header(head(EdDSA, ed.id, "") + "{}"), ErrMalformed},
		{"header: trailing NUL", header(head(EdDSA, ed.id, "") + "\x00"), ErrMalformed},
		{"header: byte order mark", header("\ufeff" + head(EdDSA, ed.id, "")), ErrMalformed},
		{"header: array", header("[" + head(EdDSA, ed.id, "") + "]"), ErrMalformed},
		{"header: null", header("null"), ErrMalformed},
		{"header: empty object", header("{}"), ErrTokenType},
		{"header: not UTF-8", header(head(EdDSA, ed.id, ",\"x\":\"\xff\"")), ErrMalformed},
		{"header: lone surrogate in a name", header(head(EdDSA, ed.id, `,"\ud800":1`)), ErrMalformed},
		{"header: 65 members", header(head(EdDSA, ed.id, manyMembers(maxMembers-2))), ErrMalformed},
		{"header: 64 members are fine", header(head(EdDSA, ed.id, manyMembers(maxMembers-3))), nil},
		{"header: deep nesting", header(head(EdDSA, ed.id, `,"x":`+strings.Repeat("[", 1200)+strings.Repeat("]", 1200))), nil},
		{"header: unbalanced nesting", header(head(EdDSA, ed.id, `,"x":`+strings.Repeat("[", 1200))), ErrMalformed},
		{"claims: trailing data", content(payload + "{}"), ErrMalformed},
		{"claims: trailing comma", content(with(`"le":"c2Vjb25k"}`, `"le":"c2Vjb25k",}`)), ErrMalformed},
		{"claims: a string", content(`"` + testIssuer + `"`), ErrMalformed},
		{"claims: null", content("null"), ErrMalformed},
		{"claims: nothing", content(""), ErrMalformed},
		{"claims: not UTF-8", content(with("johndoe", "john\xffdoe")), ErrMalformed},
		{"claims: raw NUL in a string", content(with("johndoe", "john\x00doe")), ErrMalformed},
		{"claims: lone surrogate in sub", content(with("johndoe", `john\ud800doe`)), ErrClaims},
		{"claims: reversed surrogates in sub", content(with("johndoe", `\udc00\ud800`)), ErrClaims},
		{"claims: empty object", content("{}"), ErrClaims},

		// Claims.
		{"RFC 9068 2.2: iss absent", content(with(`"iss":"`+testIssuer+`",`, ``)), ErrClaims},
		{"RFC 9068 2.2: sub absent", content(with(`"sub":"johndoe",`, ``)), ErrClaims},
		{"RFC 9068 2.2: aud absent", content(with(`"aud":"`+testAudience+`",`, ``)), ErrClaims},
		{"RFC 9068 2.2: exp absent", content(with(`"exp":1700000900,`, ``)), ErrClaims},
		{"RFC 9068 2.2: iat absent", content(with(`"iat":1700000000,`, ``)), ErrClaims},
		{"RFC 9068 2.2: jti absent", content(with(`"jti":"AAECAwQFBgcICQoLDA0ODw",`, ``)), ErrClaims},
		{"RFC 9068 2.2: client_id absent", content(with(`"client_id":"latchkey",`, ``)), ErrClaims},
		{"sid absent", content(with(`"sid":"AP_-_fz7-vn49_b19PPy8Q",`, ``)), ErrClaims},
		{"sub empty", content(with(`"johndoe"`, `""`)), ErrClaims},
		{"sub null", content(with(`"johndoe"`, `null`)), ErrClaims},
		{"sub a number", content(with(`"johndoe"`, `0`)), ErrClaims},
		{"sub an object", content(with(`"johndoe"`, `{}`)), ErrClaims},
		{"jti an array", content(with(`"AAECAwQFBgcICQoLDA0ODw"`, `["AAECAwQFBgcICQoLDA0ODw"]`)), ErrClaims},
		{"sid a boolean", content(with(`"AP_-_fz7-vn49_b19PPy8Q"`, `true`)), ErrClaims},
		{"scope an array", content(with(`"read write"`, `["read","write"]`)), ErrClaims},
		{"ue a string", content(with(`"ue":3`, `"ue":"3"`)), ErrClaims},
		{"ue negative", content(with(`"ue":3`, `"ue":-3`)), ErrClaims},
		{"ue null, which must not count as zero", content(with(`"ue":3`, `"ue":null`)), ErrClaims},
		{"ue beyond 2^53-1", content(with(`"ue":3`, `"ue":9007199254740992`)), ErrClaims},
		{"le a number", content(with(`"c2Vjb25k"`, `1`)), ErrClaims},
		{"exp a string", content(with(`1700000900`, `"1700000900"`)), ErrClaims},
		{"exp null", content(with(`1700000900`, `null`)), ErrClaims},
		{"exp zero", content(with(`1700000900`, `0`)), ErrClaims},
		{"exp negative", content(with(`1700000900`, `-1`)), ErrClaims},
		{"exp a fraction", content(with(`1700000900`, `1700000900.5`)), ErrClaims},
		{"exp with a zero fraction", content(with(`1700000900`, `1700000900.0`)), ErrClaims},
		{"exp with an exponent", content(with(`1700000900`, `1e300`)), ErrClaims},
		{"exp infinite", content(with(`1700000900`, `1e999`)), ErrClaims},
		{"exp NaN", content(with(`1700000900`, `NaN`)), ErrMalformed},
		{"exp past the year 9999", content(with(`1700000900`, `253402300800`)), ErrClaims},
		{"exp that overflows 64 bits to a later time", content(with(`1700000900`, `18446744075409552516`)), ErrClaims},
		{"exp in the past", content(with(`1700000900`, `1600000000`)), ErrExpired},
		{"iat a string", content(with(`"iat":1700000000`, `"iat":"1700000000"`)), ErrClaims},
		{"iat in the future", content(with(`"iat":1700000000`, `"iat":1700000006`)), ErrNotYetValid},
		{"nbf in the future", add(`"nbf":1700000006`), ErrNotYetValid},
		{"nbf a string", add(`"nbf":"1700000000"`), ErrClaims},
		{"nbf zero", add(`"nbf":0`), ErrClaims},
		{"auth_time a boolean", content(with(`1699999940`, `true`)), ErrClaims},
		{"RFC 8725 3.8: other issuer", content(with(testIssuer, "https://evil.example.com")), ErrIssuer},
		{"RFC 8725 3.8: issuer with a slash more", content(with(testIssuer, testIssuer+"/")), ErrIssuer},
		{"RFC 8725 3.8: issuer in upper case", content(with(testIssuer, strings.ToUpper(testIssuer))), ErrIssuer},
		{"RFC 8725 3.8: issuer an array", content(with(`"`+testIssuer+`"`, `["`+testIssuer+`"]`)), ErrClaims},
		{"RFC 8725 3.9: other audience", content(with(testAudience, "https://other.example.com")), ErrAudience},
		{"RFC 8725 3.9: audience with a suffix", content(with(testAudience, testAudience+".evil.example")), ErrAudience},
		{"RFC 8725 3.9: audience list without us", content(with(`"`+testAudience+`"`, `["a","b"]`)), ErrAudience},
		{"RFC 8725 3.9: audience list with us", content(with(`"`+testAudience+`"`, ` [ "a" , "`+testAudience+`" ] `)), nil},
		{"audience list empty", content(with(`"`+testAudience+`"`, `[]`)), ErrClaims},
		{"CVE-2020-26160: audience list of one empty string", content(with(`"`+testAudience+`"`, `[""]`)), ErrClaims},
		{"audience empty", content(with(`"`+testAudience+`"`, `""`)), ErrClaims},
		{"audience list with a number", content(with(`"`+testAudience+`"`, `["`+testAudience+`",1]`)), ErrClaims},
		{"audience list nested", content(with(`"`+testAudience+`"`, `[["`+testAudience+`"]]`)), ErrClaims},
		{"audience an object", content(with(`"`+testAudience+`"`, `{"`+testAudience+`":1}`)), ErrClaims},
		{"unknown claims are ignored", add(`"act":{"a":[1,{"b":"}\"]"}]},"nonce":"\"\\","n":-1.5e3,"z":null`), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := verifier.Verify(tt.token, issued)
			if tt.want == nil {
				if err != nil || c.Subject != "johndoe" {
					t.Errorf("Verify = sub %q, %v, want johndoe", c.Subject, err)
				}
				return
			}
			if !errors.Is(err, tt.want) || !errors.Is(err, ErrInvalid) {
				t.Errorf("Verify = %v, want %v", err, tt.want)
			}
			if !cmp.Equal(c, Claims{}) {
				t.Errorf("claims beside an error: %+v", c)
			}
			want := tt.want
			for _, passedOver := range []error{ErrExpired, ErrNotYetValid, ErrIssuer, ErrAudience} {
				if errors.Is(want, passedOver) {
					want = nil
				}
			}
			if _, err := verifier.Authentic(tt.token); !errors.Is(err, want) {
				t.Errorf("Authentic = %v, want %v", err, want)
			}
		})
	}
}

// A retired key tells that a token was issued here, and admits nobody.
func TestARetiredKeyIsRecognisedOnly(t *testing.T) {
	for _, alg := range []Algorithm{EdDSA, ES256, RS256, HS256} {
		t.Run(string(alg), func(t *testing.T) {
			old, fresh := generate(t, alg), generate(t, alg)
			ring := ringOf(t, old)
			token := mustSign(t, ring, testClaims())
			forged := token[:len(token)-8] + "AAAAAAAA"
			ring.Add(fresh)
			if err := ring.Activate(fresh.ID()); err != nil {
				t.Fatal(err)
			}
			ring.Remove(old.ID())
			v := verifierOf(ring)
			if _, err := v.Authentic(token); !errors.Is(err, ErrUnknownKey) {
				t.Errorf("Authentic before Recognise = %v, want %v", err, ErrUnknownKey)
			}
			ring.Recognise(old)
			if c, err := v.Authentic(token); err != nil || c.SessionID != testClaims().SessionID || c.KeyID != old.ID() {
				t.Errorf("Authentic = %+v, %v", c, err)
			}
			if _, err := v.Authentic(forged); !errors.Is(err, ErrSignature) {
				t.Errorf("Authentic of a forged token = %v, want %v", err, ErrSignature)
			}
			if c, err := v.Verify(token, issued); !errors.Is(err, ErrUnknownKey) || !cmp.Equal(c, Claims{}) {
				t.Errorf("Verify = %+v, %v, want %v", c, err, ErrUnknownKey)
			}
			if _, err := v.Verify(mustSign(t, ring, testClaims()), issued); err != nil {
				t.Errorf("Verify under the new key = %v", err)
			}
			if err := ring.Activate(old.ID()); !errors.Is(err, ErrNoKey) {
				t.Errorf("Activate = %v, want %v", err, ErrNoKey)
			}
			if ring.Has(old.ID()) || cmp.Diff(ring.IDs(), []string{fresh.ID()}) != "" || cmp.Diff(ring.Retired(), []string{old.ID()}) != "" {
				t.Errorf("keys %v, retired %v", ring.IDs(), ring.Retired())
			}
			for _, j := range ring.Public().Keys {
				if j.KeyID == old.ID() {
					t.Error("the retired key is published")
				}
			}
			if k := ring.state.Load().retired[old.ID()]; !k.VerifiesOnly() {
				t.Error("the private half is kept")
			}
			ring.Forget(old.ID())
			if _, err := v.Authentic(token); !errors.Is(err, ErrUnknownKey) {
				t.Errorf("Authentic after Forget = %v, want %v", err, ErrUnknownKey)
			}
		})
	}
}

// What a token says is read even where its key is not known, and nothing else is.
func TestUnverified(t *testing.T) {
	ring := ringOf(t, fixedKey(t, 1))
	token := mustSign(t, ring, testClaims())
	parts := strings.Split(token, ".")
	c, err := Unverified(token)
	if diff := cmp.Diff(testClaims(), c); err != nil || diff != "" {
		t.Errorf("%v (-signed +read):\n%s", err, diff)
	}
	status, err := fixedKey(t, 1).headerOf("statuslist+jwt")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"no token": "lkr1_AAAA", "two segments": parts[0] + "." + parts[1], "another type": status + "." + parts[1] + "." + parts[2],
		"no claims": parts[0] + ".e30." + parts[2], "too long": parts[0] + "." + parts[1] + "." + strings.Repeat("A", MaxLength),
	} {
		if c, err := Unverified(text); !errors.Is(err, ErrInvalid) || !cmp.Equal(c, Claims{}) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"%c%c":0`, 'a'+i/26, 'a'+i%26)
	}
	return b.String()
}

func TestLongestToken(t *testing.T) {
	k := fixedKey(t, 1)
	ring := ringOf(t, k)
	c := testClaims()
	var longest string
	for n := 2000; ; n++ {
		c.Scope = strings.Repeat("s", n)
		token, err := NewSigner(ring).Sign(c)
		if err != nil {
			if !errors.Is(err, ErrClaims) {
				t.Fatalf("Sign = %v, want %v", err, ErrClaims)
			}
			break
		}
		longest = token
	}
	if len(longest) < MaxLength-1 {
		t.Errorf("the longest token has %d bytes, want about %d", len(longest), MaxLength)
	}
	if _, err := verifierOf(ring).Verify(longest, issued); err != nil {
		t.Errorf("Verify of the longest token: %v", err)
	}
}

func TestEmptyExpectationsRefuseAll(t *testing.T) {
	ring := ringOf(t, fixedKey(t, 1))
	token := mustSign(t, ring, testClaims())
	if _, err := NewVerifier(ring, VerifierOptions{Audience: testAudience}).Verify(token, issued); !errors.Is(err, ErrIssuer) {
		t.Errorf("Verify without an issuer = %v, want %v", err, ErrIssuer)
	}
	if _, err := NewVerifier(ring, VerifierOptions{Issuer: testIssuer}).Verify(token, issued); !errors.Is(err, ErrAudience) {
		t.Errorf("Verify without an audience = %v, want %v", err, ErrAudience)
	}
}

func TestErrorsShowNothingOfTheToken(t *testing.T) {
	k := fixedKey(t, 1)
	v := verifierOf(ringOf(t, k))
	const canary = "canary"
	for _, token := range []string{
		canary,
		b64(canary) + "." + b64(canary) + "." + b64(canary),
		signText(t, k, `{"alg":"canary","kid":"canary","typ":"at+jwt"}`, canary),
		signText(t, k, `{"alg":"EdDSA","kid":"canary","typ":"canary"}`, canary),
		signText(t, k, `{"alg":"EdDSA","kid":"`+k.id+`","typ":"at+jwt"}`, `{"iss":"canary","sub":["canary"],"canary":"canary"}`),
	} {
		_, err := v.Verify(token, issued)
		if err == nil || strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), b64(canary)) {
			t.Errorf("error = %v, want one without the token", err)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	ring := ringOf(t, fixedKey(t, 1))
	for name, edit := range map[string]func(*Claims){
		"no issuer":            func(c *Claims) { c.Issuer = "" },
		"no subject":           func(c *Claims) { c.Subject = "" },
		"no audience":          func(c *Claims) { c.Audience = nil },
		"an empty audience":    func(c *Claims) { c.Audience = []string{testAudience, ""} },
		"no id":                func(c *Claims) { c.ID = "" },
		"no session":           func(c *Claims) { c.SessionID = "" },
		"no client":            func(c *Claims) { c.ClientID = "" },
		"no issue time":        func(c *Claims) { c.IssuedAt = 0 },
		"no expiry":            func(c *Claims) { c.ExpiresAt = 0 },
		"negative issue time":  func(c *Claims) { c.IssuedAt = -1 },
		"expiry at issue":      func(c *Claims) { c.ExpiresAt = c.IssuedAt },
		"expiry in year 10000": func(c *Claims) { c.ExpiresAt = maxDate + 1 },
		"largest times":        func(c *Claims) { c.IssuedAt, c.ExpiresAt = 1<<63-1, 1<<63-1 },
		"negative not before":  func(c *Claims) { c.NotBefore = -1 },
		"negative auth time":   func(c *Claims) { c.AuthTime = -1 },
		"user epoch of 2^53":   func(c *Claims) { c.UserEpoch = 1 << 53 },
		"subject not UTF-8":    func(c *Claims) { c.Subject = "\xff" },
		"audience not UTF-8":   func(c *Claims) { c.Audience = []string{"\xff"} },
		"scope not UTF-8":      func(c *Claims) { c.Scope = "\xff" },
		"too long":             func(c *Claims) { c.Scope = strings.Repeat("s", MaxLength) },
	} {
		t.Run(name, func(t *testing.T) {
			c := testClaims()
			edit(&c)
			if token, err := NewSigner(ring).Sign(c); !errors.Is(err, ErrClaims) || token != "" {
				t.Errorf("Sign = %q, %v, want %v", token, err, ErrClaims)
			}
		})
	}
	if _, err := NewSigner(NewRing()).Sign(testClaims()); !errors.Is(err, ErrNoKey) || errors.Is(err, ErrInvalid) {
		t.Errorf("Sign without a key = %v, want %v", err, ErrNoKey)
	}
}

// TestWhatSignsVerifies draws claims of every kind: either Sign refuses them or
// Verify gives them back unchanged.
func TestWhatSignsVerifies(t *testing.T) {
	ring := ringOf(t, fixedKey(t, 1))
	v := verifierOf(ring)
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 20), func(b []byte) string { return string(b) }))
		date := rapid.OneOf(rapid.Int64Range(0, 1_700_000_000), rapid.Int64())
		want := Claims{
			Issuer: testIssuer, Subject: text.Draw(t, "sub"),
			Audience: append([]string{testAudience}, rapid.SliceOfN(text, 0, 3).Draw(t, "aud")...),
			ID:       text.Draw(t, "jti"), SessionID: text.Draw(t, "sid"), ClientID: text.Draw(t, "client_id"),
			Scope: text.Draw(t, "scope"), LogEpoch: text.Draw(t, "le"),
			UserEpoch: rapid.OneOf(rapid.Uint64Range(0, 10), rapid.Uint64()).Draw(t, "ue"),
			IssuedAt:  date.Draw(t, "iat"), ExpiresAt: rapid.OneOf(rapid.Int64Range(1_700_000_001, maxDate), rapid.Int64()).Draw(t, "exp"),
			AuthTime: date.Draw(t, "auth_time"), NotBefore: date.Draw(t, "nbf"),
		}
		token, err := NewSigner(ring).Sign(want)
		if err != nil {
			if !errors.Is(err, ErrClaims) {
				t.Fatalf("Sign: %v", err)
			}
			return
		}
		got, err := v.Authentic(token)
		if err != nil {
			t.Fatalf("Authentic: %v", err)
		}
		if diff := cmp.Diff(named(want, ring), got); diff != "" {
			t.Fatalf("claims differ (-signed +verified):\n%s", diff)
		}
	})
}

// TestAnyFlippedBitIsRefused covers the whole text, the unused bits of the last
// character included.
func TestAnyFlippedBitIsRefused(t *testing.T) {
	ring := ringOf(t, generate(t, HS256), fixedKey(t, 1))
	v := verifierOf(ring)
	for _, kid := range ring.IDs() {
		if err := ring.Activate(kid); err != nil {
			t.Fatal(err)
		}
		token := []byte(mustSign(t, ring, testClaims()))
		for i := range len(token) * 8 {
			token[i/8] ^= 1 << (i % 8)
			if _, err := v.Verify(string(token), issued); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s: bit %d of byte %d flipped: %v, want a refusal", ring.Active(), i%8, i/8, err)
			}
			token[i/8] ^= 1 << (i % 8)
		}
	}
}

// TestClaimsOutliveTheToken: claims do not alias memory that a later call reuses.
func TestClaimsOutliveTheToken(t *testing.T) {
	ring := ringOf(t, fixedKey(t, 1))
	v := verifierOf(ring)
	first, err := v.Verify(mustSign(t, ring, testClaims()), issued)
	if err != nil {
		t.Fatal(err)
	}
	other := testClaims()
	other.Subject = "janedoe"
	if _, err := v.Verify(mustSign(t, ring, other), issued); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(named(testClaims(), ring), first); diff != "" {
		t.Errorf("claims changed after a later call (-want +got):\n%s", diff)
	}
}

func FuzzVerify(f *testing.F) {
	ring := ringOf(f, fixedKey(f, 1))
	v := verifierOf(ring)
	good := mustSign(f, ring, testClaims())
	parts := strings.Split(good, ".")
	f.Add(good)
	f.Add(good + "=")
	f.Add(good + "\n")
	f.Add(b64(`{"alg":"none","typ":"at+jwt"}`) + "." + parts[1] + ".")
	f.Add(b64(`{"typ":"at+jwt","alg":"EdDSA","kid":"`+ring.IDs()[0]+`"}`) + "." + parts[1] + "." + parts[2])
	f.Add("")
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		c, err := v.Verify(token, issued)
		if (err == nil) != (token == good) {
			t.Fatalf("Verify(%q) = %+v, %v: only the one token that was signed is good", token, c, err)
		}
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Fatalf("error %v does not wrap ErrInvalid", err)
		}
	})
}

// FuzzParse reads arbitrary claims and headers, as if their signature were good,
// and compares with encoding/json.
func FuzzParse(f *testing.F) {
	c := testClaims()
	payload, err := c.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload)
	f.Add(bytes.Replace(payload, []byte(`"sub"`), []byte(`"s\u0075b"`), 1))
	f.Add(bytes.Replace(payload, []byte(`{`), []byte(`{"x":[{"y":"\ud83d\udd11"}, -1.5e3 ,null],`), 1))
	f.Add([]byte(`{"alg":"EdDSA","kid":"k","typ":"at+jwt"}`))
	f.Add([]byte(`{"a":1,"a":2}`))
	f.Add([]byte(`{"aud":["a","\ud800"]}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > MaxLength {
			return
		}
		want, ok := reference(text)
		got := make(map[string]string)
		err := members(text, func(name, value string) error {
			got[name] = value
			return nil
		})
		if ok != (err == nil) {
			t.Fatalf("members(%q) = %v, encoding/json says %v", text, err, ok)
		}
		if ok {
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("members of %q differ (-json +ours):\n%s", text, diff)
			}
		}
		if c, err := parseClaims(text); err == nil {
			checkAgainstJSON(t, c, want)
		} else if !errors.Is(err, ErrInvalid) {
			t.Fatalf("error %v does not wrap ErrInvalid", err)
		}
		if h, err := parseHeader(text); err == nil && (jsonText(want["alg"]) != string(h.algorithm) || jsonText(want["kid"]) != h.keyID) {
			t.Fatalf("header %q read as %+v", text, h)
		}
	})
}
