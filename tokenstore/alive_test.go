package tokenstore_test

import (
	"testing"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

func TestAnyAlive(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		alive := func(what string, want bool, sids ...tokenstore.ID) {
			t.Helper()
			if got, err := f.Sessions.AnyAlive(ctx, sids); err != nil || got != want {
				t.Errorf("%s: %t, %v; want %t", what, got, err, want)
			}
		}
		s, other, bob := f.login("alice"), f.login("alice"), f.login("bob")
		unknown, err := f.Sessions.NewID(s.uid)
		if err != nil {
			t.Fatal(err)
		}
		alive("none", false)
		alive("one that never was", false, unknown)
		alive("of a shard that is not there", false, tokenstore.ID{255})
		alive("a login's", true, s.sid)
		if _, err := f.Sessions.Revoke(ctx, tokenstore.SessionEnd{SID: s.sid, UID: s.uid}); err != nil {
			t.Fatal(err)
		}
		alive("after its end", false, s.sid)
		alive("another", true, unknown, s.sid, other.sid)
		if _, err := f.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: other.uid, Except: &other.sid}); err != nil {
			t.Fatal(err)
		}
		later := f.login("alice")
		alive("excepted", true, other.sid)
		if _, err := f.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: other.uid, Except: &later.sid}); err != nil {
			t.Fatal(err)
		}
		alive("ended with the user's others", false, other.sid)
		alive("the one that was excepted", true, later.sid)
		if _, err := f.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: other.uid}); err != nil {
			t.Fatal(err)
		}
		alive("after the end of all", false, other.sid, later.sid)
		alive("another user's", true, bob.sid)
		f.rdb.Del(ctx, bob.key("rt", bob.sid)) // as Redis does with what has expired
		alive("expired", false, bob.sid)
	})
}
