package handlers_test

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// The promise of the service, over three replicas: log in at one, refresh at the
// next, log out at the third; from then on nobody accepts either token.
func TestLogoutEndsTheSessionEverywhereAtOnce(t *testing.T) {
	t.Parallel()
	ways := map[string]struct {
		shown      func(tokens) []option
		withBearer bool
	}{
		"by the cookie alone": {func(s tokens) []option { return []option{cookie(s.refresh)} }, false},
		"by the bearer alone": {func(s tokens) []option { return []option{bearer(s.access)} }, true},
		"by both":             {func(s tokens) []option { return []option{cookie(s.refresh), bearer(s.access)} }, true},
		"by the body":         {func(s tokens) []option { return []option{form("refresh_token", s.refresh)} }, false},
		"by the body in JSON": {func(s tokens) []option { return []option{jsonBody(`{"refresh_token":"` + s.refresh + `"}`)} }, false},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, f *fleet) {
				first := f.login(0)
				second := f.refresh(1, first)
				third := f.refresh(2, second)
				f.alive(first.access)
				f.alive(third.access)
				other := f.login(1)

				a := f.post(2, "/auth/logout", way.shown(third)...).is(http.StatusOK)
				if got := a.member("message"); got != "Successfully logged out" {
					t.Errorf("message: %q", got)
				}
				if c := a.cookie("refresh_token"); c.Value != "" || c.MaxAge != -1 || c.Path != "/auth" {
					t.Errorf("the cookie was not taken back: %v", c)
				}

				f.dead(third)
				f.dead(second)
				f.dead(first)
				if n := f.rdb.Exists(t.Context(), f.rtKey(first.access)).Val(); n != 0 {
					t.Error("the refresh key is still there")
				}
				ttl := f.rdb.PTTL(t.Context(), f.keyOf("deny", third.access, "sid")).Val()
				f.near(t, "the denial of the session lives", ttl, f.life.Access+pad, 5*time.Second)
				if way.withBearer {
					exp, _ := f.claims(third.access)["exp"].(float64)
					at := time.Now().Add(f.rdb.PTTL(t.Context(), f.keyOf("deny", third.access, "jti")).Val())
					f.near(t, "the denial of the token expires after the token by", at.Sub(time.Unix(int64(exp), 0)), pad, 5*time.Second)
				}

				// Only that session.
				f.alive(other.access)
				f.refresh(0, other)

				// Again, anywhere: the same answer.
				f.post(0, "/auth/logout", way.shown(third)...).is(http.StatusOK)
			})
		})
	}
}

// A logout that shows the tokens of two sessions ends both.
func TestLogoutEndsEverySessionShown(t *testing.T) {
	t.Parallel()
	f := usual(t)
	a, b := f.login(0), f.login(1)
	f.post(2, "/auth/logout", bearer(a.access), cookie(b.refresh)).is(http.StatusOK)
	f.dead(a)
	f.dead(b)
}

// However many cookies came along: a 200 is a promise for all of them. (Another
// site of the same domain can put cookies in front of ours.)
func TestLogoutIsNotCrowdedOut(t *testing.T) {
	t.Parallel()
	f := usual(t)
	f.account(tokenstore.Account{Username: "mallory"}, "mallory-password")
	mine := f.login(0)
	var options []option
	for range 10 {
		options = append(options, cookie(f.loginAs(1, "mallory", "mallory-password").refresh))
	}
	f.post(2, "/auth/logout", append(options, cookie(mine.refresh))...).is(http.StatusOK)
	f.dead(mine)
}

// A token that has expired still names the session that it belongs to.
func TestLogoutWithAnExpiredAccessToken(t *testing.T) {
	t.Parallel()
	f := usual(t)
	s := f.login(0)
	c := f.claims(s.access)
	expired := f.sign(f.header(), fmt.Sprintf(
		`{"iss":%q,"sub":%q,"aud":%q,"exp":%d,"iat":%d,"jti":%q,"sid":%q,"client_id":"latchkey","ue":0,"le":%q}`,
		issuer, alice, audience, time.Now().Unix()-60, time.Now().Unix()-960, c["jti"], c["sid"], c["le"]))
	f.get(0, "/auth/verify", bearer(expired)).is(http.StatusUnauthorized)
	f.alive(s.access)
	f.post(1, "/auth/logout", bearer(expired)).is(http.StatusOK)
	f.dead(s)
}

// Tokens that are not ours have nothing to end: no error, and no session is touched.
func TestLogoutOfNothing(t *testing.T) {
	t.Parallel()
	f := usual(t)
	s := f.login(0)
	for name, options := range map[string][]option{
		"nothing":        nil,
		"another scheme": {header("Authorization", "Basic YWxpY2U6c2VjcmV0")},
		"garbage":        {bearer("a.b.c"), cookie("garbage")},
		"forged":         {cookie(reseal(t, s.refresh, func(raw []byte) { raw[1] ^= 1 }))}, // there is no such session
		"bad signature":  {bearer(s.access[:len(s.access)-8] + "AAAAAAAA")},
	} {
		a := f.post(1, "/auth/logout", options...).is(http.StatusOK)
		if c := a.cookie("refresh_token"); c.MaxAge != -1 {
			t.Errorf("%s: the cookie was not taken back: %v", name, c)
		}
		f.alive(s.access)
	}
	f.refresh(2, s)
}

// The cookie lives as long as the refresh key, from login on and after each refresh.
func TestCookieLivesAsLongAsTheKey(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fleet) {
		a := f.post(0, "/auth/token", form("username", alice, "password", password))
		for i := range 3 {
			s := a.tokens()
			age := time.Duration(a.cookie("refresh_token").MaxAge) * time.Second
			f.near(t, "Max-Age", age, f.life.Refresh, time.Second)
			f.near(t, "the key's TTL", f.rdb.PTTL(t.Context(), f.rtKey(s.access)).Val(), age, 5*time.Second)
			// The session may not outlive its end, however often it is refreshed.
			if i == 1 {
				f.check(f.rdb.HSet(t.Context(), f.rtKey(s.access), "abs", time.Now().Add(time.Hour).UnixMilli()).Err())
				f.age(s.access, 2*grace)
				s := f.post(1, "/auth/refresh", cookie(s.refresh))
				f.near(t, "Max-Age near the session's end", time.Duration(s.cookie("refresh_token").MaxAge)*time.Second, time.Hour, 5*time.Second)
				return
			}
			a = f.post(i, "/auth/refresh", cookie(s.refresh))
		}
	})
}

// Fifty browser tabs, one token, three replicas: nobody loses the race.
func TestFiftyRefreshesOneSuccessor(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fleet) {
		s := f.login(0)
		const racers = 50
		answers := make([]answer, racers)
		errs := make([]error, racers)
		var wg sync.WaitGroup
		gate := make(chan struct{})
		for i := range racers {
			wg.Go(func() {
				<-gate
				answers[i], errs[i] = f.try(i%3, http.MethodPost, "/auth/refresh", cookie(s.refresh))
			})
		}
		close(gate)
		wg.Wait()
		successors, access := map[string]bool{}, map[string]bool{}
		for i, a := range answers {
			f.check(errs[i])
			next := a.tokens()
			successors[next.refresh], access[next.access] = true, true
		}
		if len(successors) != 1 || successors[s.refresh] {
			t.Errorf("%d successors, want one, and another", len(successors))
		}
		if len(access) != racers {
			t.Errorf("%d access tokens for %d racers", len(access), racers)
		}
		if n := f.events(); n["refresh"] != 1 || n["refresh_same"] != racers-1 {
			t.Errorf("events: %v", n)
		}
		for token := range access {
			f.get(0, "/auth/verify", bearer(token)).is(http.StatusNoContent)
		}
		for token := range successors {
			if again := f.post(1, "/auth/refresh", cookie(token)).tokens(); again.refresh != token {
				t.Error("it rotated twice in the grace")
			}
		}
	})
}

func TestReuseEndsTheFamily(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		generations int // refreshed before the old token is shown
		shown       int
		age         time.Duration
		dead        bool
	}{
		"the parent within the grace":     {1, 0, 0, false},
		"the parent late in the grace":    {1, 0, grace - 5*time.Minute, false},
		"the parent after the grace":      {1, 0, grace + time.Second, true},
		"the grandparent at once":         {2, 0, 0, true},
		"the grandparent after the grace": {2, 0, grace + time.Second, true},
		"the first of five":               {5, 0, 0, true},
		"the last but one of five":        {5, 4, 0, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, f *fleet) {
				chain := []tokens{f.login(0)}
				for i := range c.generations {
					chain = append(chain, f.rotate(i%3, chain[i]))
				}
				other := f.login(1)
				last := chain[len(chain)-1]
				f.age(last.access, c.age)
				a := f.post(2, "/auth/refresh", cookie(chain[c.shown].refresh))
				if !c.dead {
					if next := a.tokens(); next.refresh != chain[c.shown+1].refresh {
						t.Error("another successor")
					}
					f.alive(last.access)
					f.rotate(0, last)
					return
				}
				a.fails(http.StatusUnauthorized, "invalid_grant", "Invalid refresh token")
				for _, s := range chain {
					f.dead(s)
				}
				f.alive(other.access)
				if n := f.events()["refresh_reuse"]; n != 1 {
					t.Errorf("%d events refresh_reuse, want 1", n)
				}
			})
		})
	}
}

// A token that nobody issued is refused before Redis is asked, so that knowing a
// session's id is no way to end it.
func TestForgedRefreshTokenChangesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fleet) {
		s := f.refresh(0, f.login(0))
		before := f.session(s.access)
		stranger, err := refreshtoken.New([]byte("another root secret, of another service"))
		f.check(err)
		genuine, err := f.codec.Parse(s.refresh)
		f.check(err)
		forgeries := map[string]string{
			"another secret":     forge(t, s.refresh),
			"another root":       stranger.Encode(refreshtoken.Token{SID: genuine.SID, UID: genuine.UID, Gen: genuine.Gen, Secret: genuine.Secret}),
			"a generation ahead": reseal(t, s.refresh, func(raw []byte) { raw[35]++ }),
			"a generation back":  reseal(t, s.refresh, func(raw []byte) { raw[35]-- }),
			"another user":       reseal(t, s.refresh, func(raw []byte) { raw[20] ^= 1 }),
			"another shard":      reseal(t, s.refresh, func(raw []byte) { raw[0] ^= 1 }),
			"no code":            reseal(t, s.refresh, func(raw []byte) { clear(raw[68:]) }),
		}
		for name, token := range forgeries {
			trips := f.replicas[1].trips.n.Load()
			f.post(1, "/auth/refresh", cookie(token)).fails(http.StatusUnauthorized, "invalid_grant", "Invalid refresh token")
			if n := f.replicas[1].trips.n.Load() - trips; n != 0 {
				t.Errorf("%s: Redis was asked %d times", name, n)
			}
			// A logout asks whether the session that it names is alive.
			if a := f.post(1, "/auth/logout", cookie(token)); name == "another shard" {
				a.is(http.StatusOK)
			} else {
				a.notEnded()
			}
			if after := f.session(s.access); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("%s: the session changed:\n%q\n%q", name, before, after)
			}
		}
		f.alive(s.access)
		f.refresh(2, s)
	})
}

// forge replaces the secret of a real refresh token and leaves its session's id.
func forge(t testing.TB, token string) string {
	t.Helper()
	return reseal(t, token, func(raw []byte) {
		for i := 36; i < 68; i++ {
			raw[i] ^= 0x55
		}
	})
}

func reseal(t testing.TB, token string, edit func([]byte)) string {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(token, "lkr1_"))
	if err != nil {
		t.Fatal(err)
	}
	edit(raw)
	return "lkr1_" + base64.RawURLEncoding.EncodeToString(raw)
}

// Whoever reads all of Redis can log in nowhere.
func TestRedisHoldsNoUsableToken(t *testing.T) {
	t.Parallel()
	f := usual(t)
	chain := []tokens{f.login(0)}
	for i := range 3 {
		chain = append(chain, f.rotate(i, chain[i]))
	}
	out := f.login(1)
	f.post(2, "/auth/logout", cookie(out.refresh), bearer(out.access)).is(http.StatusOK)
	all := f.login(2)
	f.post(0, "/auth/token", form("username", alice, "password", "wrong-canary-password")).is(http.StatusUnauthorized)
	f.post(0, "/auth/logout-all", bearer(all.access), form("except_current", "true")).is(http.StatusOK)
	device := f.post(0, "/auth/token", form("username", alice, "password", password)).cookie("known_device").Value

	forbidden := map[string]string{
		"the password": password, "a tried password": "wrong-canary-password", "the root secret": rootSecret,
		"the signing key": string(f.key.Seed()), "the device cookie": device,
	}
	for i, s := range append(chain, out, all) {
		token, err := f.codec.Parse(s.refresh)
		f.check(err)
		secret := token.Secret[:]
		parts := strings.Split(s.access, ".")
		for what, text := range map[string]string{
			"refresh token": s.refresh, "refresh token without prefix": s.refresh[5:], "secret": string(secret),
			"secret in hex": hex.EncodeToString(secret), "secret in base64": base64.StdEncoding.EncodeToString(secret),
			"secret in base64url": base64.RawURLEncoding.EncodeToString(secret),
			"part of the token":   s.refresh[5+48 : 5+48+32], "code": s.refresh[5+92:],
			"access token": s.access, "claims": parts[1], "signature": parts[2],
			"raw signature": mustDecode(t, parts[2]),
		} {
			forbidden[fmt.Sprintf("%s of token %d", what, i)] = text
		}
	}
	held := f.everything()
	for what, text := range forbidden {
		if strings.Contains(held, text) {
			t.Errorf("Redis holds %s", what)
		}
	}
	// The search can find: the hash of the living secret is there.
	kept, err := f.codec.Parse(f.refresh(0, all).refresh)
	f.check(err)
	if hash := kept.Hash(); !strings.Contains(f.everything(), string(hash[:])) {
		t.Error("not even the secret's hash was found: the search sees nothing")
	}
}

func mustDecode(t testing.TB, s string) string {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// everything is all that Redis holds, names and values.
func (f *fleet) everything() string {
	f.Helper()
	ctx := f.Context()
	var b strings.Builder
	keys, err := f.rdb.Keys(ctx, "*").Result()
	f.check(err)
	for _, key := range keys {
		var value any
		switch kind := f.rdb.Type(ctx, key).Val(); kind {
		case "string":
			value = f.rdb.Get(ctx, key).Val()
		case "hash":
			value = f.rdb.HGetAll(ctx, key).Val()
		case "zset":
			value = f.rdb.ZRangeWithScores(ctx, key, 0, -1).Val()
		case "stream":
			value = f.rdb.XRange(ctx, key, "-", "+").Val()
		case "none":
			continue // it has expired by now
		default:
			f.Fatalf("%s is a %s, which this test cannot read", key, kind)
		}
		_, _ = fmt.Fprintf(&b, "%s %v\n", key, value)
	}
	return b.String()
}

// Every key expires, but for accounts, their costs, signing keys and the record of K.
func TestEveryKeyOfASessionExpires(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fleet) {
		a, b, c := f.login(0), f.login(1), f.refresh(2, f.login(2))
		f.post(0, "/auth/logout", cookie(a.refresh), bearer(a.access)).is(http.StatusOK)
		f.post(0, "/auth/logout-all", bearer(b.access), form("except_current", "true")).is(http.StatusOK)
		f.post(0, "/auth/token", form("username", alice, "password", "wrong")).is(http.StatusUnauthorized)
		f.dead(c)
		keys, err := f.rdb.Keys(t.Context(), "*").Result()
		f.check(err)
		for _, key := range keys {
			if strings.Contains(key, ":acct:") || strings.HasSuffix(key, ":costs") || key == "lk:meta" || key == "lk:keys" {
				continue
			}
			// The head is not there for one session; it outlives all of them. Where there
			// was none yet, one was made for whoever follows the shard, and stays.
			if strings.HasSuffix(key, ":head") && !f.rdb.HExists(t.Context(), key, "session").Val() {
				continue
			}
			ttl, err := f.rdb.PTTL(t.Context(), key).Result()
			f.check(err)
			if ttl == -1 { // -2: it has expired by now
				t.Errorf("%s never expires", key)
			}
		}
	})
}
