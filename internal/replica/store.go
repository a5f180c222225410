package replica

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/trace"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// storeObserver holds the functions that are called for the store's operations. Each may be nil.
type storeObserver struct {
	call      func(operation string, took time.Duration, err error)
	trace     func(ctx context.Context, operation string) (context.Context, func(error))
	connected func() // for each new connection
}

// observeStore counts and times each operation, traces it if tracer is not nil, and tells p of new connections.
func observeStore(metrics *handlers.Metrics, tracer trace.Tracer, p *preflight) storeObserver {
	o := storeObserver{call: metrics.StoreCall, connected: func() { p.connected.Store(true) }}
	if tracer != nil {
		o.trace = traceStore(tracer)
	}
	return o
}

// OpenStore connects a token store as the settings say, with a pool of so many connections unless the URL has a
// pool_size. The caller closes the client.
func OpenStore(cfg *config.Config, pool int) (redis.UniversalClient, *tokenstore.Store, error) {
	dial := DialOptions(cfg)
	if cfg.RedisURL.PoolSize() == 0 {
		dial.PoolSize = pool
	}
	return openStore(cfg, dial, storeObserver{})
}

func openStore(cfg *config.Config, dial tokenstore.DialOptions, observe storeObserver) (redis.UniversalClient, *tokenstore.Store, error) {
	dial.OnConnect = observe.connected
	rdb, err := tokenstore.Dial(dial)
	if err != nil {
		return nil, nil, NameSetting(err)
	}
	store, err := tokenstore.New(rdb, tokenstore.Options{
		Shards: cfg.Shards,
		Lifetimes: tokenstore.Lifetimes{
			Access: cfg.AccessTTL, Refresh: cfg.RefreshTTL, Session: cfg.SessionMax, Grace: cfg.RefreshGrace,
		},
		Timeout:         3 * cfg.RedisTimeout,
		WaitReplicas:    cfg.RevokeWaitReplicas,
		SessionsPerUser: cfg.SessionsPerUser,
		StatusLists:     cfg.StatusList,
		Observe:         observe.call,
		Trace:           observe.trace,
	})
	if err != nil {
		return nil, nil, errors.Join(err, rdb.Close())
	}
	return rdb, store, nil
}

// DialOptions are the settings of the connection to Redis.
func DialOptions(cfg *config.Config) tokenstore.DialOptions {
	return tokenstore.DialOptions{
		URL: cfg.RedisURL.Reveal(),
		TLS: tokenstore.TLSOptions{
			CAFile: cfg.RedisTLSCAFile, CertFile: cfg.RedisTLSCertFile, KeyFile: cfg.RedisTLSKeyFile,
		},
		Timeout: cfg.RedisTimeout,
	}
}
