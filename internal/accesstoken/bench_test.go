package accesstoken

import "testing"

func BenchmarkVerify(b *testing.B) {
	for _, alg := range []Algorithm{EdDSA, ES256, RS256, HS256} {
		b.Run(string(alg), func(b *testing.B) {
			ring := ringOf(b, generate(b, alg))
			token, v := mustSign(b, ring, testClaims()), verifierOf(ring)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(token, issued); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	// What a flood of junk costs: no signature is computed for it.
	ring := ringOf(b, fixedKey(b, 1))
	v := verifierOf(ring)
	for name, token := range map[string]string{
		"refused/unknown key": mustSign(b, ringOf(b, fixedKey(b, 2)), testClaims()),
		"refused/wide header": b64(`{"alg":"none"`+manyMembers(200)+`}`) + "..",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(token, issued); err == nil {
					b.Fatal("accepted")
				}
			}
		})
	}
}

func BenchmarkSign(b *testing.B) {
	for _, alg := range []Algorithm{EdDSA, ES256, RS256, HS256} {
		b.Run(string(alg), func(b *testing.B) {
			signer := NewSigner(ringOf(b, generate(b, alg)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := signer.Sign(testClaims()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
