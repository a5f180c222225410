package accesstoken

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"strconv"
	"strings"
	"testing"
)

func decode(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRFC8037 checks the Ed25519 vectors of RFC 8037 appendix A.
func TestRFC8037(t *testing.T) {
	seed := decode(t, "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
	k, err := newKey(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		t.Fatal(err)
	}
	const x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" // A.2
	if jwk, ok := k.PublicJWK(); !ok || jwk.X != x || jwk.Type != "OKP" || jwk.Curve != "Ed25519" {
		t.Errorf("PublicJWK = %+v, %v, want x %s", jwk, ok, x)
	}
	const thumbprint = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" // A.3
	if k.ID() != thumbprint {
		t.Errorf("ID = %s, want %s", k.ID(), thumbprint)
	}
	const jws = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc." +
		"hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg" // A.4
	got, err := k.sign(b64(`{"alg":"EdDSA"}`), []byte("Example of Ed25519 signing"))
	if err != nil || got != jws {
		t.Errorf("sign = %s, %v, want %s", got, err, jws)
	}
}

// TestRFC7638 checks the RSA thumbprint of RFC 7638 section 3.1.
func TestRFC7638(t *testing.T) {
	const modulus = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
	jwk, err := newJWK(&rsa.PublicKey{N: new(big.Int).SetBytes(decode(t, modulus)), E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	if jwk.Modulus != modulus || jwk.Exponent != "AQAB" {
		t.Errorf("newJWK = %+v, want the modulus of the RFC and AQAB", jwk)
	}
	if got, want := jwk.Thumbprint(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"; got != want {
		t.Errorf("Thumbprint = %s, want %s", got, want)
	}
}

// TestRFC7515 checks the HS256 and ES256 vectors of RFC 7515 appendices A.1 and A.3.
func TestRFC7515(t *testing.T) {
	const payload = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
	mac, err := newKey(decode(t, "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"))
	if err != nil {
		t.Fatal(err)
	}
	const hs256 = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9." + payload + ".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
	got, err := mac.sign(strings.Split(hs256, ".")[0], decode(t, payload))
	if err != nil || got != hs256 {
		t.Errorf("sign = %s, %v, want %s", got, err, hs256)
	}

	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), decode(t, "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"))
	if err != nil {
		t.Fatal(err)
	}
	ec, err := newKey(private)
	if err != nil {
		t.Fatal(err)
	}
	jwk, _ := ec.PublicJWK()
	if jwk.X != "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU" || jwk.Y != "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0" {
		t.Errorf("PublicJWK = %+v, want the coordinates of the RFC", jwk)
	}
	const signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
	if err := ES256.method().Verify("eyJhbGciOiJFUzI1NiJ9."+payload, decode(t, signature), ec.material().public); err != nil {
		t.Errorf("Verify of the RFC's ES256 signature: %v", err)
	}
}

func TestGenerate(t *testing.T) {
	for _, alg := range []Algorithm{EdDSA, ES256, RS256, HS256} {
		t.Run(string(alg), func(t *testing.T) {
			a, b := generate(t, alg), generate(t, alg)
			if a.Algorithm() != alg || len(a.ID()) != 43 || a.ID() == b.ID() {
				t.Errorf("Generate = %v and %v, want two keys for %s", a, b, alg)
			}
			jwk, public := a.PublicJWK()
			if public != (alg != HS256) {
				t.Errorf("PublicJWK public = %v", public)
			}
			if !public {
				if jwk != (JWK{}) {
					t.Errorf("PublicJWK of a symmetric key = %+v, want zero", jwk)
				}
				return
			}
			if jwk.KeyID != a.ID() || jwk.Algorithm != alg || jwk.Use != "sig" || jwk.Thumbprint() != a.ID() {
				t.Errorf("PublicJWK = %+v, want kid %s, alg %s, use sig", jwk, a.ID(), alg)
			}
			text, err := json.Marshal(jwk)
			if err != nil {
				t.Fatal(err)
			}
			for _, private := range []string{`"d"`, `"k"`, `"p"`, `"q"`, `""`} {
				if bytes.Contains(text, []byte(private)) {
					t.Errorf("JWK %s has %s", text, private)
				}
			}
		})
	}
}

func TestGenerateFromReader(t *testing.T) {
	for _, alg := range []Algorithm{EdDSA, HS256} {
		a, errA := Generate(alg, bytes.NewReader(make([]byte, 64)))
		b, errB := Generate(alg, bytes.NewReader(make([]byte, 64)))
		if errA != nil || errB != nil || a.ID() != b.ID() {
			t.Errorf("%s: Generate twice from the same bytes = %v, %v (%v, %v), want the same key", alg, a, b, errA, errB)
		}
		if k, err := Generate(alg, strings.NewReader("short")); !errors.Is(err, io.ErrUnexpectedEOF) || k != nil {
			t.Errorf("%s: Generate from a short source = %v, %v, want %v", alg, k, err, io.ErrUnexpectedEOF)
		}
	}
}

func TestUnusableKeys(t *testing.T) {
	for _, alg := range []Algorithm{"", "none", "HS384", "eddsa"} {
		if k, err := Generate(alg, nil); !errors.Is(err, ErrKey) || k != nil {
			t.Errorf("Generate(%q) = %v, %v, want %v", alg, k, err, ErrKey)
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 65537}}
	for name, private := range map[string]any{
		"P-384": p384, "RSA-1024": weak, "short HMAC": make([]byte, 31), "string": "secret", "nil": nil,
	} {
		if k, err := newKey(private); !errors.Is(err, ErrKey) || k != nil {
			t.Errorf("newKey(%s) = %v, %v, want %v", name, k, err, ErrKey)
		}
	}
}

// TestKeyIsRedacted prints keys in every way at hand. All their secret bytes are 'Z'
// (0x5a, decimal 90), so that no output may hold a run of them.
func TestKeyIsRedacted(t *testing.T) {
	secret := bytes.Repeat([]byte("Z"), 32)
	mac, err := newKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := NewSealer(secret)
	if err != nil {
		t.Fatal(err)
	}
	type hidden struct{ k Key }
	type shown struct{ K *Key }
	out := make(map[string]string)
	show := func(name string, v any) {
		for _, verb := range "vsdqxXobBcUeEfFgGtp" {
			for _, flag := range []string{"", "+", "#", " ", "0"} {
				format := "%" + flag + string(verb)
				out[name+" "+format] = fmt.Sprintf(format, v)
			}
		}
		var text, js bytes.Buffer
		slog.New(slog.NewTextHandler(&text, nil)).Info("m", "k", v)
		slog.New(slog.NewJSONHandler(&js, nil)).Info("m", "k", v)
		out[name+" slog text"], out[name+" slog json"] = text.String(), js.String()
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out[name+" json"] = string(b)
	}
	for _, k := range []*Key{fixedKey(t, 'Z'), mac} {
		name := string(k.alg)
		ring := ringOf(t, k)
		show(name+" pointer", k)
		show(name+" value", *k)
		show(name+" slice", []*Key{k})
		show(name+" unexported field", hidden{*k})
		show(name+" exported field", shown{k})
		show(name+" ring", ring)
		show(name+" signer", NewSigner(ring))
		show(name+" verifier", verifierOf(ring))
		if got, want := out[name+" value json"], strconv.Quote(k.String()); got != want {
			t.Errorf("JSON = %s, want %s", got, want)
		}
		b, err := xml.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		out[name+" xml"] = string(b)
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
			if got := fmt.Sprintf(verb, *k); got != "[redacted "+name+" key "+k.ID()+"]" {
				t.Errorf("%s = %s, want the redacted form", verb, got)
			}
		}
	}
	show("sealer", sealer)
	show("sealer value", *sealer)

	for how, got := range out {
		for _, leak := range []string{"ZZ", "5a5a", "5A5A", "90 90", "90,90", "90, 90", "0x5a, 0x5a", "Wlpa", "132 132", "1011010 1011010"} {
			if strings.Contains(got, leak) {
				t.Errorf("%s shows the key: %.300s", how, got)
			}
		}
	}
}
