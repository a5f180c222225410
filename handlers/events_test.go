package handlers_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/internal/dpop/dpoptest"
)

// recorded waits for the one event of a kind, and returns it.
func (f *fleet) recorded(event string) map[string]any {
	f.Helper()
	var found []map[string]any
	awaitTrue(f, "the event "+event, func() bool {
		found = nil
		for _, l := range f.lines() {
			if l["event"] == event {
				found = append(found, l)
			}
		}
		return len(found) > 0
	})
	if len(found) > 1 {
		f.Errorf("%d events %s", len(found), event)
	}
	f.wellFormed(found[0])
	return found[0]
}

// ends are the requests that end something: the event of each, and what shows in Redis once
// it has done so.
func ends() map[string]func(f *fleet) (method, path string, options []option, done func() bool) {
	gone := func(f *fleet, s tokens) func() bool {
		return func() bool { return len(f.session(s.access)) == 0 }
	}
	epoch := func(f *fleet, s tokens) func() bool {
		return func() bool {
			n, err := f.rdb.HGet(context.WithoutCancel(f.Context()), f.epochKey(s.access), "e").Int()
			return err == nil && n > 0
		}
	}
	return map[string]func(f *fleet) (string, string, []option, func() bool){
		"logout": func(f *fleet) (string, string, []option, func() bool) {
			s := f.login(0)
			return "POST", "/auth/logout", []option{cookie(s.refresh)}, gone(f, s)
		},
		"logout_all": func(f *fleet) (string, string, []option, func() bool) {
			s := f.login(0)
			return "POST", "/auth/logout-all", []option{bearer(s.access)}, epoch(f, s)
		},
		"session_ended": func(f *fleet) (string, string, []option, func() bool) {
			s, other := f.login(0), f.login(0)
			return "DELETE", "/auth/sessions/" + f.claim(other.access, "sid"), []option{bearer(s.access)}, gone(f, other)
		},
		"password_changed": func(f *fleet) (string, string, []option, func() bool) {
			s := f.login(0)
			f.secrets.add("another-password")
			return "POST", "/users/me/password", []option{bearer(s.access), form("current_password", password, "new_password", "another-password")}, epoch(f, s)
		},
		"token_revoked": func(f *fleet) (string, string, []option, func() bool) {
			s := f.login(0)
			return "POST", "/oauth2/revoke", []option{form("client_id", clientID, "token", s.refresh)}, gone(f, s)
		},
		"refresh_reuse": func(f *fleet) (string, string, []option, func() bool) {
			s := f.login(0)
			next := f.refresh(0, s)
			f.age(next.access, 2*grace)
			f.refresh(0, next)
			return "POST", "/auth/refresh", []option{cookie(s.refresh)}, gone(f, s)
		},
		"refresh_rollback": func(f *fleet) (string, string, []option, func() bool) {
			s := f.refresh(0, f.login(0))
			f.check(f.rdb.HSet(f.Context(), f.rtKey(s.access), "gen", 1).Err())
			return "POST", "/auth/refresh", []option{cookie(s.refresh)}, gone(f, s)
		},
	}
}

// epochKey names the epoch key of an access token's user.
func (f *fleet) epochKey(access string) string {
	uid := f.replicas[0].store.UserID(f.claim(access, "sub"))
	return fmt.Sprintf("lk:{%d}:ue:%s", uid.Shard(), uid)
}

// What has happened is recorded, though the client went away before every replica was known
// to know.
func TestAnEndIsRecordedThoughTheClientHangsUp(t *testing.T) {
	t.Parallel()
	for event, prepare := range ends() {
		t.Run(event, func(t *testing.T) {
			t.Parallel()
			f := start(t, setup{replicas: 1, dependencies: func(d *handlers.Dependencies) {
				d.Confirmer = edge.NewConfirmer(d.Store.Revocations, time.Hour) // the first confirmation takes that long
			}})
			method, path, options, done := prepare(f)
			ctx, hangUp := context.WithCancel(t.Context())
			answered := make(chan error, 1)
			go func() {
				_, err := f.try(0, method, path, append(options, func(r *http.Request) { *r = *r.WithContext(ctx) })...)
				answered <- err
			}()
			awaitTrue(t, "it has happened", done)
			hangUp()
			if err := <-answered; !errors.Is(err, context.Canceled) {
				t.Fatalf("answered: %v", err)
			}
			if e := f.recorded(event); e["confirmed"] != any(false) {
				t.Errorf("confirmed: %v", e["confirmed"])
			}
		})
	}
}

// A client that goes away while Redis is asked does not leave it open what happened.
func TestAHangUpDoesNotInterruptWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	list := ends()
	list["refresh"] = func(f *fleet) (string, string, []option, func() bool) {
		s := f.login(0)
		return "POST", "/auth/refresh", []option{cookie(s.refresh)}, nil
	}
	for _, event := range []string{"logout", "refresh", "refresh_reuse"} {
		t.Run(event, func(t *testing.T) {
			t.Parallel()
			f := start(t, setup{replicas: 1})
			method, path, options, _ := list[event](f)
			before := len(f.lines())
			f.redis.Pause(t)
			trips := f.replicas[0].trips.n.Load()
			ctx, hangUp := context.WithCancel(t.Context())
			answered := make(chan error, 1)
			go func() {
				_, err := f.try(0, method, path, append(options, func(r *http.Request) { *r = *r.WithContext(ctx) })...)
				answered <- err
			}()
			awaitTrue(t, "Redis is asked", func() bool { return f.replicas[0].trips.n.Load() > trips })
			hangUp()
			if err := <-answered; !errors.Is(err, context.Canceled) {
				t.Fatalf("answered: %v", err)
			}
			f.redis.Resume(t)
			var e map[string]any
			awaitTrue(t, "the event", func() bool {
				for _, l := range f.lines()[before:] {
					if l["event"] == event {
						e = l
					}
				}
				return e != nil
			})
		})
	}
}

// Redis does not answer: it may have happened, and that is recorded.
func TestAnEndOfWhichNobodyKnowsIsRecorded(t *testing.T) {
	t.Parallel()
	for event, prepare := range ends() {
		if event == "refresh_reuse" || event == "refresh_rollback" {
			continue // it is not known that it is one: the token is shown again
		}
		t.Run(event, func(t *testing.T) {
			t.Parallel()
			f := start(t, setup{replicas: 1, impatient: true})
			method, path, options, _ := prepare(f)
			lost := func(keys string) bool { // revoke and revoke_user
				first, _, _ := strings.Cut(keys, " ")
				return strings.Contains(first, ":rt:") && strings.Contains(keys, ":deny:") || strings.Contains(first, ":ue:")
			}
			f.replicas[0].rdb.AddHook(&loss{lost: lost})
			f.do(0, method, path, options...).is(http.StatusServiceUnavailable)
			if e := f.recorded(event); e["confirmed"] != any(false) {
				t.Errorf("confirmed: %v", e["confirmed"])
			}
		})
	}
}

// Whether the password was changed is not known: that it may have been is recorded.
func TestAPasswordChangeOfWhichNobodyKnowsIsRecorded(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	method, path, options, _ := ends()["password_changed"](f)
	f.replicas[0].rdb.AddHook(&loss{lost: func(keys string) bool { // account_update
		return strings.Contains(keys, ":acct:") && strings.Contains(keys, ":old:")
	}})
	f.do(0, method, path, options...).is(http.StatusServiceUnavailable)
	if e := f.recorded("password_changed"); e["confirmed"] != any(false) || e["sub"] != alice {
		t.Errorf("%v", e)
	}
}

// A session is recorded though no token of it could be issued.
func TestALoginIsRecordedThoughItIsNotAnswered(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	f.replicas[0].rdb.AddHook(&loss{after: func(keys string) {
		if strings.Contains(keys, ":rt:") {
			f.ring.Rest() // nothing can be signed any more
		}
	}})
	f.post(0, "/auth/token", form("username", alice, "password", password)).is(http.StatusServiceUnavailable)
	e := f.recorded("login")
	if sid, _ := e["sid"].(string); len(sid) != 22 || e["sub"] != alice {
		t.Errorf("%v", e)
	}
}

// A login that fails once its session is open leaves nothing behind: its session has ended,
// and the one whose cookie came along has not.
func TestALoginThatIsNotAnsweredLeavesNoSession(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		happens func(f *fleet, client registered) // while the session is opened
		status  int
	}{
		"nothing can be signed any more": {func(f *fleet, _ registered) { f.ring.Rest() }, http.StatusServiceUnavailable},
		"the client is deleted": {func(f *fleet, client registered) {
			f.check(f.replicas[1].store.Clients.Delete(f.Context(), client.id))
		}, http.StatusUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t, setup{replicas: 2})
			client, earlier := f.service("full"), f.login(1)
			f.replicas[0].rdb.AddHook(&loss{after: func(keys string) {
				if first, _, _ := strings.Cut(keys, " "); strings.Contains(first, ":rt:") && strings.Contains(keys, ":us:") && !strings.Contains(keys, ":members") { // login
					c.happens(f, client)
				}
			}})
			f.post(0, "/auth/token", client.post("username", alice, "password", password), cookie(earlier.refresh)).is(c.status)
			keys, err := f.rdb.Keys(t.Context(), "lk:*:rt:*").Result()
			f.check(err)
			if len(keys) != 1 || keys[0] != f.rtKey(earlier.access) {
				t.Errorf("sessions: %q, want only that of the cookie", keys)
			}
			if e := f.recorded("logout"); e["sid"] == any(f.claim(earlier.access, "sid")) || e["confirmed"] != any(false) {
				t.Errorf("the end of the new session: %v", e)
			}
		})
	}
}

// A request for tokens that nobody can sign yet asks Redis nothing: it opens no session,
// and uses no proof, no refresh token and no password attempt up.
func TestAGrantWithoutASigningKeyChangesNothing(t *testing.T) {
	t.Parallel()
	k := dpoptest.NewKey(t, "ES256")
	f := start(t, setup{replicas: 1})
	client, s := f.service("full"), f.login(0)
	users := f.logs(client)
	for name, r := range map[string]struct {
		path    string
		options []option
	}{
		"login":              {"/auth/token", []option{form("username", alice, "password", password)}},
		"login by a client":  {"/auth/token", []option{client.post("username", alice, "password", password)}},
		"refresh":            {"/auth/refresh", []option{form("refresh_token", s.refresh)}},
		"client credentials": {"/oauth2/token", []option{client.basic(), form("grant_type", "client_credentials")}},
		"refresh token":      {"/oauth2/token", []option{client.basic(), form("grant_type", "refresh_token", "refresh_token", users.refresh)}},
	} {
		f.ring.Rest()
		before := f.replicas[0].trips.n.Load()
		f.post(0, r.path, append(r.options, proof(k.Proof("POST", issuer+r.path, "")))...).fails(http.StatusServiceUnavailable, "temporarily_unavailable", "")
		if n := f.replicas[0].trips.n.Load() - before; n != 0 {
			t.Errorf("%s: %d round trips", name, n)
		}
		f.check(f.ring.Activate(f.kid))
		f.post(0, r.path, r.options...).is(http.StatusOK)
	}
}

// loss is a hook that loses the answers to some scripts.
type loss struct {
	lost  func(keys string) bool // those with these keys, separated by spaces
	after func(keys string)      // called once one has been answered
}

func (l *loss) DialHook(next redis.DialHook) redis.DialHook { return next }

func (l *loss) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			if fault := l.answer(cmd); fault != nil {
				cmd.SetErr(fault)
				err = fault
			}
		}
		return err
	}
}

func (l *loss) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if fault := l.answer(cmd); fault != nil {
			cmd.SetErr(fault)
			return fault
		}
		return err
	}
}

var errLost = errors.New("the answer was lost")

func (l *loss) answer(cmd redis.Cmder) error {
	keys, ok := scriptKeys(cmd)
	if ok && l.after != nil {
		l.after(keys)
	}
	if ok && l.lost != nil && l.lost(keys) {
		return errLost
	}
	return nil
}

// scriptKeys are the keys of a script that has run, separated by spaces.
func scriptKeys(cmd redis.Cmder) (string, bool) {
	args := cmd.Args()
	if name := cmd.Name(); (name != "evalsha" && name != "eval") || cmd.Err() != nil || len(args) < 3 {
		return "", false
	}
	n, _ := args[2].(int)
	keys := make([]string, 0, n)
	for _, key := range args[3 : 3+n] {
		text, _ := key.(string)
		keys = append(keys, text)
	}
	return strings.Join(keys, " "), true
}
