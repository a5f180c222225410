package tokenstore

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// maxBatched is how many scripts may wait for their answer in batches. One more
// is sent by itself, and then meets the bounds of the pool.
const maxBatched = 4096

// batches sends the scripts of concurrent callers together: while one batch is
// under way, the next one gathers. Where there is nobody else, a script goes at
// once and alone. Under load it halves the system calls of both sides.
type batches struct {
	pipe *redis.AutoPipeliner
}

// newBatches returns nil for a client that cannot, or that does it no good: a
// Cluster's would have to be gathered for each node.
func newBatches(rdb redis.UniversalClient) (*batches, error) {
	client, ok := rdb.(*redis.Client)
	if !ok {
		return nil, nil
	}
	o := redis.DefaultAutoPipelineOptions()
	o.MaxQueuedCommands = maxBatched
	pipe, err := client.AsyncAutoPipelineWithOptions(o)
	if err != nil {
		return nil, fmt.Errorf("batches of scripts: %w", err)
	}
	return &batches{pipe}, nil
}

// run calls a script that this Redis has seen. It returns when ctx ends, though
// the script may still be sent after that.
func (b *batches) run(ctx context.Context, sc *script, keys []string, args []any) ([]any, error) {
	all := make([]any, 0, 3+len(keys)+len(args))
	all = append(all, "evalsha", sc.lua.Hash(), len(keys))
	for _, k := range keys {
		all = append(all, k)
	}
	cmd := redis.NewCmd(ctx, append(all, args...)...)
	cmd.SetFirstKeyPos(3)
	if err := b.pipe.Submit(ctx, cmd).WaitContext(ctx); err != nil {
		return nil, err
	}
	return cmd.Slice()
}
