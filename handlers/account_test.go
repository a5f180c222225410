package handlers_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/bcrypt"

	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// An account from another system.
const (
	bcryptPassword = "imported-canary-password"
	bcryptHash     = "$2a$04$240CMVc2baIdlc0LOLSOnObYl0UHP.pj0EwlP.iAxXFFONYFXHMa6"
)

type sessionEntry struct {
	ID        string    `json:"id"`
	CreatedAt time.Time `json:"created_at"`
	LastUsed  time.Time `json:"last_used_at"`
	ExpiresAt time.Time `json:"expires_at"`
	Device    string    `json:"device"`
	Address   string    `json:"address"`
	ClientID  string    `json:"client_id"`
	Current   bool      `json:"current"`
}

func (f *fleet) sessions(access string) []sessionEntry {
	f.Helper()
	a := f.get(0, "/auth/sessions", bearer(access)).is(http.StatusOK)
	var body struct {
		Sessions []sessionEntry `json:"sessions"`
	}
	dec := json.NewDecoder(strings.NewReader(a.text))
	dec.DisallowUnknownFields()
	f.check(dec.Decode(&body))
	return body.Sessions
}

// neighbour is a username whose keys are in the shard of alice's: all that keeps
// the two apart is who they are.
func (f *fleet) neighbour() string {
	store := f.replicas[0].store
	name := "bob"
	for store.UserID(name).Shard() != store.UserID(alice).Shard() {
		name += "b"
	}
	return name
}

func TestSessions(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fleet) {
		bobs := f.neighbour()
		f.account(tokenstore.Account{Username: bobs}, password)
		agent := "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
		phone := f.post(0, "/auth/token", header("User-Agent", agent), form("username", alice, "password", password)).tokens()
		laptop := f.post(1, "/auth/token", header("User-Agent", "curl/8.5.0"), form("username", alice, "password", password)).tokens()
		bob := f.loginAs(2, bobs, password)
		phone = f.refresh(2, phone)

		list := f.sessions(laptop.access)
		devices, current := map[string]string{}, 0
		for _, s := range list {
			devices[s.ID] = s.Device
			if s.Current {
				current++
				if s.ID != f.claim(laptop.access, "sid") {
					t.Error("another session is called current")
				}
			}
			if s.Address != "127.0.0.1" || s.ClientID != clientID {
				t.Errorf("address %q, client %q", s.Address, s.ClientID)
			}
			f.near(t, "created", time.Since(s.CreatedAt), 0, 10*time.Second)
			f.near(t, "last used", time.Since(s.LastUsed), 0, 10*time.Second)
			f.near(t, "expires", time.Until(s.ExpiresAt), f.life.Refresh, 10*time.Second)
			if s.CreatedAt.Location() != time.UTC {
				t.Error("times are not in UTC")
			}
		}
		want := map[string]string{f.claim(phone.access, "sid"): "Firefox 128 on Linux", f.claim(laptop.access, "sid"): "curl/8.5.0"}
		if diff := cmp.Diff(want, devices); diff != "" || current != 1 {
			t.Errorf("%d current; -want +got\n%s", current, diff)
		}

		// One of one's own is ended from another, at once; it is not a logout here.
		a := f.do(1, http.MethodDelete, "/auth/sessions/"+f.claim(phone.access, "sid"), bearer(laptop.access)).is(http.StatusNoContent)
		if set := a.header.Values("Set-Cookie"); len(set) != 0 {
			t.Errorf("this browser's cookie was touched: %q", set)
		}
		f.dead(phone)
		f.alive(laptop.access)
		f.do(1, http.MethodDelete, "/auth/sessions/"+f.claim(bob.access, "sid"), bearer(laptop.access)).fails(http.StatusNotFound, "not_found", "No such session")
		f.alive(bob.access)
		if n := len(f.sessions(laptop.access)); n != 1 {
			t.Errorf("%d sessions left, want 1", n)
		}
		// The last of them is a logout.
		a = f.do(2, http.MethodDelete, "/auth/sessions/"+f.claim(laptop.access, "sid"), bearer(laptop.access)).is(http.StatusNoContent)
		if c := a.cookie("refresh_token"); c.MaxAge != -1 {
			t.Errorf("the cookie stays: %v", c)
		}
		f.dead(laptop)
	})
}

func TestLogoutAll(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		path    string
		options []option
		keeps   bool
	}{
		"all":                  {"/auth/logout-all", nil, false},
		"all, said so":         {"/auth/logout-all", []option{form("except_current", "false")}, false},
		"all, said so in JSON": {"/auth/logout-all", []option{jsonBody(`{"except_current":false}`)}, false},
		"but this":             {"/auth/logout-all", []option{form("except_current", "true")}, true},
		"but this, in JSON":    {"/auth/logout-all", []option{jsonBody(`{"except_current":true}`)}, true},
		"but this, JSON text":  {"/auth/logout-all", []option{jsonBody(`{"except_current":"true"}`)}, true},
		"but this, in the URL": {"/auth/logout-all?except_current=true", nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, f *fleet) {
				f.account(tokenstore.Account{Username: "bob"}, password)
				bob := f.loginAs(0, "bob", password)
				first := f.login(0)
				mine := f.refresh(1, first)
				others := []tokens{f.login(1), f.refresh(0, f.login(2))}
				a := f.post(2, c.path, append(c.options, bearer(mine.access))...).is(http.StatusOK)
				if got := len(a.cookies("refresh_token")); (got == 0) != c.keeps {
					t.Errorf("%d cookies are set", got)
				}
				for _, s := range others {
					f.dead(s)
				}
				f.alive(bob.access)
				f.refresh(0, bob)
				if !c.keeps {
					f.dead(mine)
					f.accessDead(first.access)
				} else {
					// Its older access tokens as well, and again and again.
					f.alive(first.access)
					f.alive(mine.access)
					next := f.refresh(0, mine)
					f.alive(next.access)
					f.post(1, "/auth/logout-all", bearer(next.access), form("except_current", "true")).is(http.StatusOK)
					f.alive(next.access)
					f.refresh(2, next)
				}
				// Whoever logs in from now on is not concerned.
				fresh := f.login(1)
				f.alive(fresh.access)
				f.refresh(2, fresh)
			})
		})
	}
}

// What is said twice in the URL is not guessed at.
func TestLogoutAllSaidTwice(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	s := f.login(0)
	for _, c := range []struct {
		query   string
		options []option
	}{
		{"?except_current=true&except_current=false", nil},
		{"?except_current=false&except_current=true", nil},
		{"?except_current=true", []option{form("except_current", "false")}},
	} {
		f.post(0, "/auth/logout-all"+c.query, append(c.options, bearer(s.access))...).fails(http.StatusBadRequest, "invalid_request", "")
		f.alive(s.access)
	}
}

func TestPasswordChange(t *testing.T) {
	onBoth(t, func(_ *testing.T, f *fleet) {
		const next = "another-canary-password"
		f.secrets.add(next)
		mine, other := f.login(0), f.login(1)
		send := func(replica int, current, next string) answer {
			return f.post(replica, "/users/me/password", bearer(mine.access), form("current_password", current, "new_password", next))
		}
		send(0, "wrong", next).fails(http.StatusForbidden, "access_denied", "Incorrect password")
		f.alive(other.access)
		send(1, password, strings.Repeat("x", 1025)).is(http.StatusBadRequest)
		f.loginAs(2, alice, password)

		send(1, password, next).is(http.StatusOK)
		f.dead(other)
		f.alive(mine.access)
		f.post(0, "/auth/token", form("username", alice, "password", password)).is(http.StatusUnauthorized)
		f.loginAs(0, alice, next)

		// The answer was lost, the client sends the same again: it is done, by
		// whoever the password is known to.
		send(2, password, next).is(http.StatusOK)
		f.alive(mine.access)
		f.refresh(1, mine)
		f.loginAs(0, alice, next)
		// But not by guessing, neither what is in force nor what was.
		send(2, password, "a third password").fails(http.StatusForbidden, "access_denied", "Incorrect password")
		send(2, "wrong", next).fails(http.StatusForbidden, "access_denied", "Incorrect password")
		// What was replaced is not remembered for long.
		keys := f.rdb.Keys(f.Context(), "lk:*:old:*").Val()
		if len(keys) != 1 {
			f.Fatalf("remembered: %q", keys)
		}
		if ttl := f.rdb.PTTL(f.Context(), keys[0]).Val(); ttl <= 0 || ttl > 5*time.Minute {
			f.Errorf("it is remembered for %v", ttl)
		}
		f.check(f.rdb.Del(f.Context(), keys[0]).Err())
		send(2, password, next).fails(http.StatusForbidden, "access_denied", "Incorrect password")
	})
}

// A password that is in force is not guessed by way of new_password: to whoever does not
// know the current one, all answers are the same, and each costs one attempt.
func TestANewPasswordIsNoGuess(t *testing.T) {
	t.Parallel()
	f := limited(t, 3, 0, 0)
	s := f.login(0)
	send := func(current, next string) answer {
		f.secrets.add(current, next)
		return f.post(1, "/users/me/password", bearer(s.access), form("current_password", current, "new_password", next))
	}
	for _, next := range []string{password, "wrong-password", password} {
		send("not-the-current-one", next).fails(http.StatusForbidden, "access_denied", "Incorrect password")
	}
	send("not-the-current-one", password).throttled(time.Hour)
}

// Half a character is refused wherever a body is read: a decoder puts U+FFFD in its place,
// and all such passwords would be one.
func TestHalfACharacterIsRefused(t *testing.T) {
	t.Parallel()
	f := usual(t)
	f.account(tokenstore.Account{Username: "bob"}, "pass\ufffdword")
	s := f.loginAs(0, "bob", "pass\ufffdword")
	for name, password := range map[string]string{
		"high": `pass\ud800word`, "low": `pass\udfffword`, "two": `pass\ud800\ud800word`, "bytes": "pass\xffword", "encoded": "pass\xed\xa0\x80word",
	} {
		for path, o := range map[string]option{
			"/auth/token":        jsonBody(`{"username":"bob","password":"` + password + `"}`),
			"/users/me/password": jsonBody(`{"current_password":"pass\ufffdword","new_password":"` + password + `"}`),
			"/auth/refresh":      jsonBody(`{"refresh_token":"` + password + `"}`),
		} {
			a := f.post(1, path, o, bearer(s.access))
			if a.status != http.StatusBadRequest {
				t.Errorf("%s in JSON at %s: %d", name, path, a.status)
			}
		}
	}
	for _, raw := range []string{"pass%FFword", "pass\xffword", "pass%ED%A0%80word"} {
		f.post(1, "/auth/token", body("application/x-www-form-urlencoded", "username=bob&password="+raw)).fails(http.StatusBadRequest, "invalid_request", "")
		f.post(1, "/auth/token", body("application/x-www-form-urlencoded", "username=bob&password=x&"+raw+"=1")).fails(http.StatusBadRequest, "invalid_request", "")
	}
	// A whole character beyond the first plane, either way, is one password.
	f.account(tokenstore.Account{Username: "carol"}, "😀-password")
	for _, written := range []string{"😀-password", `\ud83d\ude00-password`} {
		f.post(2, "/auth/token", jsonBody(`{"username":"carol","password":"`+written+`"}`)).is(http.StatusOK)
	}
	f.loginAs(0, "carol", "😀-password")
}

// A password change that got stuck halfway is finished by sending it again.
func TestPasswordChangeFinishedByARetry(t *testing.T) {
	t.Parallel()
	f := usual(t)
	const next = "another-canary-password"
	mine, other := f.login(0), f.login(1)
	// The first half of it: the hash is stored, and no session has ended yet.
	store := f.replicas[0].store
	account, _, err := store.Accounts.Get(t.Context(), alice)
	f.check(err)
	_, err = store.Accounts.ReplacePassword(t.Context(), alice, account.Hash, mustHash(f, next))
	f.check(err)
	f.alive(other.access)
	f.post(2, "/users/me/password", bearer(mine.access), form("current_password", password, "new_password", next)).is(http.StatusOK)
	f.dead(other)
	f.alive(mine.access)
}

// A login whose password was right a moment ago loses against the change.
func TestLoginAgainstAPasswordChange(t *testing.T) {
	t.Parallel()
	f := usual(t)
	const rounds = 5
	current := password
	for i := range rounds {
		mine := f.loginAs(0, alice, current)
		next := current + "x"
		var wg sync.WaitGroup
		logins := make([]answer, 8)
		errs := make([]error, len(logins))
		for j := range logins {
			wg.Go(func() {
				logins[j], errs[j] = f.try(j%3, http.MethodPost, "/auth/token", form("username", alice, "password", current))
			})
		}
		f.post(i%3, "/users/me/password", bearer(mine.access), form("current_password", current, "new_password", next)).is(http.StatusOK)
		wg.Wait()
		for j, a := range logins {
			f.check(errs[j])
			switch a.status {
			case http.StatusOK:
				// Before the change: ended by it. Nothing made with the old
				// password is alive.
				f.accessDead(a.member("access_token"))
			case http.StatusUnauthorized:
			default:
				t.Errorf("login: %d %s", a.status, a.text)
			}
		}
		f.alive(mine.access)
		current = next
	}
}

func TestScopes(t *testing.T) {
	t.Parallel()
	f := usual(t)
	for requested, want := range map[string]string{
		"": "read write", "read": "read", "write read": "write read", "read read": "read", "read admin": "read", "  read  ": "read",
	} {
		s := f.post(0, "/auth/token", form("username", alice, "password", password, "scope", requested)).tokens()
		if got := f.claim(s.access, "scope"); got != want {
			t.Errorf("requested %q: got %q, want %q", requested, got, want)
		}
		f.get(1, "/auth/verify", bearer(s.access)).hasHeader("X-Auth-Scope", want)
		if got := f.claim(f.refresh(2, s).access, "scope"); got != want {
			t.Errorf("requested %q: after a refresh %q, want %q", requested, got, want)
		}
	}
	f.post(0, "/auth/token", form("username", alice, "password", password, "scope", "admin")).fails(http.StatusBadRequest, "invalid_scope", "")
	f.post(0, "/auth/token", form("username", alice, "password", password, "scope", "READ")).fails(http.StatusBadRequest, "invalid_scope", "")
}

// A client that is no browser gets the refresh token in the body and sends it there.
func TestRefreshDeliveryInTheBody(t *testing.T) {
	t.Parallel()
	f := usual(t)
	a := f.post(0, "/auth/token", form("username", alice, "password", password, "refresh_delivery", "body")).is(http.StatusOK)
	for i := range 3 {
		if set := a.header.Values("Set-Cookie"); len(set) != 0 {
			t.Errorf("a cookie as well: %q", set)
		}
		next := f.post(i, "/auth/refresh", form("refresh_token", a.member("refresh_token"))).is(http.StatusOK)
		// Within the grace of a rotation the answer names the current token itself.
		if same := next.member("refresh_token") == a.member("refresh_token"); same != (i > 0) {
			t.Errorf("refresh %d: the same token %v", i, same)
		}
		a = next
	}
	last := a.tokens()
	f.post(1, "/auth/logout", form("refresh_token", last.refresh)).is(http.StatusOK)
	f.dead(last)
}

// An imported bcrypt hash works and is replaced at the first login with it.
func TestImportedHashIsUpgraded(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fleet) {
		f.account(tokenstore.Account{Username: "imported", Hash: bcryptHash}, bcryptPassword)
		stored := func() string {
			a, _, err := f.replicas[0].store.Accounts.Get(t.Context(), "imported")
			f.check(err)
			return a.Hash
		}
		f.post(0, "/auth/token", form("username", "imported", "password", "wrong")).is(http.StatusUnauthorized)
		if stored() != bcryptHash {
			t.Fatal("a wrong password replaced the hash")
		}
		f.loginAs(0, "imported", bcryptPassword)
		upgraded := stored()
		if !strings.HasPrefix(upgraded, "$argon2id$") {
			t.Fatalf("the hash was not replaced: %s", upgraded)
		}
		f.loginAs(1, "imported", bcryptPassword)
		if stored() != upgraded {
			t.Error("it was replaced once more")
		}
	})
}

// bcrypt reads 72 bytes: a longer password does not pass for its beginning.
func TestLongPasswordIsNotTruncated(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	head := strings.Repeat("p", 72)
	hash, err := bcrypt.GenerateFromPassword([]byte(head), bcrypt.MinCost)
	f.check(err)
	f.account(tokenstore.Account{Username: "imported", Hash: string(hash)}, head)
	f.post(0, "/auth/token", form("username", "imported", "password", head+"x")).is(http.StatusUnauthorized)
	f.loginAs(0, "imported", head)
	long := strings.Repeat("q", 1023)
	f.account(tokenstore.Account{Username: "long"}, long+"1")
	f.post(0, "/auth/token", form("username", "long", "password", long+"2")).is(http.StatusUnauthorized)
	f.loginAs(0, "long", long+"1")
	f.post(0, "/auth/token", form("username", "long", "password", long+"12")).is(http.StatusBadRequest)
}

// Outside, a disabled account is a wrong password. Its sessions, ended by the
// operator, stay ended.
func TestDisabledAccount(t *testing.T) {
	t.Parallel()
	f := usual(t)
	s := f.login(0)
	store := f.replicas[0].store
	at, err := store.Accounts.SetDisabled(t.Context(), alice, true)
	f.check(err)
	_, err = store.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: store.UserID(alice), ChangedAt: at})
	f.check(err)
	f.dead(s)
	disabled := f.post(1, "/auth/token", form("username", alice, "password", password))
	wrong := f.post(1, "/auth/token", form("username", "nobody", "password", password))
	if disabled.golden() != wrong.golden() {
		t.Errorf("the answers differ:\n%s\n%s", disabled.golden(), wrong.golden())
	}
	_, err = store.Accounts.SetDisabled(t.Context(), alice, false)
	f.check(err)
	again := f.login(2)
	f.alive(again.access)
	f.dead(s)
}

// A deleted account is gone from /users/me, whatever the token says.
func TestDeletedAccount(t *testing.T) {
	t.Parallel()
	f := usual(t)
	s := f.login(0)
	_, err := f.replicas[0].store.Accounts.Delete(t.Context(), alice)
	f.check(err)
	f.get(1, "/users/me", bearer(s.access)).fails(http.StatusUnauthorized, "invalid_token", "")
	f.post(1, "/users/me/password", bearer(s.access), form("current_password", password, "new_password", "another-password")).fails(http.StatusUnauthorized, "invalid_token", "")
	f.post(1, "/auth/token", form("username", alice, "password", password)).fails(http.StatusUnauthorized, "invalid_grant", "Incorrect username or password")
}

// Where accounts have hashes of other parameters than today's, an unknown user costs what they
// do. (Not in parallel: the memory is everybody's.)
func TestUnknownUserCostsWhatAnOlderHashCosts(t *testing.T) {
	const size, older = 1 << 20, 16
	f := start(t, setup{replicas: 1, memoryKiB: size >> 10})
	store := f.replicas[0].store
	_, err := store.Accounts.Delete(t.Context(), alice) // its hash is of today's parameters
	f.check(err)
	hasher, err := credential.NewHasher(credential.Options{MemoryKiB: older * size >> 10, Iterations: 1})
	f.check(err)
	hash, err := hasher.Hash(t.Context(), password)
	f.check(err)
	shard := store.UserID("nobody")[0]
	for i := 0; ; i++ {
		if name := fmt.Sprint("user", i); store.UserID(name)[0] == shard {
			f.account(tokenstore.Account{Username: name, Hash: hash}, password)
			f.account(tokenstore.Account{Username: name + "x", Hash: hash, Disabled: true}, password)
			for _, c := range []struct{ username, password string }{
				{name, "wrong-password"}, {name + "x", password}, {"nobody", "wrong-password"},
			} {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				w := record(f.replicas[0].handler, request(t, http.MethodPost, "/auth/token", form("username", c.username, "password", c.password)))
				runtime.ReadMemStats(&after)
				if got := (after.TotalAlloc - before.TotalAlloc) / size; w.Code != http.StatusUnauthorized || got != older {
					t.Errorf("%s: %d with %d MiB, want %d with %d", c.username, w.Code, got, http.StatusUnauthorized, older)
				}
			}
			return
		}
	}
}

// An unknown user, a known one and a disabled one cost the same work: one hash.
// Each is seen by the memory it takes. (Not in parallel: the memory is everybody's.)
func TestUnknownUserCostsTheSameWork(t *testing.T) {
	const size = 8 << 20
	f := start(t, setup{replicas: 1, memoryKiB: size >> 10, settings: func(s *handlers.Settings) {
		s.Limits = tokenstore.AttemptLimits{Account: tokenstore.Limit{Burst: 8, Period: time.Hour}} // 2 for one network
	}})
	f.account(tokenstore.Account{Username: "disabled", Disabled: true}, password)
	f.account(tokenstore.Account{Username: "throttled"}, password)
	for range 2 {
		record(f.replicas[0].handler, request(t, http.MethodPost, "/auth/token", form("username", "throttled", "password", "wrong-password")))
	}
	for _, c := range []struct {
		name, username, password string
		status, hashes           int
	}{
		{"the right password", alice, password, 200, 1},
		{"a wrong password", alice, "wrong-password", 401, 1},
		{"an unknown user", "nobody", "wrong-password", 401, 1},
		{"a disabled account", "disabled", password, 401, 1},
		{"a disabled account, wrong password", "disabled", "wrong-password", 401, 1},
		{"throttled", "throttled", password, 429, 0},
		{"not a username", "\x00", password, 400, 0},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		w := record(f.replicas[0].handler, request(t, http.MethodPost, "/auth/token", form("username", c.username, "password", c.password)))
		runtime.ReadMemStats(&after)
		if got := int((after.TotalAlloc - before.TotalAlloc + size/2) / size); w.Code != c.status || got != c.hashes {
			t.Errorf("%s: %d with %d hashes, want %d with %d", c.name, w.Code, got, c.status, c.hashes)
		}
	}
}

// An account may be deleted while its user changes the password: that has ended the session,
// and is no error of the service.
func TestAPasswordChangeOfAnAccountThatIsDeletedMeanwhile(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 2})
	s := f.login(0)
	f.replicas[0].rdb.AddHook(&loss{after: func(keys string) {
		if strings.Contains(keys, ":acct:") && !strings.Contains(keys, ":old:") { // lookup
			_, err := f.replicas[1].store.Accounts.Delete(t.Context(), alice)
			f.check(err)
		}
	}})
	f.post(0, "/users/me/password", bearer(s.access), form("current_password", password, "new_password", "another-password")).
		fails(http.StatusUnauthorized, "invalid_token", "Could not validate credentials")
	f.get(0, "/users/me", bearer(s.access)).fails(http.StatusUnauthorized, "invalid_token", "Could not validate credentials")
}
