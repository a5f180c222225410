// Package replica is one instance of the service: it connects the store, the signing keys, the verifier and the
// handlers, opens the listeners, keeps /readyz true, and ends in order.
//
// A caller needs [New] and [Replica.Run]. The commands for operators use [OpenStore], [DialOptions], [KeySettings]
// and [ReadKeysDir], so that they see Redis and the keys as a replica does.
package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Options of a replica. All fields are required.
type Options struct {
	Config  *config.Config
	Log     *slog.Logger
	Version string // of the program, for metrics, traces and the log
}

// Replica is one instance of the service: `latchkey serve` runs one, `latchkey dev` three.
type Replica struct {
	cfg       *config.Config
	log       *slog.Logger
	version   string
	rdb       redis.UniversalClient
	store     *tokenstore.Store
	traces    *sdktrace.TracerProvider // nil: no traces
	audit     *handlers.AuditStream    // nil: no stream
	preflight *preflight
	keys      *keyKeeper
	follower  *edge.Follower // nil: strict mode
	feed      *edge.Feed
	stalls    *stallDetector
	passwords *credential.Hasher

	api      *http.Server
	admin    *http.Server
	extAuthz *handlers.ExtAuthz // nil: not served

	apiListener      *connLimiter
	extAuthzListener *connLimiter // nil: not served
	adminListener    *connLimiter // nil: not served

	readiness   atomic.Pointer[error] // what Ready returns
	readinessMu sync.Mutex            // held while readiness changes
}

// New wires a replica and opens its listeners. It does not talk to Redis: a replica that starts during an outage
// waits for its end. A replica that is not run must be closed.
func New(ctx context.Context, o Options) (*Replica, error) {
	cfg, log := o.Config, o.Log
	r := &Replica{cfg: cfg, log: log, version: o.Version}
	r.setReady(errStarting)
	if err := r.wire(ctx); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// wire makes the parts of a replica, each from those before it.
func (r *Replica) wire(ctx context.Context) (err error) {
	cfg := r.cfg
	if r.passwords, err = newHasher(cfg); err != nil {
		return err
	}
	metrics := handlers.NewMetrics(r.version, runtime.Version(), r.passwords.Depth)
	if r.traces, err = newTraces(ctx, cfg, r.version, r.log); err != nil {
		return err
	}
	tracer := tracerOf(r.traces)
	r.preflight = newPreflight(cfg, r.log)
	if r.rdb, r.store, err = openStore(cfg, DialOptions(cfg), observeStore(metrics, tracer, r.preflight)); err != nil {
		return err
	}
	r.preflight.store = r.store
	secrets, err := deriveSecrets(cfg)
	if err != nil {
		return err
	}
	r.keys = newKeyKeeper(cfg, r.store.Keys, secrets.sealer, r.log)
	r.follower = newFollower(cfg, r.store.Revocations, metrics, r.keys, r.log)
	verifier, err := newVerifier(cfg, r.store.Revocations, r.keys, r.follower)
	if err != nil {
		return err
	}
	introspected, err := newIntrospectionVerifier(cfg, r.store.Revocations, r.keys, r.follower)
	if err != nil {
		return err
	}
	r.feed = newFeed(ctx, cfg, r.store.Revocations, r.log)
	r.stalls = newStallDetector(cfg.RefreshGrace)
	r.audit = newAuditStream(cfg, r.store.Audit, metrics, r.log)
	webhook := newClaimsWebhook(cfg)

	d := r.dependencies(secrets, metrics, verifier, introspected)
	d.Tracer, d.Claims = tracer, webhook
	api, err := handlers.New(d)
	if err != nil {
		return NameSetting(err)
	}
	if cfg.ExtAuthzAddr != "" {
		r.extAuthz = api.ExtAuthz()
	}
	r.watch(metrics, verifier)
	r.api = r.newAPIServer(api, webhook)
	r.admin = r.newAdminServer(metrics)
	return r.listen(ctx, metrics)
}

// watch has the metrics show how this replica is doing.
func (r *Replica) watch(metrics *handlers.Metrics, verifier *edge.Verifier) {
	metrics.WatchKeys(r.keys.stats)
	metrics.WatchEdge(verifier, r.follower)
	state := handlers.ReplicaState{
		Ready: r.Ready, Pool: r.store.PoolStats,
		PasswordWorkers: r.passwords.Workers(), PasswordQueue: credential.DefaultQueue,
	}
	if r.follower != nil {
		state.MaxDenied = r.cfg.EdgeMaxDenied
	}
	metrics.WatchReplica(state)
}

// Store is the replica's token store.
func (r *Replica) Store() *tokenstore.Store { return r.store }

// Addr is where the API listens.
func (r *Replica) Addr() string { return r.apiListener.Addr().String() }

// AdminAddr is where the admin listener is, or "" if there is none.
func (r *Replica) AdminAddr() string { return addrOf(r.adminListener) }

// ExtAuthzAddr is where ext_authz listens, or "" if it is not served.
func (r *Replica) ExtAuthzAddr() string { return addrOf(r.extAuthzListener) }

// Close gives up a replica that is not run. After Run it does nothing.
func (r *Replica) Close() {
	r.closeServers()
	if r.rdb != nil {
		_ = r.rdb.Close()
	}
}

// flushTraces sends the last spans and stops the exporter.
func (r *Replica) flushTraces(ctx context.Context) {
	if r.traces == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), TracesFlush)
	defer cancel()
	if err := r.traces.Shutdown(ctx); err != nil {
		r.log.LogAttrs(ctx, slog.LevelWarn, "the last traces were not sent", slog.String("cause", err.Error()))
	}
}

// shutdownTimeout names the setting that a drain exceeded.
func shutdownTimeout(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("requests were still under way after LATCHKEY_SHUTDOWN_TIMEOUT: %w", err)
}

var (
	errStarting = errors.New("starting: Redis has not answered yet")
	errBooting  = errors.New("starting: the log of revocations is being read")
	errDraining = errors.New("shutting down")
)
