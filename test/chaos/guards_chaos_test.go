//go:build linux && chaos

package chaos

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// guard is one that the program is built without, and the run that must notice.
type guard struct {
	name  string
	edits []edit
	plan
}

// edit replaces text that is in a file of the program exactly once.
type edit struct{ file, text, by string }

// guards are those of docs/chaos.md. The faults are those that the guard is for.
func guards() []guard {
	const seconds = time.Second
	behind := plan{length: 30 * seconds, topology: "sentinel", only: "its replicas behind"}
	return []guard{
		{
			"WAIT",
			[]edit{{"tokenstore/script.go", "if waitReplicas > 0 {\n\t\t\twaited =", "if false {\n\t\t\twaited ="}},
			plan{length: 30 * seconds, topology: "sentinel", durable: true, only: "all replicas of the service"},
		},
		{
			"lease",
			[]edit{{"edge/shard.go", "if end == nil || !clock().before(*end) ||", "if end == nil ||"}},
			plan{length: 20 * seconds, topology: "sentinel", durable: true, only: "replica cut off,replica frozen"},
		},
		{
			"epoch",
			[]edit{{"edge/shard.go", "if *history != t.LogEpoch {", "if false {"}},
			plan{length: 20 * seconds, topology: "sentinel", durable: true, only: "FLUSHALL"},
		},
		{
			"union on heal",
			[]edit{{
				"edge/shard.go", "s.mark, s.recent, s.heal, s.owed = tokenstore.Mark{Epoch: epoch}, recent{}, h, nil",
				"s.mark, s.recent, s.heal, s.owed, s.deny = tokenstore.Mark{Epoch: epoch}, recent{}, nil, nil, newDenylist(s.deny.limit, s.deny.width)",
			}},
			behind,
		},
		{
			"seq and chain",
			[]edit{
				{"edge/shard.go", "if v.Head.Epoch != s.mark.Epoch || v.Head.Seq < r.from.Seq {", "if v.Head.Epoch != s.mark.Epoch {"},
				{"edge/shard.go", "case at != v.Head:", "case at.Epoch != v.Head.Epoch:"},
				{"edge/shard.go", "return behind, at.After(*e).Chain == e.Chain", "return behind, true"},
				{"edge/shard.go", "if next.Chain != e.Chain {", "if next.Chain = e.Chain; false {"},
			},
			behind,
		},
		{
			"chain",
			[]edit{
				{"edge/shard.go", "case at != v.Head:", "case at.Seq != v.Head.Seq:"},
				{"edge/shard.go", "return behind, at.After(*e).Chain == e.Chain", "return behind, true"},
				{"edge/shard.go", "if next.Chain != e.Chain {", "if next.Chain = e.Chain; false {"},
			},
			plan{length: 30 * seconds, topology: "sentinel", only: "some of the service away"},
		},
		{
			"late",
			[]edit{{"tokenstore/lua/late.lua", "if now_ms() > deadline then", "if false then"}},
			plan{length: 40 * seconds, topology: "sentinel", durable: true, only: "all of Redis frozen"},
		},
		{
			"acknowledgement",
			[]edit{{"edge/confirm.go", "onTrail(m.Acked, t.mark, trail)", "m.Acked.Chain != \"\""}},
			plan{length: 20 * seconds, topology: "sentinel", durable: true, only: "replica cut off,replica frozen"},
		},
		{
			"who else follows",
			[]edit{{"edge/confirm.go", "if r.Followers <= 1 {", "if r.Followers >= 0 {"}},
			plan{length: 20 * seconds, topology: "sentinel", durable: true, only: "replica cut off,replica frozen"},
		},
	}
}

// TestGuards takes each guard out of the program, and the judge must object; with
// all of them in place, it must not. CHAOS_SEEDS says with which seeds.
func TestGuards(t *testing.T) {
	var seeds []uint64
	for text := range strings.SplitSeq(setting("CHAOS_SEEDS", "1,2,3"), ",") {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("CHAOS_SEEDS: %v", err)
		}
		seeds = append(seeds, seed)
	}
	whole := stacktest.Build(t, "../..")
	sound := map[plan]bool{}
	for _, g := range guards() {
		t.Run(g.name, func(t *testing.T) {
			p := g.plan
			if p.bin = whole; !sound[p] {
				sound[p] = true
				p.seed = seeds[0]
				t.Run("in place", func(t *testing.T) {
					for _, promise := range p.run(t) {
						t.Errorf("broken: %s", promise)
					}
				})
			}
			p.bin = g.build(t)
			for _, p.seed = range seeds {
				t.Run("without, seed "+strconv.FormatUint(p.seed, 10), func(t *testing.T) {
					broken := p.run(t)
					if len(broken) == 0 {
						t.Error("nothing was noticed")
					}
					t.Logf("%s | %d | %s", g.name, p.seed, strings.Join(broken, "; "))
				})
			}
		})
	}
}

// build builds the program without the guard.
func (g guard) build(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir, texts := t.TempDir(), map[string]string{}
	for _, e := range g.edits {
		path := filepath.Join(root, e.file)
		if _, ok := texts[path]; !ok {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			texts[path] = string(text)
		}
		if n := strings.Count(texts[path], e.text); n != 1 {
			t.Fatalf("%s has %q %d times, not once: say anew what the guard is", e.file, e.text, n)
		}
		texts[path] = strings.Replace(texts[path], e.text, e.by, 1)
	}
	var overlay struct{ Replace map[string]string }
	overlay.Replace = map[string]string{}
	for path, text := range texts {
		overlay.Replace[path] = filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(overlay.Replace[path], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, list, 0o600); err != nil {
		t.Fatal(err)
	}
	return stacktest.BuildOtherwise(t, "../..", "-overlay", file)
}
