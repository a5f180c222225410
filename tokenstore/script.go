package tokenstore

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed lua/*.lua
var luaFiles embed.FS

// effect is what a script may do to Redis. It decides what [Store.prepare] and
// [Store.deadline] add to what the script's caller passes.
//
// go-redis sends a script again when the answer is late, while the first copy may still
// sit in a socket or a proxy. A copy that runs later must not undo what happened in
// between.
type effect int

const (
	// reads calls no command that writes. A copy is harmless.
	reads effect = iota + 1
	// writes may change something. It carries a deadline in Redis time: after it nobody
	// waits for the answer, and the script changes nothing (lua/late.lua). Before it, a
	// copy must be harmless by what the script itself does.
	writes
	// writesOnce sets what another request may set differently. It carries a deadline, and
	// until then a key that keeps its answer: a copy returns that answer and changes
	// nothing (lua/once.lua).
	writesOnce
)

// script is one operation: its name in metrics and errors, and its Lua.
type script struct {
	name   string
	effect effect
	lua    *redis.Script
	hot    bool // called so often that it is worth sending in batches
}

type scripts struct {
	login, rotate, revoke, revokeUser, verify   *script
	lookup, throttleCharge, throttleRefund      *script
	accountCreate, accountUpdate, accountDelete *script
	meta, revokeKey                             *script
	keysSync, keysPut, keysRevoke, keysReseal   *script
	renew, look, strike, restoreEpoch           *script
	probe                                       *script
	clientCreate, clientRotate, clientDelete    *script
	clientCheck                                 *script
	peek, firstUse                              *script
	statusView, sessionPage                     *script
}

// loadScripts reads the embedded files. Each script is its own file. In front of it come
// head.lua, what its effect demands, and the parts that it shares with others.
func loadScripts() (scripts, error) {
	var errs []error
	load := func(e effect, name string, shared ...string) *script {
		part := func(name string) string {
			text, err := luaFiles.ReadFile("lua/" + name + ".lua")
			if err != nil {
				errs = append(errs, fmt.Errorf("script %s: %w", name, err))
			}
			return string(text)
		}
		src := part("head")
		if e != reads {
			src += part("late")
		}
		for _, name := range shared {
			src += part(name)
		}
		if body := part(name); e == writesOnce {
			src += part("once") + "return once(function()\n" + body + "end)\n"
		} else {
			src += body
		}
		return &script{name: name, effect: e, lua: redis.NewScript(src)}
	}
	sc := scripts{
		login:          load(writes, "login", "status"),
		rotate:         load(writes, "rotate", "log", "issued", "session", "status", "primary"),
		revoke:         load(writes, "revoke", "log", "issued", "status", "primary"),
		revokeUser:     load(writesOnce, "revoke_user", "log", "status", "primary"),
		verify:         load(writes, "verify"),
		lookup:         load(writes, "lookup", "gcra", "costs"),
		throttleCharge: load(writes, "throttle_charge", "gcra"),
		throttleRefund: load(writes, "throttle_refund"),
		accountCreate:  load(writesOnce, "account_create", "costs"),
		accountUpdate:  load(writesOnce, "account_update", "costs"),
		accountDelete:  load(writesOnce, "account_delete", "costs"),
		meta:           load(writes, "meta"),
		keysSync:       load(writes, "keys_sync", "keyring"),
		keysPut:        load(writes, "keys_put", "keyring"),
		keysRevoke:     load(writes, "keys_revoke", "keyring"),
		keysReseal:     load(writes, "keys_reseal"),
		revokeKey:      load(writes, "revoke_key", "log", "primary"),
		renew:          load(writes, "renew", "primary"),
		look:           load(writes, "look", "primary"),
		strike:         load(writes, "strike"),
		restoreEpoch:   load(writes, "restore_epoch", "log", "status"),
		probe:          load(writes, "probe", "primary"),
		clientCreate:   load(writesOnce, "client_create"),
		clientRotate:   load(writesOnce, "client_rotate"),
		clientDelete:   load(writesOnce, "client_delete"),
		clientCheck:    load(writes, "client_check", "status"),
		peek:           load(reads, "peek", "session"),
		firstUse:       load(writes, "first_use"),
		statusView:     load(writes, "status_view"),
		sessionPage:    load(reads, "session_page"),
	}
	sc.rotate.hot, sc.verify.hot = true, true
	return sc, errors.Join(errs...)
}

// run calls one script: one round trip, or two the first time that a Redis
// sees it. Any error is an [ErrUnavailable].
func (s *core) run(ctx context.Context, sc *script, keys []string, args ...any) (*reply, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	ctx, end := s.trace(ctx, sc.name)
	start := time.Now()
	values, err := s.send(ctx, call{script: sc, keys: keys, args: args})
	err = unavailable(sc.name, err)
	s.observe(sc.name, time.Since(start), err)
	end(err)
	if err != nil {
		return nil, err
	}
	return newReply(sc.name, values), nil
}

// send sends a script with the key and the argument that its effect needs. If Redis answers
// LATE, our estimate of Redis time was off: the script has changed nothing, and send tries
// once more with the Redis time from the answer.
func (s *core) send(ctx context.Context, c call) ([]any, error) {
	c, err := s.prepare(c)
	if err != nil {
		return nil, err
	}
	values, err := s.sendOnce(ctx, c, s.deadline(ctx))
	if now, ok := late(values); ok {
		s.observeTime(now)
		if values, err = s.sendOnce(ctx, c, deadlineFrom(ctx, now)); err == nil {
			if _, ok := late(values); ok {
				return nil, errLate
			}
		}
	}
	return values, err
}

// sendOnce sends a script, the hot ones in batches. What went wrong with a batch says
// little of one script of it: that is sent once more, by itself.
func (s *core) sendOnce(ctx context.Context, c call, deadline int64) ([]any, error) {
	args := c.argsBy(deadline)
	if c.script.hot && s.batches != nil {
		values, err := s.batches.run(ctx, c.script, c.keys, args)
		if err == nil {
			return values, nil
		}
		if gone := ctx.Err(); gone != nil {
			return nil, gone
		}
	}
	return c.script.lua.Run(ctx, s.rdb, c.keys, args...).Slice()
}

// errLate says that a script reached Redis when nobody waited for it any more.
var errLate = errors.New("it reached Redis too late")

// deadline returns the Redis time (ms) until which ctx waits for an answer. A store that
// does not know Redis time yet returns 0, which is always late: the answer tells the time.
func (s *core) deadline(ctx context.Context) int64 {
	if s.observed.Load() == nil {
		return 0
	}
	return deadlineFrom(ctx, s.Now())
}

// deadlineFrom is deadline where the Redis time is known. ctx must have a deadline. No
// copy runs later than skewPad after it was sent: every denial lasts longer than that, so
// whatever a copy could revive is still denied.
func deadlineFrom(ctx context.Context, now time.Time) int64 {
	end, _ := ctx.Deadline()
	return now.Add(min(time.Until(end), skewPad)).UnixMilli()
}

// late reports whether values is what lua/late.lua answers, and the Redis time in it.
func late(values []any) (now time.Time, ok bool) {
	if len(values) != 2 || values[0] != "LATE" {
		return time.Time{}, false
	}
	ms, ok := values[1].(int64)
	return time.UnixMilli(ms), ok
}

// runDurably calls a script and returns when the number of replicas that the
// store was made for has its writes too. Without one it is run.
func (s *core) runDurably(ctx context.Context, sc *script, keys []string, args ...any) (*reply, error) {
	if s.waitReplicas == 0 {
		return s.run(ctx, sc, keys, args...)
	}
	replies, err := s.runAll(ctx, []call{{script: sc, keys: keys, args: args}}, s.waitReplicas)
	if err != nil {
		return nil, err
	}
	return replies[0], nil
}

// call is one script of several that share a round trip.
type call struct {
	script *script
	keys   []string
	args   []any
	// courtesy marks a call whose failure does not fail the others of its round trip.
	courtesy bool
}

// prepare adds the key that keeps the answer of a script that writes once. It is named
// by a nonce, the same in every copy of the request.
func (s *core) prepare(c call) (call, error) {
	if c.script.effect != writesOnce {
		return c, nil
	}
	nonce, err := s.freshEpoch()
	if err != nil {
		return call{}, err
	}
	slot, _, _ := strings.Cut(c.keys[0], "}")
	c.keys = append(slices.Clip(c.keys), slot+"}:once:"+nonce)
	return c, nil
}

// argsBy returns the arguments as they are sent: the deadline is the last one.
func (c call) argsBy(deadline int64) []any {
	if c.script.effect == reads {
		return c.args
	}
	return append(slices.Clip(c.args), deadline)
}

// runAll sends several scripts in one round trip. They are atomic each, not
// together, and may live in different slots. waitReplicas > 0 adds a WAIT on the
// same connection, and fewer replicas than that is an [ErrUnavailable]; on a
// Cluster each node then gets a round trip of its own.
func (s *core) runAll(ctx context.Context, calls []call, waitReplicas int) ([]*reply, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	calls = slices.Clone(calls)
	for i, c := range calls {
		var err error
		if calls[i], err = s.prepare(c); err != nil {
			return nil, unavailable(c.script.name, err)
		}
	}
	if waitReplicas == 0 {
		return s.pipeline(ctx, s.rdb, calls, 0)
	}
	cluster, ok := s.rdb.(*redis.ClusterClient)
	if !ok {
		return s.pipeline(ctx, s.rdb, calls, waitReplicas)
	}
	// The WAIT must follow its script on the same connection, so each node is
	// asked by itself, and go-redis does not follow a slot that has moved.
	for attempt := 1; ; attempt++ {
		replies, err := s.onNodes(ctx, cluster, calls, waitReplicas)
		if err == nil || attempt > redirects || !elsewhere(err) {
			return replies, err
		}
		cluster.ReloadState(ctx)
		backoff := time.NewTimer(min(maxClusterBackoff, time.Duration(attempt)*maxBackoff))
		select {
		case <-ctx.Done():
			backoff.Stop()
			return nil, err
		case <-backoff.C:
		}
	}
}

// errFewReplicas says that the write is on the primary, and on too few replicas.
var errFewReplicas = errors.New("too few replicas have the write")

// elsewhere tells whether another attempt may find the shards where they are
// served: they move, or their primary died, or is no primary any more.
func elsewhere(err error) bool {
	if errors.Is(err, errFewReplicas) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var said redis.Error
	if !errors.As(err, &said) {
		return true // the network
	}
	for _, prefix := range []string{"MOVED ", "ASK ", "TRYAGAIN ", "CLUSTERDOWN ", "READONLY ", "LOADING ", "MASTERDOWN "} {
		if redis.HasErrorPrefix(said, prefix) {
			return true
		}
	}
	return false
}

// onNodes sends scripts to the nodes of a Cluster that own their slots, one
// after the other.
func (s *core) onNodes(ctx context.Context, cluster *redis.ClusterClient, calls []call, waitReplicas int) ([]*reply, error) {
	byNode := map[*redis.Client][]int{}
	for i, c := range calls {
		node, err := cluster.MasterForKey(ctx, c.keys[0])
		if err != nil {
			return nil, unavailable(c.script.name, err)
		}
		byNode[node] = append(byNode[node], i)
	}
	replies := make([]*reply, len(calls))
	for node, indexes := range byNode {
		part := make([]call, len(indexes))
		for j, i := range indexes {
			part[j] = calls[i]
		}
		got, err := s.pipeline(ctx, node, part, waitReplicas)
		if err != nil {
			return nil, err
		}
		for j, i := range indexes {
			replies[i] = got[j]
		}
	}
	return replies, nil
}

// pipeline sends scripts on one connection, in their order. If Redis has not seen one
// (NOSCRIPT), that one and all after it are sent again as text. If one came after its
// deadline (LATE), that one and all after it are sent again with a new deadline, computed
// from the Redis time in the answer. Either way the last script still runs last, perhaps
// on another connection. On a Cluster there is no order, and only those that did not run
// are sent again.
func (s *core) pipeline(ctx context.Context, rdb redis.Cmdable, calls []call, waitReplicas int) ([]*reply, error) {
	ctx, end := s.trace(ctx, calls[0].script.name)
	start := time.Now()
	replies, errs := s.sendAll(ctx, rdb, calls, waitReplicas)
	var first error
	for i, c := range calls {
		err := unavailable(c.script.name, errs[i])
		s.observe(c.script.name, time.Since(start), err)
		if first == nil && !c.courtesy {
			first = err
		}
	}
	end(first)
	if first != nil {
		return nil, first
	}
	return replies, nil
}

// sendAll is pipeline, with an error for each script.
func (s *core) sendAll(ctx context.Context, rdb redis.Cmdable, calls []call, waitReplicas int) ([]*reply, []error) {
	replies := make([]*reply, len(calls))
	errs := make([]error, len(calls))
	deadlines := slices.Repeat([]int64{s.deadline(ctx)}, len(calls))
	send := func(indexes []int, load bool) (wait error) {
		pipe := rdb.Pipeline()
		cmds := make([]*redis.Cmd, len(indexes))
		for j, i := range indexes {
			c := calls[i]
			if args := c.argsBy(deadlines[i]); load {
				cmds[j] = c.script.lua.Eval(ctx, pipe, c.keys, args...)
			} else {
				cmds[j] = c.script.lua.EvalSha(ctx, pipe, c.keys, args...)
			}
		}
		var waited, marked *redis.Cmd
		if waitReplicas > 0 {
			marked = pipe.Eval(ctx, waitMark, []string{waitKey(calls[indexes[0]].keys[0])})
			waited = pipe.Do(ctx, "WAIT", waitReplicas, milliseconds(s.timeout/2))
		}
		_, exec := pipe.Exec(ctx)
		for j, i := range indexes {
			var values []any
			values, errs[i] = cmds[j].Slice()
			if errs[i] != nil && cmds[j].Err() == nil && exec != nil {
				errs[i] = exec // no connection was had, and the command does not know
			}
			replies[i] = newReply(calls[i].script.name, values)
		}
		if waited == nil {
			return nil
		}
		n, err := waited.Int()
		if err == nil && marked.Err() != nil && !errors.Is(marked.Err(), redis.Nil) {
			err = marked.Err()
		}
		if err == nil && n < waitReplicas {
			err = fmt.Errorf("%w: %d of %d", errFewReplicas, n, waitReplicas)
		}
		return err
	}
	_, cluster := rdb.(*redis.ClusterClient)
	indexes := make([]int, len(calls))
	for i := range indexes {
		indexes[i] = i
	}
	load := false                       // send them as text
	delayed := make([]bool, len(calls)) // was late once
	var wait error
	for len(indexes) > 0 {
		wait = errors.Join(wait, send(indexes, load))
		unseen := load
		var again []int
		for _, i := range indexes {
			now, isLate := late(replies[i].values)
			switch {
			case !load && redis.HasErrorPrefix(errs[i], "NOSCRIPT"):
				unseen = true
			case isLate && !delayed[i]:
				delayed[i] = true
				s.observeTime(now)
				for j := i; j < len(calls) && (j == i || !cluster); j++ {
					deadlines[j] = deadlineFrom(ctx, now)
				}
			case isLate:
				errs[i] = errLate
				continue
			case cluster || len(again) == 0:
				continue
			}
			again = append(again, i)
		}
		indexes, load = again, unseen
	}
	if wait != nil {
		for i := range errs {
			errs[i] = errors.Join(errs[i], wait)
		}
	}
	return replies, errs
}

// waitMark is a write of its own before each WAIT. A script may have found nothing to write:
// the request was sent again, and its first copy did the work. Redis 7.2 and Valkey let a WAIT
// pass that follows no write of its connection; with the mark it waits for all that was
// written before, by whomever. A Redis that is out of memory lets it through for the DEL.
const waitMark = `redis.call('DEL', KEYS[1]) redis.call('SET', KEYS[1], 1, 'EX', 60)`

// waitKey is the key of the mark, in the slot of another key.
func waitKey(key string) string {
	if shard, _, ok := strings.Cut(key, "}:"); ok {
		return shard + "}:wait"
	}
	return "lk:wait:{" + key + "}"
}

// unavailable turns whatever Redis or the network said into the one error that
// means "we do not know". A script has no error replies of its own.
func unavailable(operation string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: %w", ErrUnavailable, operation, err)
}
