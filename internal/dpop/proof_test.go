package dpop_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/internal/dpop"
	"github.com/latchkey-auth/latchkey/internal/dpop/dpoptest"
)

const address = "https://auth.example.com/auth/token"

// check parses a proof and compares it with a POST to address, without a token.
func check(text string) error {
	p, err := dpop.Parse(text)
	if err != nil {
		return err
	}
	return p.Check(dpop.Request{Method: http.MethodPost, URL: address, Now: time.Now()})
}

func TestEveryAlgorithm(t *testing.T) {
	for _, alg := range dpop.Algorithms() {
		k := dpoptest.NewKey(t, alg)
		p, err := dpop.Parse(k.Proof("POST", address, ""))
		if err != nil {
			t.Errorf("%s: %v", alg, err)
			continue
		}
		if p.JKT() != k.JKT {
			t.Errorf("%s: thumbprint %s, want %s", alg, p.JKT(), k.JKT)
		}
	}
}

// RFC 9449 section 4.3, item by item, and the attacks of RFC 8725 on it.
func TestRFC9449Section43(t *testing.T) {
	t.Parallel()
	k, other, rsaKey := dpoptest.NewKey(t, "ES256"), dpoptest.NewKey(t, "ES256"), dpoptest.NewKey(t, "RS256")
	head := func(name string, value any) dpoptest.Change {
		return func(header, _ map[string]any) { header[name] = value }
	}
	without := func(name string) dpoptest.Change {
		return func(header, claims map[string]any) { delete(header, name); delete(claims, name) }
	}
	jwk := func(name string, value any) dpoptest.Change {
		return func(header, _ map[string]any) { header["jwk"].(map[string]any)[name] = value } //nolint:forcetypeassert // a test's own
	}
	proof := func(changes ...dpoptest.Change) string { return k.Proof("POST", address, "", changes...) }
	parts := strings.Split(proof(), ".")
	small, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // too small on purpose
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	symmetric := map[string]any{"kty": "oct", "k": base64.RawURLEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))}
	publicJWK, err := json.Marshal(k.JWK)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		text string
		want error
	}{
		{"good", proof(), nil},
		{"other claims and headers are ignored", proof(head("kid", "x"), dpoptest.With("aud", "x"), dpoptest.With("exp", 1)), nil},
		{"item 2: empty", "", dpop.ErrMalformed},
		{"item 2: two segments", parts[0] + "." + parts[1], dpop.ErrMalformed},
		{"item 2: four segments", proof() + ".x", dpop.ErrMalformed},
		{"item 2: JSON serialization", `{"protected":"` + parts[0] + `","payload":"` + parts[1] + `","signature":"` + parts[2] + `"}`, dpop.ErrMalformed},
		{"item 2: two in one header", proof() + "," + proof(), dpop.ErrMalformed},
		{"item 2: huge", strings.Repeat("a", dpop.MaxLength+1), dpop.ErrMalformed},
		{"item 2: a huge claim", proof(dpoptest.With("pad", strings.Repeat("x", dpop.MaxLength))), dpop.ErrMalformed},
		{"item 2: deep nesting", k.Sign(`{"typ":"dpop+jwt","alg":"ES256","jwk":`+string(publicJWK)+`,"x":`+strings.Repeat("[", 1500)+strings.Repeat("]", 1500)+`}`, `{}`), dpop.ErrMalformed},
		{"item 3: no jti", proof(without("jti")), dpop.ErrMalformed},
		{"item 3: no htm", proof(without("htm")), dpop.ErrMalformed},
		{"item 3: no htu", proof(without("htu")), dpop.ErrMalformed},
		{"item 3: no iat", proof(without("iat")), dpop.ErrMalformed},
		{"item 3: jti of another type", proof(dpoptest.With("jti", 7)), dpop.ErrMalformed},
		{"item 3: iat of another type", proof(dpoptest.With("iat", "now")), dpop.ErrMalformed},
		{"item 3: iat beyond all numbers", proof(dpoptest.With("iat", 1e300)), dpop.ErrMalformed},
		{"item 3: a claim twice", k.Sign(`{"typ":"dpop+jwt","alg":"ES256","jwk":`+string(publicJWK)+`}`, `{"jti":"a","jti":"b","htm":"POST","htu":"`+address+`","iat":1}`), dpop.ErrMalformed},
		{"item 3: no object", k.Sign(`{"typ":"dpop+jwt","alg":"ES256","jwk":`+string(publicJWK)+`}`, `[]`), dpop.ErrMalformed},
		{"item 4: no typ", proof(without("typ")), dpop.ErrMalformed},
		{"item 4: typ of an access token", proof(head("typ", "at+jwt")), dpop.ErrMalformed},
		{"item 5: alg none", strings.Join([]string{base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"dpop+jwt","alg":"none","jwk":` + string(publicJWK) + `}`)), parts[1], ""}, "."), dpop.ErrMalformed},
		{"item 5: symmetric", proof(head("alg", "HS256"), head("jwk", symmetric)), dpop.ErrMalformed},
		{"item 5: HS256 with the public key (RFC 8725 section 2.1)", proof(head("alg", "HS256")), dpop.ErrMalformed},
		{"item 5: RS256 with a key of a curve", proof(head("alg", "RS256")), dpop.ErrSignature},
		{"item 5: ES256 with an RSA key", rsaKey.Proof("POST", address, "", head("alg", "ES256")), dpop.ErrSignature},
		{"item 5: RSASSA-PSS for PKCS1", rsaKey.Proof("POST", address, "", head("alg", "PS256")), dpop.ErrSignature},
		{"item 5: a symmetric key with ES256", proof(head("jwk", symmetric)), dpop.ErrMalformed},
		{"item 5: RSA of 1024 bits", dpoptest.FromSigner(t, "RS256", small).Proof("POST", address, ""), dpop.ErrKey},
		{"item 5: RSA of 9000 bits", proof(head("alg", "RS256"), head("jwk", map[string]any{"kty": "RSA", "e": "AQAB", "n": strings.Repeat("_", 1500)})), dpop.ErrMalformed},
		{"item 5: a key for encryption", proof(jwk("use", "enc")), dpop.ErrKey},
		{"item 6: no jwk", proof(without("jwk")), dpop.ErrKey},
		{"item 6: another key (CVE-2018-0114)", proof(head("jwk", other.JWK)), dpop.ErrSignature},
		{"item 6: not on the curve (RFC 8725 section 2.5)", proof(jwk("y", k.JWK["x"])), dpop.ErrMalformed},
		{"item 6: a byte of the signature", strings.Join([]string{parts[0], parts[1], "AAAA" + parts[2][4:]}, "."), dpop.ErrSignature},
		{"item 6: no signature", parts[0] + "." + parts[1] + ".", dpop.ErrSignature},
		{"item 6: a signature of zeros (CVE-2022-21449)", parts[0] + "." + parts[1] + "." + strings.Repeat("A", 86), dpop.ErrSignature},
		{"item 7: a private key", proof(jwk("d", k.JWK["x"])), dpop.ErrMalformed},
		{"item 7: a private RSA prime", rsaKey.Proof("POST", address, "", jwk("p", "AQAB")), dpop.ErrMalformed},
		{"RFC 7515 section 4.1.11: crit", proof(head("crit", []string{"x"}), head("x", 1)), dpop.ErrMalformed},
		{"RFC 7797: b64", proof(head("crit", []string{"b64"}), head("b64", true)), dpop.ErrMalformed},
		{"RFC 8725 section 3.10: jku is not followed", proof(head("jku", "https://evil.example"), without("jwk")), dpop.ErrKey},
		{"item 8: another method", proof(dpoptest.With("htm", "GET")), dpop.ErrRequest},
		{"item 8: the method in another case", proof(dpoptest.With("htm", "post")), dpop.ErrRequest},
		{"item 9: another host", proof(dpoptest.With("htu", "https://evil.example/auth/token")), dpop.ErrRequest},
		{"item 9: another path", proof(dpoptest.With("htu", address+"/")), dpop.ErrRequest},
		{"item 9: another scheme", proof(dpoptest.With("htu", strings.Replace(address, "https", "http", 1))), dpop.ErrRequest},
		{"item 9: another port", proof(dpoptest.With("htu", "https://auth.example.com:444/auth/token")), dpop.ErrRequest},
		{"item 9: no URL", proof(dpoptest.With("htu", "/auth/token")), dpop.ErrMalformed},
		{"item 9: a URL with a password", proof(dpoptest.With("htu", "https://a:b@auth.example.com/auth/token")), dpop.ErrMalformed},
		{"item 9: query and fragment do not count", proof(dpoptest.With("htu", address+"?a=b#c")), nil},
		{"item 9: normalised", proof(dpoptest.With("htu", "HTTPS://AUTH.example.com:443/%61uth/./x/../token")), nil},
		{"item 11: made too long ago", proof(dpoptest.With("iat", now.Add(-dpop.Window-2*time.Second).Unix())), dpop.ErrTime},
		{"item 11: made in the future", proof(dpoptest.With("iat", now.Add(dpop.Window+10*time.Second).Unix())), dpop.ErrTime},
		{"item 11: a clock that is a little off", proof(dpoptest.With("iat", now.Add(dpop.Window/2).Unix())), nil},
	} {
		if err := check(c.text); !errors.Is(err, c.want) || (c.want != nil && !errors.Is(err, dpop.ErrProof)) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// RFC 9449 section 4.3 item 12: with an access token, its hash.
func TestAccessTokenHash(t *testing.T) {
	k := dpoptest.NewKey(t, "EdDSA")
	for _, c := range []struct {
		name  string
		proof string
		want  error
	}{
		{"its own", k.Proof("POST", address, "token"), nil},
		{"another's", k.Proof("POST", address, "another"), dpop.ErrToken},
		{"none", k.Proof("POST", address, ""), dpop.ErrToken},
	} {
		p, err := dpop.Parse(c.proof)
		if err == nil {
			err = p.Check(dpop.Request{Method: "POST", URL: address, Now: time.Now(), Token: "token"})
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// RFC 9449 section 4.3 item 1.
func TestOneHeader(t *testing.T) {
	if _, err := dpop.Find(http.Header{dpop.Header: {"a", "b"}}); !errors.Is(err, dpop.ErrTwice) {
		t.Errorf("two: %v", err)
	}
	if _, err := dpop.Find(http.Header{}); !errors.Is(err, dpop.ErrMissing) {
		t.Errorf("none: %v", err)
	}
	if text, err := dpop.Find(http.Header{dpop.Header: {""}}); text != "" || err != nil { // which is no proof
		t.Errorf("an empty one: %q, %v", text, err)
	}
	if name := http.CanonicalHeaderKey("DPoP"); name != dpop.Header {
		t.Errorf("the header is %s", name)
	}
	if name := http.CanonicalHeaderKey("DPoP-Nonce"); name != dpop.NonceHeader {
		t.Errorf("the header is %s", name)
	}
}

// A proof that can still be accepted is still remembered; the key's jti is what counts.
func TestUse(t *testing.T) {
	k, other := dpoptest.NewKey(t, "ES256"), dpoptest.NewKey(t, "ES256")
	parse := func(text string) *dpop.Proof {
		t.Helper()
		p, err := dpop.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	iat := time.Now().Add(dpop.Window / 2).Truncate(time.Second)
	first, until := parse(k.Proof("POST", address, "", dpoptest.With("jti", "a"), dpoptest.With("iat", iat.Unix()))).Use()
	if !until.Equal(iat.Add(dpop.Window)) {
		t.Errorf("remembered until %v", until)
	}
	for name, c := range map[string]struct {
		proof string
		same  bool
	}{
		"another request of one jti": {k.Proof("GET", address, "", dpoptest.With("jti", "a")), true},
		"another jti":                {k.Proof("POST", address, "", dpoptest.With("jti", "b")), false},
		"another key":                {other.Proof("POST", address, "", dpoptest.With("jti", "a")), false},
	} {
		if id, _ := parse(c.proof).Use(); (id == first) != c.same {
			t.Errorf("%s: the same: %v", name, id == first)
		}
	}
}

// RFC 9449 section 8: a nonce of any replica that shares the key, of the last minutes.
func TestNonces(t *testing.T) {
	key, old := []byte("0123456789abcdef0123456789abcdef"), []byte("another key, another key, another")
	n := dpop.NewNonces(key, old)
	now := time.Unix(1_800_000_000, 0)
	given := n.Current(now)
	for _, c := range []struct {
		name   string
		nonce  string
		later  time.Duration
		nonces *dpop.Nonces
		want   error
	}{
		{"now", given, 0, n, nil},
		{"on another replica", given, time.Second, dpop.NewNonces(key), nil},
		{"two minutes later", given, 2 * time.Minute, n, nil},
		{"four minutes later", given, 4 * time.Minute, n, dpop.ErrNonce},
		{"of the key before", dpop.NewNonces(old).Current(now), 0, n, nil},
		{"of a stranger's key", dpop.NewNonces([]byte("x")).Current(now), 0, n, dpop.ErrNonce},
		{"none", "", 0, n, dpop.ErrNonce},
		{"none is wanted", "anything", 0, nil, nil},
	} {
		at := now.Add(c.later)
		k := dpoptest.NewKey(t, "EdDSA")
		p, err := dpop.Parse(k.Proof("POST", address, "", dpoptest.With("iat", at.Unix()), dpoptest.With("nonce", c.nonce)))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Check(dpop.Request{Method: "POST", URL: address, Now: at, Nonces: c.nonces}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}
