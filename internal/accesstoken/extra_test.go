package accesstoken

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExtraClaims(t *testing.T) {
	ring := ringOf(t, generate(t, EdDSA))
	want := testClaims()
	want.Extra = map[string]json.RawMessage{
		"tier": json.RawMessage(`"gold"`), "roles": json.RawMessage(`["a",{"b":[1,2.5e3]}]`), "n": json.RawMessage(`null`),
		"https://example.com/é": json.RawMessage(`true`), "": nil,
	}
	delete(want.Extra, "")
	got, err := verifierOf(ring).Verify(mustSign(t, ring, want), issued)
	if err != nil {
		t.Fatal(err)
	}
	want.KeyID = ring.Active().ID()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("claims differ (-signed +verified):\n%s", diff)
	}
}

func TestExtraClaimsThatAreRefused(t *testing.T) {
	signer := NewSigner(ringOf(t, generate(t, EdDSA)))
	refused := map[string]map[string]json.RawMessage{
		"no JSON":    {"a": json.RawMessage(`{`)},
		"two values": {"a": json.RawMessage(`1,"sub":"root"`)},
		"not UTF-8":  {"a": json.RawMessage("\"\xff\"")},
		"a name":     {"a\xff": json.RawMessage(`1`)},
		"no name":    {"": json.RawMessage(`1`)},
		"too long":   {"a": json.RawMessage(`"` + strings.Repeat("x", MaxLength) + `"`)},
		"many":       {},
	}
	for i := range MaxExtra + 1 {
		refused["many"][fmt.Sprint("c", i)] = json.RawMessage(`1`)
	}
	for _, name := range []string{
		"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "client_id", "scope", "auth_time", "acr", "amr",
		"sid", "ue", "le", "cnf", "act", "may_act", "status", "active", "token_type",
	} {
		refused["reserved: "+name] = map[string]json.RawMessage{name: json.RawMessage(`"x"`)}
	}
	for name, extra := range refused {
		c := testClaims()
		c.Extra = extra
		if _, err := signer.Sign(c); !errors.Is(err, ErrClaims) {
			t.Errorf("%s: %v, want ErrClaims", name, err)
		}
	}
	c := testClaims()
	c.Extra = map[string]json.RawMessage{}
	for i := range MaxExtra {
		c.Extra[fmt.Sprint("c", i)] = json.RawMessage(`1`)
	}
	if _, err := signer.Sign(c); err != nil {
		t.Errorf("as many as may be: %v", err)
	}
}

// Who may not be told apart by its audience is told apart by nothing else less.
func TestAnyAudienceChecksAllElse(t *testing.T) {
	ring := ringOf(t, generate(t, EdDSA))
	v := NewVerifier(ring, VerifierOptions{Issuer: testIssuer, AnyAudience: true})
	c := testClaims()
	c.Audience = []string{"https://other.example"}
	if _, err := v.Verify(mustSign(t, ring, c), issued); err != nil {
		t.Errorf("another audience: %v", err)
	}
	c.Issuer = "https://other.example"
	if _, err := v.Verify(mustSign(t, ring, c), issued); !errors.Is(err, ErrIssuer) {
		t.Errorf("another issuer: %v", err)
	}
}

// RFC 9449 section 6.1, and RFC 7800 section 3.1: what a token is bound to is read
// whole, or the token is refused.
func TestConfirmation(t *testing.T) {
	ring := ringOf(t, fixedKey(t, 1))
	const jkt = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
	want := testClaims()
	want.JKT = jkt
	got, err := verifierOf(ring).Verify(mustSign(t, ring, want), issued)
	if err != nil || got.JKT != jkt {
		t.Errorf("%q, %v", got.JKT, err)
	}
	for _, bad := range []string{"x", jkt + "A", jkt[:42] + "\n", jkt[:42] + "/", jkt[:42] + "J"} {
		c := testClaims()
		c.JKT = bad
		if _, err := NewSigner(ring).Sign(c); !errors.Is(err, ErrClaims) {
			t.Errorf("%q is signed: %v", bad, err)
		}
	}
	for _, bad := range []string{
		`{}`, `null`, `"x"`, `[]`, `{"jkt":""}`, `{"jkt":7}`, `{"jkt":"x"}`, `{"jwk":{}}`, `{"x5t#S256":"` + jkt + `"}`,
		`{"jkt":"` + jkt + `","x5t#S256":"` + jkt + `"}`, `{"jkt":"` + jkt + `","jkt":"` + jkt + `"}`,
	} {
		if jkt, ok := confirmationValue(bad); ok {
			t.Errorf("%s is read as %q", bad, jkt)
		}
	}
}
