package tokenstore_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// register makes a client and returns the hash of its secret.
func (f *fixture) register(c tokenstore.Client) [32]byte {
	f.t.Helper()
	secret := random32(f.t)
	if err := f.Clients.Create(f.t.Context(), c, secret); err != nil {
		f.t.Fatal(err)
	}
	return secret
}

func TestClientLifecycle(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		want := tokenstore.Client{
			ID: "lkc_billing", Grants: "client_credentials refresh_token", Scopes: "read write",
			Audiences: "https://a.example https://b.example", Claims: `{"tier":1}`, Introspect: true,
		}
		first := f.register(want)
		got, err := f.Clients.Authenticate(ctx, want.ID, first)
		is(t, "the secret", err, nil)
		if diff := cmp.Diff(want, got.Client); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		if got.Subject != want.ID || got.ClientID != want.ID || got.LogEpoch != "" || got.UserEpoch != 0 {
			t.Errorf("the grant: %+v", got.Grant)
		}
		near(t, "now", time.Since(got.Now), 0, 5*time.Second)
		read, err := f.Clients.Get(ctx, want.ID)
		is(t, "read", err, nil)
		near(t, "created", time.Since(read.Created), 0, 5*time.Second)
		read.Created = time.Time{}
		if diff := cmp.Diff(want, read); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}

		// Made again: the same request, or another's id.
		is(t, "sent again", f.Clients.Create(ctx, want, first), nil)
		is(t, "taken", f.Clients.Create(ctx, want, random32(t)), tokenstore.ErrClientExists)

		issued, err := f.Clients.IssueToken(ctx, want.ID, first)
		if err != nil || issued.LogEpoch == "" || !cmp.Equal(issued.Client, want) {
			t.Errorf("issued: %+v, %v", issued, err)
		}
		_, err = f.Clients.IssueToken(ctx, want.ID, random32(t))
		is(t, "another secret, to issue", err, tokenstore.ErrClientSecret)
		_, err = f.Clients.Authenticate(ctx, want.ID, random32(t))
		is(t, "another secret", err, tokenstore.ErrClientSecret)
		for _, id := range []string{"lkc_nobody", "billing", "", "latchkey"} {
			_, err = f.Clients.Authenticate(ctx, id, first)
			is(t, "client "+id, err, tokenstore.ErrNoClient)
		}

		// A new secret, the old one for a while.
		second, third := random32(t), random32(t)
		for range 2 { // sent again it changes nothing
			is(t, "rotate", f.Clients.RotateSecret(ctx, want.ID, second, time.Hour), nil)
		}
		for name, secret := range map[string][32]byte{"old": first, "new": second} {
			_, err = f.Clients.Authenticate(ctx, want.ID, secret)
			is(t, name+" secret while both are good", err, nil)
		}
		is(t, "rotate at once", f.Clients.RotateSecret(ctx, want.ID, third, 0), nil)
		for name, secret := range map[string][32]byte{"first": first, "second": second} {
			_, err = f.Clients.Authenticate(ctx, want.ID, secret)
			is(t, name+" secret", err, tokenstore.ErrClientSecret)
		}
		is(t, "rotate nobody's", f.Clients.RotateSecret(ctx, "lkc_nobody", second, 0), tokenstore.ErrNoClient)

		is(t, "delete", f.Clients.Delete(ctx, want.ID), nil)
		is(t, "delete again", f.Clients.Delete(ctx, want.ID), nil)
		_, err = f.Clients.Authenticate(ctx, want.ID, third)
		is(t, "deleted", err, tokenstore.ErrNoClient)
		_, err = f.Clients.Get(ctx, want.ID)
		is(t, "read what is deleted", err, tokenstore.ErrNoClient)
	})
}

// A token that a client got before its epoch went up is dead, and one that it gets
// afterwards is not.
func TestAClientsTokensDieWithItsEpoch(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		secret := f.register(tokenstore.Client{ID: "lkc_billing"})
		uid := f.UserID("lkc_billing")
		issue := func() tokenstore.AccessToken {
			t.Helper()
			g, err := f.Clients.IssueToken(t.Context(), "lkc_billing", secret)
			is(t, "authenticate", err, nil)
			sid, _ := f.Sessions.NewID(uid)
			jti, _ := f.Sessions.NewID(uid)
			return tokenstore.AccessToken{JTI: jti, SID: sid, UID: uid, UserEpoch: g.UserEpoch, LogEpoch: g.LogEpoch, Expires: g.Now.Add(time.Minute)}
		}
		before := issue()
		is(t, "before", f.Revocations.Verify(t.Context(), before), nil)
		for range 2 {
			if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: uid}); err != nil {
				t.Fatal(err)
			}
		}
		is(t, "before, after the end", f.Revocations.Verify(t.Context(), before), tokenstore.ErrRevoked)
		epochKey := fmt.Sprintf("lk:{%d}:ue:%s", uid.Shard(), uid)
		if err := f.rdb.PExpire(t.Context(), epochKey, time.Minute).Err(); err != nil {
			t.Fatal(err)
		}
		after := issue()
		is(t, "after", f.Revocations.Verify(t.Context(), after), nil)
		// The epoch outlives the token that carries it.
		if ttl := f.ttl(epochKey); ttl < 15*time.Minute {
			t.Errorf("the epoch is kept for %v", ttl)
		}
	})
}

func TestClientIDsAndSessions(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		var want []string
		for _, id := range []string{"lkc_a", "lkc_b.c", "lkc_d-e"} {
			f.register(tokenstore.Client{ID: id})
			want = append(want, id)
		}
		got, err := f.Clients.IDs(t.Context())
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q, %v", got, err)
		}
		wanted := map[tokenstore.ID]tokenstore.ID{}
		for _, sub := range []string{"alice", "bob", "carol", "dora"} {
			f.login(sub)
			s := f.loginBy(sub, "lkc_a", "")
			wanted[s.sid] = s.uid
			f.loginBy(sub, "lkc_b.c", "")
		}
		// No lock: the calls come one after the other, on a Cluster too.
		found := map[tokenstore.ID]tokenstore.ID{}
		err = f.Clients.Sessions(t.Context(), "lkc_a", func(e tokenstore.SessionEnd) error {
			found[e.SID] = e.UID
			return nil
		})
		if diff := cmp.Diff(wanted, found); err != nil || diff != "" {
			t.Errorf("%v -want +got\n%s", err, diff)
		}
	})
}

// RFC 6749 section 6: a refresh token is bound to the client it was issued to. One
// who shows another's gets nothing and ends nothing.
func TestARefreshTokenIsBoundToItsClient(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		for _, c := range []struct{ issued, own, other string }{
			{"lkc_a", "lkc_a", "lkc_b"}, {"lkc_a", "lkc_a", ""}, {"latchkey", "", "lkc_a"}, {"an-earlier-setting", "", "latchkey"},
		} {
			s := f.loginBy("alice", c.issued, "read")
			foreign := s.rotation(1)
			foreign.IssuedTo = c.other
			for range 2 {
				_, _, err := f.Sessions.Rotate(t.Context(), foreign)
				is(t, "another's", err, tokenstore.ErrForeign)
			}
			_, err := f.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: s.sid, UID: s.uid, IssuedTo: &c.other})
			is(t, "end another's", err, tokenstore.ErrForeign)
			own := s.rotation(1)
			own.IssuedTo = c.own
			g, _, err := f.Sessions.Rotate(t.Context(), own)
			is(t, "one's own", err, nil)
			if g.ClientID != c.issued {
				t.Errorf("client: %q", g.ClientID)
			}
			for range 2 {
				_, err = f.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: s.sid, UID: s.uid, IssuedTo: &c.own})
				is(t, "end one's own", err, nil)
			}
		}
	})
}

// RFC 6749 section 6: what is asked for at a refresh is among what was granted, and
// the refresh token keeps all of it.
func TestTheScopeOfARefreshNeverGrows(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		s := f.loginBy("alice", "latchkey", "read write")
		for _, scope := range []string{"admin", "read admin", "rea", "write read admin", "read.*", "%a+"} {
			r := s.rotation(1)
			r.Scope = scope
			_, _, err := f.Sessions.Rotate(t.Context(), r)
			is(t, "scope "+scope, err, tokenstore.ErrScope)
		}
		r := s.rotation(1)
		r.Scope = "write"
		for i, want := range []bool{false, true} {
			g, _, err := f.Sessions.Rotate(t.Context(), r)
			is(t, "less", err, nil)
			if g.Scope != "read write" || g.Same != want {
				t.Errorf("%d: %+v", i, g)
			}
		}
		r.Scope = "admin"
		_, _, err := f.Sessions.Rotate(t.Context(), r)
		is(t, "the parent with more", err, tokenstore.ErrScope)
		// A theft is one whatever it asks for.
		if _, err := s.rotate(2); err != nil {
			t.Fatal(err)
		}
		_, _, err = f.Sessions.Rotate(t.Context(), r)
		is(t, "reuse", err, tokenstore.ErrReuse)
	})
}

func TestPeekChangesNothing(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		s := f.loginBy("alice", "lkc_a", "read")
		peek := func(gen int) (tokenstore.Grant, error) { return f.Sessions.Peek(ctx, s.rotation(gen)) }
		for range 3 {
			g, err := peek(1)
			is(t, "current", err, nil)
			if !g.Current || g.Subject != "alice" || g.Username != "alice" || g.Scope != "read" || g.ClientID != "lkc_a" || g.Claims != `{"a":1}` {
				t.Errorf("%+v", g)
			}
			near(t, "expiry", g.RefreshExpiry.Sub(g.Now), lifetimes().Refresh, time.Second)
		}
		r := s.rotation(1)
		r.IssuedTo = "lkc_a"
		if _, _, err := f.Sessions.Rotate(ctx, r); err != nil {
			t.Fatal(err)
		}
		g, err := peek(1)
		if err != nil || g.Current {
			t.Errorf("the parent: %+v, %v", g, err)
		}
		g, err = peek(2)
		if err != nil || !g.Current {
			t.Errorf("the current one, which may not rotate yet: %+v, %v", g, err)
		}
		wrong := s.rotation(1)
		wrong.Hash[0] ^= 1
		_, err = f.Sessions.Peek(ctx, wrong)
		is(t, "a wrong secret", err, tokenstore.ErrNoSession)
		s.age(time.Minute)
		_, err = peek(1)
		is(t, "the parent, after the grace", err, tokenstore.ErrNoSession)
		bound, err := f.loginWith(tokenstore.NewSession{Subject: "alice", JKT: "k", ReadAt: f.Now().Add(time.Hour)})
		is(t, "login", err, nil)
		if g, err := f.Sessions.Peek(ctx, bound.rotation(1)); err != nil || g.JKT != "k" {
			t.Errorf("bound to a key: %+v, %v", g, err)
		}
		// None of that was a theft.
		s2 := f.loginBy("alice", "latchkey", "")
		if _, err := f.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: s.uid, Except: &s2.sid}); err != nil {
			t.Fatal(err)
		}
		_, err = f.Sessions.Peek(ctx, s2.rotation(1))
		is(t, "the excepted session", err, nil)
		_, err = f.Sessions.Peek(ctx, s.rotation(1))
		is(t, "an older epoch", err, tokenstore.ErrNoSession)
		s2.logout(false)
		_, err = f.Sessions.Peek(ctx, s2.rotation(1))
		is(t, "after the logout", err, tokenstore.ErrNoSession)
		_, err = f.Sessions.Peek(ctx, tokenstore.Rotation{SID: tokenstore.ID{200}, UID: tokenstore.ID{200}})
		is(t, "of other shards", err, tokenstore.ErrNoSession)
	})
}
