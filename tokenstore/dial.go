package tokenstore

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// DialOptions are the settings of the connection to Redis.
type DialOptions struct {
	// URL as go-redis reads it: redis://user:password@host:port/db, rediss:// for TLS, unix://.
	URL string
	// Timeout bounds one attempt: to connect, to get a connection from the pool,
	// to write, to read. 0 means 250 ms.
	Timeout time.Duration
	// PoolSize is the most connections a replica opens; 0 means ten a CPU.
	PoolSize int
}

// Dial returns a client for a URL. It does not connect yet. A URL that cannot
// be read is an error that does not repeat it: it may hold a password.
//
// An operation is tried three times at most, at once after a lost connection or
// an unanswered attempt: after Redis was restarted, the pool may hold more than
// one dead connection. Every script can be sent twice, and the caller's user is
// waiting.
func Dial(o DialOptions) (redis.UniversalClient, error) {
	opt, err := redis.ParseURL(o.URL)
	if err != nil {
		return nil, fmt.Errorf("the Redis URL cannot be read: write redis://[user:password@]host:port[/db], or rediss:// for TLS")
	}
	if o.Timeout == 0 {
		o.Timeout = 250 * time.Millisecond
	}
	opt.DialTimeout, opt.ReadTimeout, opt.WriteTimeout, opt.PoolTimeout = o.Timeout, o.Timeout, o.Timeout, o.Timeout
	opt.ContextTimeoutEnabled = true
	opt.MaxRetries = 2
	opt.MinRetryBackoff, opt.MaxRetryBackoff = time.Millisecond, 10*time.Millisecond
	// A dial that fails is reported at once: go-redis would otherwise try five
	// times, 100 ms apart, inside one attempt.
	opt.DialerRetries = 1
	opt.PoolSize = o.PoolSize
	opt.MinIdleConns = 2
	opt.Protocol = 2
	opt.DisableIdentity = true
	opt.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return redis.NewClient(opt), nil
}

// Ping asks Redis whether it answers. Errors: [ErrUnavailable].
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	err := unavailable("ping", s.rdb.Ping(ctx).Err())
	s.observe("ping", time.Since(start), err)
	return err
}
