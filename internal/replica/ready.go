package replica

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"time"
)

// Ready returns why the replica should get no requests now, or nil.
func (r *Replica) Ready() error { return *r.readiness.Load() }

// setReady changes what Ready returns. Draining is final: a check of Redis that began before does not undo it.
func (r *Replica) setReady(err error) {
	r.readinessMu.Lock()
	defer r.readinessMu.Unlock()
	if before := r.readiness.Load(); before != nil && errors.Is(*before, errDraining) {
		return
	}
	r.readiness.Store(&err)
	if r.extAuthz != nil {
		r.extAuthz.SetReady(err == nil)
	}
}

// check asks Redis whether it answers, and brings the number of shards and the signing keys up to date. After Redis
// lost its data, this is what restores them.
func (r *Replica) check(ctx context.Context) error {
	if err := r.store.Open(ctx); err != nil {
		return NameSetting(err)
	}
	return r.keys.sync(ctx)
}

// booted returns errBooting until the follower has read the log of revocations once. Until then tokens are checked in
// Redis. That is correct but slower, so the replica should not get traffic yet.
func (r *Replica) booted() error {
	if r.follower == nil {
		return nil
	}
	select {
	case <-r.follower.Ready():
		return nil
	default:
		return errBooting
	}
}

// watchRedis checks Redis once a second, and at once when a key was revoked. It keeps /readyz and the keys up to date,
// and repeats the preflight when the Redis behind the connections may have changed. It returns an error if the first
// preflight that completes forbids to serve.
func (r *Replica) watchRedis(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var booted <-chan struct{} // nil once it was noticed
	if r.follower != nil {
		booted = r.follower.Ready()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-r.keys.revoked:
		case <-booted:
			booted = nil
		}
		before := r.Ready()
		err := r.check(ctx)
		if err == nil && r.preflight.due(before != nil) {
			if err = r.preflight.look(ctx); errors.Is(err, ErrPreflight) {
				return err
			}
		}
		err = cmp.Or(err, r.booted())
		before = r.Ready()
		if errors.Is(before, errDraining) || ctx.Err() != nil {
			return nil
		}
		r.setReady(err)
		switch {
		case err != nil && before == nil:
			r.log.LogAttrs(ctx, slog.LevelError, "not ready", slog.String("cause", err.Error()))
		case err == nil && before != nil:
			r.log.LogAttrs(ctx, slog.LevelInfo, "ready")
		}
	}
}
