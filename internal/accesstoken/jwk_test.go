package accesstoken

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPublicKeysOnlyVerify: what a set holds verifies what the private half signs,
// and can be used for nothing else.
func TestPublicKeysOnlyVerify(t *testing.T) {
	for _, alg := range []Algorithm{EdDSA, ES256, RS256} {
		private := ringOf(t, generate(t, alg))
		text, err := json.Marshal(private.Public())
		if err != nil {
			t.Fatal(err)
		}
		keys, err := ParseSet(text)
		if err != nil || len(keys) != 1 {
			t.Fatalf("%s: %d keys, %v", alg, len(keys), err)
		}
		k := keys[0]
		if !k.VerifiesOnly() || private.Active().VerifiesOnly() || k.ID() != private.Active().ID() || k.Algorithm() != alg {
			t.Errorf("%s: %v", alg, k)
		}
		public := NewRing()
		public.Add(k)
		token := mustSign(t, private, testClaims())
		if _, err := verifierOf(public).Verify(token, issued); err != nil {
			t.Errorf("%s: Verify under the public key: %v", alg, err)
		}
		if err := public.Activate(k.ID()); !errors.Is(err, ErrNoKey) {
			t.Errorf("%s: Activate: %v", alg, err)
		}
		if _, err := k.sign(k.header, []byte("{}")); !errors.Is(err, ErrKey) {
			t.Errorf("%s: sign: %v", alg, err)
		}
		sealer, err := NewSealer([]byte(strings.Repeat("s", 32)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sealer.Seal(k); !errors.Is(err, ErrKey) {
			t.Errorf("%s: Seal: %v", alg, err)
		}
		if diff := cmp.Diff(private.Public(), public.Public()); diff != "" {
			t.Errorf("%s: the set read and written again (-want +got):\n%s", alg, diff)
		}
	}
}

func TestHS256IsNeverPublic(t *testing.T) {
	r := ringOf(t, generate(t, HS256), fixedKey(t, 1))
	set, err := NewSigner(r).Public()
	if err != nil || len(set.Keys) != 1 || set.Keys[0].Algorithm != EdDSA {
		t.Errorf("the set: %+v, %v", set, err)
	}
	if _, err := NewSigner(NewRing()).Public(); !errors.Is(err, ErrNoKey) {
		t.Errorf("without keys: %v", err)
	}
}

func TestParseSetLeavesOutWhatItCannotUse(t *testing.T) {
	good, ok := fixedKey(t, 1).PublicJWK()
	if !ok {
		t.Fatal("no public half")
	}
	text := func(change func(*JWK)) string {
		j := good
		change(&j)
		b, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	rsa, _ := generate(t, RS256).PublicJWK()
	ec, _ := generate(t, ES256).PublicJWK()
	for name, key := range map[string]string{
		"a secret":           `{"kty":"oct","k":"c2VjcmV0","kid":"x"}`,
		"another key type":   text(func(j *JWK) { j.Type = "AKP" }),
		"another curve":      text(func(j *JWK) { j.Curve = "Ed448" }),
		"another algorithm":  text(func(j *JWK) { j.Algorithm = ES256 }),
		"for encryption":     text(func(j *JWK) { j.Use = "enc" }),
		"another's kid":      text(func(j *JWK) { j.KeyID = ec.KeyID }),
		"no kid":             text(func(j *JWK) { j.KeyID = "" }),
		"a short key":        text(func(j *JWK) { j.X = j.X[:40] }),
		"not base64url":      text(func(j *JWK) { j.X = strings.Repeat("+", 43) }),
		"a number":           `7`,
		"a point off curve":  text(func(j *JWK) { *j = ec; j.X = j.Y }),
		"an even exponent":   text(func(j *JWK) { *j = rsa; j.Exponent = "Ag" }),
		"a short modulus":    text(func(j *JWK) { *j = rsa; j.Modulus = j.Modulus[:100] }),
		"an immense modulus": text(func(j *JWK) { *j = rsa; j.Modulus = strings.Repeat("A", 4000) }),
	} {
		if keys, err := ParseSet([]byte(`{"keys":[` + key + `]}`)); !errors.Is(err, ErrKey) {
			t.Errorf("%s alone: %v, %v", name, keys, err)
		}
		keys, err := ParseSet([]byte(`{"keys":[` + key + `,` + text(func(*JWK) {}) + `]}`))
		if err != nil || len(keys) != 1 || keys[0].ID() != good.KeyID {
			t.Errorf("%s beside a good key: %v, %v", name, keys, err)
		}
	}
	for _, text := range []string{``, `[]`, `{}`, `{"keys":[]}`, `{"keys":{}}`, `<html>`} {
		if _, err := ParseSet([]byte(text)); !errors.Is(err, ErrKey) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
