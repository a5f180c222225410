package accesstoken

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// draft-ietf-oauth-status-list-21 section 6.2.
func TestStatusClaim(t *testing.T) {
	ring := ringOf(t, fixedKey(t, 1))
	want := testClaims()
	want.StatusURI, want.StatusIndex = "https://auth.example.com/status-lists/3.c2Vjb25k.0", 412
	token := mustSign(t, ring, want)
	got, err := verifierOf(ring).Verify(token, issued)
	if diff := cmp.Diff(named(want, ring), got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	want.StatusIndex = 0 // the first of a list
	if got, err = verifierOf(ring).Verify(mustSign(t, ring, want), issued); err != nil || got.StatusURI != want.StatusURI || got.StatusIndex != 0 {
		t.Errorf("index 0: %+v, %v", got, err)
	}
	const text = `"le":"c2Vjb25k","status":{"status_list":{"idx":0,"uri":"https://auth.example.com/status-lists/3.c2Vjb25k.0"}}}`
	if payload, err := want.encode(); err != nil || !strings.HasSuffix(string(payload), text) {
		t.Errorf("%s, %v", payload, err)
	}

	for name, edit := range map[string]func(*Claims){
		"an index of no list": func(c *Claims) { c.StatusIndex = 1 },
		"an index too large":  func(c *Claims) { c.StatusURI, c.StatusIndex = "u", maxCount+1 },
		"no text":             func(c *Claims) { c.StatusURI = "\xff" },
	} {
		c := testClaims()
		edit(&c)
		if _, err := NewSigner(ring).Sign(c); !errors.Is(err, ErrClaims) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStatusClaimsThatAreRead(t *testing.T) {
	for value, want := range map[string]bool{
		`{"status_list":{"idx":7,"uri":"u"}}`:                   true,
		`{"status_list":{"idx":7,"uri":"u","x":[1]},"other":1}`: true,
		`{"other":{"idx":7}}`:                                   true, // of another mechanism: none of ours
		`{}`:                                                    true,
		`{"status_list":{"idx":7}}`:                             false,
		`{"status_list":{"uri":"u"}}`:                           false,
		`{"status_list":{"idx":7,"uri":""}}`:                    false,
		`{"status_list":{"idx":-1,"uri":"u"}}`:                  false,
		`{"status_list":{"idx":1.5,"uri":"u"}}`:                 false,
		`{"status_list":{"idx":"7","uri":"u"}}`:                 false,
		`{"status_list":{"idx":9007199254740992,"uri":"u"}}`:    false,
		`{"status_list":{"idx":7,"uri":7}}`:                     false,
		`{"status_list":{"idx":7,"idx":8,"uri":"u"}}`:           false,
		`{"status_list":[]}`:                                    false,
		`[]`:                                                    false,
		`"u"`:                                                   false,
		`null`:                                                  false,
	} {
		uri, index, ok := statusValue(value)
		if ok != want {
			t.Errorf("%s was read: %v", value, ok)
		}
		if ok && strings.Contains(value, "status_list") && (uri != "u" || index != 7) {
			t.Errorf("%s was read as %q, %d", value, uri, index)
		}
	}
}

// draft-ietf-oauth-status-list-21 section 5.1. What each list says is for package
// handlers to test; here, that only keys which others can check with sign one.
func TestSignStatusList(t *testing.T) {
	list := StatusList{URI: "u", IssuedAt: 1, ExpiresAt: 2, TTL: 1, List: strings.Repeat("A", 2*MaxLength)} // longer than any access token
	for _, alg := range []Algorithm{EdDSA, ES256, RS256} {
		ring := ringOf(t, generate(t, alg))
		token, err := NewSigner(ring).SignStatusList(list)
		if err != nil {
			t.Errorf("%s: %v", alg, err)
		}
		if _, err := verifierOf(ring).Verify(token, issued); err == nil {
			t.Errorf("%s: it was taken for an access token", alg)
		}
		list := list
		list.List = ""
		if token, err = NewSigner(ring).SignStatusList(list); err != nil {
			t.Fatal(err)
		}
		if _, err := verifierOf(ring).Verify(token, issued); !errors.Is(err, ErrTokenType) {
			t.Errorf("%s: as an access token: %v", alg, err)
		}
	}
	if _, err := NewSigner(ringOf(t, generate(t, HS256))).SignStatusList(list); !errors.Is(err, ErrKey) {
		t.Errorf("HS256: %v", err)
	}
	if _, err := NewSigner(NewRing()).SignStatusList(list); !errors.Is(err, ErrNoKey) {
		t.Errorf("without a key: %v", err)
	}
}
