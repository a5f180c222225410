package tokenstore_test

import (
	"net"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// storeOn opens a store of 16 shards.
func storeOn(t *testing.T, o tokenstore.DialOptions) *tokenstore.Store {
	t.Helper()
	rdb, err := tokenstore.Dial(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rdb.Close() })
	s, err := tokenstore.New(rdb, tokenstore.Options{Shards: 16, Lifetimes: lifetimes(), Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return s.Open(t.Context()) })
	return s
}

// primaries looks at all shards, and returns who answers for each.
func primaries(t *testing.T, s *tokenstore.Store) (list []string) {
	t.Helper()
	asks := make([]tokenstore.Renewal, 16)
	for i := range asks {
		asks[i].Shard = i
	}
	eventually(t, func() error {
		views, err := s.Revocations.Renew(t.Context(), asks)
		list = nil
		for i, v := range views {
			list = append(list, v.Server.Primary)
			if v.Server.Epoch != v.Head.Epoch {
				t.Errorf("shard %d: %v has the history %s", i, v.Server, v.Head.Epoch)
			}
		}
		if err != nil {
			return err
		}
		looks := make([]tokenstore.Look, 16)
		for i := range looks {
			looks[i].Shard = i
		}
		seen, err := s.Revocations.Look(t.Context(), looks, 10)
		for i, v := range seen {
			if v.Server != views[i].Server || v.Head != views[i].Head {
				t.Errorf("shard %d: a look at %v finds %v, a renewal %v at %v", i, v.Server, v.Head, views[i].Head, views[i].Server)
			}
		}
		return err
	})
	return list
}

// What names a primary is new with every start and every promotion, also of a
// server that was one before, and all scripts that return the table of followers tell.
func TestAPrimaryHasANameOfItsOwn(t *testing.T) {
	t.Parallel()
	server := redistest.StartWith(t, redistest.Options{ACL: rules})
	s := storeOn(t, tokenstore.DialOptions{URL: server.URL()})
	f := &fixture{Store: s, t: t, rdb: server.Client()}
	seen := map[string]string{}
	look := func(when string) string {
		t.Helper()
		names := primaries(t, s)
		for i, n := range names {
			if n == "" || n != names[0] {
				t.Fatalf("%s: shard %d is answered by %q, shard 0 by %q", when, i, n, names[0])
			}
		}
		if before, ok := seen[names[0]]; ok {
			t.Errorf("%s: %q as %s", when, names[0], before)
		}
		seen[names[0]] = when
		return names[0]
	}
	name := look("at first")
	delete(seen, name)
	if again := look("when asked again"); again != name {
		t.Errorf("it calls itself %q and then %q", name, again)
	}
	for what, revoke := range map[string]func() (tokenstore.Revocation, error){
		"revoke": func() (tokenstore.Revocation, error) {
			a := f.login("alice")
			return s.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: a.sid, UID: a.uid})
		},
		"revoke user": func() (tokenstore.Revocation, error) {
			return s.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: s.UserID("alice")})
		},
		"reuse": func() (tokenstore.Revocation, error) {
			a := f.login("alice")
			_, r, err := s.Sessions.Rotate(t.Context(), tokenstore.Rotation{SID: a.sid, UID: a.uid, Gen: 1, Hash: [32]byte{1}})
			is(t, "a wrong secret", err, tokenstore.ErrReuse)
			_, again, err := s.Sessions.Rotate(t.Context(), tokenstore.Rotation{SID: a.sid, UID: a.uid, Gen: 1, Hash: [32]byte{1}})
			is(t, "and again", err, tokenstore.ErrRevoked)
			if again.Server != r.Server {
				t.Errorf("reuse is answered by %v, and then by %v", r.Server, again.Server)
			}
			return r, nil
		},
	} {
		if r, err := revoke(); err != nil || r.Server.Primary != name || r.Server.Epoch == "" {
			t.Errorf("%s is answered by %v: %v", what, r.Server, err)
		}
	}
	server.Kill(t)
	server.Restart(t)
	look("after a restart")
	other := redistest.Start(t)
	host, port, err := net.SplitHostPort(other.Addr())
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range [][2]string{{host, port}, {"NO", "ONE"}} {
		if err := server.Client().ReplicaOf(t.Context(), to[0], to[1]).Err(); err != nil {
			t.Fatal(err)
		}
	}
	look("after it was a replica for a moment")
	if err := server.Client().ScriptFlush(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	primaries(t, s) // the scripts are sent as text
}

// On a Cluster each shard has the primary that owns its slot.
func TestEachShardHasItsPrimary(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 3, 0, redistest.Options{})
	names := map[string]int{}
	for _, n := range primaries(t, storeOn(t, tokenstore.DialOptions{URL: c.URL()})) {
		names[n]++
	}
	if names[""] > 0 || len(names) != 3 {
		t.Errorf("16 shards on 3 primaries: %v", names)
	}
}

// Where INFO is forbidden, nobody is named, and all else goes on.
func TestAPrimaryThatMayNotTellItsName(t *testing.T) {
	t.Parallel()
	server := redistest.StartWith(t, redistest.Options{ACL: "~lk:* &* +@all -@admin -@dangerous"})
	s := storeOn(t, tokenstore.DialOptions{URL: server.URL()})
	if names := primaries(t, s); names[0] != "" {
		t.Errorf("named %q", names[0])
	}
	if _, err := s.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: tokenstore.ID{1}, UID: tokenstore.ID{1}}); err != nil {
		t.Error(err)
	}
}

// A primary that was made a replica may have missed what its successor was told: it
// confirms no logout.
func TestAReplicaIsNotLookedAt(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := storeOn(t, tokenstore.DialOptions{URL: "redis://" + server.Addr()})
	primaries(t, s)
	if err := server.Client().ReplicaOf(t.Context(), "127.0.0.1", "1").Err(); err != nil {
		t.Fatal(err)
	}
	_, err := s.Revocations.Renew(t.Context(), []tokenstore.Renewal{{Shard: 1}})
	is(t, "a renewal by a replica", err, tokenstore.ErrUnavailable)
	_, err = s.Revocations.Look(t.Context(), []tokenstore.Look{{Shard: 1}}, 10)
	is(t, "a look at a replica", err, tokenstore.ErrUnavailable)
}

// A user's epoch that a failover lost is put back after that user has ended all
// sessions but another one: who was excepted first is excepted no more.
func TestWhatIsPutBackRevivesNobody(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		mine, other := f.login("alice"), f.login("alice")
		_, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: mine.uid, Except: &mine.sid})
		is(t, "all but mine", err, nil)
		is(t, "put back", f.Revocations.Restore(t.Context(), tokenstore.Entry{Kind: tokenstore.KindUser, ID: mine.uid, Epoch: 2, Except: other.sid}), nil)
		is(t, "the other", other.verify(0), tokenstore.ErrRevoked)
	})
}
