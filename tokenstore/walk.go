package tokenstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// names returns what follows "lk:{i}:<kind>:" in every key of a kind, sorted, each once.
func (s *core) names(ctx context.Context, kind string) ([]string, error) {
	var all []string
	err := s.walk(ctx, kind, func(_ context.Context, _ *redis.Client, names []string) error {
		all = append(all, names...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// walkBatch is about how many keys a walk looks at in one round trip.
const walkBatch = 1000

// walk calls fn with the names of the keys of a kind, some at a time, and the
// server that holds them. It makes one call after the other, from this goroutine. A
// key that exists from the beginning to the end is passed at least once, unless the
// Cluster moves it to another server meanwhile.
func (s *core) walk(
	ctx context.Context, kind string, fn func(ctx context.Context, node *redis.Client, names []string) error,
) error {
	nodes, err := s.primaries(ctx)
	if err != nil {
		return unavailable("walk", err)
	}
	for _, node := range nodes {
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
				break
			}
		}
	}
	return nil
}

// primaries returns a client of each server that takes writes, in the order of their
// addresses.
func (s *core) primaries(ctx context.Context) ([]*redis.Client, error) {
	switch c := s.rdb.(type) {
	case *redis.ClusterClient:
		var mu sync.Mutex
		var list []*redis.Client
		// ForEachMaster calls its function from one goroutine for each primary.
		err := c.ForEachMaster(ctx, func(_ context.Context, node *redis.Client) error {
			mu.Lock()
			defer mu.Unlock()
			list = append(list, node)
			return nil
		})
		slices.SortFunc(list, func(a, b *redis.Client) int { return cmp.Compare(a.Options().Addr, b.Options().Addr) })
		return list, err
	case *redis.Client:
		return []*redis.Client{c}, nil
	default:
		return nil, fmt.Errorf("not a client of one server or of a Cluster: %T", s.rdb)
	}
}
