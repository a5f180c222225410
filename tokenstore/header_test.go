package tokenstore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// shape is one kind of reply, as a header promises it: the names of the elements, the first
// least of which are always there.
type shape struct {
	names []string
	least int
}

// header is what a script's first comment promises.
type header struct {
	keys, args         int // the highest number of each
	leastKeys          int
	moreKeys, moreArgs bool // open at the end
	replies            map[int64]shape
	plain              []shape // replies without a code
}

var (
	// braces are a reply; it may hold one list.
	braces = regexp.MustCompile(`\{([^{}]*(?:\{[^{}]*\}[^{}]*)?)\}`)
	// numbered are the KEYS, the ARGV and the codes that a header lists: "  1-6 ", " [7 ".
	numbered = regexp.MustCompile(`(?m)(?:^ *|  |KEYS |ARGV |\[)(?:\d+-)?(\d+)(?:\.\.)? `)
	// fields separates the elements of a reply.
	fields = regexp.MustCompile(`,\s+`)
)

// parseHeader reads the comment in front of a script.
func parseHeader(t *testing.T, name string) header {
	t.Helper()
	text, err := os.ReadFile("lua/" + name + ".lua")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		comment, ok := strings.CutPrefix(line, "--")
		if !ok {
			break
		}
		b.WriteString(strings.TrimPrefix(comment, " "))
	}
	about, returns, ok := strings.Cut(b.String(), "Returns ")
	if !ok {
		t.Fatalf("%s.lua does not say what it returns", name)
	}
	h := header{replies: map[int64]shape{}}
	_, about, _ = strings.Cut(about, "KEYS ")
	keys, args, _ := strings.Cut(about, "ARGV ")
	always, _, _ := strings.Cut(keys, "[")
	h.keys, h.leastKeys, h.args = highest("  "+keys), highest("  "+always), highest("  "+args)
	h.moreKeys = strings.Contains(keys, "then ")
	h.moreArgs = strings.Contains(args, "then ") || strings.Contains(args, ".. ")
	for part := range strings.SplitSeq(returns, "Returns ") {
		part, _, _ = strings.Cut(part, "\n\n") // what follows is about something else
		for _, found := range braces.FindAllStringSubmatch(part, -1) {
			sh := shapeOf(found[1])
			if code, err := strconv.ParseInt(sh.names[0], 10, 64); err == nil {
				h.add(t, name, code, sh)
				continue
			}
			if sh.names[0] != "code" {
				h.plain = append(h.plain, sh)
				continue
			}
			_, codes, _ := strings.Cut(part, found[0])
			for _, n := range numbered.FindAllStringSubmatch(braces.ReplaceAllString(codes, ""), -1) {
				code, _ := strconv.ParseInt(n[1], 10, 64)
				h.add(t, name, code, sh)
			}
		}
	}
	if len(h.replies) == 0 && len(h.plain) == 0 {
		t.Fatalf("%s.lua: no reply in its header can be read", name)
	}
	return h
}

func (h *header) add(t *testing.T, name string, code int64, sh shape) {
	t.Helper()
	if _, twice := h.replies[code]; twice {
		t.Errorf("%s.lua gives the code %d twice", name, code)
	}
	h.replies[code] = sh
}

func highest(text string) (most int) {
	for _, n := range numbered.FindAllStringSubmatch(text, -1) {
		i, _ := strconv.Atoi(n[1])
		most = max(most, i)
	}
	return most
}

func shapeOf(text string) shape {
	required, _, _ := strings.Cut(text, "[")
	list := regexp.MustCompile(`\{[^{}]*\}`).ReplaceAllString(text, "list")
	s := shape{names: fields.Split(strings.NewReplacer("[", "", "]", "").Replace(list), -1)}
	s.least = len(s.names)
	if required != text {
		s.least = len(fields.Split(strings.TrimRight(required, ", "), -1))
	}
	return s
}

// fault says how a reply differs from the shape, "" if it does not.
func (s shape) fault(reply []any) string {
	if len(reply) < s.least || len(reply) > len(s.names) {
		return fmt.Sprintf("%d elements, not %d to %d", len(reply), s.least, len(s.names))
	}
	for i, got := range reply {
		name, ok := s.names[i], true
		switch name {
		case "now":
			ms, _ := got.(int64)
			ok = ms > time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
		case "code", "seq", "followers", "keep", "wait ms", "place or 0", "place":
			_, ok = got.(int64)
		case "members", "surplus", "sids", "the hash", "entries", "ids of the dead keys", "revoked places", "list":
			_, ok = got.([]any)
		case "chain":
			text, isText := got.(string)
			ok = isText && text != ""
		case "sub", "scope", "client", "claims", "scopes", "epoch", "log epoch", "primary_id", "primary_id or ''",
			"likely cost", "password hash":
			_, ok = got.(string)
		}
		if !ok {
			return fmt.Sprintf("element %d, %q, is %v", i, name, got)
		}
	}
	return ""
}

// exchanges records what scripts were sent, and what they replied.
type exchanges struct {
	mu    sync.Mutex
	names map[string]string // by hash
	seen  map[string][]exchange
}

type exchange struct {
	keys, args int
	reply      []any
}

func (e *exchanges) DialHook(next redis.DialHook) redis.DialHook { return next }

func (e *exchanges) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		e.record(cmd)
		return err
	}
}

func (e *exchanges) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			e.record(cmd)
		}
		return err
	}
}

func (e *exchanges) record(cmd redis.Cmder) {
	c, ok := cmd.(*redis.Cmd)
	if !ok || !strings.HasPrefix(c.Name(), "eval") || c.Err() != nil || isLate(c.Val()) {
		return
	}
	reply, ok := c.Val().([]any)
	if !ok || len(reply) == 0 { // the text of a script that Redis did not know follows
		return
	}
	hash, _ := c.Args()[1].(string)
	if c.Name() == "eval" {
		hash = redis.NewScript(hash).Hash()
	}
	keys, _ := strconv.Atoi(fmt.Sprint(c.Args()[2]))
	e.mu.Lock()
	defer e.mu.Unlock()
	name := e.names[hash]
	e.seen[name] = append(e.seen[name], exchange{keys: keys, args: len(c.Args()) - 3 - keys, reply: slices.Clone(reply)})
}

// A script's header says what it takes and returns, and its caller in Go goes by that. Every
// operation in every way that matters is sent as its header says, and answered so; and every
// code that a header lists is seen.
func TestScriptsDoWhatTheirHeadersSay(t *testing.T) {
	t.Parallel()
	mini := redistest.Mini(t)
	rdb := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	w := newWorld(t, rdb, mini)
	e := &exchanges{names: map[string]string{}, seen: map[string][]exchange{}}
	for name, sc := range w.scripts {
		e.names[sc.Hash] = name
	}
	w.store.AddHook(e)
	if _, err := w.Keys.Deny(t.Context(), "dead"); err != nil {
		t.Fatal(err)
	}
	for name, ready := range operationsByMethod() {
		if err := ready(w)(); errors.Is(err, tokenstore.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, m := range mutations() {
		w.reset()
		w.do(m)
	}
	for name, sc := range w.scripts {
		h := parseHeader(t, name)
		unseen := map[int64]bool{}
		for code := range h.replies {
			unseen[code] = true
		}
		for _, x := range e.seen[name] {
			if sc.Writes { // its deadline: see late.lua
				x.args--
			}
			if sc.Once { // see once.lua
				x.keys--
			}
			if x.keys < h.leastKeys || (x.keys > h.keys && !h.moreKeys) {
				t.Errorf("%s was sent %d keys; its header lists %d to %d", name, x.keys, h.leastKeys, h.keys)
			}
			if x.args > h.args && !h.moreArgs {
				t.Errorf("%s was sent %d arguments; its header lists %d", name, x.args, h.args)
			}
			fault := ""
			if code, _ := x.reply[0].(int64); len(h.plain) > 0 {
				fault = h.plain[0].fault(x.reply)
			} else if sh, ok := h.replies[code]; ok {
				delete(unseen, code)
				fault = sh.fault(x.reply)
			} else {
				fault = "an unknown code"
			}
			if fault != "" {
				t.Errorf("%s replied %v, which its header does not list: %s", name, x.reply, fault)
			}
		}
		if len(e.seen[name]) == 0 {
			t.Errorf("%s was not called", name)
		}
		for code := range unseen {
			t.Errorf("%s did not reply %d", name, code)
		}
	}
}
