package tokenstore_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// rules are those of deploy/redis.conf.
const rules = "~lk:* &* +@all -@admin -@dangerous +info"

// shared are the servers that take too long to start for each test to have its own.
var shared redistest.Shared

// topologies are what the tests take turns on.
var topologies = map[string]*topology{
	"sentinel": {start: func(t testing.TB) (tokenstore.DialOptions, redis.UniversalClient) {
		s := redistest.StartSentinel(t, redistest.Options{})
		return tokenstore.DialOptions{URL: s.URL()}, s.Client()
	}},
	"cluster": {start: func(t testing.TB) (tokenstore.DialOptions, redis.UniversalClient) {
		c := redistest.StartCluster(t, 3, 1, redistest.Options{})
		return tokenstore.DialOptions{URL: c.URL()}, c.Client()
	}},
	"TLS and users": {start: func(t testing.TB) (tokenstore.DialOptions, redis.UniversalClient) {
		certs := redistest.NewCertificates(t)
		s := redistest.StartWith(t, redistest.Options{TLS: certs, ACL: rules})
		return tokenstore.DialOptions{
			URL: s.URL(),
			TLS: tokenstore.TLSOptions{CAFile: certs.CAFile, CertFile: certs.ClientCertFile, KeyFile: certs.ClientKeyFile},
		}, s.Client()
	}},
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(suite{m}) }

// suite ends the shared servers after the last test.
type suite struct{ *testing.M }

func (s suite) Run() int {
	defer shared.Close()
	return s.M.Run()
}

// topology is a set of servers of which one test at a time has the use.
type topology struct {
	start func(testing.TB) (tokenstore.DialOptions, redis.UniversalClient)

	turn  sync.Mutex
	once  sync.Once
	dial  tokenstore.DialOptions
	admin redis.UniversalClient
}

// take waits for the topology, empties it, and gives it back when the test ends.
func (p *topology) take(t testing.TB) backend {
	t.Helper()
	redistest.NotShort(t)
	p.turn.Lock()
	t.Cleanup(p.turn.Unlock)
	p.once.Do(func() { p.dial, p.admin = p.start(&shared) })
	if err := flushAll(t.Context(), p.admin); err != nil {
		t.Fatal(err)
	}
	o := p.dial
	o.Timeout = 5 * time.Second // a busy machine is not an outage
	c, err := tokenstore.Dial(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return backend{store: c, test: p.admin}
}

// flushAll makes every server as new: no keys, and no scripts that it has seen.
func flushAll(ctx context.Context, c redis.UniversalClient) error {
	empty := func(ctx context.Context, c redis.UniversalClient) error {
		return errors.Join(c.FlushAll(ctx).Err(), c.ScriptFlush(ctx).Err())
	}
	if cluster, ok := c.(*redis.ClusterClient); ok {
		return cluster.ForEachMaster(ctx, func(ctx context.Context, c *redis.Client) error { return empty(ctx, c) })
	}
	return empty(ctx, c)
}
