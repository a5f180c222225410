package handlers_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// patience is how long an answer may take while Redis gives none: two seconds,
// and one for a busy machine.
const patience = 3 * time.Second

// person is a user with a session of each kind that the outage table needs.
type person struct {
	name string
	tokens
}

func (f *fleet) person(name string) person {
	f.Helper()
	f.account(tokenstore.Account{Username: name}, password)
	return person{name, f.loginAs(0, name, password)}
}

// outages make Redis unable to answer, and able again with its data.
func outages() map[string]struct{ begin, end func(*testing.T, *fleet) } {
	set := func(name, value string) func(*testing.T, *fleet) {
		return func(_ *testing.T, f *fleet) {
			f.Helper()
			f.check(f.rdb.ConfigSet(f.Context(), name, value).Err())
		}
	}
	return map[string]struct{ begin, end func(*testing.T, *fleet) }{
		"paused": {
			func(t *testing.T, f *fleet) { f.redis.Pause(t) },
			func(t *testing.T, f *fleet) { f.redis.Resume(t) },
		},
		"killed": {
			func(t *testing.T, f *fleet) { f.redis.Kill(t) },
			func(t *testing.T, f *fleet) { f.redis.Restart(t) },
		},
		"out of memory": {set("maxmemory", "1"), set("maxmemory", "0")},
		"read-only": {
			func(_ *testing.T, f *fleet) { f.check(f.rdb.ReplicaOf(f.Context(), "127.0.0.1", "1").Err()) },
			func(_ *testing.T, f *fleet) { f.check(f.rdb.ReplicaOf(f.Context(), "NO", "ONE").Err()) },
		},
	}
}

// recovered returns when every replica has found Redis again: its client asks once
// a second whether a server that refused connections takes them again.
func (f *fleet) recovered() {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, r := range f.replicas {
		for r.store.Open(ctx) != nil {
			select {
			case <-ctx.Done():
				f.Fatal("a replica did not find Redis again")
			case <-tick.C:
			}
		}
	}
}

// What each endpoint answers during each outage: 503 within its time and no
// cookie touched, or the truth. And then the session goes on.
func TestOutages(t *testing.T) {
	t.Parallel()
	const unavailable = http.StatusServiceUnavailable
	for name, outage := range outages() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// reads says that this outage leaves reading possible, writes that
			// deleting is, too.
			reads := name == "out of memory" || name == "read-only"
			writes := name == "out of memory"
			f := start(t, setup{
				impatient: !writes, // a full Redis answers at once: whoever waits for it waits for a busy machine
				redisArgs: []string{"--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"},
			})
			stays := f.person("stays")
			outs := []person{f.person("by-cookie"), f.person("by-bearer"), f.person("by-both")}
			everywhere, others, ends, changes := f.person("everywhere"), f.person("others"), f.person("ends"), f.person("changes")
			victim := f.loginAs(1, "ends", password)
			client := f.service("client")
			machine, machineStays, user, userStays := f.own(client), f.own(client), f.logs(client), f.logs(client)
			oauth := func(pairs ...string) []option { return []option{client.basic(), form(pairs...)} }

			read := func(status int) int {
				if reads {
					return status
				}
				return unavailable
			}
			maybe := func(status int) int {
				if writes {
					return status
				}
				return unavailable
			}
			type row struct {
				method, path string
				options      []option
				want         int
			}
			rows := []row{
				{"POST", "/auth/token", []option{form("username", "stays", "password", password)}, unavailable},
				{"POST", "/auth/token", []option{form("username", "stays", "password", "wrong")}, unavailable},
				{"POST", "/auth/token", []option{form("username", "nobody", "password", "wrong")}, unavailable},
				{"POST", "/auth/refresh", []option{cookie(stays.refresh)}, unavailable},
				{"POST", "/auth/refresh", []option{form("refresh_token", stays.refresh)}, unavailable},
				{"GET", "/auth/verify", []option{bearer(stays.access)}, read(204)},
				{"HEAD", "/auth/verify", []option{bearer(stays.access)}, read(204)},
				{"GET", "/users/me", []option{bearer(stays.access)}, read(200)},
				{"GET", "/auth/sessions", []option{bearer(stays.access)}, read(200)},
				{"POST", "/auth/logout", []option{cookie(outs[0].refresh)}, maybe(200)},
				{"POST", "/auth/logout", []option{bearer(outs[1].access)}, maybe(200)},
				{"POST", "/auth/logout", []option{cookie(outs[2].refresh), bearer(outs[2].access)}, maybe(200)},
				{"POST", "/auth/logout-all", []option{bearer(everywhere.access)}, maybe(200)},
				{"POST", "/auth/logout-all", []option{bearer(others.access), form("except_current", "true")}, maybe(200)},
				{"DELETE", "/auth/sessions/" + f.claim(victim.access, "sid"), []option{bearer(ends.access)}, maybe(204)},
				{"POST", "/users/me/password", []option{bearer(changes.access), form("current_password", password, "new_password", "another-password")}, unavailable},
				{"POST", "/users/me/password", []option{bearer(changes.access), form("current_password", "wrong", "new_password", "another-password")}, unavailable},
				// A client's own token writes nothing that a full Redis would refuse.
				{"POST", "/oauth2/token", oauth("grant_type", "client_credentials"), maybe(200)},
				{"POST", "/oauth2/token", oauth("grant_type", "refresh_token", "refresh_token", userStays.refresh), unavailable},
				{"POST", "/oauth2/token", []option{form("client_id", clientID, "grant_type", "refresh_token", "refresh_token", stays.refresh)}, unavailable},
				{"POST", "/oauth2/token", []option{registered{client.id, "wrong"}.basic(), form("grant_type", "client_credentials")}, read(401)},
				{"POST", "/oauth2/token", []option{registered{"lkc_nobody", "wrong"}.basic(), form("grant_type", "client_credentials")}, read(401)},
				{"POST", "/auth/token", []option{client.post("username", "stays", "password", password)}, unavailable},
				{"POST", "/oauth2/introspect", oauth("token", machineStays), read(200)},
				{"POST", "/oauth2/introspect", oauth("token", userStays.refresh), read(200)},
				{"POST", "/oauth2/introspect", oauth("token", "garbage"), read(200)},
				{"POST", "/oauth2/revoke", oauth("token", machine), maybe(200)},
				{"POST", "/oauth2/revoke", oauth("token", user.refresh), maybe(200)},
				{"POST", "/oauth2/revoke", []option{form("client_id", clientID, "token", "garbage")}, 200},
				{"POST", "/oauth2/token", []option{form("client_id", clientID, "grant_type", "refresh_token", "refresh_token", "garbage")}, 400},
				{"POST", "/oauth2/token", []option{form("grant_type", "client_credentials")}, 401},
				// What needs no Redis works.
				{"POST", "/auth/refresh", []option{cookie("garbage")}, 401},
				{"POST", "/auth/refresh", nil, 401},
				{"POST", "/auth/logout", []option{cookie("garbage")}, 200},
				{"GET", "/auth/verify", []option{bearer("garbage")}, 401},
				{"POST", "/auth/token", nil, 400},
			}

			outage.begin(t, f)
			answers := make([]answer, len(rows))
			errs := make([]error, len(rows))
			took := make([]time.Duration, len(rows))
			var wg sync.WaitGroup
			for i, r := range rows {
				wg.Go(func() {
					begin := time.Now()
					answers[i], errs[i] = f.try(i%3, r.method, r.path, r.options...)
					took[i] = time.Since(begin)
				})
			}
			wg.Wait()
			for i, r := range rows {
				f.check(errs[i])
				a := answers[i]
				a.proper()
				if a.status != r.want {
					t.Errorf("%s: got %d, want %d\n%s", a.what, a.status, r.want, a.text)
				}
				if !writes && took[i] > patience {
					t.Errorf("%s: answered after %v", a.what, took[i])
				}
				if a.status == unavailable && r.method != http.MethodHead {
					a.fails(unavailable, "temporarily_unavailable", "Service temporarily unavailable")
				}
			}
			outage.end(t, f)
			f.recovered()

			// The session goes on, by the very token that was shown in vain.
			f.alive(stays.access)
			f.refresh(0, stays.tokens)
			f.loginAs(1, "stays", password)

			f.get(0, "/auth/verify", bearer(machineStays)).is(http.StatusNoContent)
			f.post(1, "/oauth2/token", oauth("grant_type", "refresh_token", "refresh_token", userStays.refresh)...).is(http.StatusOK)
			for _, token := range []string{machine, user.refresh} {
				if !writes {
					f.post(2, "/oauth2/revoke", oauth("token", token)...).is(http.StatusOK)
				}
				if a := f.post(0, "/oauth2/introspect", oauth("token", token)...); a.text != `{"active":false}` {
					t.Errorf("after its revocation: %s", a.text)
				}
			}
			f.accessDead(user.access)

			// A logout that was answered 200 is one; the others succeed now.
			for i, out := range outs {
				if !writes {
					f.post(i, "/auth/logout", cookie(out.refresh), bearer(out.access)).is(http.StatusOK)
				}
				f.dead(out.tokens)
			}
			if writes {
				f.dead(everywhere.tokens)
				f.alive(others.access)
				f.dead(victim)
			}
			// The password is the old one: nothing was half done.
			f.loginAs(2, "changes", password)
			if strings.Contains(f.log.String(), `"msg":"panic"`) {
				t.Error("a panic")
			}
		})
	}
}

// A client that tries again after a 503 until the outage is over ends where it
// would have without one: one session goes on, the other is over.
func TestRetryAfterAnOutage(t *testing.T) {
	t.Parallel()
	f := start(t, setup{impatient: true})
	goes, ends := f.login(0), f.login(1)
	f.redis.Pause(t)
	f.post(0, "/auth/refresh", cookie(goes.refresh)).is(http.StatusServiceUnavailable)
	f.post(1, "/auth/logout", cookie(ends.refresh)).is(http.StatusServiceUnavailable)
	f.redis.Resume(t)
	f.recovered()
	next := f.refresh(1, goes)
	if again := f.refresh(2, goes); again.refresh != next.refresh {
		t.Error("the retry got another successor")
	}
	f.refresh(0, next)
	f.post(2, "/auth/logout", cookie(ends.refresh)).is(http.StatusOK)
	f.dead(ends)
}

// Redis lost its data: what was logged out stays so, and all else is dead, too.
// No replica is restarted; users log in again.
func TestRedisRestartedEmpty(t *testing.T) {
	t.Parallel()
	f := usual(t)
	out, alive := f.login(0), f.login(1)
	older := alive
	alive = f.refresh(2, alive)
	f.post(2, "/auth/logout", cookie(out.refresh), bearer(out.access)).is(http.StatusOK)
	everywhere := f.person("everywhere")
	f.post(0, "/auth/logout-all", bearer(everywhere.access)).is(http.StatusOK)

	f.redis.RestartEmpty(t)
	f.recovered()

	f.dead(out)
	f.dead(alive)
	f.dead(older)
	f.dead(everywhere.tokens)
	f.post(0, "/auth/token", form("username", alice, "password", password)).is(http.StatusUnauthorized)
	f.account(tokenstore.Account{Username: alice}, password)
	fresh := f.login(0)
	f.alive(fresh.access)
	next := f.refresh(1, fresh)
	f.dead(out)
	f.dead(alive)
	f.post(2, "/auth/logout", bearer(next.access)).is(http.StatusOK)
	f.dead(next)
}

// Before any token was shown again, the data may be lost a second time.
func TestRedisRestartedEmptyTwice(t *testing.T) {
	t.Parallel()
	f := usual(t)
	generations := []tokens{f.login(0)}
	for range 2 {
		f.redis.RestartEmpty(t)
		f.recovered()
		f.account(tokenstore.Account{Username: alice}, password)
		generations = append(generations, f.login(1))
	}
	last := len(generations) - 1
	for _, s := range generations[:last] {
		f.accessDead(s.access)
	}
	f.alive(generations[last].access)
}

// A logout in flight while Redis goes away never claims what did not happen.
func TestLogoutsAcrossAKill(t *testing.T) {
	t.Parallel()
	f := start(t, setup{impatient: true, redisArgs: []string{"--appendonly", "yes", "--appendfsync", "always"}})
	const n = 60
	sessions := make([]tokens, n)
	for i := range sessions {
		sessions[i] = f.login(i % 3)
	}
	answers := make([]answer, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	half := make(chan struct{})
	var once sync.Once
	for i := range sessions {
		wg.Go(func() {
			if i >= n/2 {
				<-half // these go out around the kill
			}
			answers[i], errs[i] = f.try(i%3, http.MethodPost, "/auth/logout", cookie(sessions[i].refresh))
			once.Do(func() { close(half) })
		})
	}
	<-half
	f.redis.Kill(t)
	wg.Wait()
	f.redis.Restart(t)
	f.recovered()
	count := map[int]int{}
	for i, a := range answers {
		f.check(errs[i])
		a.proper()
		count[a.status]++
		switch a.status {
		case http.StatusOK:
			f.dead(sessions[i])
		case http.StatusServiceUnavailable:
			f.post(0, "/auth/logout", cookie(sessions[i].refresh)).is(http.StatusOK)
			f.dead(sessions[i])
		default:
			t.Errorf("%s: %d", a.what, a.status)
		}
	}
	t.Logf("answers by status: %v", count)
}
