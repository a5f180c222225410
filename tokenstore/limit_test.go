package tokenstore_test

import (
	"context"
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

// limited is the same Redis, with a store that lets a user have so many sessions.
func (f *fixture) limited(sessions int) *fixture {
	f.t.Helper()
	return newFixtureWith(f.t, backend{store: f.store, test: f.rdb}, tokenstore.Options{
		Lifetimes: f.Lifetimes(), StatusLists: true, SessionsPerUser: sessions,
	})
}

// all reads a user's list page by page.
func (f *fixture) all(uid tokenstore.ID, limit int) []tokenstore.ID {
	f.t.Helper()
	var sids []tokenstore.ID
	for cursor, pages := "", 0; ; pages++ {
		page, next, err := f.Sessions.List(f.t.Context(), uid, cursor, limit)
		if err != nil || len(page) > limit || pages > 1000 {
			f.t.Fatalf("page %d has %d sessions, %v", pages, len(page), err)
		}
		for _, s := range page {
			sids = append(sids, s.SID)
		}
		if cursor = next; cursor == "" {
			return sids
		}
	}
}

// scored sets when a session is listed to expire, from now.
func (fam *family) scored(d time.Duration) {
	fam.f.t.Helper()
	at := float64(fam.grants[0].Now.Add(d).UnixMilli())
	if err := fam.f.rdb.ZAddXX(fam.f.t.Context(), fam.key("us", fam.uid), redis.Z{Score: at, Member: fam.sid.String()}).Err(); err != nil {
		fam.f.t.Fatal(err)
	}
}

func TestALoginTooManyEndsTheSessionThatExpiresFirst(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f = f.limited(3)
		a, b, c, bystander := f.login("alice"), f.login("alice"), f.login("alice"), f.login("bob")
		for _, s := range []*family{a, b, c, bystander} {
			if n := len(s.grants[0].Ended); n != 0 {
				t.Fatalf("a login that was not too many ended %d sessions", n)
			}
		}
		b.scored(time.Hour)
		d := f.login("alice")
		if diff := cmp.Diff([]tokenstore.ID{b.sid}, d.grants[0].Ended); diff != "" {
			t.Errorf("ended (-want +got):\n%s", diff)
		}
		is(t, "its access token", b.verify(0), tokenstore.ErrRevoked)
		_, err := b.show(1)
		is(t, "its refresh token", err, tokenstore.ErrRevoked)
		b.listed("its status", true)
		near(t, "TTL of its denial", f.ttl(b.key("deny", b.sid)), 15*time.Minute+10*time.Second, 5*time.Second)
		if log := readLog(t, f, b.sid.Shard()); len(log) != 1 || !strings.HasPrefix(log[0].line, "sid|"+b.sid.String()+"|") {
			t.Errorf("the log is %+v", log)
		}
		for _, s := range []*family{a, c, d, bystander} {
			is(t, "another session", s.verify(0), nil)
			s.listed("another session", false)
		}
		if n := len(f.all(a.uid, 100)); n != 3 {
			t.Errorf("%d sessions are left, want 3", n)
		}
	})
}

// The list goes by last use: no session that is in use counts as unused for more than an
// hour.
func TestTheListIsInOrderOfUseToTheHour(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f = f.limited(2)
		used, unused := f.login("alice"), f.login("alice")
		for _, s := range []*family{used, unused} { // as if two hours had passed
			score := f.rdb.ZScore(t.Context(), s.key("us", s.uid), s.sid.String()).Val()
			near(t, "how much longer than it lives it is listed", time.UnixMilli(int64(score)).Sub(s.grants[0].RefreshExpiry), time.Hour, time.Minute)
			s.scored(167 * time.Hour)
			f.rdb.HSet(t.Context(), s.key("rt", s.sid), "lst", s.grants[0].Now.Add(167*time.Hour).UnixMilli())
		}
		if _, err := used.show(1); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]tokenstore.ID{unused.sid}, f.login("alice").grants[0].Ended); diff != "" {
			t.Errorf("ended (-want +got):\n%s", diff)
		}
	})
}

func TestTheNewSessionIsNotTheOneTooMany(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		old := f.login("alice") // expires later than what the next store makes
		life := lifetimes()
		life.Refresh = time.Hour
		one := newFixtureWith(t, backend{store: f.store, test: f.rdb}, tokenstore.Options{Lifetimes: life, SessionsPerUser: 1})
		s := one.login("alice")
		is(t, "the new session", s.verify(0), nil)
		is(t, "the old session", old.verify(0), tokenstore.ErrRevoked)
	})
}

// A session that has expired counts for nothing, though the list may still have it.
func TestAnExpiredSessionIsNotOneTooMany(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f = f.limited(2)
		a, gone := f.login("alice"), f.login("alice")
		gone.scored(-time.Second)
		if s := f.login("alice"); len(s.grants[0].Ended) != 0 {
			t.Errorf("ended: %v", s.grants[0].Ended)
		}
		is(t, "the one that is alive", a.verify(0), nil)
	})
}

// Lowered, the limit is reached by and by: no login pays for all.
func TestALoweredLimitIsReachedStepByStep(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		uid := f.UserID("alice")
		for range 12 {
			f.login("alice")
		}
		f = f.limited(3)
		for _, want := range []int{9, 6, 3, 3} {
			s := f.login("alice")
			if n := len(f.all(uid, 100)); n != want || len(s.grants[0].Ended) > 4 {
				t.Errorf("%d sessions after %d were ended, want %d", n, len(s.grants[0].Ended), want)
			}
		}
	})
}

func TestRacingLoginsKeepTheLimit(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f = f.limited(5)
		uid := f.UserID("alice")
		for range 5 {
			f.login("alice")
		}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := f.tryLogin("alice", f.Now().Add(time.Hour)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		// Each has ended what it made too many. Those of one millisecond may have taken
		// one for another: the next logins put that right.
		for range 4 {
			f.login("alice")
		}
		if n := len(f.all(uid, 100)); n != 5 {
			t.Errorf("%d sessions, want 5", n)
		}
	})
}

// refusesRevoke is a network that loses what ends sessions.
type refusesRevoke struct {
	on   bool
	hash string // of the script revoke
}

func (r *refusesRevoke) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (r *refusesRevoke) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (r *refusesRevoke) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			if r.on && len(cmd.Args()) > 1 && cmd.Args()[1] == r.hash {
				return errors.New("no network")
			}
		}
		return next(ctx, cmds)
	}
}

func TestWhatCouldNotBeEndedEndsWithALaterLogin(t *testing.T) {
	f := newFixtureOn(t, backends()["miniredis"](t), lifetimes()).limited(2)
	network := &refusesRevoke{on: true}
	for _, sc := range f.AllScripts() {
		if sc.Name == "revoke" {
			network.hash = sc.Hash
		}
	}
	f.store.AddHook(network)
	a, b := f.login("alice"), f.login("alice")
	a.scored(time.Hour)
	b.scored(2 * time.Hour)
	c := f.login("alice")
	if diff := cmp.Diff([]tokenstore.ID{a.sid}, c.grants[0].Ended); diff != "" {
		t.Errorf("that may have ended (-want +got):\n%s", diff)
	}
	is(t, "the login", c.verify(0), nil)
	is(t, "the one too many", a.verify(0), nil)
	network.on = false
	d := f.login("alice")
	if diff := cmp.Diff([]tokenstore.ID{a.sid, b.sid}, d.grants[0].Ended); diff != "" {
		t.Errorf("ended by the next (-want +got):\n%s", diff)
	}
	is(t, "the one too many", a.verify(0), tokenstore.ErrRevoked)
}

// To log out everywhere again and again must not get around the limit: what ended does not
// stay in Redis for the days that it would have lived.
func TestWhatLogOutEverywhereEndedIsForgotten(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f = f.limited(3)
		a, b, kept, bystander := f.login("alice"), f.login("alice"), f.login("alice"), f.login("bob")
		if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: a.uid, Except: &kept.sid}); err != nil {
			t.Fatal(err)
		}
		forgotten := func(s *family, want bool) {
			t.Helper()
			d := f.ttl(s.key("rt", s.sid))
			// A copy of its login must find the key as long as it may be on its way.
			if got := d <= time.Minute; got != want || d <= tokenstore.SkewPad {
				t.Errorf("its refresh key lives for %v", d)
			}
		}
		forgotten(a, true)
		forgotten(b, true)
		forgotten(kept, false)
		_, err := a.show(1)
		is(t, "a session that ended", err, tokenstore.ErrSuperseded)
		if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: a.uid}); err != nil {
			t.Fatal(err)
		}
		forgotten(kept, true)
		forgotten(bystander, false)
	})
}

// commands are how often Redis ran each command during op, scripts' own included.
func (f *fixture) commands(op func()) map[string]int {
	f.t.Helper()
	if err := f.rdb.Do(f.t.Context(), "CONFIG", "RESETSTAT").Err(); err != nil {
		f.t.Fatal(err)
	}
	op()
	counts := map[string]int{}
	text := f.rdb.Info(f.t.Context(), "commandstats").Val()
	for _, m := range regexp.MustCompile(`cmdstat_(\w+):calls=(\d+)`).FindAllStringSubmatch(text, -1) {
		counts[m[1]], _ = strconv.Atoi(m[2])
	}
	return counts
}

// No script does more the more sessions a user has, or has had.
func TestManySessionsMakeNoScriptLonger(t *testing.T) {
	t.Parallel()
	f := newFixtureOn(t, backends()["redis"](t), lifetimes()).withLists()
	s := f.login("alice")
	us := s.key("us", s.uid)
	ghosts := func(n int, score func(i int) float64) {
		t.Helper()
		list := make([]redis.Z, n)
		for i := range list {
			list[i] = redis.Z{Score: score(i), Member: fmt.Sprintf("%021dA", i)}
		}
		if err := f.rdb.ZAdd(t.Context(), us, list...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	ghosts(1000, func(i int) float64 { return float64(i) }) // they have expired
	f.login("alice")
	if n := f.rdb.ZCard(t.Context(), us).Val(); n != 902 {
		t.Errorf("after a login %d of a list of 1,002 are left, want 902: it drops 100 that have expired", n)
	}
	s.logout(false)
	if got := f.commands(func() { s.logout(false) }); got["zrange"] != 0 {
		t.Errorf("a logout that is sent again looks for places: %v", got)
	}
	ghosts(1000, func(int) float64 { return float64(f.Now().Add(time.Hour).UnixMilli()) })
	got := f.commands(func() {
		_, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: s.uid})
		is(t, "log out everywhere", err, nil)
	})
	if got["del"] != 0 || got["unlink"] == 0 {
		t.Errorf("log out everywhere frees the list while all wait: %v", got)
	}
}

// To end all of a client's tokens is a few entries, however many there are.
func TestAClientsTokensAreFewEntries(t *testing.T) {
	t.Parallel()
	f := newFixtureOn(t, backends()["redis"](t), lifetimes()).withLists()
	secret, uid := f.register(tokenstore.Client{ID: "lkc_a"}), f.UserID("lkc_a")
	places := map[tokenstore.Place]bool{}
	var last tokenstore.Place
	for range 3100 {
		g, err := f.Clients.IssueToken(t.Context(), "lkc_a", secret)
		if err != nil || places[g.Place] || g.Place.N == 0 {
			t.Fatalf("place %+v, %v", g.Place, err)
		}
		places[g.Place], last = true, g.Place
	}
	key := fmt.Sprintf("lk:{%d}:idx:%s", uid.Shard(), uid)
	if n := f.rdb.ZCard(t.Context(), key).Val(); n != 33 {
		t.Errorf("3,100 tokens are %d entries, want 33: 16 of 64, 16 of 128, one of 256", n)
	}
	if _, err := f.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: uid}); err != nil {
		t.Fatal(err)
	}
	v, err := f.Revocations.StatusView(t.Context(), uid.Shard())
	if err != nil {
		t.Fatal(err)
	}
	shown := map[uint64]bool{}
	for _, p := range v.Revoked {
		for n := p.First; n < p.First+p.Count; n++ {
			shown[n] = true
		}
	}
	for p := range places {
		if !shown[p.N] {
			t.Fatalf("place %d is not shown as revoked", p.N)
		}
	}
	if after, err := f.Clients.IssueToken(t.Context(), "lkc_a", secret); err != nil || shown[after.Place.N] || after.Place.N <= last.N {
		t.Errorf("a token that was issued afterwards has the place %+v, %v", after.Place, err)
	}
}

func TestSessionsAreListedByPages(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		var want []tokenstore.ID
		families := make([]*family, 7)
		for i := range families {
			families[i] = f.login("alice")
			families[i].scored(time.Duration(i/2+1) * time.Hour) // some at the same time
			want = append(want, families[i].sid)
		}
		families[0].scored(100 * time.Hour)
		families[1].scored(99 * time.Hour)
		f.login("bob")
		uid := families[0].uid
		inOrder := f.all(uid, 100)
		same := cmp.Transformer("set", func(ids []tokenstore.ID) map[tokenstore.ID]bool {
			set := map[tokenstore.ID]bool{}
			for _, id := range ids {
				set[id] = true
			}
			return set
		})
		if diff := cmp.Diff(want, inOrder, same); diff != "" || inOrder[0] != families[0].sid || inOrder[1] != families[1].sid {
			t.Fatalf("the list (-want +got):\n%s", diff)
		}
		for limit := 1; limit <= 8; limit++ {
			if diff := cmp.Diff(inOrder, f.all(uid, limit)); diff != "" {
				t.Errorf("by %d (-want +got):\n%s", limit, diff)
			}
		}

		// The session at which a page ended has ended, or was used, meanwhile.
		for what, change := range map[string]func(s *family){
			"ended": func(s *family) { s.logout(false) },
			"used":  func(s *family) { s.scored(200 * time.Hour) },
		} {
			_, next, err := f.Sessions.List(t.Context(), uid, "", 2)
			if err != nil {
				t.Fatal(err)
			}
			before := f.all(uid, 100)
			for _, s := range families {
				if s.sid == before[1] {
					change(s)
				}
			}
			page, _, err := f.Sessions.List(t.Context(), uid, next, 1)
			if err != nil || len(page) != 1 || page[0].SID != before[2] {
				t.Errorf("%s: the page after is %+v, %v; want %s", what, page, err, before[2])
			}
		}

		for _, bad := range []string{"x", ".", "1", "1.", "." + uid.String(), "-1." + uid.String(), "1.AAAA", "+inf." + uid.String(), strings.Repeat("9", 30) + "." + uid.String()} {
			_, _, err := f.Sessions.List(t.Context(), uid, bad, 10)
			is(t, fmt.Sprintf("the cursor %q", bad), err, tokenstore.ErrCursor)
		}
	})
}
