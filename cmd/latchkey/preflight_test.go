package main

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
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
	t.Setenv("LATCHKEY_REVOKE_WAIT_REPLICAS", "1")
	if out := fails(t, "", []string{"doctor"}, "must not").stdout; !strings.Contains(out, "(setting: LATCHKEY_REVOKE_WAIT_REPLICAS)") {
		t.Errorf("the setting has no name in\n%s", out)
	}
	c.redis.Kill(t)
	fails(t, "", []string{"doctor"}, "no answer from Redis", c.redis.Addr())
}

// Doctor warns of private keys that other users can read, and not of public ones.
func TestDoctorWarnsOfKeyFilesThatOthersCanRead(t *testing.T) {
	newConsole(t)
	key := ed25519.NewKeyFromSeed([]byte(strings.Repeat("k", 32)))
	old := ed25519.NewKeyFromSeed([]byte(strings.Repeat("o", 32)))
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string][]byte{
		"key.pem": pemOf(t, key), "retired-old.pem": pemOf(t, old), "public.pem": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}),
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, text, 0o600), os.Chmod(path, 0o644), os.Chmod(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(who, logged string) {
		t.Helper()
		for _, name := range []string{"key.pem", "retired-old.pem"} {
			if !strings.Contains(logged, "every user of this machine can read "+filepath.Join(dir, name)+" (mode 0644)") {
				t.Errorf("%s does not warn of %s:\n%s", who, name, logged)
			}
		}
		if strings.Contains(logged, "public.pem") {
			t.Errorf("%s warns of a public key:\n%s", who, logged)
		}
	}
	t.Setenv("LATCHKEY_KEYS_DIR", dir)
	o := command(t, strings.NewReader(""), "doctor")
	if o.err != nil {
		t.Fatal(o.err)
	}
	check("doctor", o.stderr)
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

func pemOf(t *testing.T, key ed25519.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
