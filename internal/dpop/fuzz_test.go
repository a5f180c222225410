package dpop_test

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/internal/dpop"
	"github.com/latchkey-auth/latchkey/internal/dpop/dpoptest"
)

// Whatever a proof holds, it is refused as such or has a thumbprint, and the URL in it
// is compared without a panic.
func FuzzParse(f *testing.F) {
	k := dpoptest.NewKey(f, "ES256")
	f.Add(k.Proof("POST", address, ""))
	f.Add(k.Proof("GET", "HTTPS://[::1]:443/%2e%2E/%7e?q#f", "token", dpoptest.With("nonce", "n")))
	f.Add(dpoptest.NewKey(f, "EdDSA").Proof("POST", address, ""))
	f.Add(dpoptest.NewKey(f, "PS256").Proof("POST", address, ""))
	f.Add(k.Sign(`{"typ":"dpop+jwt","alg":"ES256","jwk":{"kty":"EC","crv":"P-256","x":"","y":""}}`, `{}`))
	f.Add("..")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := dpop.Parse(text)
		if (p == nil) == (err == nil) || (err != nil && !errors.Is(err, dpop.ErrProof)) {
			t.Fatalf("%v, %v", p, err)
		}
		if err != nil {
			return
		}
		if len(p.JKT()) != 43 {
			t.Fatalf("thumbprint %q", p.JKT())
		}
		_ = p.Check(dpop.Request{Method: http.MethodPost, URL: address, Now: time.Now(), Token: "token"})
	})
}

// A proof that is signed well may say whatever it likes.
func FuzzClaims(f *testing.F) {
	k := dpoptest.NewKey(f, "EdDSA")
	header := `{"typ":"dpop+jwt","alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed25519","x":"` + k.JWK["x"].(string) + `"}}` //nolint:forcetypeassert // a test's own
	f.Add(`{"jti":"a","htm":"POST","htu":"https://auth.example.com/auth/token","iat":1800000000}`)
	f.Add(`{"jti":"a","htm":"POST","htu":"https://a/%2e%2e/%zz/../.","iat":1e3,"ath":"x","nonce":"y"}`)
	f.Add(`{"jti":"a","jti":"b"}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, claims string) {
		p, err := dpop.Parse(k.Sign(header, claims))
		if err != nil {
			if !errors.Is(err, dpop.ErrProof) {
				t.Fatal(err)
			}
			return
		}
		if err := p.Check(dpop.Request{Method: http.MethodPost, URL: address, Now: time.Unix(1_800_000_000, 0), Token: "token"}); err != nil && !errors.Is(err, dpop.ErrProof) {
			t.Fatal(err)
		}
	})
}
