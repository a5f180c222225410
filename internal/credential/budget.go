package credential

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// budget admits hashes while their memory and lanes fit, and keeps a bounded queue before that. It counts in KiB: a
// worker is a share of that size, so one semaphore bounds both.
type budget struct {
	shares   *semaphore.Weighted // first come, first served: a heavy hash is not starved by light ones
	capacity int64               // KiB
	share    int64               // KiB of one worker
	queue    int64
	maxWait  time.Duration

	waiting, running atomic.Int64
}

func newBudget(workers int, shareKiB uint32, queue int, maxWait time.Duration) *budget {
	capacity := int64(workers) * int64(shareKiB)
	return &budget{
		shares:   semaphore.NewWeighted(capacity),
		capacity: capacity,
		share:    int64(shareKiB),
		queue:    int64(queue),
		maxWait:  maxWait,
	}
}

// enter waits until a hash of these parameters may be computed. The caller calls leave, once, when it is done. An
// error wraps ErrBusy, and the context's error if that ended the wait.
func (b *budget) enter(ctx context.Context, p params) (leave func(), err error) {
	if ctx.Err() != nil { // nobody waits for the answer any more
		return nil, fmt.Errorf("%w: %w", ErrBusy, ctx.Err())
	}
	weight := b.weight(p)
	if !b.shares.TryAcquire(weight) {
		if err := b.wait(ctx, weight); err != nil {
			return nil, err
		}
	}
	b.running.Add(1)
	return func() {
		b.running.Add(-1)
		b.shares.Release(weight)
	}, nil
}

func (b *budget) wait(ctx context.Context, weight int64) error {
	defer b.waiting.Add(-1)
	if b.waiting.Add(1) > b.queue {
		return fmt.Errorf("%w: %d wait already", ErrBusy, b.queue)
	}
	limited, cancel := context.WithTimeout(ctx, b.maxWait)
	defer cancel()
	if b.shares.Acquire(limited, weight) == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrBusy, ctx.Err())
	}
	return fmt.Errorf("%w: no turn within %v", ErrBusy, b.maxWait)
}

// weight of a hash: its memory, or a share for each lane if that is more, but never more than there is.
func (b *budget) weight(p params) int64 {
	return min(b.capacity, max(int64(p.memory), b.share*int64(p.lanes)))
}

func (b *budget) depth() int { return int(b.waiting.Load() + b.running.Load()) }
