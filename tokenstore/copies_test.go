package tokenstore_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// go-redis sends a script again when the answer is late, while the first copy may still
// sit in a socket or a proxy. These tests record what was sent, byte for byte, let other
// things happen, and send it once more.

// recorder keeps the scripts that Redis has run.
type recorder struct {
	mu   sync.Mutex
	sent map[string][][]any // by the script's hash
}

func (r *recorder) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *recorder) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		r.record(cmd)
		return err
	}
}

func (r *recorder) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			r.record(cmd)
		}
		return err
	}
}

func (r *recorder) record(cmd redis.Cmder) {
	c, ok := cmd.(*redis.Cmd)
	if !ok || !strings.HasPrefix(c.Name(), "eval") || c.Err() != nil || isLate(c.Val()) {
		return
	}
	args := slices.Clone(c.Args())
	hash, _ := args[1].(string)
	if args[0] == "eval" {
		hash = redis.NewScript(hash).Hash()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent[hash] = append(r.sent[hash], args)
}

// take returns what was recorded of a script, and forgets it.
func (r *recorder) take(hash string) [][]any {
	r.mu.Lock()
	defer r.mu.Unlock()
	sent := r.sent[hash]
	delete(r.sent, hash)
	return sent
}

// isLate reports whether a reply is what lua/late.lua answers.
func isLate(v any) bool {
	list, _ := v.([]any)
	return len(list) == 2 && list[0] == "LATE"
}

// world is one store, and what lives in it.
type world struct {
	*fixture
	*recorder
	mini    *miniredis.Miniredis // nil on a real Redis
	scripts map[string]tokenstore.ScriptInfo
	s       *family // the latest login's session
	gen     int     // of its current refresh token
	secret  [32]byte
	n       uint64 // counts up: for what must be fresh each time
	kid     string // the key that was offered last
}

const (
	subject = "alice"
	account = "carol"
	client  = "lkc_a"
)

// newWorld makes a store on a server, and resets it.
func newWorld(t *testing.T, rdb *redis.Client, mini *miniredis.Miniredis) *world {
	t.Helper()
	return newObservedWorld(t, rdb, mini, nil)
}

// newObservedWorld is newWorld with an observer of the store's operations.
func newObservedWorld(t *testing.T, rdb *redis.Client, mini *miniredis.Miniredis, observe func(string, time.Duration, error)) *world {
	t.Helper()
	store := redis.NewClient(&redis.Options{Addr: rdb.Options().Addr, DB: rdb.Options().DB})
	t.Cleanup(func() { _ = store.Close() })
	w := &world{
		fixture:  newFixtureWith(t, backend{store: store, test: rdb}, tokenstore.Options{Lifetimes: lifetimes(), StatusLists: true, Observe: observe}),
		recorder: &recorder{sent: map[string][][]any{}}, mini: mini, scripts: map[string]tokenstore.ScriptInfo{},
	}
	for _, sc := range w.AllScripts() {
		w.scripts[sc.Name] = sc
	}
	w.store.AddHook(w.recorder)
	w.reset()
	return w
}

// reset empties the server and fills it with an account, a client, a session and keys.
func (w *world) reset() {
	w.t.Helper()
	if err := w.rdb.FlushDB(w.t.Context()).Err(); err != nil {
		w.t.Fatal(err)
	}
	if err := w.Open(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	for _, name := range []string{"account_create", "client_create", "keys_put", "login", "renew"} {
		w.do(mutationOf(name))
	}
	clear(w.sent)
}

func (w *world) do(m mutation) {
	w.t.Helper()
	if err := m.do(w); err != nil {
		w.t.Fatalf("%s: %v", m, err)
	}
}

func (w *world) next() uint64 {
	w.n++
	return w.n
}

func (w *world) shard() int { return w.UserID(subject).Shard() }

func (w *world) view() tokenstore.View {
	w.t.Helper()
	views, err := w.Revocations.Renew(w.t.Context(), []tokenstore.Renewal{{Shard: w.shard()}})
	if err != nil {
		w.t.Fatal(err)
	}
	return views[0]
}

// mutation is one way to have a script change something.
type mutation struct {
	script, how string
	do          func(*world) error
	// inside says why what a copy changes that comes before the deadline is harmless. ""
	// is that it changes nothing.
	inside string
}

func (m mutation) String() string {
	if m.how == "" {
		return m.script
	}
	return m.script + ", " + m.how
}

func mutationOf(script string) mutation {
	i := slices.IndexFunc(mutations(), func(m mutation) bool { return m.script == script })
	return mutations()[i]
}

// mutations are all scripts that write, each in every way that matters.
func mutations() []mutation {
	return []mutation{
		{script: "login", do: func(w *world) error {
			s, err := w.tryLogin(subject, w.Now().Add(time.Hour))
			w.s, w.gen = s, 1
			return err
		}},
		{script: "rotate", do: func(w *world) error {
			_, err := w.s.show(w.gen)
			switch {
			case err == nil:
				w.gen++
			case errors.Is(err, tokenstore.ErrUnavailable):
				return err
			}
			return nil
		}, inside: "a copy of the rotation before the last is a theft, as an old token is: see docs/decisions/copies-of-a-request.md"},
		{script: "revoke", do: func(w *world) error {
			_, err := w.Sessions.Revoke(w.t.Context(), tokenstore.SessionEnd{SID: w.s.sid, UID: w.s.uid})
			return err
		}},
		{script: "revoke", how: "with its access token", do: func(w *world) error {
			last := w.s.access(len(w.s.grants) - 1)
			_, err := w.Sessions.Revoke(w.t.Context(), tokenstore.SessionEnd{SID: w.s.sid, UID: w.s.uid, JTI: last.JTI, Expires: last.Expires})
			return err
		}},
		{script: "revoke_user", do: func(w *world) error {
			_, err := w.Sessions.RevokeUser(w.t.Context(), tokenstore.UserEnd{UID: w.s.uid, ChangedAt: w.Now()})
			return err
		}},
		{script: "revoke_user", how: "but for a session", do: func(w *world) error {
			s := w.login(subject)
			_, err := w.Sessions.RevokeUser(w.t.Context(), tokenstore.UserEnd{UID: s.uid, Except: &s.sid})
			w.s, w.gen = s, 1
			return err
		}},
		{script: "verify", do: func(w *world) error {
			if err := w.s.verify(0); errors.Is(err, tokenstore.ErrUnavailable) {
				return err
			}
			return nil
		}},
		{script: "lookup", do: func(w *world) error {
			_, err := w.Attempts.Lookup(w.t.Context(), attempt(account, "192.0.2.1"))
			return err
		}},
		{script: "throttle_charge", do: func(w *world) error {
			_, err := w.Attempts.Lookup(w.t.Context(), attempt(account, "192.0.2.1"))
			return err
		}},
		{script: "throttle_refund", do: func(w *world) error {
			l, err := w.Attempts.Lookup(w.t.Context(), attempt(account, "192.0.2.1"))
			if err != nil {
				return err
			}
			return w.Attempts.Refund(w.t.Context(), l.Charge)
		}},
		{script: "account_create", do: func(w *world) error {
			if _, err := w.Accounts.Delete(w.t.Context(), account); err != nil {
				return err
			}
			return w.Accounts.Create(w.t.Context(), tokenstore.Account{Username: account, Hash: hashOf(bcrypt12, w.next())})
		}},
		{script: "account_update", how: "password", do: func(w *world) error {
			_, err := w.Accounts.SetPassword(w.t.Context(), account, "", hashOf(argonToday, w.next()))
			return ignore(err, tokenstore.ErrNoAccount)
		}},
		{script: "account_update", how: "disable", do: func(w *world) error {
			_, err := w.Accounts.SetDisabled(w.t.Context(), account, true)
			return ignore(err, tokenstore.ErrNoAccount)
		}},
		{script: "account_update", how: "enable", do: func(w *world) error {
			_, err := w.Accounts.SetDisabled(w.t.Context(), account, false)
			return ignore(err, tokenstore.ErrNoAccount)
		}},
		{script: "account_delete", do: func(w *world) error {
			_, err := w.Accounts.Delete(w.t.Context(), account)
			return err
		}},
		{script: "client_delete", do: func(w *world) error {
			return w.Clients.Delete(w.t.Context(), client)
		}},
		{script: "client_create", do: func(w *world) error {
			if err := w.Clients.Delete(w.t.Context(), client); err != nil {
				return err
			}
			w.secret = random32(w.t)
			return w.Clients.Create(w.t.Context(), tokenstore.Client{ID: client}, w.secret)
		}},
		{script: "client_rotate", do: func(w *world) error {
			w.secret = random32(w.t)
			return ignore(w.Clients.RotateSecret(w.t.Context(), client, w.secret, time.Hour), tokenstore.ErrNoClient)
		}},
		{script: "client_check", do: func(w *world) error {
			_, err := w.Clients.IssueToken(w.t.Context(), client, w.secret)
			return ignore(err, tokenstore.ErrNoClient)
		}, inside: "a place in a status list is given that no token names"},
		{script: "meta", do: func(w *world) error { return w.Open(w.t.Context()) }},
		{script: "revoke_key", do: func(w *world) error {
			_, err := w.Keys.Deny(w.t.Context(), w.kid)
			return err
		}},
		{script: "keys_put", do: func(w *world) error { return w.offer(tokenstore.OfferNow) }},
		{script: "keys_put", how: "asked", do: func(w *world) error { return w.offer(tokenstore.OfferAsked) }},
		{script: "keys_put", how: "due", do: func(w *world) error { return w.offer(tokenstore.OfferDue) }},
		{script: "keys_put", how: "lost", do: func(w *world) error { return w.offer(tokenstore.OfferLost) }},
		{script: "keys_sync", do: func(w *world) error {
			_, err := w.Keys.Sync(w.t.Context(), keySettings())
			return err
		}},
		{script: "keys_revoke", do: func(w *world) error {
			_, err := w.Keys.Revoke(w.t.Context(), keySettings(), w.kid, sealed(fmt.Sprint("instead ", w.next())))
			return err
		}},
		{script: "keys_reseal", do: func(w *world) error {
			ring, err := w.Keys.Ring(w.t.Context())
			if err != nil {
				return err
			}
			return w.Keys.Reseal(w.t.Context(), ring.Active, ring.Keys[ring.Active].Sealed, fmt.Append(nil, "anew ", w.next()))
		}},
		{script: "renew", do: func(w *world) error {
			v := w.view()
			_, err := w.Revocations.Renew(w.t.Context(), []tokenstore.Renewal{{Shard: w.shard(), Member: "m", Mark: v.Head, Beat: w.next(), After: v.Head.Seq}})
			return err
		}, inside: "a member that was struck is there again, until it is struck again"},
		{script: "look", do: func(w *world) error {
			_, err := w.Revocations.Look(w.t.Context(), []tokenstore.Look{{Shard: w.shard()}}, 10)
			return err
		}},
		{script: "strike", do: func(w *world) error {
			for _, m := range w.view().Members {
				if err := w.Revocations.Strike(w.t.Context(), w.shard(), m); err != nil {
					return err
				}
			}
			return nil
		}},
		{script: "restore_epoch", do: func(w *world) error {
			return w.Revocations.Restore(w.t.Context(), tokenstore.Entry{Kind: tokenstore.KindUser, ID: w.s.uid, Epoch: 1000 * w.next()})
		}},
		{script: "probe", do: func(w *world) error {
			_, err := w.Preflight(w.t.Context())
			return err
		}},
		{script: "first_use", do: func(w *world) error {
			_, err := w.Proofs.FirstUse(w.t.Context(), sha256.Sum256(fmt.Append(nil, w.next())), w.Now().Add(time.Minute))
			return err
		}},
		{script: "status_view", do: func(w *world) error {
			_, err := w.Revocations.StatusView(w.t.Context(), w.shard())
			return err
		}},
	}
}

func (w *world) offer(why tokenstore.Offer) error {
	w.kid = fmt.Sprint("k", w.next())
	_, err := w.Keys.Offer(w.t.Context(), keySettings(), sealed(w.kid), why)
	return err
}

func ignore(err, target error) error {
	if errors.Is(err, target) {
		return nil
	}
	return err
}

// value is one key of Redis.
type value struct {
	Data    any
	Expires int64 // ms, as PEXPIRETIME tells; on miniredis, where time stands still, the TTL
	ttl     time.Duration
}

// dump reads the whole of Redis.
func (w *world) dump() map[string]value {
	w.t.Helper()
	ctx := w.t.Context()
	keys, err := w.rdb.Keys(ctx, "*").Result()
	if err != nil {
		w.t.Fatal(err)
	}
	kinds := make([]*redis.StatusCmd, len(keys))
	_, _ = w.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, key := range keys {
			kinds[i] = p.Type(ctx, key)
		}
		return nil
	})
	data := make([]redis.Cmder, len(keys))
	ttls, ends := make([]*redis.DurationCmd, len(keys)), make([]*redis.DurationCmd, len(keys))
	_, _ = w.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, key := range keys {
			ttls[i] = p.PTTL(ctx, key)
			if w.mini == nil {
				ends[i] = p.PExpireTime(ctx, key)
			}
			switch kind := kinds[i].Val(); kind {
			case "none": // has just expired
			case "string":
				data[i] = p.Get(ctx, key)
			case "hash":
				data[i] = p.HGetAll(ctx, key)
			case "zset":
				data[i] = p.ZRangeWithScores(ctx, key, 0, -1)
			case "stream":
				data[i] = p.XRange(ctx, key, "-", "+")
			default:
				w.t.Fatalf("%s is a %q", key, kind)
			}
		}
		return nil
	})
	all := make(map[string]value, len(keys))
	for i, key := range keys {
		if data[i] == nil || errors.Is(data[i].Err(), redis.Nil) {
			continue
		}
		if err := data[i].Err(); err != nil {
			w.t.Fatalf("%s: %v", key, err)
		}
		v := value{ttl: ttls[i].Val(), Expires: ttls[i].Val().Milliseconds()}
		if ends[i] != nil {
			v.Expires = ends[i].Val().Milliseconds()
		}
		switch c := data[i].(type) {
		case *redis.StringCmd:
			v.Data = c.Val()
		case *redis.MapStringStringCmd:
			v.Data = c.Val()
		case *redis.ZSliceCmd:
			v.Data = c.Val()
		case *redis.XMessageSliceCmd:
			v.Data = c.Val()
		}
		all[key] = v
	}
	return all
}

// changed tells what is different between two dumps, "" for nothing. Keys that last for
// seconds only may have expired in between.
func changed(before, after map[string]value, expiry bool) string {
	plain := func(all map[string]value) map[string]value {
		same := make(map[string]value, len(all))
		for key, v := range all {
			if _, there := after[key]; !there && v.ttl > 0 && v.ttl < 2*tokenstore.SkewPad {
				continue
			}
			if v.ttl = 0; !expiry {
				v.Expires = 0
			}
			same[key] = v
		}
		return same
	}
	before, after = plain(before), plain(after)
	if reflect.DeepEqual(before, after) {
		return ""
	}
	return cmp.Diff(before, after, cmp.AllowUnexported(value{}))
}

// send sends recorded scripts once more.
func (w *world) send(copies [][]any) (late bool) {
	w.t.Helper()
	late = true
	for _, args := range copies {
		got, err := w.rdb.Do(w.t.Context(), args...).Result()
		if err != nil {
			w.t.Fatalf("the copy of %v: %v", args, err)
		}
		late = late && isLate(got)
	}
	return late
}

// Every script that writes is in the table, and only what is there writes.
func TestEveryScriptThatWritesIsTestedWithCopies(t *testing.T) {
	f := newFixtureOn(t, backends()["miniredis"](t), lifetimes())
	want := map[string]bool{}
	for _, m := range mutations() {
		want[m.script] = true
	}
	got := map[string]bool{}
	for _, sc := range f.AllScripts() {
		if sc.Writes {
			got[sc.Name] = true
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("scripts that write, in mutations() and in loadScripts:\n%s", diff)
	}
}

// A script that is declared to read is refused by Redis if it writes.
func TestScriptsThatReadDoNotWrite(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	w := newWorld(t, server.Client(), nil)
	attempt := attempt(account, "192.0.2.1")
	if _, err := w.Attempts.Lookup(t.Context(), attempt); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Sessions.Peek(t.Context(), w.s.rotation(1)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Sessions.List(t.Context(), w.s.uid, "", 10); err != nil {
		t.Fatal(err)
	}
	for name, sc := range w.scripts {
		if sc.Writes {
			continue
		}
		sent := w.take(sc.Hash)
		if len(sent) == 0 {
			t.Errorf("%s was not called: call what calls it", name)
		}
		for _, args := range sent {
			args[0], args[1] = "evalsha_ro", sc.Hash
			if err := w.rdb.Do(t.Context(), args...).Err(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func (w *world) copies(t *testing.T, first mutation) {
	harmed := false
	for _, between := range mutations() {
		w.reset()
		w.do(first)
		sent := w.take(w.scripts[first.script].Hash)
		if len(sent) == 0 {
			t.Fatalf("%s did not call its script", first)
		}
		w.do(between)
		before := w.dump()
		if !w.sendLate(sent) {
			t.Errorf("%s, then %s: the copy was not late", first, between)
		}
		if diff := changed(before, w.dump(), true); diff != "" {
			t.Errorf("%s, then %s: a late copy changed\n%s", first, between, diff)
		}
		w.send(sent)
		if diff := changed(before, w.dump(), false); diff != "" {
			harmed = true
			if first.inside == "" {
				t.Errorf("%s, then %s: a copy in time changed\n%s", first, between, diff)
			}
		}
	}
	if first.inside != "" && !harmed {
		t.Errorf("%s: a copy changes nothing, so there is nothing to explain (%s)", first, first.inside)
	}
}

// sendLate sends recorded scripts when their deadline has passed: on miniredis the clock is
// set, on Redis, whose clock nobody sets, the deadline. TestACopyAfterItsDeadline waits.
func (w *world) sendLate(sent [][]any) (late bool) {
	w.t.Helper()
	if w.mini == nil {
		past := make([][]any, len(sent))
		for i, args := range sent {
			past[i] = replaced(args, len(args)-1, 1)
		}
		return w.send(past)
	}
	now, err := w.rdb.Time(w.t.Context()).Result()
	if err != nil {
		w.t.Fatal(err)
	}
	var last int64
	for _, args := range sent {
		deadline, _ := args[len(args)-1].(int64)
		last = max(last, deadline)
	}
	w.mini.SetTime(time.UnixMilli(last + 1))
	defer w.mini.SetTime(now)
	return w.send(sent)
}

// On Redis, with nothing changed in what was sent: all scripts, then a wait until the last
// deadline has passed by Redis time, then all copies.
func TestACopyAfterItsDeadline(t *testing.T) {
	t.Parallel()
	w := newWorld(t, redistest.Start(t).Client(), nil)
	var copies [][]any
	var last int64
	for _, m := range mutations() {
		w.do(m)
		for _, args := range w.take(w.scripts[m.script].Hash) {
			deadline, _ := args[len(args)-1].(int64)
			last = max(last, deadline)
			copies = append(copies, args)
		}
	}
	eventually(t, func() error {
		now, err := w.rdb.Time(t.Context()).Result()
		if err == nil && now.UnixMilli() <= last {
			err = errors.New("the last deadline has not passed")
		}
		return err
	})
	before := w.dump()
	if !w.send(copies) {
		t.Error("a copy was not late")
	}
	if diff := changed(before, w.dump(), true); diff != "" {
		t.Errorf("late copies changed\n%s", diff)
	}
}
