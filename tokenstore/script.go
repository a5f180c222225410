package tokenstore

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed lua/*.lua
var luaFiles embed.FS

// script is one operation: its name in metrics and errors, and its Lua.
type script struct {
	name string
	lua  *redis.Script
	hot  bool // called so often that it is worth sending in batches
}

type scripts struct {
	login, rotate, revoke, revokeUser, verify   *script
	lookup, throttleCharge, throttleRefund      *script
	accountCreate, accountUpdate, accountDelete *script
	meta, revokeKey                             *script
	keysSync, keysPut, keysRevoke, keysReseal   *script
	renew, strike, restoreEpoch                 *script
	probe                                       *script
	clientCreate, clientRotate, clientCheck     *script
	peek, firstUse                              *script
	statusView                                  *script
}

// loadScripts reads the embedded files. Each script is its own file; the parts
// that several share are put in front of it.
func loadScripts() (scripts, error) {
	var errs []error
	load := func(name string, shared ...string) *script {
		var src strings.Builder
		for _, part := range append(shared, name) {
			text, err := luaFiles.ReadFile("lua/" + part + ".lua")
			if err != nil {
				errs = append(errs, fmt.Errorf("script %s: %w", name, err))
			}
			src.Write(text)
		}
		return &script{name: name, lua: redis.NewScript(src.String())}
	}
	sc := scripts{
		login:          load("login", "head", "status"),
		rotate:         load("rotate", "head", "log", "issued", "status", "primary"),
		revoke:         load("revoke", "head", "log", "issued", "status", "primary"),
		revokeUser:     load("revoke_user", "head", "log", "status", "primary"),
		verify:         load("verify", "head"),
		lookup:         load("lookup", "head", "gcra"),
		throttleCharge: load("throttle_charge", "head", "gcra"),
		throttleRefund: load("throttle_refund", "head"),
		accountCreate:  load("account_create", "head"),
		accountUpdate:  load("account_update", "head"),
		accountDelete:  load("account_delete", "head"),
		meta:           load("meta", "head"),
		keysSync:       load("keys_sync", "head", "keyring"),
		keysPut:        load("keys_put", "head", "keyring"),
		keysRevoke:     load("keys_revoke", "head", "keyring"),
		keysReseal:     load("keys_reseal"),
		revokeKey:      load("revoke_key", "head", "log", "primary"),
		renew:          load("renew", "head", "primary"),
		strike:         load("strike"),
		restoreEpoch:   load("restore_epoch", "head", "log", "status"),
		probe:          load("probe", "head", "primary"),
		clientCreate:   load("client_create", "head"),
		clientRotate:   load("client_rotate", "head"),
		clientCheck:    load("client_check", "head", "status"),
		peek:           load("peek", "head"),
		firstUse:       load("first_use", "head"),
		statusView:     load("status_view", "head"),
	}
	sc.rotate.hot, sc.verify.hot = true, true
	return sc, errors.Join(errs...)
}

// run calls one script: one round trip, or two the first time that a Redis
// sees it. Any error is an [ErrUnavailable].
func (s *Store) run(ctx context.Context, sc *script, keys []string, args ...any) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	ctx, end := s.trace(ctx, sc.name)
	start := time.Now()
	values, err := s.send(ctx, sc, keys, args)
	err = unavailable(sc.name, err)
	s.observe(sc.name, time.Since(start), err)
	end(err)
	if err != nil {
		return nil, err
	}
	return values, nil
}

// send sends a script, the hot ones in batches. What went wrong with a batch says
// little of one script of it: that is sent once more, by itself.
func (s *Store) send(ctx context.Context, sc *script, keys []string, args []any) ([]any, error) {
	if sc.hot && s.batches != nil {
		values, err := s.batches.run(ctx, sc, keys, args)
		if err == nil || ctx.Err() != nil {
			return values, err
		}
	}
	return sc.lua.Run(ctx, s.rdb, keys, args...).Slice()
}

// runDurably calls a script and returns when the number of replicas that the
// store was made for has its writes too. Without one it is run.
func (s *Store) runDurably(ctx context.Context, sc *script, keys []string, args ...any) (reply, error) {
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
	// courtesy is set if the others count without it: its error is none of theirs.
	courtesy bool
}

// runAll sends several scripts in one round trip. They are atomic each, not
// together, and may live in different slots. waitReplicas > 0 adds a WAIT on the
// same connection, and fewer replicas than that is an [ErrUnavailable]; on a
// Cluster each node then gets a round trip of its own.
func (s *Store) runAll(ctx context.Context, calls []call, waitReplicas int) ([]reply, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
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
func (s *Store) onNodes(ctx context.Context, cluster *redis.ClusterClient, calls []call, waitReplicas int) ([]reply, error) {
	byNode := map[*redis.Client][]int{}
	for i, c := range calls {
		node, err := cluster.MasterForKey(ctx, c.keys[0])
		if err != nil {
			return nil, unavailable(c.script.name, err)
		}
		byNode[node] = append(byNode[node], i)
	}
	replies := make([]reply, len(calls))
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

// pipeline sends scripts on one connection, in their order. From the first that this
// Redis has not seen they are sent once more, as text, on another connection maybe: the
// last one still runs last. On a Cluster, where the nodes have seen different ones and
// there is no order, only those are that did not run.
func (s *Store) pipeline(ctx context.Context, rdb redis.Cmdable, calls []call, waitReplicas int) ([]reply, error) {
	ctx, end := s.trace(ctx, calls[0].script.name)
	start := time.Now()
	replies := make([]reply, len(calls))
	errs := make([]error, len(calls))
	send := func(indexes []int, load bool) (unseen []int, wait error) {
		pipe := rdb.Pipeline()
		cmds := make([]*redis.Cmd, len(indexes))
		for j, i := range indexes {
			if c := calls[i]; load {
				cmds[j] = c.script.lua.Eval(ctx, pipe, c.keys, c.args...)
			} else {
				cmds[j] = c.script.lua.EvalSha(ctx, pipe, c.keys, c.args...)
			}
		}
		var waited *redis.Cmd
		if waitReplicas > 0 {
			waited = pipe.Do(ctx, "WAIT", waitReplicas, milliseconds(s.timeout/2))
		}
		_, exec := pipe.Exec(ctx)
		for j, i := range indexes {
			var values []any
			values, errs[i] = cmds[j].Slice()
			if errs[i] != nil && cmds[j].Err() == nil && exec != nil {
				errs[i] = exec // no connection was had, and the command does not know
			}
			replies[i] = values
			if redis.HasErrorPrefix(errs[i], "NOSCRIPT") && !load {
				unseen = append(unseen, i)
			}
		}
		if waited != nil {
			n, err := waited.Int()
			if err == nil && n < waitReplicas {
				err = fmt.Errorf("%w: %d of %d", errFewReplicas, n, waitReplicas)
			}
			wait = err
		}
		return unseen, wait
	}
	all := make([]int, len(calls))
	for i := range all {
		all[i] = i
	}
	unseen, wait := send(all, false)
	if len(unseen) > 0 {
		if _, cluster := rdb.(*redis.ClusterClient); !cluster {
			unseen = all[unseen[0]:]
		}
		_, again := send(unseen, true)
		wait = errors.Join(wait, again)
	}
	var first error
	for i, c := range calls {
		err := unavailable(c.script.name, errors.Join(errs[i], wait))
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

// unavailable turns whatever Redis or the network said into the one error that
// means "we do not know". A script has no error replies of its own.
func unavailable(operation string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: %w", ErrUnavailable, operation, err)
}

// reply is a script's answer: integers, and strings where the script says so.
// Numbers that came out of a hash arrive as strings.
type reply []any

func (r reply) int(i int) int64 {
	if i >= len(r) {
		return 0
	}
	switch v := r[i].(type) {
	case int64:
		return v
	case string:
		n, _ := strconv.ParseInt(v, 10, 64)
		return n
	}
	return 0
}

func (r reply) string(i int) string {
	if i >= len(r) {
		return ""
	}
	v, _ := r[i].(string)
	return v
}

func (r reply) time(i int) time.Time { return time.UnixMilli(r.int(i)) }
