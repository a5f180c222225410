//go:build unix

package docs_test

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// A snapshot of Redis that is put back after a logout brings the session back, once
// no replica remembers the logout; unless its sessions are ended as restore.md says.
func TestARestoredSnapshot(t *testing.T) {
	t.Parallel()
	var commands string
	for _, b := range blocks(readPage(t, "restore.md")) {
		if strings.Contains(b.text, "unlink") {
			commands = b.text
		}
	}
	for name, tt := range map[string]struct {
		commands        string
		refresh, access int
	}{
		"as it was":        {"true", http.StatusOK, http.StatusNoContent},
		"as the page says": {commands, http.StatusUnauthorized, http.StatusUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			rdb := server.Client()
			fleet := stacktest.NewFleet(t, latchkey(t), 1, server.URL(), "LATCHKEY_PASSWORD_MEMORY=7168", "LATCHKEY_PASSWORD_ITERATIONS=1", "LATCHKEY_REDIS_TIMEOUT=2s")
			r := fleet.Replicas[0]
			fleet.Command(t, "correct horse", "user", "add", "alice")
			_, s := ask(t, r, "/auth/token", "", url.Values{"username": {"alice"}, "password": {"correct horse"}, "refresh_delivery": {"body"}})
			snapshot := dump(t, rdb)
			if status, _ := ask(t, r, "/auth/logout", s.access, nil); status != http.StatusOK {
				t.Fatalf("logout: %d", status)
			}
			r.Terminate(t) // and with it, all memory of the logout
			if err := rdb.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			restore(t, rdb, snapshot)

			_, port, _ := strings.Cut(server.Addr(), ":")
			w := newWorld(t)
			w.program(t, "redis-cli", "exec "+stacktest.Installed(t, "redis-cli", "redis-tools")+" -p "+port+` "$@"`)
			w.run(t, tt.commands)

			fleet.Start(t, 0)
			r.AwaitReady(t)
			if status, _ := ask(t, r, "/auth/verify", s.access, nil); status != tt.access {
				t.Errorf("the access token: %d, want %d", status, tt.access)
			}
			if status, _ := ask(t, r, "/auth/refresh", "", url.Values{"refresh_token": {s.refresh}}); status != tt.refresh {
				t.Errorf("the refresh token: %d, want %d", status, tt.refresh)
			}
			if status, _ := ask(t, r, "/auth/token", "", url.Values{"username": {"alice"}, "password": {"correct horse"}}); status != http.StatusOK {
				t.Errorf("the account is gone: %d", status)
			}
		})
	}
}

// saved is a key as DUMP tells it.
type saved struct {
	value string
	left  time.Duration
}

func dump(t *testing.T, rdb *redis.Client) map[string]saved {
	t.Helper()
	all := map[string]saved{}
	keys, err := rdb.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) < 5 {
		t.Fatalf("keys %q: %v", keys, err)
	}
	for _, k := range keys {
		value, err := rdb.Dump(t.Context(), k).Result()
		if err == redis.Nil { //nolint:errorlint // it expired meanwhile
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		all[k] = saved{value, max(0, rdb.PTTL(t.Context(), k).Val())}
	}
	return all
}

func restore(t *testing.T, rdb *redis.Client, all map[string]saved) {
	t.Helper()
	for k, s := range all {
		if err := rdb.Restore(t.Context(), k, s.left, s.value).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// session is what a client holds.
type session struct{ access, refresh string }

// ask sends a request: a POST with a form, or about an access token.
func ask(b testing.TB, r *stacktest.Replica, path, access string, form url.Values) (status int, s session) {
	method := http.MethodPost
	if path == "/auth/verify" {
		method = http.MethodGet
	}
	q, err := http.NewRequestWithContext(b.Context(), method, "http://"+r.Addr+path, strings.NewReader(form.Encode()))
	if err != nil {
		b.Error(err)
		return 0, s
	}
	if form != nil {
		q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if access != "" {
		q.Header.Set("Authorization", "Bearer "+access)
	}
	a, err := keptAlive.RoundTrip(q)
	if err != nil {
		b.Error(err)
		return 0, s
	}
	body, err := io.ReadAll(a.Body)
	_ = a.Body.Close()
	if err != nil {
		b.Error(err)
	}
	for part, to := range map[string]*string{"access_token": &s.access, "refresh_token": &s.refresh} {
		if _, after, ok := strings.Cut(string(body), `"`+part+`":"`); ok {
			*to, _, _ = strings.Cut(after, `"`)
		}
	}
	return a.StatusCode, s
}

// keptAlive keeps connections open, as a proxy does.
var keptAlive = &http.Transport{MaxIdleConnsPerHost: 16}
