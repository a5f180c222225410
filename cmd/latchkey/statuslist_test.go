package main

import (
	"crypto/sha256"
	"slices"
	"strings"
	"testing"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// What a command ends shows in the status lists, whether or not its environment says
// that there are any: here it does not.
func TestCommandsShowInStatusLists(t *testing.T) {
	for _, tt := range []struct {
		args   []string
		client bool // it ends a client's own token, too
	}{
		{[]string{"session", "revoke", "alice", "--session", "SID"}, false},
		{[]string{"session", "revoke", "alice"}, false},
		{[]string{"user", "passwd", "alice"}, false},
		{[]string{"user", "disable", "alice"}, false},
		{[]string{"user", "delete", "alice"}, false},
		{[]string{"client", "delete", "billing"}, true},
		{[]string{"client", "rotate-secret", "billing", "--revoke"}, true},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			c := newConsole(t)
			secret := c.register("billing", "--grant", "client_credentials")
			c.add("alice")
			c.add("bob")
			session := func(sub, client string) (tokenstore.ID, tokenstore.Place) {
				t.Helper()
				uid := c.store.UserID(sub)
				sid, _ := c.store.Sessions.NewID(uid)
				g, err := c.store.Sessions.Login(t.Context(), tokenstore.NewSession{SID: sid, UID: uid, Subject: sub, ClientID: client, ReadAt: c.store.Now()})
				if err != nil {
					t.Fatal(err)
				}
				return sid, g.Place
			}
			shown := func(sub string, p tokenstore.Place) bool {
				t.Helper()
				v, err := c.store.Revocations.StatusView(t.Context(), c.store.UserID(sub).Shard())
				if err != nil || p.N == 0 || p.History != v.History {
					t.Fatalf("the place %+v of %s, in %+v: %v", p, sub, v, err)
				}
				return slices.ContainsFunc(v.Revoked, func(r tokenstore.Places) bool { return r.First <= p.N && p.N < r.First+r.Count })
			}
			issuer := "latchkey"
			if tt.client {
				issuer = "lkc_billing"
			}
			sid, place := session("alice", issuer)
			_, other := session("bob", "latchkey")
			own, err := c.store.Clients.IssueToken(t.Context(), "lkc_billing", sha256.Sum256([]byte(secret)))
			if err != nil {
				t.Fatal(err)
			}
			args := slices.Clone(tt.args)
			if i := slices.Index(args, "SID"); i >= 0 {
				args[i] = sid.String()
			}
			c.works("another password\n", args...)
			if !shown("alice", place) {
				t.Error("the session is not shown as revoked")
			}
			if shown("bob", other) {
				t.Error("another's session is shown as revoked")
			}
			if got := shown("lkc_billing", own.Place); got != tt.client {
				t.Errorf("the client's own token is shown as revoked: %v", got)
			}
		})
	}
}
