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
