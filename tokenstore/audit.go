package tokenstore

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// auditKey is one stream for all shards: events are read in one order, and the
// node that has it is asked one pipeline for many of them.
const auditKey = "lk:audit"

// Append appends events to the audit stream, each as the field "event", and
// keeps about the last keep. After an [ErrUnavailable] some of them may be there:
// sent again they are there twice.
func (s *AuditStream) Append(ctx context.Context, events [][]byte, keep int64) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	_, err := s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, e := range events {
			pipe.XAdd(ctx, &redis.XAddArgs{Stream: auditKey, MaxLen: keep, Approx: true, Values: []any{"event", e}})
		}
		return nil
	})
	err = unavailable("audit", err)
	s.observe("audit", time.Since(start), err)
	return err
}
