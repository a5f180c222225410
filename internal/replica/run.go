package replica

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Run serves until ctx ends, and then finishes the requests under way. It returns an error if the replica cannot work
// here, or could not end in order.
func (r *Replica) Run(ctx context.Context) error {
	// The servers outlive ctx: they end by Shutdown.
	serving, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer func() {
		r.closeServers()
		stop(nil)
		r.feed.Close()
		wg.Wait() // the follower leaves the group of followers, for which it needs Redis
		r.flushTraces(ctx)
		_ = r.rdb.Close()
	}()
	if err := r.start(ctx); err != nil {
		return err
	}
	r.serve(&wg, stop)
	r.upkeep(serving, &wg, stop)
	r.log.LogAttrs(ctx, slog.LevelInfo, "serving",
		slog.String("address", r.Addr()), slog.String("admin", r.AdminAddr()), slog.String("ext_authz", r.ExtAuthzAddr()),
		slog.String("redis", DialOptions(r.cfg).Describe()), slog.String("version", r.version))
	select {
	case <-ctx.Done():
		return r.drain(context.WithoutCancel(ctx))
	case <-serving.Done():
		return context.Cause(serving)
	}
}

// start checks Redis once. During an outage it returns nil: upkeep goes on checking.
func (r *Replica) start(ctx context.Context) error {
	err := r.preflight.look(ctx)
	if err == nil {
		err = r.check(ctx)
	}
	switch {
	case errors.Is(err, tokenstore.ErrUnavailable):
		r.log.LogAttrs(ctx, slog.LevelWarn, "waiting for Redis", slog.String("cause", err.Error()))
	case err != nil:
		return err
	default:
		r.setReady(r.booted())
	}
	return nil
}

// serve starts the servers. One that fails calls stop.
func (r *Replica) serve(wg *sync.WaitGroup, stop context.CancelCauseFunc) {
	start := func(s *http.Server, l *connLimiter) {
		if l == nil {
			return
		}
		wg.Go(func() { // drain closes the listener before the server
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				stop(err)
			}
		})
	}
	start(r.api, r.apiListener)
	start(r.admin, r.adminListener)
	if r.extAuthz != nil {
		wg.Go(func() {
			if err := r.extAuthz.Serve(r.extAuthzListener); err != nil {
				stop(err)
			}
		})
	}
}

// upkeep starts what runs beside the servers, until ctx ends.
func (r *Replica) upkeep(ctx context.Context, wg *sync.WaitGroup, stop context.CancelCauseFunc) {
	r.stalls.beat(time.Now())
	wg.Go(func() { r.stalls.run(ctx) })
	wg.Go(func() {
		if err := r.watchRedis(ctx); err != nil {
			stop(err)
		}
	})
	if r.audit != nil {
		wg.Go(func() { r.audit.Run(ctx) })
	}
	if r.follower != nil {
		wg.Go(func() { r.follower.Run(ctx) })
	}
}

// drain ends the replica in order: readiness first, then, after a delay in which balancers notice, the listeners, then
// the requests under way. Every connection that was accepted has its first request answered. The admin listener goes
// last.
func (r *Replica) drain(ctx context.Context) error {
	r.setReady(errDraining)
	r.log.LogAttrs(ctx, slog.LevelInfo, "shutting down")
	if r.cfg.ShutdownDelay > 0 {
		timer := time.NewTimer(r.cfg.ShutdownDelay)
		defer timer.Stop()
		<-timer.C
	}
	if err := r.drainServers(ctx); err != nil {
		return err
	}
	if r.adminListener != nil {
		ctx, cancel := context.WithTimeout(ctx, firstRequest) // a profile may take longer; nobody waits for it
		defer cancel()
		r.adminListener.settle(ctx)
		_ = r.admin.Shutdown(ctx)
	}
	return nil
}

// drainServers ends the API and ext_authz at the same time, since each may need all of the time there is.
func (r *Replica) drainServers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.ShutdownTimeout)
	defer cancel()
	grpc := make(chan error, 1)
	go func() {
		if r.extAuthz == nil {
			grpc <- nil
			return
		}
		r.extAuthzListener.settle(ctx)
		grpc <- r.extAuthz.Shutdown(ctx)
	}()
	r.apiListener.settle(ctx)
	return shutdownTimeout(errors.Join(r.api.Shutdown(ctx), <-grpc))
}
