package tokenstore_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// A record of another layout, or a broken one, ends no session, is no wrong password, and
// is left as it is: another version may be able to read it.
func TestAStoredRecordThatCannotBeReadIsAnOutage(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		broken := func(key string, ask func() error, damage map[string]string, drop ...string) {
			t.Helper()
			before, err := f.rdb.HGetAll(ctx, key).Result()
			if err != nil || len(before) == 0 {
				t.Fatal(before, err)
			}
			if len(drop) > 0 {
				err = f.rdb.HDel(ctx, key, drop...).Err()
			}
			if err == nil {
				err = f.rdb.HSet(ctx, key, damage).Err()
			}
			if err != nil {
				t.Fatal(err)
			}
			is(t, "with "+key, ask(), tokenstore.ErrUnavailable)
			if !f.exists(key) {
				t.Errorf("%v, without %v: the record is gone", damage, drop)
			}
			if err := f.rdb.HSet(ctx, key, before).Err(); err != nil {
				t.Fatal(err)
			}
		}

		s := f.login("alice")
		if _, err := s.rotate(1); err != nil {
			t.Fatal(err)
		}
		rt := s.key("rt", s.sid)
		for name, ask := range map[string]func() error{
			"rotate": func() error { _, _, err := f.Sessions.Rotate(ctx, s.rotation(2)); return err },
			"peek":   func() error { _, err := f.Sessions.Peek(ctx, s.rotation(2)); return err },
		} {
			t.Log(name)
			for _, value := range []string{"", "-1", "1e300", "x"} {
				for _, field := range []string{"gen", "rot", "ue", "cre"} {
					broken(rt, ask, map[string]string{field: value})
				}
			}
			broken(rt, ask, map[string]string{"hash": "of another length"})
			broken(rt, ask, map[string]string{"sub": ""})
			broken(rt, ask, map[string]string{"v": "2"}, "prev")
			broken(rt, ask, map[string]string{"v": "2"}, "gen", "hash", "sub", "rot", "abs", "ue", "cre")
		}
		if f.exists(s.key("deny", s.sid)) {
			t.Error("the session was ended")
		}
		if _, err := s.show(2); err != nil {
			t.Errorf("once it can be read: %v", err)
		}

		// A user has logged out everywhere: unreadable, the epoch revives no session.
		over := f.login("bob")
		if _, err := f.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: over.uid}); err != nil {
			t.Fatal(err)
		}
		later := f.login("bob")
		for name, ask := range map[string]func() error{
			"rotate":   func() error { _, _, err := f.Sessions.Rotate(ctx, over.rotation(1)); return err },
			"peek":     func() error { _, err := f.Sessions.Peek(ctx, over.rotation(1)); return err },
			"verify":   func() error { return over.verify(0) },
			"login":    func() error { _, err := f.tryLogin("bob", f.Now().Add(time.Hour)); return err },
			"sessions": func() error { _, _, err := f.Sessions.List(ctx, over.uid, "", 100); return err },
			"revoke":   func() error { _, err := f.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: over.uid}); return err },
		} {
			t.Log(name)
			for _, value := range []string{"", "-1", "1e300", "x"} {
				broken(over.key("ue", over.uid), ask, map[string]string{"e": value})
			}
			broken(over.key("ue", over.uid), ask, map[string]string{"v": "2"}, "e")
		}
		if _, err := later.show(1); err != nil {
			t.Errorf("once it can be read: %v", err)
		}

		account := tokenstore.Account{Username: "alice", Hash: "a hash"}
		if err := f.Accounts.Create(ctx, account); err != nil {
			t.Fatal(err)
		}
		ask := func() error { _, err := f.Attempts.Lookup(ctx, tokenstore.Attempt{Username: "alice"}); return err }
		keys := f.allKeys()
		at := slices.IndexFunc(keys, func(key string) bool { return strings.HasSuffix(key, ":acct:alice") })
		if at < 0 {
			t.Fatal(keys)
		}
		for _, field := range []string{"sub", "hash"} {
			broken(keys[at], ask, map[string]string{field: ""})
			broken(keys[at], ask, map[string]string{"v": "2"}, field)
		}
		if err := ask(); err != nil {
			t.Errorf("once it can be read: %v", err)
		}
	})
}
