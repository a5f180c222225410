package tokenstore_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// look runs the preflight and returns the findings by check.
func look(t *testing.T, o tokenstore.DialOptions, so tokenstore.Options) (map[string]tokenstore.Finding, error) {
	t.Helper()
	o.Timeout = 5 * time.Second
	c, err := tokenstore.Dial(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if so.Shards == 0 {
		so.Shards = 16
	}
	so.Timeout = 10 * time.Second
	s, err := tokenstore.New(c, so)
	if err != nil {
		t.Fatal(err)
	}
	list, err := s.Preflight(t.Context())
	if err != nil {
		t.Logf("preflight: %v", err)
	}
	found := map[string]tokenstore.Finding{}
	for _, f := range list {
		if had, ok := found[f.Check]; !ok || f.Severity > had.Severity {
			found[f.Check] = f
		}
	}
	return found, err
}

// finds fails unless a check found what it should.
func finds(t *testing.T, found map[string]tokenstore.Finding, check string, severity tokenstore.Severity, text string) {
	t.Helper()
	f, ok := found[check]
	if !ok || f.Severity != severity || !strings.Contains(f.Text, text) {
		t.Errorf("%s: %v %q, want %v %q (%v)", check, f.Severity, f.Text, severity, text, found)
	}
}

func TestPreflightOfAGoodRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "yes")
	found, err := look(t, tokenstore.DialOptions{URL: server.URL()}, tokenstore.Options{})
	is(t, "preflight", err, nil)
	for _, check := range []string{"version", "write-permission", "shards", "eviction", "persistence", "replicas", "wait", "clock", "primary-id"} {
		finds(t, found, check, tokenstore.Fine, "")
	}
}

func TestPreflightRefusesAndWarns(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		args     []string
		o        tokenstore.Options
		check    string
		severity tokenstore.Severity
		text     string
	}{
		{"eviction", []string{"--maxmemory-policy", "allkeys-lru"}, tokenstore.Options{}, "eviction", tokenstore.Forbidden, "allkeys-lru"},
		{"eviction of what expires", []string{"--maxmemory-policy", "volatile-ttl"}, tokenstore.Options{}, "eviction", tokenstore.Forbidden, "Set it to noeviction"},
		{"no persistence", nil, tokenstore.Options{}, "persistence", tokenstore.Worrying, "appendonly yes"},
		{"snapshots", []string{"--save", "60 1000"}, tokenstore.Options{}, "persistence", tokenstore.Worrying, "snapshots only (save 60 1000)"},
		{"replicas to wait for", nil, tokenstore.Options{WaitReplicas: 1}, "replicas", tokenstore.Worrying, "0 replicas are in step"},
		{"WAIT renamed", []string{"--rename-command", "WAIT", ""}, tokenstore.Options{WaitReplicas: 1}, "wait", tokenstore.Forbidden, "WAIT is refused"},
		{"WAIT renamed, not used", []string{"--rename-command", "WAIT", ""}, tokenstore.Options{}, "wait", tokenstore.Fine, "not used"},
		{"full", []string{"--maxmemory", "1"}, tokenstore.Options{}, "write-permission", tokenstore.Worrying, "full"},
		{"no replicas to write", []string{"--min-replicas-to-write", "1"}, tokenstore.Options{}, "write-permission", tokenstore.Worrying, "min-replicas-to-write"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, tt.args...)
			found, _ := look(t, tokenstore.DialOptions{URL: server.URL()}, tt.o)
			finds(t, found, tt.check, tt.severity, tt.text)
		})
	}
}

func TestPreflightNamesTheWrongTopology(t *testing.T) {
	t.Parallel()
	t.Run("a Cluster's node as standalone", func(t *testing.T) {
		t.Parallel()
		c := redistest.StartCluster(t, 3, 0, redistest.Options{})
		found, _ := look(t, tokenstore.DialOptions{URL: c.Nodes[0].URL()}, tokenstore.Options{})
		finds(t, found, "write-permission", tokenstore.Forbidden, "add addr=host:port to the Redis URL")
		found, err := look(t, tokenstore.DialOptions{URL: c.Nodes[0].URL() + "?addr=" + c.Nodes[0].Addr()}, tokenstore.Options{})
		is(t, "by one node", err, nil)
		finds(t, found, "topology", tokenstore.Fine, "3 primaries for 16 shards")
		found, _ = look(t, tokenstore.DialOptions{URL: c.URL()}, tokenstore.Options{Shards: 2})
		finds(t, found, "shards", tokenstore.Forbidden, "this Redis has 16")
	})
	t.Run("standalone as a Cluster", func(t *testing.T) {
		t.Parallel()
		alone := redistest.Start(t)
		found, _ := look(t, tokenstore.DialOptions{URL: alone.URL() + "?addr=" + alone.Addr()}, tokenstore.Options{})
		finds(t, found, "write-permission", tokenstore.Forbidden, "is no Cluster")
	})
	t.Run("standalone as Sentinels", func(t *testing.T) {
		t.Parallel()
		found, _ := look(t, tokenstore.DialOptions{URL: redistest.Start(t).URL() + "?master_name=m"}, tokenstore.Options{})
		finds(t, found, "write-permission", tokenstore.Forbidden, "should name Sentinels")
	})
	t.Run("Sentinels", func(t *testing.T) {
		t.Parallel()
		s := redistest.StartSentinel(t, redistest.Options{})
		found, _ := look(t, tokenstore.DialOptions{URL: "redis://" + s.Sentinels[0].Addr()}, tokenstore.Options{})
		finds(t, found, "write-permission", tokenstore.Forbidden, "is it a Sentinel?")
		found, _ = look(t, tokenstore.DialOptions{URL: "redis://" + s.Sentinels[0].Addr() + "?master_name=other"}, tokenstore.Options{})
		finds(t, found, "write-permission", tokenstore.Forbidden, "by this name")
		_, err := look(t, tokenstore.DialOptions{URL: s.Nodes[1].URL()}, tokenstore.Options{})
		if !errors.Is(err, tokenstore.ErrUnavailable) || !strings.Contains(err.Error(), "read only replica") {
			t.Errorf("a replica: %v", err)
		}
		found, err = look(t, tokenstore.DialOptions{URL: s.URL()}, tokenstore.Options{WaitReplicas: 2})
		is(t, "by Sentinels", err, nil)
		finds(t, found, "replicas", tokenstore.Fine, "2 in step, and a logout waits for 2")
	})
}

func TestPreflightOfARestrictedUser(t *testing.T) {
	t.Parallel()
	for rules, want := range map[string]map[string]string{
		rules:                                {"write-permission": "ok", "eviction": "ok", "persistence": "warning", "version": "ok", "wait": "ok", "primary-id": "ok"},
		"~lk:* &* +@all -@admin -@dangerous": {"write-permission": "ok", "eviction": "unknown", "persistence": "unknown", "version": "unknown", "replicas": "unknown", "primary-id": "unknown"},
		"~other:* &* +@all":                  {"write-permission": "refused"},
		"~lk:* &* +@all -@scripting":         {"write-permission": "refused"},
	} {
		server := redistest.StartWith(t, redistest.Options{ACL: rules})
		found, err := look(t, tokenstore.DialOptions{URL: server.URL()}, tokenstore.Options{})
		is(t, rules, err, nil)
		for check, severity := range want {
			if got := found[check].Severity.String(); got != severity {
				t.Errorf("%s: %s: %s %q, want %s", rules, check, got, found[check].Text, severity)
			}
		}
		for name, o := range map[string]tokenstore.DialOptions{
			"no password":    {URL: "redis://" + server.Addr()},
			"wrong password": {URL: "redis://" + redistest.User + ":wrong@" + server.Addr()},
		} {
			found, _ := look(t, o, tokenstore.Options{})
			finds(t, found, "write-permission", tokenstore.Forbidden, "password")
			if f := fmt.Sprint(found); strings.Contains(f, redistest.Password) {
				t.Errorf("%s: a secret in %s", name, f)
			}
		}
	}
}

func TestPreflightOfNothing(t *testing.T) {
	t.Parallel()
	found, err := look(t, tokenstore.DialOptions{URL: "redis://" + deafAddr(t)}, tokenstore.Options{})
	if !errors.Is(err, tokenstore.ErrUnavailable) || len(found) != 0 {
		t.Errorf("got %v, %v", found, err)
	}
}
