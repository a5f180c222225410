//go:build unix

package redistest

import (
	"crypto/tls"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const latchkeyRules = "~lk:* &* +@all -@admin -@dangerous +info"

func TestTLSServerDemandsAClientCertificate(t *testing.T) {
	t.Parallel()
	certs := NewCertificates(t)
	s := StartWith(t, Options{TLS: certs})
	set(t, s.Client(), "k", "v")
	if !strings.HasPrefix(s.URL(), "rediss://") {
		t.Errorf("the URL is %s", s.URL())
	}
	for name, config := range map[string]*tls.Config{
		"no certificate":    {RootCAs: certs.Client.RootCAs, ServerName: ServerName, MinVersion: tls.VersionTLS12},
		"unknown authority": {Certificates: certs.Client.Certificates, ServerName: ServerName, MinVersion: tls.VersionTLS12},
		"plain":             nil,
	} {
		o := s.options()
		o.TLSConfig, o.MaxRetries, o.DialerRetries = config, -1, 1
		c := redis.NewClient(o)
		if err := c.Ping(t.Context()).Err(); err == nil {
			t.Errorf("%s: the server answers", name)
		}
		_ = c.Close()
	}
}

func TestACLUserMayDoWhatItsRulesSay(t *testing.T) {
	t.Parallel()
	s := StartWith(t, Options{ACL: latchkeyRules})
	set(t, s.Client(), "anything", "by the administrator")
	opts, err := redis.ParseURL(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(opts)
	defer func() { _ = c.Close() }()
	if err := c.Set(t.Context(), "lk:k", "v", 0).Err(); err != nil {
		t.Error(err)
	}
	if err := c.Get(t.Context(), "anything").Err(); !redis.HasErrorPrefix(err, "NOPERM") {
		t.Errorf("another's key: %v", err)
	}
	if err := c.ConfigGet(t.Context(), "*").Err(); !redis.HasErrorPrefix(err, "NOPERM") {
		t.Errorf("CONFIG: %v", err)
	}
}

func TestSentinelFailsOver(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Options{"plain": {}, "TLS and users": {TLS: NewCertificates(t), ACL: latchkeyRules}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			s := StartSentinel(t, o)
			t.Logf("started in %v", time.Since(began))
			c := s.Client()
			set(t, c, "k", "v")
			if n, err := c.Wait(t.Context(), 2, 5*time.Second).Result(); n != 2 || err != nil {
				t.Fatalf("replicas = %d, %v", n, err)
			}
			first := s.Primary(t)
			first.Kill(t)
			began = time.Now()
			second := s.AwaitPrimary(t, first)
			t.Logf("another primary after %v", time.Since(began))
			if got, err := second.Client().Get(t.Context(), "k").Result(); got != "v" || err != nil {
				t.Errorf("on the new primary: %q, %v", got, err)
			}
			s.AwaitSettled(t)
			first.Restart(t)
			s.AwaitSettled(t)
			before := s.Primary(t)
			if s.Failover(t) == before {
				t.Error("the same primary after an orderly failover")
			}
			s.AwaitSettled(t)
		})
	}
}

func TestClusterSpreadsFailsOverAndMoves(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name                string
		primaries, replicas int
		o                   Options
	}{
		{"three primaries", 3, 0, Options{}},
		{"six nodes", 3, 1, Options{}},
		{"TLS and users", 3, 1, Options{TLS: NewCertificates(t), ACL: latchkeyRules}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			cluster := StartCluster(t, tt.primaries, tt.replicas, tt.o)
			t.Logf("started in %v", time.Since(began))
			c := cluster.Client()
			for i := range 100 {
				if err := c.Set(t.Context(), fmt.Sprintf("k{%d}", i), i, 0).Err(); err != nil {
					t.Fatal(err)
				}
			}
			slot := int(c.ClusterKeySlot(t.Context(), "k{7}").Val())
			owner := cluster.Owner(t, slot, nil)
			var to *Server
			for _, p := range cluster.Primaries(t) {
				if n, err := p.Client().DBSize(t.Context()).Result(); n == 0 || err != nil {
					t.Errorf("%s has %d keys, %v", p.Addr(), n, err)
				}
				if p != owner {
					to = p
				}
			}
			if n := cluster.MoveSlot(t, slot, to); n == 0 {
				t.Error("no key was moved")
			}
			if got, err := c.Get(t.Context(), "k{7}").Int(); got != 7 || err != nil {
				t.Errorf("after the move: %d, %v", got, err)
			}
			cluster.AwaitSettled(t)
			if tt.replicas == 0 {
				return
			}
			if promoted := cluster.Failover(t, slot); promoted == to {
				t.Error("the same owner after an orderly failover")
			}
			cluster.AwaitSettled(t)
			dead := cluster.Owner(t, slot, nil)
			dead.Kill(t)
			began = time.Now()
			cluster.Owner(t, slot, dead)
			t.Logf("another owner after %v", time.Since(began))
			dead.Restart(t)
			cluster.AwaitSettled(t)
		})
	}
}
