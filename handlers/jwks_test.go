package handlers_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

func TestTheKeySetIsPublicAndCacheable(t *testing.T) {
	t.Parallel()
	f := usual(t)
	const path = "/.well-known/jwks.json"
	a, err := f.try(0, http.MethodGet, path)
	f.check(err)
	a.is(http.StatusOK)
	a.hasHeader("Content-Type", "application/jwk-set+json")
	a.hasHeader("Cache-Control", "public, max-age=300")
	// Another implementation reads it, and verifies a token with it.
	var set jose.JSONWebKeySet
	f.check(json.Unmarshal([]byte(a.text), &set))
	if len(set.Keys) != 1 || set.Keys[0].KeyID != f.kid || !set.Keys[0].IsPublic() || set.Keys[0].Use != "sig" {
		t.Errorf("the set: %s", a.text)
	}
	token, err := jose.ParseSignedCompact(f.login(1).access, []jose.SignatureAlgorithm{jose.EdDSA})
	f.check(err)
	if _, err := token.Verify(set); err != nil {
		t.Errorf("a token does not verify under the set: %v", err)
	}
	for _, private := range []string{`"d"`, `"p"`, `"q"`, `"k"`} {
		if strings.Contains(a.text, private) {
			t.Errorf("the set has a member %s", private)
		}
	}
	etag := a.header.Get("ETag")
	again, err := f.try(2, http.MethodGet, path, header("If-None-Match", etag))
	f.check(err)
	if again.status != http.StatusNotModified || again.text != "" || etag == "" {
		t.Errorf("with the ETag %q of another replica: %d %q", etag, again.status, again.text)
	}
	head, err := f.try(1, http.MethodHead, path)
	f.check(err)
	head.is(http.StatusOK)
	f.post(0, path).fails(http.StatusMethodNotAllowed, "method_not_allowed", "")
}

// "There are no keys" would be believed for five minutes.
func TestAReplicaWithoutKeysDoesNotSaySo(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, noKey: true})
	f.get(0, "/.well-known/jwks.json").fails(http.StatusServiceUnavailable, "temporarily_unavailable", "")
}
