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
}

type scripts struct {
	login, rotate, revoke, revokeUser, verify   *script
	lookup, throttlePeek, throttleSpend         *script
	accountCreate, accountUpdate, accountDelete *script
	meta, keysPut                               *script
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
		login:         load("login", "head"),
		rotate:        load("rotate", "head", "log"),
		revoke:        load("revoke", "head", "log"),
		revokeUser:    load("revoke_user", "head", "log"),
		verify:        load("verify", "head"),
		lookup:        load("lookup", "head", "gcra"),
		throttlePeek:  load("throttle_peek", "head", "gcra"),
		throttleSpend: load("throttle_spend", "head", "gcra"),
		accountCreate: load("account_create", "head"),
		accountUpdate: load("account_update", "head"),
		accountDelete: load("account_delete", "head"),
		meta:          load("meta", "head"),
		keysPut:       load("keys_put"),
	}
	return sc, errors.Join(errs...)
}

// run calls one script: one round trip, or two the first time that a Redis
// sees it. Any error is an [ErrUnavailable].
func (s *Store) run(ctx context.Context, sc *script, keys []string, args ...any) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	values, err := sc.lua.Run(ctx, s.rdb, keys, args...).Slice()
	err = unavailable(sc.name, err)
	s.observe(sc.name, time.Since(start), err)
	if err != nil {
		return nil, err
	}
	return values, nil
}

// call is one script of several that share a round trip.
type call struct {
	script *script
	keys   []string
	args   []any
}

// runAll sends several scripts in one round trip. They are atomic each, not
// together, and may live in different slots.
func (s *Store) runAll(ctx context.Context, calls []call) ([]reply, error) {
	if len(calls) == 1 {
		r, err := s.run(ctx, calls[0].script, calls[0].keys, calls[0].args...)
		return []reply{r}, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	pipe := s.rdb.Pipeline()
	cmds := make([]*redis.Cmd, len(calls))
	for i, c := range calls {
		cmds[i] = c.script.lua.EvalSha(ctx, pipe, c.keys, c.args...)
	}
	_, _ = pipe.Exec(ctx) // each command's own error is read below
	replies := make([]reply, len(calls))
	var first error
	for i, c := range calls {
		cmd := cmds[i]
		if redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
			// It did not run, so running it now is not running it twice.
			cmd = c.script.lua.Eval(ctx, s.rdb, c.keys, c.args...)
		}
		values, err := cmd.Slice()
		err = unavailable(c.script.name, err)
		s.observe(c.script.name, time.Since(start), err)
		if err != nil && first == nil {
			first = err
		}
		replies[i] = values
	}
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
