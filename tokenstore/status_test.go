package tokenstore_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// withLists is the same Redis, with a store that gives out places in status lists.
func (f *fixture) withLists() *fixture {
	f.t.Helper()
	return newFixtureWith(f.t, backend{store: f.store, test: f.rdb}, tokenstore.Options{Lifetimes: f.Lifetimes(), StatusLists: true})
}

// onEachWithLists is onEach with such a store.
func onEachWithLists(t *testing.T, test func(t *testing.T, f *fixture)) {
	t.Helper()
	onEach(t, func(t *testing.T, f *fixture) { test(t, f.withLists()) })
}

// shows reports whether the status lists show a place as revoked.
func (f *fixture) shows(shard int, p tokenstore.Place) bool {
	f.t.Helper()
	if p == (tokenstore.Place{}) {
		f.t.Fatal("there is no place")
	}
	v, err := f.Revocations.StatusView(f.t.Context(), shard)
	if err != nil {
		f.t.Fatal(err)
	}
	if v.History != p.History {
		f.t.Fatalf("the place is of history %q, the lists of %q", p.History, v.History)
	}
	return slices.ContainsFunc(v.Revoked, func(r tokenstore.Places) bool { return r.First <= p.N && p.N < r.First+r.Count })
}

// listed fails unless a session's place is shown as revoked, or as not.
func (fam *family) listed(what string, want bool) {
	fam.f.t.Helper()
	if got := fam.f.shows(fam.sid.Shard(), fam.grants[0].Place); got != want {
		fam.f.t.Errorf("%s: shown as revoked: %v, want %v", what, got, want)
	}
}

func TestASessionHasOnePlace(t *testing.T) {
	onEachWithLists(t, func(t *testing.T, f *fixture) {
		s, other := f.login("alice"), f.login("alice")
		if _, err := s.show(1); err != nil {
			t.Fatal(err)
		}
		if g, err := s.show(1); err != nil || !g.Same {
			t.Fatalf("the parent: %+v, %v", g, err)
		}
		for i, g := range s.grants {
			if g.Place.N == 0 || g.Place != s.grants[0].Place || g.Place.History != g.LogEpoch {
				t.Errorf("access token %d has the place %+v, the first %+v", i, g.Place, s.grants[0].Place)
			}
		}
		if s.grants[0].Place == other.grants[0].Place {
			t.Error("two sessions share a place")
		}
		v, err := f.Revocations.StatusView(t.Context(), s.sid.Shard())
		if err != nil || v.History != s.grants[0].LogEpoch || v.Last != 2 || len(v.Revoked) != 0 {
			t.Errorf("the view: %+v, %v", v, err)
		}
	})
}

func TestALoginAskedAgainKeepsItsPlace(t *testing.T) {
	onEachWithLists(t, func(t *testing.T, f *fixture) {
		uid := f.UserID("alice")
		sid, err := f.Sessions.NewID(uid)
		if err != nil {
			t.Fatal(err)
		}
		n := tokenstore.NewSession{SID: sid, UID: uid, Hash: random32(t), Subject: "alice", Username: "alice", ReadAt: f.Now().Add(time.Hour)}
		first, err := f.Sessions.Login(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := f.Sessions.Login(t.Context(), n); err != nil || again.Place != first.Place {
			t.Errorf("first %+v, again %+v, %v", first.Place, again.Place, err)
		}
	})
}

// draft-ietf-oauth-status-list-21 section 13.3: no double allocation.
func TestNoTwoRacersShareAPlace(t *testing.T) {
	onEachWithLists(t, func(t *testing.T, f *fixture) {
		secret := f.register(tokenstore.Client{ID: "lkc_a"})
		type where struct {
			shard int
			place tokenstore.Place
		}
		var mu sync.Mutex
		seen := map[where]int{}
		take := func(shard int, g tokenstore.Grant, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil || g.Place.N == 0 {
				t.Errorf("place %+v, %v", g.Place, err)
			}
			seen[where{shard, g.Place}]++
		}
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				// All users of this test in one shard, the client's: they use one counter.
				uid := f.UserID("lkc_a")
				sid, err := f.Sessions.NewID(uid)
				if err != nil {
					t.Error(err)
				}
				g, err := f.Sessions.Login(context.Background(), tokenstore.NewSession{SID: sid, UID: uid, Hash: [32]byte{byte(i)}, Subject: "alice", Username: "alice", ReadAt: time.Now().Add(time.Hour)})
				take(sid.Shard(), g, err)
			})
			wg.Go(func() {
				for range 5 { // 200 in all: more than a client takes at a time
					g, err := f.Clients.IssueToken(context.Background(), "lkc_a", secret)
					take(f.UserID("lkc_a").Shard(), g.Grant, err)
				}
			})
		}
		wg.Wait()
		for w, n := range seen {
			if n > 1 {
				t.Errorf("place %d was given out %d times", w.place.N, n)
			}
		}
		if len(seen) != 240 {
			t.Errorf("%d places, want 240", len(seen))
		}
	})
}

// Whatever makes a check refuse tokens makes the lists show them, by the same script.
func TestEveryRevocationIsListed(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, f *fixture, s *family){
		"logout by refresh token": func(_ *testing.T, _ *fixture, s *family) { s.logout(false) },
		"logout by access token":  func(_ *testing.T, _ *fixture, s *family) { s.logout(true) },
		"logout, sent twice":      func(_ *testing.T, _ *fixture, s *family) { s.logout(false); s.logout(true) },
		"by a store that gives out no places": func(t *testing.T, f *fixture, s *family) {
			off := newFixtureOn(t, backend{store: f.store, test: f.rdb}, lifetimes())
			if _, err := off.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: s.sid, UID: s.uid}); err != nil {
				t.Fatal(err)
			}
		},
		"a stolen refresh token": func(t *testing.T, _ *fixture, s *family) {
			if _, err := s.rotate(2); err != nil {
				t.Fatal(err)
			}
			_, err := s.show(1)
			is(t, "reuse", err, tokenstore.ErrReuse)
		},
		"a refresh token from the future": func(t *testing.T, _ *fixture, s *family) {
			_, err := s.show(7)
			is(t, "rollback", err, tokenstore.ErrRollback)
		},
		// The session may last no longer; its last access token does.
		"logout after the session's end, by refresh token": func(t *testing.T, f *fixture, s *family) {
			f.rdb.Del(t.Context(), s.key("rt", s.sid))
			s.logout(false)
		},
		"logout after the session's end, by access token": func(t *testing.T, f *fixture, s *family) {
			f.rdb.Del(t.Context(), s.key("rt", s.sid), s.key("idx", s.uid))
			e := tokenstore.SessionEnd{SID: s.sid, UID: s.uid, JTI: s.jtis[1], Expires: s.access(1).Expires, Place: s.grants[1].Place}
			if _, err := f.Sessions.Revoke(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		},
		"log out everywhere": func(t *testing.T, f *fixture, s *family) {
			if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: s.uid}); err != nil {
				t.Fatal(err)
			}
		},
		"log out everywhere, after the session's end": func(t *testing.T, f *fixture, s *family) {
			f.rdb.Del(t.Context(), s.key("rt", s.sid))
			if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: s.uid, ChangedAt: f.Now()}); err != nil {
				t.Fatal(err)
			}
		},
		"all but another session": func(t *testing.T, f *fixture, s *family) {
			kept := f.login("alice")
			if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: s.uid, Except: &kept.sid}); err != nil {
				t.Fatal(err)
			}
			kept.listed("the excepted session", false)
			is(t, "the excepted session", kept.verify(0), nil)
			defer func() {
				// The exception is for this once.
				if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: s.uid}); err != nil {
					t.Fatal(err)
				}
				kept.listed("the session that was excepted before", true)
			}()
		},
		"a follower puts a logout back": func(t *testing.T, f *fixture, s *family) {
			e := tokenstore.Entry{Kind: tokenstore.KindSession, ID: s.sid}
			if err := f.Revocations.Restore(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		},
		"a follower puts a user's epoch back": func(t *testing.T, f *fixture, s *family) {
			kept := f.login("alice")
			e := tokenstore.Entry{Kind: tokenstore.KindUser, ID: s.uid, Epoch: 7, Except: kept.sid}
			if err := f.Revocations.Restore(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			kept.listed("the excepted session", false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			onEachWithLists(t, func(t *testing.T, f *fixture) {
				bystander, s := f.login("bob"), f.login("alice")
				if _, err := s.show(1); err != nil {
					t.Fatal(err)
				}
				s.listed("before", false)
				end(t, f, s)
				for n := range s.grants {
					is(t, "an access token", s.verify(n), tokenstore.ErrRevoked)
				}
				s.listed("afterwards", true)
				bystander.listed("another user", false)
				later := f.login("alice")
				later.listed("a later login", false)
			})
		})
	}
}

// What ends nothing is listed nowhere.
func TestARefusedRevocationIsNotListed(t *testing.T) {
	onEachWithLists(t, func(t *testing.T, f *fixture) {
		s, kept := f.login("alice"), f.login("alice")
		app := "lkc_app"
		for _, e := range []tokenstore.SessionEnd{
			{SID: s.sid, UID: s.uid, Owner: "mallory", Place: s.grants[0].Place},
			{SID: s.sid, UID: s.uid, IssuedTo: &app, Place: s.grants[0].Place},
		} {
			if _, err := f.Sessions.Revoke(t.Context(), e); err == nil {
				t.Fatalf("%+v was revoked", e)
			}
		}
		kept.logout(false)
		if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: s.uid, Except: &kept.sid}); err == nil {
			t.Fatal("a dead session was excepted")
		}
		s.listed("afterwards", false)
	})
}

// A client's own tokens have a place each, end one by one, and with the client's epoch
// all at once.
func TestTokensOfAClientAreListed(t *testing.T) {
	onEachWithLists(t, func(t *testing.T, f *fixture) {
		secret := f.register(tokenstore.Client{ID: "lkc_a"})
		uid := f.UserID("lkc_a")
		issue := func() tokenstore.Place {
			t.Helper()
			g, err := f.Clients.IssueToken(t.Context(), "lkc_a", secret)
			if err != nil {
				t.Fatal(err)
			}
			return g.Place
		}
		revokeAll := func() {
			t.Helper()
			if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: uid}); err != nil {
				t.Fatal(err)
			}
		}
		places := make([]tokenstore.Place, 150) // more than a client takes at a time
		for i := range places {
			places[i] = issue()
		}
		sid, err := f.Sessions.NewID(uid)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: sid, UID: uid, JTI: sid, Expires: f.Now().Add(time.Minute), Place: places[7]}); err != nil {
			t.Fatal(err)
		}
		for i, p := range places {
			if got := f.shows(uid.Shard(), p); got != (i == 7) {
				t.Errorf("token %d after the revocation of token 7: %v", i, got)
			}
		}
		for range 2 { // the second time of a new epoch
			revokeAll()
			for i, p := range places {
				if !f.shows(uid.Shard(), p) {
					t.Errorf("token %d after all were revoked", i)
				}
			}
			places = []tokenstore.Place{issue(), issue()}
			for _, p := range places {
				if f.shows(uid.Shard(), p) {
					t.Error("a token that was issued afterwards is shown as revoked")
				}
			}
		}
	})
}

// A place is shown as revoked until the last token that names it has expired, and no key
// of it lives longer.
func TestAListForgetsWhatHasExpired(t *testing.T) {
	onEachWithLists(t, func(t *testing.T, f *fixture) {
		s, all := f.login("alice"), f.login("bob")
		near(t, "TTL of what living tokens name", f.ttl(s.key("idx", s.uid)), 15*time.Minute+10*time.Second, 5*time.Second)
		s.logout(false)
		if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: all.uid}); err != nil {
			t.Fatal(err)
		}
		for _, fam := range []*family{s, all} {
			if f.exists(fam.key("idx", fam.uid)) {
				t.Error("what is revoked still counts as living")
			}
			invalid := fmt.Sprintf("lk:{%d}:invalid", fam.sid.Shard())
			near(t, "TTL of the revoked places", f.ttl(invalid), 15*time.Minute+10*time.Second, 5*time.Second)
			fam.listed("at first", true)
			place := fam.grants[0].Place.String()
			score := f.rdb.ZScore(t.Context(), invalid, place).Val()
			near(t, "how long the place is shown", time.UnixMilli(int64(score)).Sub(fam.grants[0].Now), 15*time.Minute+10*time.Second, 5*time.Second)
			// As if that time had passed.
			if err := f.rdb.ZIncrBy(t.Context(), invalid, -1e6, place).Err(); err != nil {
				t.Fatal(err)
			}
			fam.listed("once its tokens have expired", false)
		}
		// The next revocation in the shard takes along what has expired.
		next := f.login("alice")
		next.logout(false)
		invalid := fmt.Sprintf("lk:{%d}:invalid", s.sid.Shard())
		if left := f.rdb.ZRange(t.Context(), invalid, 0, -1).Val(); slices.Contains(left, s.grants[0].Place.String()) {
			t.Errorf("what has expired is kept: %q", left)
		}
		// A user who logs in and never out leaves nothing behind but what lives.
		stale := next.grants[0].Place.History + ":1:" + next.sid.String()
		for range 2 {
			if err := f.rdb.ZAdd(t.Context(), next.key("idx", next.uid), redis.Z{Score: 1, Member: stale}).Err(); err != nil {
				t.Fatal(err)
			}
			f.login("alice")
		}
		if left := f.rdb.ZRange(t.Context(), next.key("idx", next.uid), 0, -1).Val(); len(left) != 2 || slices.Contains(left, stale) {
			t.Errorf("living tokens name %q", left)
		}
	})
}

// A denial must outlive every token it names, and so must its place in a list
// (invariant I2).
func TestShorterLifetimesDoNotShortenAListing(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		long := lifetimes()
		long.Access = 24 * time.Hour
		old := newFixtureWith(t, backend{store: f.store, test: f.rdb}, tokenstore.Options{Lifetimes: long, StatusLists: true})
		one, two := old.login("alice"), old.login("bob")
		l := f.withLists()
		if _, err := two.f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: two.uid}); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: one.sid, UID: one.uid}); err != nil {
			t.Fatal(err)
		}
		for _, s := range []*family{one, two} {
			score := f.rdb.ZScore(t.Context(), fmt.Sprintf("lk:{%d}:invalid", s.sid.Shard()), s.grants[0].Place.String()).Val()
			if left := time.UnixMilli(int64(score)).Sub(s.grants[0].Now); left < 24*time.Hour {
				t.Errorf("the listing lasts %v, the token 24 h", left)
			}
		}
	})
}

// Without the option nothing is written that was not written before, and no token
// names a list.
func TestWithoutListsThereIsNothingOfThem(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		secret := f.register(tokenstore.Client{ID: "lkc_a"})
		s, gone := f.login("alice"), f.login("alice")
		if _, err := s.show(1); err != nil {
			t.Fatal(err)
		}
		g, err := f.Clients.IssueToken(t.Context(), "lkc_a", secret)
		is(t, "issue", err, nil)
		for _, p := range []tokenstore.Place{s.grants[0].Place, s.grants[1].Place, g.Place} {
			if p != (tokenstore.Place{}) {
				t.Errorf("a token has the place %+v", p)
			}
		}
		gone.logout(true)
		if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: s.uid}); err != nil {
			t.Fatal(err)
		}
		for _, key := range f.allKeys() {
			if strings.Contains(key, ":idx:") || strings.HasSuffix(key, ":invalid") {
				t.Errorf("there is %s", key)
			}
		}
		for _, key := range []string{s.key("rt", s.sid), fmt.Sprintf("lk:{%d}:head", s.sid.Shard()), fmt.Sprintf("lk:{%d}:client:lkc_a", f.UserID("lkc_a").Shard())} {
			if f.rdb.HExists(t.Context(), key, "idx").Val() {
				t.Errorf("%s has a field of status lists", key)
			}
		}
		v, err := f.Revocations.StatusView(t.Context(), s.sid.Shard())
		if err != nil || v.Last != 0 || len(v.Revoked) != 0 {
			t.Errorf("the view: %+v, %v", v, err)
		}
	})
}

// Turned on later, a session gets its place with its next access token.
func TestAnOlderSessionGetsAPlace(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		s := f.login("alice")
		s.f = f.withLists()
		if _, err := s.show(1); err != nil {
			t.Fatal(err)
		}
		s.grants = s.grants[1:]
		s.listed("after a refresh", false)
		s.logout(false)
		s.listed("after the logout", true)
	})
}

// A history that Redis has lost has no lists; the next one counts its own.
func TestALossOfDataEndsItsLists(t *testing.T) {
	onEachWithLists(t, func(t *testing.T, f *fixture) {
		before, alive := f.login("alice"), f.login("alice")
		before.logout(false)
		if err := flushAll(t.Context(), f.rdb); err != nil {
			t.Fatal(err)
		}
		v, err := f.Revocations.StatusView(t.Context(), before.sid.Shard())
		if err != nil || v.History != "" || v.Last != 0 || len(v.Revoked) != 0 {
			t.Errorf("of an empty Redis: %+v, %v", v, err)
		}
		if f.exists(fmt.Sprintf("lk:{%d}:head", before.sid.Shard())) {
			t.Error("to ask for a list has begun a history")
		}
		after := f.login("alice")
		if p := after.grants[0].Place; p.N != 1 || p.History == alive.grants[0].Place.History {
			t.Errorf("the first place of the next history is %+v, that of the one before was %+v", p, before.grants[0].Place)
		}
		// A place of before means nobody now, least of all who has its number.
		if _, err := f.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: before.sid, UID: before.uid, Place: before.grants[0].Place}); err != nil {
			t.Fatal(err)
		}
		after.listed("when a place of the history before is revoked", false)
		after.logout(false)
		after.listed("after its logout", true)
	})
}

// The head alone can be lost, too: its sessions live on, with places of the new history.
func TestALossOfTheHeadGivesNewPlaces(t *testing.T) {
	onEachWithLists(t, func(t *testing.T, f *fixture) {
		gone, s := f.login("alice"), f.login("alice")
		gone.logout(false)
		f.rdb.Del(t.Context(), fmt.Sprintf("lk:{%d}:head", s.sid.Shard()))
		g, err := s.show(1)
		if err != nil || g.Place.History != g.LogEpoch || g.Place.History == s.grants[0].Place.History || g.Place.N != 1 {
			t.Fatalf("the place is %+v, %v", g.Place, err)
		}
		// gone had the first place of the history before, which is still in the set.
		if f.shows(s.sid.Shard(), g.Place) {
			t.Error("a revocation of the history before is shown in this one")
		}
	})
}

// Under races between logins and whatever ends sessions the lists and the checks agree.
func TestRacersLeaveAListThatIsRight(t *testing.T) {
	onEachWithLists(t, func(t *testing.T, f *fixture) {
		var mu sync.Mutex
		var families []*family
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				for j := range 6 {
					s, err := f.tryLogin(fmt.Sprintf("user-%d", i%3), time.Now().Add(time.Hour))
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					families = append(families, s)
					mu.Unlock()
					switch {
					case j%3 == 0:
						_, err = f.Sessions.Revoke(context.Background(), tokenstore.SessionEnd{SID: s.sid, UID: s.uid})
					case j == 4:
						_, err = f.Sessions.RevokeUser(context.Background(), tokenstore.UserEnd{UID: s.uid})
					default:
						_, _ = s.show(1) // it may be over by now
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		for _, s := range families {
			err := s.verify(0)
			if shown := f.shows(s.sid.Shard(), s.grants[0].Place); shown != (err != nil) {
				t.Errorf("a check says %v, the list that it was revoked: %v", err, shown)
			}
		}
	})
}

// A Redis that is out of memory takes revocations, and their listing with them.
func TestAFullRedisListsRevocations(t *testing.T) {
	for _, everywhere := range []bool{false, true} {
		t.Run(fmt.Sprint("everywhere=", everywhere), func(t *testing.T) {
			t.Parallel()
			f := newFixtureOn(t, backends()["redis"](t), lifetimes()).withLists()
			s := f.login("alice")
			if err := f.rdb.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
				t.Fatal(err)
			}
			_, err := f.tryLogin("alice", time.Now().Add(time.Hour))
			is(t, "a login", err, tokenstore.ErrUnavailable)
			if everywhere {
				_, err = f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: s.uid})
				is(t, "log out everywhere", err, nil)
			} else {
				s.logout(false)
			}
			s.listed("afterwards", true)
		})
	}
}
