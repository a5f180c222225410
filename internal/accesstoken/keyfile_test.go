package accesstoken

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"math/big"
	"strings"
	"testing"
)

func pemText(t *testing.T, kind string, der []byte, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// jwkMembers are those of a key as a JWK, private ones included.
func jwkMembers(t *testing.T, k *Key) map[string]any {
	t.Helper()
	text := base64.RawURLEncoding.EncodeToString
	m := map[string]any{}
	if j, ok := k.PublicJWK(); ok {
		raw, err := json.Marshal(j)
		if err == nil {
			err = json.Unmarshal(raw, &m)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	switch p := k.material().private.(type) {
	case []byte:
		m["kty"], m["k"], m["alg"] = "oct", text(p), "HS256"
	case *ecdsa.PrivateKey:
		d, err := p.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		m["d"] = text(d)
	case *rsa.PrivateKey:
		m["d"], m["p"], m["q"] = text(p.D.Bytes()), text(p.Primes[0].Bytes()), text(p.Primes[1].Bytes())
	default:
		der := pkcs8(t, k)
		m["d"] = text(der[len(der)-32:])
	}
	return m
}

func jwkText(t *testing.T, m map[string]any) string {
	t.Helper()
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A key is the same key in whatever form it is written.
func TestParseKeyFile(t *testing.T) {
	for _, alg := range []Algorithm{EdDSA, ES256, RS256, HS256} {
		k := generate(t, alg)
		forms := map[string]string{"JWK": jwkText(t, jwkMembers(t, k))}
		if alg != HS256 {
			der, err := x509.MarshalPKCS8PrivateKey(k.material().private)
			forms["PKCS#8"] = pemText(t, "PRIVATE KEY", der, err)
			der, err = x509.MarshalPKIXPublicKey(k.material().public)
			forms["public PEM"] = pemText(t, "PUBLIC KEY", der, err)
			j, _ := k.PublicJWK()
			text, err := json.Marshal(j)
			if err != nil {
				t.Fatal(err)
			}
			forms["public JWK"] = string(text)
		}
		switch p := k.material().private.(type) {
		case *ecdsa.PrivateKey:
			der, err := x509.MarshalECPrivateKey(p)
			forms["SEC 1 behind its parameters"] = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" + pemText(t, "EC PRIVATE KEY", der, err)
		case *rsa.PrivateKey:
			forms["PKCS#1"] = pemText(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(p), nil)
		}
		for form, text := range forms {
			t.Run(string(alg)+"/"+form, func(t *testing.T) {
				got, err := ParseKeyFile([]byte("\n" + text + "\n"))
				if err != nil {
					t.Fatal(err)
				}
				if got.ID() != k.ID() || got.Algorithm() != alg || got.VerifiesOnly() != strings.HasPrefix(form, "public") {
					t.Errorf("got %v, verifies only: %t", got, got.VerifiesOnly())
				}
				if !got.VerifiesOnly() {
					if _, err := verifierOf(ringOf(t, k)).Verify(mustSign(t, ringOf(t, got), testClaims()), issued); err != nil {
						t.Errorf("what it signs: %v", err)
					}
				}
			})
		}
	}
}

// RFC 8725 sections 3.2 and 3.5: keys that are weak, wrong, or not for this.
func TestKeyFilesThatAreRefused(t *testing.T) {
	ed, ec, rs := generate(t, EdDSA), generate(t, ES256), generate(t, RS256)
	edit := func(k *Key, name string, value any) string {
		m := maps.Clone(jwkMembers(t, k))
		if value == nil {
			delete(m, name)
		} else {
			m[name] = value
		}
		return jwkText(t, m)
	}
	b64of := base64.RawURLEncoding.EncodeToString
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	wrongCurve, wrongErr := x509.MarshalPKCS8PrivateKey(p384)
	small, smallErr := smallRSA()
	if smallErr != nil {
		t.Fatal(smallErr)
	}
	edDER := pkcs8(t, ed)
	for fault, text := range map[string]string{
		"empty":                             " \n",
		"text":                              "hunter2",
		"two keys":                          pemText(t, "PRIVATE KEY", edDER, nil) + pemText(t, "PRIVATE KEY", edDER, nil),
		"encrypted PKCS#8":                  pemText(t, "ENCRYPTED PRIVATE KEY", edDER, nil),
		"encrypted PKCS#1":                  "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
		"a certificate":                     pemText(t, "CERTIFICATE", edDER, nil),
		"broken PKCS#8":                     pemText(t, "PRIVATE KEY", edDER[1:], nil),
		"RFC 8725 3.5 RSA of 1024 bits":     pemText(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(small), nil),
		"RFC 8725 3.5 public, of 1024 bits": pemText(t, "PUBLIC KEY", must(x509.MarshalPKIXPublicKey(&small.PublicKey)), nil),
		"RFC 7518 3.4 P-384":                pemText(t, "PRIVATE KEY", wrongCurve, wrongErr),
		"RFC 8725 3.5 HMAC key of 31 bytes": `{"kty":"oct","k":"` + b64of(make([]byte, 31)) + `"}`,
		"CVE-2015-7940 not on the curve":    edit(ec, "y", b64of(make([]byte, 32))),
		"RSA exponent 1":                    edit(rs, "e", "AQ"),
		"RSA exponent even":                 edit(rs, "e", "AAAE"),
		"RSA without primes":                edit(rs, "p", nil),
		"RSA private half of another":       edit(rs, "d", b64of(big.NewInt(65537).Bytes())),
		"EC private half of another":        edit(ec, "d", jwkMembers(t, generate(t, ES256))["d"]),
		"EC private half 0":                 edit(ec, "d", b64of(make([]byte, 32))),
		"Ed25519 private half of another":   edit(ed, "d", jwkMembers(t, generate(t, EdDSA))["d"]),
		"Ed25519 private half cut":          edit(ed, "d", "AAAA"),
		"for encryption":                    edit(ed, "use", "enc"),
		"RFC 8725 3.1 of another algorithm": edit(rs, "alg", "PS256"),
		"of another type":                   edit(ed, "kty", "EC"),
		"X25519":                            edit(ed, "crv", "X25519"),
		"base64 with padding":               edit(ed, "x", jwkMembers(t, ed)["x"].(string)+"="),
		"a set":                             `{"keys":[` + jwkText(t, jwkMembers(t, ed)) + `]}`,
		"JSON that ends early":              `{"kty":"OKP"`,
	} {
		t.Run(fault, func(t *testing.T) {
			k, err := ParseKeyFile([]byte(text))
			if !errors.Is(err, ErrKey) {
				t.Fatalf("got %v, %v; want ErrKey", k, err)
			}
			for _, secret := range []string{"hunter2", jwkMembers(t, ed)["d"].(string), jwkMembers(t, ec)["d"].(string)} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error shows what was read: %v", err)
				}
			}
		})
	}
}

// smallRSA makes a key that crypto/rsa would not.
func smallRSA() (*rsa.PrivateKey, error) {
	for {
		p, err := rand.Prime(rand.Reader, 512)
		if err != nil {
			return nil, err
		}
		q, err := rand.Prime(rand.Reader, 512)
		if err != nil {
			return nil, err
		}
		one, e := big.NewInt(1), big.NewInt(65537)
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		d := new(big.Int).ModInverse(e, phi)
		n := new(big.Int).Mul(p, q)
		if d != nil && n.BitLen() == 1024 {
			return &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n, E: 65537}, D: d, Primes: []*big.Int{p, q}}, nil
		}
	}
}

func must(der []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return der
}

func TestCurrentTellsTheFirstSecretFromTheOthers(t *testing.T) {
	k := generate(t, EdDSA)
	sealed, err := sealerOf(t, secretOf(1)).Seal(k)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		sealer *Sealer
		kid    string
		sealed []byte
		want   bool
	}{
		{"first", sealerOf(t, secretOf(1), secretOf(2)), k.ID(), sealed, true},
		{"second", sealerOf(t, secretOf(2), secretOf(1)), k.ID(), sealed, false},
		{"unknown", sealerOf(t, secretOf(3)), k.ID(), sealed, false},
		{"another kid", sealerOf(t, secretOf(1)), "other", sealed, false},
		{"empty", sealerOf(t, secretOf(1)), k.ID(), nil, false},
	} {
		if got := tt.sealer.Current(tt.kid, tt.sealed); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
}

func TestARingAtRestVerifiesAndDoesNotSign(t *testing.T) {
	ring := ringOf(t, generate(t, EdDSA))
	token := mustSign(t, ring, testClaims())
	kid := ring.Active().ID()
	ring.Rest()
	if _, err := NewSigner(ring).Room(MaxLength); !errors.Is(err, ErrNoKey) {
		t.Errorf("Ready = %v, want ErrNoKey", err)
	}
	if _, err := verifierOf(ring).Verify(token, issued); err != nil {
		t.Errorf("Verify = %v", err)
	}
	if err := ring.Activate(kid); err != nil || ring.Active() == nil {
		t.Errorf("it does not sign again: %v", err)
	}
}
