package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/internal/redistest"
)

func TestDoctorPrintsWhatItFinds(t *testing.T) {
	c := newConsole(t)
	out := c.works("", "doctor")
	for _, line := range []string{"standalone " + c.redis.Addr() + " plain no password", "eviction", "noeviction", "append-only file is off", "warning"} {
		if !strings.Contains(out, line) {
			t.Errorf("no %q in\n%s", line, out)
		}
	}
	if err := c.rdb.ConfigSet(t.Context(), "maxmemory-policy", "allkeys-lru").Err(); err != nil {
		t.Fatal(err)
	}
	o := fails(t, "", []string{"doctor", "--json"}, "must not hold tokens")
	var found []struct{ Check, Result, See string }
	if err := json.Unmarshal([]byte(o.stdout), &found); err != nil {
		t.Fatalf("%v in %s", err, o.stdout)
	}
	refused := 0
	for _, f := range found {
		if f.Result == "refused" {
			refused++
			if f.Check != "eviction" || f.See != "docs/redis.md#eviction" {
				t.Errorf("refused: %v", f)
			}
		}
	}
	if refused != 1 {
		t.Errorf("%d checks refuse: %s", refused, o.stdout)
	}
	t.Setenv("LATCHKEY_REDIS_ALLOW_EVICTION", "true")
	if out := c.works("", "doctor"); !strings.Contains(out, "logout undone") {
		t.Errorf("the override is not told:\n%s", out)
	}
	c.redis.Kill(t)
	fails(t, "", []string{"doctor"}, "no answer from Redis", c.redis.Addr())
}

// A Redis that may evict keeps a replica from starting; one that is found to after it was away is an error in the log,
// and the replica goes on.
func TestServeRefusesARedisThatEvicts(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t, "--maxmemory-policy", "allkeys-lru")
	p, _ := start(t, bin, server.URL())
	select {
	case err := <-p.done:
		if err == nil || !strings.Contains(p.logged(), "eviction: maxmemory-policy is allkeys-lru") {
			t.Errorf("ended with %v:\n%s", err, p.logged())
		}
	case <-time.After(2 * time.Minute):
		t.Fatalf("it serves:\n%s", p.logged())
	}
	allowed := launch(t, bin, server.URL(), "LATCHKEY_REDIS_ALLOW_EVICTION=true")
	allowed.becomes(200)
	if !strings.Contains(allowed.logged(), "LATCHKEY_REDIS_ALLOW_EVICTION is true") {
		t.Errorf("the override is not logged:\n%s", allowed.logged())
	}

	if err := server.Client().ConfigSet(t.Context(), "maxmemory-policy", "noeviction").Err(); err != nil {
		t.Fatal(err)
	}
	running := launch(t, bin, server.URL())
	running.becomes(200)
	server.Restart(t) // with its arguments: another policy than the one that was looked at
	for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(running.logged(), `"check":"eviction"`); {
		if time.Now().After(deadline) {
			t.Fatalf("the policy is not looked at again:\n%s", running.logged())
		}
		time.Sleep(20 * time.Millisecond) // a poll of another process's log, not a timing
	}
	running.becomes(200)
}

// The first look may come late. It still refuses.
func TestServeRefusesWhenRedisComesLate(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t, "--maxmemory-policy", "volatile-lru")
	server.Kill(t)
	p := launch(t, bin, server.URL())
	server.Restart(t)
	select {
	case err := <-p.done:
		if err == nil || !strings.Contains(p.logged(), "eviction: ") {
			t.Errorf("ended with %v:\n%s", err, p.logged())
		}
	case <-time.After(2 * time.Minute):
		t.Fatalf("it serves:\n%s", p.logged())
	}
}
