package edge

import (
	"context"
	"errors"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// RedisOptions say where Latchkey's Redis is, and how Latchkey was set up.
type RedisOptions struct {
	// URL is redis://user:password@host:port/db, rediss:// for TLS, unix://.
	URL string
	// Shards is the number of shards that Latchkey was set up with; 0 means 16, its default.
	Shards int
	// Timeout bounds one attempt at Redis, and three times of it a check of a
	// token in Redis; 0 means 250 ms.
	Timeout time.Duration
	// WaitReplicas is how many replicas of Redis a revocation waits for. It must be what
	// Latchkey itself is set to.
	WaitReplicas int
}

const defaultShards = 16

// Dial opens the revocations in Latchkey's Redis for an API that verifies tokens with them, in strict
// mode or through a [Follower]. done closes its connections.
//
// Errors: [ErrUnavailable] if Redis does not answer, [tokenstore.ErrShards] if it
// was set up with another number of shards, or a URL that cannot be read.
func Dial(ctx context.Context, o RedisOptions) (revocations *tokenstore.Revocations, done func() error, err error) {
	if o.Shards == 0 {
		o.Shards = defaultShards
	}
	if o.Timeout == 0 {
		o.Timeout = 250 * time.Millisecond
	}
	rdb, err := tokenstore.Dial(tokenstore.DialOptions{URL: o.URL, Timeout: o.Timeout})
	if err != nil {
		return nil, nil, err
	}
	// No lifetimes: this process issues nothing, and learns from Redis how long a
	// revocation has to be remembered.
	store, err := tokenstore.New(rdb, tokenstore.Options{
		Shards: o.Shards, Timeout: 3 * o.Timeout, WaitReplicas: o.WaitReplicas,
	})
	if err == nil {
		err = store.Open(ctx)
	}
	if err != nil {
		return nil, nil, errors.Join(err, rdb.Close())
	}
	return store.Revocations, rdb.Close, nil
}
