package edge

import (
	"errors"
	"testing"
)

// What shares the end of its signature with a token that is remembered, and is not that
// token, is checked like any other.
func TestARememberedTokenStandsForNoOther(t *testing.T) {
	t.Parallel()
	n := newNode(t, startRedis(t).URL(), newRing(t), nodeOptions{}).ready()
	s := n.login("alice")
	remembered := func() {
		t.Helper()
		if err := n.verify(s); err != nil {
			t.Fatal(err)
		}
		if n.verifier.cache.get(s.token) == nil {
			t.Fatal("it is not remembered")
		}
	}
	remembered()
	other := map[bool]byte{true: 'B', false: 'A'}
	forged := []string{"A" + s.token, s.token[1:], s.token[len(s.token)-tail:], "." + s.token[len(s.token)-tail:]}
	for i := range s.token {
		forged = append(forged, s.token[:i]+string(other[s.token[i] == 'A'])+s.token[i+1:])
	}
	for _, token := range forged {
		if _, err := n.verifier.Verify(t.Context(), token); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", token, err)
		}
	}
	remembered()
}

func TestWhatIsDerivedFromATokenIsKeptWithIt(t *testing.T) {
	t.Parallel()
	n := newNode(t, startRedis(t).URL(), newRing(t), nodeOptions{}).ready()
	derived := 0
	sub := func(c *Claims) any {
		derived++
		return c.Subject
	}
	alice, bob := n.login("alice"), n.login("bob")
	for range 3 {
		for want, s := range map[string]session{"alice": alice, "bob": bob} {
			known, err := n.verifier.VerifyKnown(t.Context(), s.token)
			if err != nil {
				t.Fatal(err)
			}
			if got := known.Memo(sub); got != want {
				t.Errorf("%s: %v", want, got)
			}
		}
	}
	if derived != 2 {
		t.Errorf("derived %d times for two tokens", derived)
	}
	if err := n.logout(alice); err != nil {
		t.Fatal(err)
	}
	if known, err := n.verifier.VerifyKnown(t.Context(), alice.token); !errors.Is(err, ErrRevoked) || known != nil {
		t.Errorf("after the logout: %v, %v", known, err)
	}
}
