package edge

import (
	"errors"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// After Redis lost its data, users' epochs count from the start again: what was
// known of them must not be held against new logins, and nothing of before may
// be accepted.
func TestALossOfDataLocksNobodyOut(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	n := newNode(t, server.URL(), ring, nodeOptions{}).ready()
	loggedOut, before := n.login("alice"), n.login("alice")
	if err := n.logout(loggedOut); err != nil {
		t.Fatal(err)
	}
	r, err := n.store.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: before.uid})
	if err == nil {
		err = n.confirm.Confirm(t.Context(), r)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := n.rdb.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	fresh := n.login("alice")
	if err := n.verify(fresh); err != nil {
		t.Errorf("at once after the loss, a new login: %v", err)
	}
	for deadline := time.Now().Add(2 * time.Minute); n.follower.Stats().Gaps == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the follower does not notice")
		}
		if err := n.verify(fresh); err != nil {
			t.Fatalf("meanwhile, a new login: %v", err)
		}
	}
	for range 100 {
		if err := n.verify(fresh); err != nil {
			t.Fatalf("afterwards, a new login: %v", err)
		}
		for _, s := range []session{loggedOut, before} {
			if err := n.verify(s); !errors.Is(err, ErrRevoked) {
				t.Fatalf("a token of before: %v", err)
			}
		}
	}
}
