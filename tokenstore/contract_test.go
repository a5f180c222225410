package tokenstore_test

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

func TestLoginMakesOneSession(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		s := f.login("alice")
		g := s.grants[0]
		if g.UserEpoch != 0 || g.LogEpoch == "" || g.Subject != "alice" || !g.AuthTime.Equal(g.Now) {
			t.Errorf("grant %+v", g)
		}
		if got, want := g.RefreshExpiry.Sub(g.Now), 168*time.Hour; got != want {
			t.Errorf("the refresh token lives %v, want %v", got, want)
		}
		near(t, "TTL of the refresh key", f.ttl(s.key("rt", s.sid)), 168*time.Hour, time.Minute)
		is(t, "verify", s.verify(0), nil)

		list, _, err := f.Sessions.List(t.Context(), s.uid, "", 100)
		if err != nil || len(list) != 1 {
			t.Fatalf("sessions: %v, %v", list, err)
		}
		if v := list[0]; v.SID != s.sid || v.Subject != "alice" || v.Username != "alice" || v.Device != "curl/8.5.0" || v.Address != "192.0.2.1" || !v.Created.Equal(g.Now) {
			t.Errorf("session %+v", v)
		}
	})
}

func TestLoginAskedAgainMakesTheSameSession(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		uid := f.UserID("alice")
		sid, err := f.Sessions.NewID(uid)
		if err != nil {
			t.Fatal(err)
		}
		n := tokenstore.NewSession{SID: sid, UID: uid, Hash: random32(t), Subject: "alice", Username: "alice", ReadAt: f.Now().Add(time.Hour)}
		for range 3 {
			if _, err := f.Sessions.Login(t.Context(), n); err != nil {
				t.Fatal(err)
			}
		}
		list, _, err := f.Sessions.List(t.Context(), uid, "", 100)
		if err != nil || len(list) != 1 {
			t.Fatalf("sessions: %v, %v; want one", list, err)
		}
	})
}

func TestRotateMakesTheSuccessorCurrent(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		s := f.login("alice")
		if err := f.rdb.PExpire(t.Context(), s.key("rt", s.sid), time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
		for gen := 1; gen <= 5; gen++ {
			g, err := s.rotate(gen)
			if err != nil || g.Same {
				t.Fatalf("generation %d: %+v, %v", gen, g, err)
			}
			if !g.AuthTime.Equal(s.grants[0].Now) || g.Subject != "alice" || g.Username != "alice" || g.ClientID != "latchkey" {
				t.Errorf("grant %+v", g)
			}
		}
		near(t, "TTL of the refresh key", f.ttl(s.key("rt", s.sid)), 168*time.Hour, time.Minute)
		for n := range s.grants {
			is(t, "an ordinary rotation denies nothing", s.verify(n), nil)
		}
	})
}

func TestRotateNeverOutlivesTheSession(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		s := f.login("alice")
		soon := s.grants[0].Now.Add(time.Hour)
		if err := f.rdb.HSet(t.Context(), s.key("rt", s.sid), "abs", soon.UnixMilli()).Err(); err != nil {
			t.Fatal(err)
		}
		g, err := s.show(1)
		if err != nil || !g.RefreshExpiry.Equal(soon) {
			t.Fatalf("expiry %v, %v; want %v", g.RefreshExpiry, err, soon)
		}
		near(t, "TTL of the refresh key", f.ttl(s.key("rt", s.sid)), time.Hour, time.Minute)
	})
}

func TestParentWithinTheGraceIsTheSame(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		s := f.login("alice")
		first, err := s.show(1)
		if err != nil {
			t.Fatal(err)
		}
		before := f.rdb.HGetAll(t.Context(), s.key("rt", s.sid)).Val()
		again, err := s.show(1)
		if err != nil || !again.Same || again.Current {
			t.Fatalf("the parent again: %+v, %v", again, err)
		}
		near(t, "expiry of the successor", again.RefreshExpiry.Sub(first.RefreshExpiry), 0, 5*time.Second) // miniredis does not count a TTL down
		if diff := cmp.Diff(before, f.rdb.HGetAll(t.Context(), s.key("rt", s.sid)).Val()); diff != "" {
			t.Errorf("SAME changed the session:\n%s", diff)
		}
		if g, err := s.rotate(2); err != nil || g.Same {
			t.Errorf("the successor: %+v, %v", g, err)
		}
	})
}

func TestTheGraceDoesNotSlide(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		s := f.login("alice")
		if _, err := s.show(1); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			s.age(3 * time.Second)
			if g, err := s.show(1); err != nil || !g.Same {
				t.Fatalf("within the grace: %+v, %v", g, err)
			}
		}
		s.age(1001 * time.Millisecond) // 10 s and a bit since the rotation, however often it was asked
		_, err := s.show(1)
		is(t, "after the grace", err, tokenstore.ErrReuse)
	})
}

func TestReuseEndsTheFamily(t *testing.T) {
	replay := map[string]struct {
		ready func(s *family)
		show  func(s *family) error
		want  error
	}{
		"the parent after the grace": {
			ready: func(s *family) { s.age(11 * time.Second) },
			show:  func(s *family) error { _, err := s.show(3); return err },
			want:  tokenstore.ErrReuse,
		},
		"the grandparent at once": {
			show: func(s *family) error { _, err := s.show(2); return err },
			want: tokenstore.ErrReuse,
		},
		"the current generation with a wrong secret": {
			ready: func(s *family) { s.secrets[3] = random32(s.f.t) },
			show:  func(s *family) error { _, err := s.show(4); return err },
			want:  tokenstore.ErrReuse,
		},
		"the parent with a wrong secret": {
			ready: func(s *family) { s.secrets[2] = random32(s.f.t) },
			show:  func(s *family) error { _, err := s.show(3); return err },
			want:  tokenstore.ErrReuse,
		},
		"a generation that Redis does not know yet": {
			show: func(s *family) error { s.secrets = append(s.secrets, random32(s.f.t)); _, err := s.show(5); return err },
			want: tokenstore.ErrRollback,
		},
	}
	for name, c := range replay {
		t.Run(name, func(t *testing.T) {
			onEach(t, func(t *testing.T, f *fixture) {
				other := f.login("alice")
				s := f.login("alice")
				for gen := 1; gen <= 3; gen++ {
					if _, err := s.rotate(gen); err != nil {
						t.Fatal(err)
					}
				}
				current := s.secrets[3]
				if c.ready != nil {
					c.ready(s)
				}
				is(t, "shown again", c.show(s), c.want)
				if f.exists(s.key("rt", s.sid)) {
					t.Error("the refresh key is still there")
				}
				s.secrets[3] = current
				_, err := s.show(4)
				is(t, "the current token afterwards", err, tokenstore.ErrRevoked)
				for n := range s.grants {
					is(t, "an access token of the family", s.verify(n), tokenstore.ErrRevoked)
				}
				is(t, "the user's other session", other.verify(0), nil)
				if n := f.rdb.XLen(t.Context(), fmt.Sprintf("lk:{%d}:log", s.sid.Shard())).Val(); n != 1 {
					t.Errorf("the log has %d entries, want 1", n)
				}
			})
		})
	}
}

func TestFiftyRacersGetOneSuccessor(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		s := f.login("alice")
		s.secrets = append(s.secrets, random32(t))
		shown := s.rotation(1)
		var wg sync.WaitGroup
		grants := make([]tokenstore.Grant, 50)
		errs := make([]error, 50)
		for i := range grants {
			wg.Go(func() { grants[i], _, errs[i] = f.Sessions.Rotate(t.Context(), shown) })
		}
		wg.Wait()
		rotated := 0
		for i, g := range grants {
			if errs[i] != nil {
				t.Fatalf("racer %d: %v", i, errs[i])
			}
			if !g.Same {
				rotated++
			}
		}
		if rotated != 1 {
			t.Errorf("%d of 50 rotated, want 1", rotated)
		}
		if gen := f.rdb.HGet(t.Context(), s.key("rt", s.sid), "gen").Val(); gen != "2" {
			t.Errorf("generation %s, want 2", gen)
		}
	})
}

func TestRevokeEndsTheSession(t *testing.T) {
	for _, bearer := range []bool{false, true} {
		t.Run("bearer="+strconv.FormatBool(bearer), func(t *testing.T) {
			onEach(t, func(t *testing.T, f *fixture) {
				other := f.login("alice")
				s := f.login("alice")
				if _, err := s.show(1); err != nil {
					t.Fatal(err)
				}
				s.logout(bearer)
				if f.exists(s.key("rt", s.sid)) {
					t.Error("the refresh key is still there")
				}
				_, err := s.show(2)
				is(t, "refresh", err, tokenstore.ErrRevoked)
				is(t, "the last access token", s.verify(1), tokenstore.ErrRevoked)
				is(t, "the older access token", s.verify(0), tokenstore.ErrRevoked)
				is(t, "another session", other.verify(0), nil)
				near(t, "TTL of the session's denial", f.ttl(s.key("deny", s.sid)), 15*time.Minute+10*time.Second, 5*time.Second)
				if bearer {
					near(t, "TTL of the token's denial", f.ttl(s.key("deny", s.jtis[1])), 15*time.Minute+10*time.Second, 5*time.Second)
				}
				list, _, err := f.Sessions.List(t.Context(), s.uid, "", 100)
				if err != nil || len(list) != 1 || list[0].SID != other.sid {
					t.Errorf("sessions left: %v, %v", list, err)
				}
			})
		})
	}
}

// Whoever has applied the log up to its present head has applied the entry too.
func TestARevocationAskedAgainReturnsTheHead(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		s := f.login("alice")
		first := s.logout(false)
		if again := s.logout(false); again.Mark != first.Mark {
			t.Errorf("nothing happened between: first %+v, again %+v", first, again)
		}
		second := f.login("alice").logout(true)
		if again := s.logout(true); again.Mark != second.Mark || again.Shard != second.Shard {
			t.Errorf("the head is %+v, asked again it returns %+v", second, again)
		}
		if n := f.rdb.XLen(t.Context(), fmt.Sprintf("lk:{%d}:log", s.sid.Shard())).Val(); n != 2 {
			t.Errorf("the log has %d entries, want 2", n)
		}
		is(t, "the token shown the second time", s.verify(0), tokenstore.ErrRevoked)
	})
}

// zeros is a source of randomness that repeats itself: each request has the nonce of
// the one before, as if the network had sent that twice.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestALogoutEverywhereSentTwiceIsOne(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		a := f.login("alice")
		twice := newFixtureWith(t, backend{store: f.store, test: f.rdb}, tokenstore.Options{Lifetimes: f.Lifetimes(), Rand: zeros{}})
		first, err := twice.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: a.uid})
		is(t, "log out everywhere", err, nil)
		later := f.login("alice")
		head := f.login("alice").logout(false)
		again, err := twice.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: a.uid})
		is(t, "the same, sent again", err, nil)
		if again.Mark != first.Mark || first.Mark == head.Mark {
			t.Errorf("first %+v, then the head was %+v, again %+v", first.Mark, head.Mark, again.Mark)
		}
		is(t, "a login after the first", later.verify(0), nil)
	})
}

func TestRevokeOfAnothersSessionIsRefused(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		s := f.login("alice")
		_, err := f.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: s.sid, UID: s.uid, Owner: "mallory"})
		is(t, "another's session", err, tokenstore.ErrNoSession)
		is(t, "it lives on", s.verify(0), nil)
		if _, err := f.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: s.sid, UID: s.uid, Owner: "alice"}); err != nil {
			t.Error(err)
		}
		is(t, "its owner ended it", s.verify(0), tokenstore.ErrRevoked)
		if _, err := f.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: s.sid, UID: s.uid, Owner: "alice"}); err != nil {
			t.Errorf("its owner asks again: %v", err)
		}
		mallory := f.UserID("mallory")
		mallory[0] = s.sid[0]
		_, err = f.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: s.sid, UID: mallory, Owner: "mallory"})
		is(t, "another's session that is over", err, tokenstore.ErrNoSession)
	})
}

// A denial must outlive every token it names, also one that was minted when the
// access lifetime was set longer (invariant I2).
func TestShorterLifetimesDoNotShortenADenial(t *testing.T) {
	t.Parallel()
	for name, open := range backends() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			servers := open(t)
			long := lifetimes()
			long.Access, long.Session = 24*time.Hour, 2000*time.Hour
			old := newFixtureOn(t, servers, long).login("alice")
			short := lifetimes()
			short.Access, short.Refresh, short.Session = time.Minute, 2*time.Minute, 2*time.Minute
			f := newFixtureOn(t, servers, short)
			if _, err := f.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: old.sid, UID: old.uid}); err != nil {
				t.Fatal(err)
			}
			if ttl := f.ttl(old.key("deny", old.sid)); ttl < 24*time.Hour {
				t.Errorf("the denial lives %v, the token 24 h", ttl)
			}
			if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: old.uid}); err != nil {
				t.Fatal(err)
			}
			if ttl := f.ttl(old.key("ue", old.uid)); ttl < 2024*time.Hour {
				t.Errorf("the user's epoch lives %v, the sessions it ended 2000 h, their tokens 24 h more", ttl)
			}
			if ttl := f.ttl(fmt.Sprintf("lk:{%d}:log", old.sid.Shard())); ttl < 24*time.Hour {
				t.Errorf("the log lives %v, the token 24 h", ttl)
			}
		})
	}
}

func TestRevokeUserEndsEverySession(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		a, b, bystander := f.login("alice"), f.login("alice"), f.login("bob")
		if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: a.uid}); err != nil {
			t.Fatal(err)
		}
		for _, s := range []*family{a, b} {
			is(t, "access token", s.verify(0), tokenstore.ErrRevoked)
			_, err := s.show(1)
			is(t, "refresh", err, tokenstore.ErrSuperseded)
			// By the key a copy of the login would see that its session is over.
			if !f.exists(s.key("rt", s.sid)) {
				t.Error("the refused refresh key was removed before it expired")
			}
		}
		is(t, "another user", bystander.verify(0), nil)
		list, _, err := f.Sessions.List(t.Context(), a.uid, "", 100)
		if err != nil || len(list) != 0 {
			t.Errorf("sessions left: %v, %v", list, err)
		}
		c := f.login("alice")
		if c.grants[0].UserEpoch != 1 {
			t.Errorf("epoch %d, want 1", c.grants[0].UserEpoch)
		}
		is(t, "a later login", c.verify(0), nil)
		if _, err := c.show(1); err != nil {
			t.Error(err)
		}
	})
}

func TestRevokeUserKeepsTheExceptedSession(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		kept, gone := f.login("alice"), f.login("alice")
		if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: kept.uid, Except: &kept.sid}); err != nil {
			t.Fatal(err)
		}
		is(t, "the other session", gone.verify(0), tokenstore.ErrRevoked)
		is(t, "the excepted session's token", kept.verify(0), nil)
		g, err := kept.show(1)
		if err != nil || g.UserEpoch != 1 {
			t.Fatalf("refresh: %+v, %v", g, err)
		}
		list, _, err := f.Sessions.List(t.Context(), kept.uid, "", 100)
		if err != nil || len(list) != 1 || list[0].SID != kept.sid {
			t.Errorf("sessions left: %v, %v", list, err)
		}
		// The exception is for this once: the next one names none.
		if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: kept.uid}); err != nil {
			t.Fatal(err)
		}
		is(t, "first token", kept.verify(0), tokenstore.ErrRevoked)
		is(t, "second token", kept.verify(1), tokenstore.ErrRevoked)
		// And a dead session cannot except itself back to life.
		_, err = f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: kept.uid, Except: &kept.sid})
		is(t, "excepting a dead session", err, tokenstore.ErrNoSession)
		is(t, "first token", kept.verify(0), tokenstore.ErrRevoked)
	})
}

func TestAForgottenEpochNeverRevivesASession(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		s := f.login("alice")
		if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: s.uid}); err != nil {
			t.Fatal(err)
		}
		// The epoch was written with a short life, as if by a replica with short settings; a login renews it.
		if err := f.rdb.PExpire(t.Context(), s.key("ue", s.uid), time.Minute).Err(); err != nil {
			t.Fatal(err)
		}
		f.login("alice")
		if ttl := f.ttl(s.key("ue", s.uid)); ttl < 720*time.Hour {
			t.Errorf("the epoch lives %v, a session up to 720 h", ttl)
		}
	})
}

func TestLoginWithOutdatedCredentialsIsRefused(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		if err := f.Accounts.Create(t.Context(), tokenstore.Account{Username: "alice", Hash: "h1"}); err != nil {
			t.Fatal(err)
		}
		_, readAt, err := f.Accounts.Get(t.Context(), "alice")
		if err != nil {
			t.Fatal(err)
		}
		changed, err := f.Accounts.SetPassword(t.Context(), "alice", "", "h2")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: f.UserID("alice"), ChangedAt: changed}); err != nil {
			t.Fatal(err)
		}
		_, err = f.tryLogin("alice", readAt)
		is(t, "a login whose password was checked before the change", err, tokenstore.ErrSuperseded)
		if _, err := f.tryLogin("alice", changed.Add(time.Millisecond)); err != nil {
			t.Errorf("a login that read the new password: %v", err)
		}
	})
}

// I7: an empty Redis makes everything from before dead, within the same
// millisecond and whatever its clock says.
func TestALossOfDataKillsEveryEarlierToken(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		loggedOut, alive := f.login("alice"), f.login("alice")
		loggedOut.logout(true)
		if err := flushAll(t.Context(), f.rdb); err != nil {
			t.Fatal(err)
		}
		is(t, "logged out before", loggedOut.verify(0), tokenstore.ErrRevoked)
		is(t, "alive before", alive.verify(0), tokenstore.ErrRevoked)
		_, err := alive.show(1)
		is(t, "refresh", err, tokenstore.ErrNoSession)
		s := f.login("alice")
		is(t, "a login afterwards", s.verify(0), nil)
		is(t, "alive before, once more", alive.verify(0), tokenstore.ErrRevoked)
		s.logout(true)
		is(t, "logout afterwards", s.verify(0), tokenstore.ErrRevoked)
	})
}

func TestVerifyJudgesExpiryByRedisTime(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		s := f.login("alice")
		token := s.access(0)
		token.Expires = s.grants[0].Now
		is(t, "an expired token", f.Revocations.Verify(t.Context(), token), tokenstore.ErrExpired)
	})
}

// logEntry is one entry as a reader of the log sees it: "chain|line".
type logEntry struct{ id, chain, line string }

func readLog(t *testing.T, f *fixture, shard int) []logEntry {
	t.Helper()
	var list []logEntry
	for _, m := range f.rdb.XRange(t.Context(), fmt.Sprintf("lk:{%d}:log", shard), "-", "+").Val() {
		v, _ := m.Values["v"].(string)
		chain, line, _ := strings.Cut(v, "|")
		list = append(list, logEntry{m.ID, chain, line})
	}
	return list
}

// I3: seq is contiguous, and chain names exactly one history.
func TestTheLogIsOneChain(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		for range 3 {
			f.login("alice").logout(true)
		}
		kept := f.login("alice")
		if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: kept.uid, Except: &kept.sid}); err != nil {
			t.Fatal(err)
		}
		shard := kept.sid.Shard()
		chain := f.rdb.HGet(t.Context(), fmt.Sprintf("lk:{%d}:head", shard), "epoch").Val()
		entries := readLog(t, f, shard)
		for i, e := range entries {
			seq := strconv.Itoa(i + 1)
			if e.id != seq+"-0" {
				t.Errorf("entry %d has id %s", i+1, e.id)
			}
			sum := sha1.Sum([]byte(strings.Join([]string{chain, seq, e.line}, "|")))
			if chain = hex.EncodeToString(sum[:8]); chain != e.chain {
				t.Errorf("entry %d has the chain %s, want %s", i+1, e.chain, chain)
			}
		}
		keep := "910000" // the life of an access token and the pad
		last := strings.Split(entries[len(entries)-1].line, "|")
		if len(last) != 6 || last[0] != "user" || last[1] != kept.uid.String() || last[3] != keep || last[4] != "1" || last[5] != kept.sid.String() {
			t.Errorf("the last entry is %q", last)
		}
		first := strings.Split(entries[0].line, "|")
		if len(first) != 4 || first[0] != "sid" || first[3] != keep {
			t.Errorf("the first entry is %q", first)
		}
		head := f.rdb.HGetAll(t.Context(), fmt.Sprintf("lk:{%d}:head", shard)).Val()
		if head["seq"] != "4" || head["chain"] != chain {
			t.Errorf("head %v, want seq 4 and chain %s", head, chain)
		}
	})
}

func TestTheLogDropsWhatEveryTokenHasOutlived(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		shard := f.UserID("alice").Shard()
		log := fmt.Sprintf("lk:{%d}:log", shard)
		const old = 46 // the first two of sixteen appends drop none
		f.login("alice").logout(true)
		if err := f.rdb.HSet(t.Context(), fmt.Sprintf("lk:{%d}:head", shard), "seq", old).Err(); err != nil {
			t.Fatal(err)
		}
		f.rdb.Del(t.Context(), log)
		for i := 1; i <= old; i++ {
			const keep = 910_000 // ms: older than the longest access lifetime
			at := time.Now().Add(-16 * time.Minute).UnixMilli()
			line := fmt.Sprintf("0123456789abcdef|sid|AAAAAAAAAAAAAAAAAAAAAA|%d|%d", at+keep, keep)
			if err := f.rdb.XAdd(t.Context(), &redis.XAddArgs{Stream: log, ID: strconv.Itoa(i) + "-0", Values: []any{"v", line}}).Err(); err != nil {
				t.Fatal(err)
			}
		}
		f.login("alice").logout(true)
		if n := len(readLog(t, f, shard)); n != old+1 {
			t.Errorf("%d entries after an append that drops none, want %d", n, old+1)
		}
		f.login("alice").logout(true)
		entries := readLog(t, f, shard)
		if len(entries) != 2 || entries[0].id != "47-0" || entries[1].id != "48-0" {
			t.Errorf("the log is %v, want entries 47 and 48", entries)
		}
	})
}

func TestEveryKeyExpiresButAccountsKeysAndMeta(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		exercise(t, f)
		permanent := regexp.MustCompile(`^lk:(meta|keys|\{\d+\}:((acct|client):.*|dead|costs))$`)
		seen := map[string]bool{}
		for _, key := range f.allKeys() {
			kind := regexp.MustCompile(`^lk:(?:\{\d+\}:)?([a-z]+(?::[a-z]+)?)`).FindStringSubmatch(key)
			if kind == nil {
				t.Errorf("stray key %q", key)
				continue
			}
			seen[kind[1]] = true
			if ttl := f.ttl(key); (ttl < 0) != permanent.MatchString(key) {
				t.Errorf("%s has TTL %v", key, ttl)
			}
		}
		for _, kind := range []string{"rt", "deny", "ue", "us", "log", "head", "acct", "client", "thr", "old", "meta", "keys", "dead", "idx", "invalid", "costs"} {
			found := false
			for k := range seen {
				found = found || strings.HasPrefix(k, kind)
			}
			if !found {
				t.Errorf("no %s key was made: the test does not test it", kind)
			}
		}
	})
}

// exercise calls every operation at least once.
func exercise(t *testing.T, f *fixture) {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(f.Accounts.Create(ctx, tokenstore.Account{Username: "alice", Subject: "u-1", Hash: "h"}))
	attempt := attempt("alice", "192.0.2.1")
	charged, err := f.Attempts.Lookup(ctx, attempt)
	must(err)
	must(f.Attempts.Refund(ctx, charged.Charge))
	_, err = f.Attempts.Lookup(ctx, attempt)
	must(err)
	_, err = f.Accounts.ReplacePassword(ctx, "alice", "h", "h")
	must(err)
	_, err = f.Keys.Offer(ctx, keySettings(), sealed("k1"), tokenstore.OfferDue)
	must(err)
	_, err = f.Keys.Offer(ctx, keySettings(), sealed("k2"), tokenstore.OfferNow)
	must(err)
	must(f.Keys.Reseal(ctx, "k2", []byte("sealed k2"), []byte("anew")))
	_, err = f.Keys.Revoke(ctx, keySettings(), "k1", tokenstore.SealedKey{})
	must(err)
	_, err = f.Keys.Deny(ctx, "k1")
	must(err)
	_, err = f.Keys.Sync(ctx, keySettings())
	must(err)
	_, err = f.Keys.Ring(ctx)
	must(err)
	a, b, c := f.login("u-1"), f.login("u-1"), f.login("u-1")
	_, err = a.show(1)
	must(err)
	must(a.verify(1))
	a.logout(true)
	_, err = f.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: b.uid, Except: &b.sid})
	must(err)
	_, err = c.show(1)
	is(t, "ended session", err, tokenstore.ErrSuperseded)
	_, _, err = f.Sessions.List(ctx, b.uid, "", 100)
	must(err)
	_, err = f.Sessions.Get(ctx, b.sid)
	must(err)
	_, err = f.Proofs.FirstUse(ctx, [32]byte{}, time.Now().Add(time.Minute))
	must(err)
	_, err = f.Accounts.SetPassword(ctx, "alice", "h", "h2")
	must(err)
	_, err = f.Accounts.SetDisabled(ctx, "alice", true)
	must(err)
	must(f.Accounts.Create(ctx, tokenstore.Account{Username: "bob", Hash: "h"}))
	_, err = f.Accounts.Delete(ctx, "bob")
	must(err)
	secret := random32(t)
	must(f.Clients.Create(ctx, tokenstore.Client{ID: "lkc_a"}, secret))
	must(f.Clients.RotateSecret(ctx, "lkc_a", random32(t), time.Hour))
	_, err = f.Clients.Authenticate(ctx, "lkc_a", secret)
	must(err)
	_, err = f.Clients.IssueToken(ctx, "lkc_a", secret)
	must(err)
	_, err = f.Clients.Get(ctx, "lkc_a")
	must(err)
	_, err = f.Sessions.Peek(ctx, f.login("u-1").rotation(1))
	must(err)
	must(f.Open(ctx))
	must(f.Ping(ctx))
	l := f.withLists()
	d, e := l.login("u-2"), l.login("u-2")
	_, err = d.show(1)
	must(err)
	d.logout(true)
	_, err = l.Clients.IssueToken(ctx, "lkc_a", secret)
	must(err)
	_, err = l.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: e.uid})
	must(err)
	l.login("u-2")
	_, err = l.Revocations.StatusView(ctx, e.sid.Shard())
	must(err)
}

// No operation crosses slots: all keys of one script have one hash tag, and
// there is a script for every file.
func TestNoScriptCrossesSlots(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		tag := regexp.MustCompile(`^lk:(\{\d+\}):`)
		var mu sync.Mutex
		seen := map[string]bool{}
		f.store.AddHook(keysOf{see: func(script string, keys []string) {
			mu.Lock()
			defer mu.Unlock()
			seen[script] = true
			want := ""
			for _, key := range keys {
				got := key // a key without a tag is its own slot
				if m := tag.FindStringSubmatch(key); m != nil {
					got = m[1]
				}
				if want == "" {
					want = got
				}
				if got != want {
					t.Errorf("one script has the keys %q", keys)
				}
			}
		}})
		exercise(t, f)
		if len(seen) < 22 {
			t.Errorf("only %d scripts were seen", len(seen))
		}
	})
}

func TestScriptsSurviveAFlushedCache(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		flush := func() {
			if err := f.rdb.ScriptFlush(ctx).Err(); err != nil {
				t.Fatal(err)
			}
		}
		flush()
		s := f.login("alice")
		for _, op := range []func() error{
			func() error { _, err := s.show(1); return err },
			func() error { return s.verify(1) },
			func() error { _, err := f.Attempts.Lookup(ctx, attempt("alice", "192.0.2.1")); return err },
			func() error {
				l, err := f.Attempts.Lookup(ctx, attempt("alice", "192.0.2.1"))
				flush()
				return errors.Join(err, f.Attempts.Refund(ctx, l.Charge))
			},
			func() error { s.logout(true); return nil },
		} {
			flush()
			if err := op(); err != nil {
				t.Error(err)
			}
		}
		is(t, "after the logout", s.verify(0), tokenstore.ErrRevoked)
	})
}

func TestRoundTrips(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		exercise(t, f) // loads every script
		if f.Accounts.Create(t.Context(), tokenstore.Account{Username: "carol", Hash: "h"}) != nil {
			t.Fatal("no account")
		}
		var count trips
		f.store.AddHook(&count)
		counted := false
		cost := func(what string, want int64, op func()) {
			t.Helper()
			count.n.Store(0)
			op()
			if got := count.n.Load(); got != want && counted {
				t.Errorf("%s: %d round trips, want %d", what, got, want)
			}
		}
		for range 2 { // on a Cluster, this user's node may see a script for the first time
			var s *family
			var charged tokenstore.Lookup
			cost("lookup", 1, func() { charged, _ = f.Attempts.Lookup(t.Context(), attempt("carol", "192.0.2.1")) })
			cost("login", 1, func() { s = f.login("carol") })
			cost("login with a refund", 1, func() {
				_, _ = f.loginWith(tokenstore.NewSession{Subject: "carol", ReadAt: f.Now().Add(time.Hour), Charge: charged.Charge})
			})
			cost("refund", 1, func() { _ = f.Attempts.Refund(t.Context(), charged.Charge) })
			cost("rotate", 1, func() { _, _ = s.show(1) })
			cost("same", 1, func() { _, _ = s.show(1) })
			cost("verify", 1, func() { _ = s.verify(0) })
			cost("revoke", 1, func() { s.logout(true) })
			cost("authenticate a client", 1, func() { _, _ = f.Clients.Authenticate(t.Context(), "lkc_a", [32]byte{}) })
			cost("peek", 1, func() { _, _ = f.Sessions.Peek(t.Context(), s.rotation(1)) })
			cost("first use", 1, func() { _, _ = f.Proofs.FirstUse(t.Context(), [32]byte{}, time.Now().Add(time.Minute)) })
			l := f.withLists()
			var listed *family
			cost("login, with a place", 1, func() { listed = l.login("carol") })
			cost("rotate, with a place", 1, func() { _, _ = listed.show(1) })
			cost("revoke, with a place", 1, func() { listed.logout(true) })
			cost("issue to a client, with a place", 1, func() { _, _ = l.Clients.IssueToken(t.Context(), "lkc_a", [32]byte{}) })
			cost("status view", 1, func() { _, _ = f.Revocations.StatusView(t.Context(), listed.sid.Shard()) })
			cost("revoke user", 2, func() { _, _ = f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: s.uid}) })
			cost("revoke user, without sessions", 1, func() { _, _ = f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: s.uid}) })
			counted = true
		}
	})
}

func TestAnotherNumberOfShardsIsRefused(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		other, err := tokenstore.New(f.rdb, tokenstore.Options{Shards: 8, Lifetimes: lifetimes(), Timeout: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		err = other.Open(t.Context())
		is(t, "8 shards where there are 16", err, tokenstore.ErrShards)
		if err == nil || !strings.Contains(err.Error(), "set it to 16") {
			t.Errorf("the error does not say what to do: %v", err)
		}
	})
}

// Ids of a shard that this store does not have are no reason to panic.
func TestIdsOfOtherShardsAreRefused(t *testing.T) {
	f := newFixtureOn(t, backends()["miniredis"](t), lifetimes())
	s := f.login("alice")
	far := tokenstore.ID{200}
	_, _, err := f.Sessions.Rotate(t.Context(), tokenstore.Rotation{SID: far, UID: far})
	is(t, "rotate", err, tokenstore.ErrNoSession)
	_, err = f.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: far, UID: far})
	is(t, "revoke", err, tokenstore.ErrNoSession)
	_, err = f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: far})
	is(t, "revoke user", err, tokenstore.ErrNoSession)
	_, err = f.Sessions.Get(t.Context(), far)
	is(t, "session", err, tokenstore.ErrNoSession)
	token := s.access(0)
	token.JTI[0] = 200
	is(t, "verify", f.Revocations.Verify(t.Context(), token), tokenstore.ErrRevoked)
	if _, err := f.Sessions.Login(t.Context(), tokenstore.NewSession{SID: far, UID: s.uid}); err == nil {
		t.Error("login in two shards was let in")
	}
}

func TestParseIDTakesOnlyTheCanonicalForm(t *testing.T) {
	id := tokenstore.ID{7, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	text := id.String()
	if got, err := tokenstore.ParseID(text); err != nil || got != id {
		t.Fatalf("%v, %v", got, err)
	}
	for _, bad := range []string{"", text[:21], text + "A", text[:21] + "/", text[:21] + "\n", text[:20] + "\r\n", text[:21] + "x", "=" + text[1:], strings.Repeat("é", 11)} {
		if id, err := tokenstore.ParseID(bad); err == nil {
			t.Errorf("%q was read as %v", bad, id)
		}
	}
}

// What is not answered in time is sent again. A theft must then be waited for as
// if it had been answered the first time.
func TestATheftSentTwiceIsOneRevocation(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		s := f.login("alice")
		for gen := 1; gen <= 2; gen++ {
			if _, err := s.rotate(gen); err != nil {
				t.Fatal(err)
			}
		}
		shown := tokenstore.Rotation{SID: s.sid, UID: s.uid, Gen: 1, Hash: sha256.Sum256(s.secrets[0][:])}
		_, first, err := f.Sessions.Rotate(t.Context(), shown)
		is(t, "a theft", err, tokenstore.ErrReuse)
		if first.Mark.Seq == 0 {
			t.Errorf("the theft is no entry of the log: %+v", first)
		}
		head := f.login("alice").logout(false)
		_, again, err := f.Sessions.Rotate(t.Context(), shown)
		is(t, "the same, sent again", err, tokenstore.ErrRevoked)
		if again.Shard != head.Shard || again.Mark != head.Mark {
			t.Errorf("the head is %+v, the second theft returns %+v", head, again)
		}
	})
}
