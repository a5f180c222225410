package tokenstore

import (
	"context"
	"strings"

	"github.com/redis/go-redis/v9"
)

// names calls fn with what follows "lk:{i}:<kind>:" in every key of a kind, in no
// order, each at least once.
func (s *Store) names(ctx context.Context, kind string, fn func(string) error) error {
	return s.walk(ctx, kind, func(_ context.Context, _ redis.UniversalClient, names []string) error {
		for _, name := range names {
			if err := fn(name); err != nil {
				return err
			}
		}
		return nil
	})
}

// walkBatch is about how many keys a walk looks at in one round trip.
const walkBatch = 1000

// walk calls fn with the names of the keys of a kind, some at a time, and the
// server that holds them. A key that is there from the beginning to the end is
// among them at least once.
func (s *Store) walk(ctx context.Context, kind string, fn func(ctx context.Context, node redis.UniversalClient, names []string) error) error {
	one := func(ctx context.Context, node redis.UniversalClient) error {
		for cursor := uint64(0); ; {
			keys, next, err := node.Scan(ctx, cursor, "lk:{*}:"+kind+":*", walkBatch).Result()
			if err != nil {
				return unavailable("walk", err)
			}
			names := make([]string, 0, len(keys))
			for _, key := range keys {
				if _, name, ok := strings.Cut(key, ":"+kind+":"); ok {
					names = append(names, name)
				}
			}
			if err := fn(ctx, node, names); err != nil {
				return err
			}
			if cursor = next; cursor == 0 {
				return nil
			}
		}
	}
	if c, ok := s.rdb.(*redis.ClusterClient); ok {
		return c.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error { return one(ctx, node) })
	}
	return one(ctx, s.rdb)
}
