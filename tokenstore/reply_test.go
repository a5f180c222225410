package tokenstore_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// mangler replaces one of the replies of Redis.
type mangler struct {
	mu      sync.Mutex
	on      bool
	at      int             // the first reply to replace
	all     bool            // and those after it: what sends a script again must not find a better answer
	with    func([]any) any // by what; nil replaces nothing
	replies [][]any         // what came since it was switched on
}

func (m *mangler) DialHook(next redis.DialHook) redis.DialHook { return next }

func (m *mangler) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		m.see(cmd)
		return err
	}
}

func (m *mangler) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			m.see(cmd)
		}
		return err
	}
}

func (m *mangler) see(cmd redis.Cmder) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.on || cmd.Err() != nil {
		return
	}
	switch c := cmd.(type) {
	case *redis.Cmd: // a script
		if v, ok := c.Val().([]any); ok && !isLate(v) && m.record(v) {
			c.SetVal(m.with(v))
		}
	case *redis.SliceCmd: // HMGET
		if m.record(c.Val()) {
			v, _ := m.with(c.Val()).([]any)
			c.SetVal(v)
		}
	}
}

func (m *mangler) record(v []any) (replace bool) {
	m.replies = append(m.replies, slices.Clone(v))
	last := len(m.replies) - 1
	return m.with != nil && (last == m.at || m.all && last > m.at)
}

// watch runs op with one of its replies replaced, and returns what Redis replied.
func (m *mangler) watch(at int, with func([]any) any, op func() error) ([][]any, error) {
	m.mu.Lock()
	m.on, m.at, m.with, m.replies = true, at, with, nil
	m.mu.Unlock()
	err := op()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.on = false
	return m.replies, err
}

var digits = regexp.MustCompile(`^\d+$`)

// replaced returns a list with another element.
func replaced(v []any, i int, by any) []any {
	v = slices.Clone(v)
	v[i] = by
	return v
}

// wrongElements are the lists that are v but for one element that its reader must notice.
func wrongElements(v []any) map[string][]any {
	all := map[string][]any{}
	for i, element := range v {
		put := func(what string, by any) { all[fmt.Sprintf("%d is %s", i, what)] = replaced(v, i, by) }
		put("a list", []any{"x"})
		switch e := element.(type) {
		case int64:
			put("nil", nil)
			put("-1", int64(-1))
			put("a string", "x")
		case string:
			put("nil", nil)
			if digits.MatchString(e) { // a number out of a hash
				put("no number", "x")
			} else {
				put("a number", int64(7))
			}
		case []any:
			put("a list", "x") // in place of the list of one that was put above
			put("nil", nil)
			put("a number", int64(7))
			for what, inner := range wrongElements(e) {
				put("a list of which "+what, inner)
			}
		}
	}
	return all
}

// mangled are the replies that are no answer, of a script or else of HMGET, where nil is
// a field that is not there.
func mangled(v []any, hmget bool) map[string]any {
	all := map[string]any{"nothing": nil, "empty": []any{}, "no list": "OK"}
	for what, list := range wrongElements(v) {
		if !hmget || !strings.HasSuffix(what, " is nil") {
			all["element "+what] = list
		}
	}
	for i := range v {
		all[fmt.Sprintf("without element %d", i)] = slices.Delete(slices.Clone(v), i, i+1)
	}
	if n, ok := v[0].(int64); ok && n <= 10 {
		all["code 99"] = replaced(v, 0, int64(99))
	}
	return all
}

// replied is an operation: what makes it ready, and may be called many times.
type replied func(w *world) (op func() error)

// operationsByMethod are all methods of the store that read a reply, each with every
// answer that matters after the comma.
func operationsByMethod() map[string]replied {
	ctx := context.Background()
	always := func(op func(w *world) error) replied {
		return func(w *world) func() error { return func() error { return op(w) } }
	}
	rotated := func(ready func(w *world, s *family), gen int) replied {
		return func(w *world) func() error {
			s := w.login(subject)
			for i := range gen {
				s.rotation(i + 1)
			}
			ready(w, s)
			return func() error { _, _, err := w.Sessions.Rotate(ctx, s.rotation(gen)); return err }
		}
	}
	show := func(gens ...int) func(*world, *family) {
		return func(w *world, s *family) {
			for _, gen := range gens {
				if _, err := s.show(gen); err != nil {
					w.t.Fatal(err)
				}
				s.age(time.Minute)
			}
		}
	}
	justNow := func(w *world, s *family) {
		if _, err := s.show(1); err != nil {
			w.t.Fatal(err)
		}
	}
	verify := func(change func(*world, *family, *tokenstore.AccessToken)) replied {
		return func(w *world) func() error {
			s := w.login(subject)
			token := s.access(0)
			change(w, s, &token)
			return func() error { return w.Revocations.Verify(ctx, token) }
		}
	}
	secret := [32]byte{1}
	withClient := func(op func(w *world) error) replied {
		return func(w *world) func() error {
			if err := errors.Join(w.Clients.Delete(ctx, "lkc_c"), w.Clients.Create(ctx, tokenstore.Client{ID: "lkc_c", Grants: "g", Scopes: "s", Audiences: "a", Claims: "{}"}, secret)); err != nil {
				w.t.Fatal(err)
			}
			return func() error { return op(w) }
		}
	}
	revoke := func(e tokenstore.SessionEnd) replied {
		return func(w *world) func() error {
			s := w.login(subject)
			e.SID, e.UID = s.sid, s.uid
			return func() error { _, err := w.Sessions.Revoke(ctx, e); return err }
		}
	}
	other := "lkc_other"
	keys := keySettings()
	fresh := func(w *world) tokenstore.SealedKey { return sealed(fmt.Sprint("fresh ", w.next())) }
	return map[string]replied{
		"Login": always(func(w *world) error { _, err := w.tryLogin(subject, w.Now().Add(time.Hour)); return err }),
		"Login, superseded": func(w *world) func() error {
			w.revokeUser(tokenstore.UserEnd{UID: w.UserID("dora"), ChangedAt: w.Now()})
			return func() error { _, err := w.tryLogin("dora", time.UnixMilli(1)); return err }
		},
		"Rotate":       rotated(show(), 1),
		"Rotate, same": rotated(justNow, 1),
		"Rotate, kept": rotated(justNow, 2),
		"Rotate, too large": func(w *world) func() error {
			t := w.login(subject).rotation(1)
			t.Room, t.Members = 1, 1
			return func() error { _, _, err := w.Sessions.Rotate(ctx, t); return err }
		},
		"Rotate, none": func(w *world) func() error {
			s := w.login(subject)
			s.sid[9]++
			return func() error { _, err := s.show(1); return err }
		},
		"Rotate, revoked":    rotated(func(_ *world, s *family) { s.logout(false) }, 1),
		"Rotate, superseded": rotated(func(w *world, s *family) { w.revokeUser(tokenstore.UserEnd{UID: s.uid}) }, 1),
		"Rotate, reuse":      rotated(show(1, 2, 3), 1),
		"Rotate, rollback":   rotated(show(1), 3),
		"Rotate, foreign": func(w *world) func() error {
			t := w.login(subject).rotation(1)
			t.IssuedTo = other
			return func() error { _, _, err := w.Sessions.Rotate(ctx, t); return err }
		},
		"Rotate, scope": func(w *world) func() error {
			t := w.login(subject).rotation(1)
			t.Scope = "more"
			return func() error { _, _, err := w.Sessions.Rotate(ctx, t); return err }
		},
		"Rotate, key": func(w *world) func() error {
			t := w.login(subject).rotation(1)
			t.JKT = "another"
			return func() error { _, _, err := w.Sessions.Rotate(ctx, t); return err }
		},
		"Peek": func(w *world) func() error {
			r := w.login(subject).rotation(1)
			return func() error { _, err := w.Sessions.Peek(ctx, r); return err }
		},
		"Peek, the parent": func(w *world) func() error {
			s := w.login(subject)
			justNow(w, s)
			return func() error { _, err := w.Sessions.Peek(ctx, s.rotation(1)); return err }
		},
		"Peek, none": func(w *world) func() error {
			r := w.login(subject).rotation(2)
			return func() error { _, err := w.Sessions.Peek(ctx, r); return err }
		},
		"Verify":             verify(func(*world, *family, *tokenstore.AccessToken) {}),
		"Verify, denied":     verify(func(_ *world, s *family, _ *tokenstore.AccessToken) { s.logout(false) }),
		"Verify, jti denied": verify(func(_ *world, s *family, _ *tokenstore.AccessToken) { s.logout(true) }),
		"Verify, superseded": verify(func(w *world, s *family, _ *tokenstore.AccessToken) {
			w.revokeUser(tokenstore.UserEnd{UID: s.uid})
		}),
		"Verify, another history": verify(func(_ *world, _ *family, t *tokenstore.AccessToken) { t.LogEpoch = "another" }),
		"Verify, expired":         verify(func(_ *world, _ *family, t *tokenstore.AccessToken) { t.Expires = time.UnixMilli(1) }),
		"Verify, a revoked key": verify(func(w *world, _ *family, t *tokenstore.AccessToken) {
			t.Key = w.KeyID("dead", w.shard()) // see the tests that use this table
		}),
		"Revoke":                  revoke(tokenstore.SessionEnd{}),
		"Revoke, not the owner's": revoke(tokenstore.SessionEnd{Owner: "eve"}),
		"Revoke, foreign":         revoke(tokenstore.SessionEnd{IssuedTo: &other}),
		"RevokeUser": always(func(w *world) error {
			_, err := w.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: w.UserID("dora")})
			return err
		}),
		"RevokeUser, no such session": always(func(w *world) error {
			uid := w.UserID("dora")
			_, err := w.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: uid, Except: &uid})
			return err
		}),
		"Session": func(w *world) func() error {
			s := w.login(subject)
			return func() error { _, err := w.Sessions.Get(ctx, s.sid); return err }
		},
		"Sessions": func(w *world) func() error {
			w.revokeUser(tokenstore.UserEnd{UID: w.UserID("fay")})
			s := w.login("fay")
			return func() error { _, _, err := w.Sessions.List(ctx, s.uid, "", 100); return err }
		},
		"AnyAlive": func(w *world) func() error {
			s := w.login("fay")
			w.revokeUser(tokenstore.UserEnd{UID: s.uid})
			return func() error { _, err := w.Sessions.AnyAlive(ctx, []tokenstore.ID{s.sid}); return err }
		},
		"Lookup":  always(func(w *world) error { _, err := w.Attempts.Lookup(ctx, attempt(account, "192.0.2.1")); return err }),
		"Account": always(func(w *world) error { _, _, err := w.Accounts.Get(ctx, account); return err }),
		"Refund": func(w *world) func() error {
			l := w.try(attempt(account, "192.0.2.1"))
			return func() error { return w.Attempts.Refund(ctx, l.Charge) }
		},
		"ReplacePassword": always(func(w *world) error {
			_, err := w.Accounts.ReplacePassword(ctx, account, "", fmt.Sprint("h", w.next()))
			return err
		}),
		"CreateAccount": always(func(w *world) error {
			return w.Accounts.Create(ctx, tokenstore.Account{Username: fmt.Sprint("u", w.next()), Hash: "h"})
		}),
		"CreateAccount, taken": always(func(w *world) error {
			return w.Accounts.Create(ctx, tokenstore.Account{Username: account, Hash: "other"})
		}),
		"SetPassword":           always(func(w *world) error { _, err := w.Accounts.SetPassword(ctx, account, "", "h"); return err }),
		"SetPassword, conflict": always(func(w *world) error { _, err := w.Accounts.SetPassword(ctx, account, "other", "another"); return err }),
		"SetDisabled":           always(func(w *world) error { _, err := w.Accounts.SetDisabled(ctx, account, false); return err }),
		"SetDisabled, none":     always(func(w *world) error { _, err := w.Accounts.SetDisabled(ctx, "nobody", false); return err }),
		"DeleteAccount":         always(func(w *world) error { _, err := w.Accounts.Delete(ctx, "nobody"); return err }),
		"CreateClient": always(func(w *world) error {
			return w.Clients.Create(ctx, tokenstore.Client{ID: fmt.Sprint("lkc_", w.next())}, secret)
		}),
		"CreateClient, taken":                withClient(func(w *world) error { return w.Clients.Create(ctx, tokenstore.Client{ID: "lkc_c"}, [32]byte{2}) }),
		"RotateClientSecret":                 withClient(func(w *world) error { return w.Clients.RotateSecret(ctx, "lkc_c", [32]byte{3}, 0) }),
		"RotateClientSecret, none":           always(func(w *world) error { return w.Clients.RotateSecret(ctx, "lkc_none", secret, 0) }),
		"DeleteClient":                       always(func(w *world) error { return w.Clients.Delete(ctx, "lkc_none") }),
		"AuthenticateClient":                 withClient(func(w *world) error { _, err := w.Clients.Authenticate(ctx, "lkc_c", secret); return err }),
		"AuthenticateClient, another secret": withClient(func(w *world) error { _, err := w.Clients.Authenticate(ctx, "lkc_c", [32]byte{2}); return err }),
		"IssueToClient":                      withClient(func(w *world) error { _, err := w.Clients.IssueToken(ctx, "lkc_c", secret); return err }),
		"IssueToClient, none":                always(func(w *world) error { _, err := w.Clients.IssueToken(ctx, "lkc_none", secret); return err }),
		"Client":                             withClient(func(w *world) error { _, err := w.Clients.Get(ctx, "lkc_c"); return err }),
		"ClientSessions": func(w *world) func() error {
			w.loginBy("gus", "lkc_c", "read")
			return func() error {
				return w.Clients.Sessions(ctx, "lkc_c", func(tokenstore.SessionEnd) error { return nil })
			}
		},
		"FirstUse": always(func(w *world) error {
			_, err := w.Proofs.FirstUse(ctx, sha256.Sum256(fmt.Append(nil, w.next())), w.Now().Add(time.Minute))
			return err
		}),
		"FirstUse, used": func(w *world) func() error {
			op := func() error { _, err := w.Proofs.FirstUse(ctx, [32]byte{}, w.Now().Add(time.Minute)); return err }
			if err := op(); err != nil {
				w.t.Fatal(err)
			}
			return op
		},
		"Open":            always(func(w *world) error { return w.Open(ctx) }),
		"DenyKey":         always(func(w *world) error { _, err := w.Keys.Deny(ctx, "dead"); return err }),
		"SyncSigningKeys": always(func(w *world) error { _, err := w.Keys.Sync(ctx, keys); return err }),
		"OfferSigningKey": always(func(w *world) error {
			_, err := w.Keys.Offer(ctx, keys, fresh(w), tokenstore.OfferDue)
			return err
		}),
		"RevokeSigningKey": always(func(w *world) error {
			_, err := w.Keys.Revoke(ctx, keys, "none", tokenstore.SealedKey{})
			return err
		}),
		"RevokeSigningKey, active": func(w *world) func() error {
			ring, err := w.Keys.Offer(ctx, keys, fresh(w), tokenstore.OfferNow)
			if err != nil {
				w.t.Fatal(err)
			}
			return func() error { _, err := w.Keys.Revoke(ctx, keys, ring.Active, tokenstore.SealedKey{}); return err }
		},
		"ResealSigningKey": always(func(w *world) error { return w.Keys.Reseal(ctx, "none", nil, nil) }),
		"Renew": func(w *world) func() error {
			w.login(subject).logout(false)
			return func() error {
				_, err := w.Revocations.Renew(ctx, []tokenstore.Renewal{{Shard: w.shard(), Member: "m", Beat: w.next()}})
				return err
			}
		},
		"Look": func(w *world) func() error {
			w.login(subject).logout(false)
			return func() error {
				_, err := w.Revocations.Look(ctx, []tokenstore.Look{{Shard: w.shard()}, {Shard: w.shard()}}, 10)
				return err
			}
		},
		"Strike": always(func(w *world) error { return w.Revocations.Strike(ctx, w.shard(), tokenstore.Member{Name: "none"}) }),
		"Restore": always(func(w *world) error {
			return w.Revocations.Restore(ctx, tokenstore.Entry{Kind: tokenstore.KindUser, ID: w.UserID("dora"), Epoch: 1000 * w.next()})
		}),
		"Restore, known": func(w *world) func() error {
			w.revokeUser(tokenstore.UserEnd{UID: w.UserID("dora")})
			return func() error {
				return w.Revocations.Restore(ctx, tokenstore.Entry{Kind: tokenstore.KindUser, ID: w.UserID("dora"), Epoch: 1})
			}
		},
		"Restore, a session": func(w *world) func() error {
			s := w.login(subject)
			return func() error {
				return w.Revocations.Restore(ctx, tokenstore.Entry{Kind: tokenstore.KindSession, ID: s.sid})
			}
		},
		"Restore, a key": always(func(w *world) error {
			return w.Revocations.Restore(ctx, tokenstore.Entry{Kind: tokenstore.KindKey, ID: w.KeyID("dead", w.shard())})
		}),
		"StatusView": func(w *world) func() error {
			w.login(subject).logout(false)
			return func() error { _, err := w.Revocations.StatusView(ctx, w.shard()); return err }
		},
		"Preflight": always(func(w *world) error { _, err := w.Preflight(ctx); return err }),
	}
}

// An operation is measured under a name of its own, by which an operator knows what is slow.
// Those that share one do the same in Redis.
func TestAnOperationIsMeasuredUnderItsOwnName(t *testing.T) {
	t.Parallel()
	names := map[string][]string{
		"Login": {"login"}, "Rotate": {"rotate"}, "Peek": {"peek"}, "Verify": {"verify"}, "Revoke": {"revoke"},
		"RevokeUser": {"forget", "revoke_user"}, "Session": {"session"}, "Sessions": {"session_page", "sessions"}, "AnyAlive": {"alive"},
		"Lookup": {"lookup", "throttle_charge"}, "Account": {"lookup"}, "Refund": {"throttle_refund"},
		"CreateAccount": {"account_create"}, "DeleteAccount": {"account_delete"},
		"SetPassword": {"account_update"}, "ReplacePassword": {"account_update"}, "SetDisabled": {"account_update"},
		"CreateClient": {"client_create"}, "RotateClientSecret": {"client_rotate"}, "DeleteClient": {"client_delete"},
		"AuthenticateClient": {"client_check"}, "IssueToClient": {"client_check"}, "Client": {"client"}, "ClientSessions": {},
		"FirstUse": {"first_use"}, "Open": {"meta"}, "DenyKey": {"revoke_key"}, "SyncSigningKeys": {"keys_sync"},
		"OfferSigningKey": {"keys_put"}, "RevokeSigningKey": {"keys_revoke"}, "ResealSigningKey": {"keys_reseal"},
		"Renew": {"renew"}, "Look": {"look"}, "Strike": {"strike"}, "StatusView": {"status_view"}, "Preflight": {"meta", "probe"},
		"Restore": {"restore_epoch"}, "Restore, a session": {"revoke"}, "Restore, a key": {"revoke_key"},
	}
	mini := redistest.Mini(t)
	rdb := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	var mu sync.Mutex
	seen := map[string]bool{}
	w := newObservedWorld(t, rdb, mini, func(name string, _ time.Duration, _ error) {
		mu.Lock()
		defer mu.Unlock()
		seen[name] = true
	})
	for name, ready := range operationsByMethod() {
		method, _, _ := strings.Cut(name, ",")
		want, ok := names[name]
		if !ok {
			want, ok = names[method]
		}
		if !ok {
			t.Errorf("%s: say here under what name it is measured", name)
		}
		op := ready(w)
		clear(seen)
		if err := op(); errors.Is(err, tokenstore.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		for measured := range seen {
			if !slices.Contains(want, measured) {
				t.Errorf("%s is measured as %s, want %v", name, measured, want)
			}
		}
		if len(want) > 0 && !seen[want[len(want)-1]] {
			t.Errorf("%s is not measured as %s", name, want[len(want)-1])
		}
	}
}

// Every method of the store that reads a reply is in the table.
func TestEveryOperationIsTestedWithRepliesThatCannotBeRead(t *testing.T) {
	none := []string{
		// They ask Redis nothing.
		"Lifetimes", "WaitReplicas", "Shards", "Now", "PoolStats", "UserID", "NewID", "KeyID", "TailsTogether", "FollowedBy", "AllScripts",
		// go-redis reads their replies, and reports what it cannot read.
		"AppendAudit", "Ping", "Leave", "ReplacedPassword", "Usernames", "ClientIDs", "SigningKeys", "Tail", "Acknowledge", "Listen",
		// It reads the reply as bytes: see resp_test.go.
		"ReadLog",
	}
	seen := map[string]bool{}
	for name := range operationsByMethod() {
		method, _, _ := strings.Cut(name, ",")
		seen[method] = true
	}
	store := reflect.TypeFor[*tokenstore.Store]()
	for i := range store.NumMethod() {
		if name := store.Method(i).Name; !seen[name] && !slices.Contains(none, name) {
			t.Errorf("%s is not in operationsByMethod", name)
		}
	}
}

// A table of followers, or a hash, that has lost an element would pair names with values
// of others.
func TestAListOfPairsIsWhole(t *testing.T) {
	mini := redistest.Mini(t)
	rdb := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	w := newWorld(t, rdb, mini)
	var m mangler
	w.store.AddHook(&m)
	s := w.login(subject)
	_, err := m.watch(0, func(v []any) any {
		session, _ := v[2].([]any)[0].([]any)
		return replaced(v, 2, []any{replaced(session, 4, []any{"a name"})})
	}, func() error {
		_, err := w.Sessions.Revoke(t.Context(), tokenstore.SessionEnd{SID: s.sid, UID: s.uid})
		return err
	})
	is(t, "half a member", err, tokenstore.ErrUnavailable)
}
