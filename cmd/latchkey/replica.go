package main

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/claimhook"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/dpop"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// replica is one instance of the service: what `serve` runs one of and `dev` three.
type replica struct {
	cfg       *config.Config
	log       *slog.Logger
	rdb       redis.UniversalClient
	traces    *sdktrace.TracerProvider // nil for none
	audit     *handlers.AuditStream    // nil for none
	store     *tokenstore.Store
	preflight *preflight
	keys      *keyKeeper
	follower  *edge.Follower // nil in strict mode
	feed      *edge.Feed
	pulse     *pulse
	api       *http.Server
	admin     *http.Server
	extAuthz  *handlers.ExtAuthz // nil for none
	listen    *crowd             // of the API
	ask       *crowd             // of extAuthz; nil for none
	watch     *crowd             // of the admin listener; nil for none
	state     atomic.Pointer[error]
	setting   sync.Mutex // of state
	passwords *credential.Hasher
}

// issuedCache is how many tokens a replica remembers that were introspected.
const issuedCache = 4096

var (
	errStarting = errors.New("starting: Redis has not answered yet")
	errBooting  = errors.New("starting: the log of revocations is being read")
	errDraining = errors.New("shutting down")
)

// newReplica wires a replica and opens its listeners. It does not talk to Redis
// yet: a replica that starts during an outage waits for its end.
func newReplica(ctx context.Context, cfg *config.Config, logger *slog.Logger) (*replica, error) {
	passwords, err := credential.NewHasher(credential.Options{
		MemoryKiB: cfg.PasswordMemory, Iterations: cfg.PasswordIterations, Parallelism: cfg.PasswordParallelism,
		Workers: cfg.PasswordWorkers, Queue: cfg.PasswordQueue, MaxWait: cfg.PasswordWait,
	})
	if err != nil {
		return nil, err
	}
	metrics := handlers.NewMetrics(buildVersion(), runtime.Version(), passwords.Depth)

	traces, err := newTraces(ctx, cfg, logger)
	if err != nil {
		return nil, err
	}
	look := &preflight{log: logger, allowEviction: cfg.RedisAllowEviction, off: cfg.Secret == config.DevSecret}
	observe := storeObserver{call: metrics.StoreCall, connected: func() { look.connected.Store(true) }}
	var tracer trace.Tracer
	if traces != nil {
		tracer = traces.Tracer("github.com/latchkey-auth/latchkey")
		observe.trace = traceStore(tracer)
	}
	rdb, store, err := openStore(cfg, observe)
	if err != nil {
		return nil, err
	}
	look.store = store
	secrets := rootSecrets(cfg)
	sealer, err := accesstoken.NewSealer(secrets...)
	if err != nil {
		return nil, err
	}
	codec, err := refreshtoken.New(secrets...)
	if err != nil {
		return nil, err
	}
	deviceKeys, err := derived(secrets, "latchkey known device v1")
	if err != nil {
		return nil, err
	}
	var nonces *dpop.Nonces
	if cfg.DPoPNonce {
		nonceKeys, err := derived(secrets, "latchkey dpop nonce v1")
		if err != nil {
			return nil, err
		}
		nonces = dpop.NewNonces(nonceKeys...)
	}
	keys := newKeyKeeper(cfg, store, sealer, logger)
	ring := keys.ring
	metrics.WatchKeys(keys.stats)

	var follower *edge.Follower
	if cfg.Verify == "follow" {
		observe := metrics.EdgeObserver()
		observe.Key = keys.wake
		observe.Lease = func(other time.Duration) {
			logger.Warn("another replica has a longer LATCHKEY_EDGE_LEASE, for which logouts may now wait here: give all replicas the same",
				"lease", cfg.EdgeLease.String(), "other", other.String())
		}
		follower = edge.NewFollower(edge.FollowerOptions{
			Store: store, Lease: cfg.EdgeLease, MaxDenied: cfg.EdgeMaxDenied, Observe: observe,
		})
	}
	verifier, err := edge.New(edge.Options{
		Store: store, Ring: ring, Issuer: cfg.Issuer, Audience: cfg.Audience, Refetch: keys.sync,
		Follower: follower, CacheSize: cfg.EdgeCache, ServeStale: cfg.EdgeOutage.ServeStale,
	})
	if err != nil {
		return nil, err
	}
	metrics.WatchEdge(verifier, follower)
	issued, err := edge.New(edge.Options{
		Store: store, Ring: ring, Issuer: cfg.Issuer, AnyAudience: true, Refetch: keys.sync,
		Follower: follower, CacheSize: issuedCache, ServeStale: cfg.EdgeOutage.ServeStale,
	})
	if err != nil {
		return nil, err
	}
	var claims *claimhook.Webhook
	if cfg.ClaimsURL != "" {
		claims = claimhook.New(claimhook.Options{URL: cfg.ClaimsURL, Key: cfg.ClaimsSecret.Reveal(), Timeout: cfg.ClaimsTimeout})
	}
	feed := edge.NewFeed(edge.FeedOptions{Store: store, Lease: cfg.EdgeLease, Failed: func(err error) {
		logger.LogAttrs(context.WithoutCancel(ctx), slog.LevelWarn, "the log of revocations cannot be read for GET /revocations", slog.String("cause", err.Error()))
	}})
	alive := newPulse(cfg.RefreshGrace)
	dependencies := handlers.Dependencies{
		Stalled: func() bool { return alive.stalled(time.Now()) },
		Store:   store, Verifier: verifier, Confirmer: edge.NewConfirmer(store, cfg.EdgeLease).Beside(follower),
		Signer: accesstoken.NewSigner(ring), Refresh: codec, Passwords: passwords,
		Metrics: metrics, Log: logger, Rand: rand.Reader, Revocations: feed, Tracer: tracer, Issued: issued, Claims: claims,
		Settings: handlers.Settings{
			Issuer: cfg.Issuer, Audience: cfg.Audience, ClientID: cfg.ClientID,
			CookieName: cfg.CookieName, CookieSecure: cfg.CookieSecure, CookieDomain: cfg.CookieDomain, CookiePath: cfg.CookiePath, AccessCookie: cfg.AccessCookie,
			AllowedOrigins: cfg.AllowedOrigins, TrustedProxies: cfg.TrustedProxies,
			Limits: tokenstore.AttemptLimits{
				Client: tokenstore.Limit(cfg.LoginLimitClient), Account: tokenstore.Limit(cfg.LoginLimitAccount),
				Address: tokenstore.Limit(cfg.LoginLimitAddress),
			},
			DeviceKey: deviceKeys[0], OlderDeviceKeys: deviceKeys[1:], JWKSMaxAge: cfg.JWKSMaxAge, RevocationsToken: cfg.RevocationsToken.Reveal(),
			MaxInFlight: cfg.MaxInFlight,
			ScopeClaims: cfg.ClaimsOfScopes(), ClaimsOmit: cfg.ClaimsFailure == "omit",
			Version: buildVersion(), Docs: cfg.Docs, Nonces: nonces,
		},
	}
	if cfg.KeysDir == "" { // the keys of a folder may be any
		dependencies.Settings.SignatureSize = accesstoken.Algorithm(cfg.Algorithm).SignatureSize()
	}
	if cfg.StatusList {
		dependencies.Settings.StatusListTTL = cfg.StatusListTTL
	}
	var audit *handlers.AuditStream
	if cfg.AuditStream > 0 {
		audit = handlers.NewAuditStream(store, cfg.AuditStream, metrics, logger)
		dependencies.Audit = auditHandler(audit, traces != nil)
	}
	api, err := handlers.New(dependencies)
	if err != nil {
		return nil, err
	}
	r := &replica{cfg: cfg, log: logger, rdb: rdb, traces: traces, audit: audit, store: store, preflight: look, keys: keys, follower: follower, feed: feed, pulse: alive, passwords: passwords}
	if cfg.ExtAuthzAddr != "" {
		r.extAuthz = api.ExtAuthz()
	}
	r.setState(errStarting)
	state := handlers.ReplicaState{Ready: r.ready, Pool: store.PoolStats, PasswordWorkers: passwords.Workers(), PasswordQueue: cfg.PasswordQueue}
	if follower != nil {
		state.MaxDenied = cfg.EdgeMaxDenied
	}
	metrics.WatchReplica(state)
	r.api = server(r.leaving(api), logger)
	r.api.RegisterOnShutdown(feed.Close) // streams do not end by themselves
	if claims != nil {
		r.api.RegisterOnShutdown(claims.Close)
	}
	r.admin = server(handlers.NewAdmin(handlers.AdminOptions{Metrics: metrics, Ready: r.ready, PProf: cfg.PProf}), logger)
	if cfg.PProf {
		r.admin.WriteTimeout = 2 * time.Minute // a profile is collected while its request waits
	}
	if err := r.open(ctx, metrics); err != nil {
		return nil, err
	}
	return r, nil
}

// rootSecrets are the secrets of LATCHKEY_SECRET, the one in use first.
func rootSecrets(cfg *config.Config) [][]byte {
	var secrets [][]byte
	for _, s := range cfg.Secret.List() {
		secrets = append(secrets, s.Reveal())
	}
	return secrets
}

// derived is the key for one purpose, of known devices' cookies or DPoP nonces, from
// each root secret.
func derived(secrets [][]byte, purpose string) ([][]byte, error) {
	keys := make([][]byte, len(secrets))
	for i, secret := range secrets {
		var err error
		if keys[i], err = hkdf.Key(sha256.New, secret, nil, purpose, 32); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// storeObserver is what is told of the store's operations; each may be nil.
type storeObserver struct {
	call  func(operation string, took time.Duration, err error)
	trace func(ctx context.Context, operation string) (context.Context, func(error))
	// connected is called for each new connection.
	connected func()
}

// openStore connects the token store as the settings say.
func openStore(cfg *config.Config, observe storeObserver) (redis.UniversalClient, *tokenstore.Store, error) {
	dial := dialOptions(cfg)
	dial.OnConnect = observe.connected
	rdb, err := tokenstore.Dial(dial)
	if err != nil {
		return nil, nil, err
	}
	store, err := tokenstore.New(rdb, tokenstore.Options{
		Shards: cfg.Shards,
		Lifetimes: tokenstore.Lifetimes{
			Access: cfg.AccessTTL, Refresh: cfg.RefreshTTL, Session: cfg.SessionMax, Grace: cfg.RefreshGrace,
		},
		Timeout:         3 * cfg.RedisTimeout,
		WaitReplicas:    cfg.RevokeWaitReplicas,
		SessionsPerUser: cfg.SessionsPerUser,
		StatusLists:     cfg.StatusList,
		Observe:         observe.call,
		Trace:           observe.trace,
	})
	if err != nil {
		return nil, nil, errors.Join(err, rdb.Close())
	}
	return rdb, store, nil
}

// dialOptions are the settings of the connection to Redis.
func dialOptions(cfg *config.Config) tokenstore.DialOptions {
	return tokenstore.DialOptions{
		URL: cfg.RedisURL.Reveal(), Mode: tokenstore.Mode(cfg.RedisMode),
		Username: cfg.RedisUsername, Password: string(cfg.RedisPassword.Reveal()),
		TLS: tokenstore.TLSOptions{
			CAFile: cfg.RedisTLSCAFile, CertFile: cfg.RedisTLSCertFile, KeyFile: cfg.RedisTLSKeyFile, ServerName: cfg.RedisTLSServerName,
		},
		Timeout: cfg.RedisTimeout, PoolSize: cfg.RedisPoolSize,
	}
}

// auditHandler adds to the events of a stream which replica they are of: in the
// log, the collector of the logs knows.
func auditHandler(s *handlers.AuditStream, traced bool) slog.Handler {
	h := s.Handler()
	if traced {
		h = tracedLog{h}
	}
	if host, err := os.Hostname(); err == nil {
		h = h.WithAttrs([]slog.Attr{slog.String("replica", host)})
	}
	return h
}

// server bounds what a client can hold up: Go's own default is no bound at all.
func server(h http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ConnState:         noteBusy,
		// What clients do to their connections is no error of ours.
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
}

// maxWatchers is how many connections the admin listener holds.
const maxWatchers = 128

// open opens the listeners, each of which holds a bounded number of connections.
func (r *replica) open(ctx context.Context, metrics *handlers.Metrics) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // such a socket takes no filter: see lastCallers
	listen := func(setting, addr string, limit int, refusal string) (*crowd, error) {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			r.close()
			return nil, fmt.Errorf("%s: %w", setting, err)
		}
		return newCrowd(gracious(l), limit, refusal, func() { metrics.Shed(handlers.ShedConnection) }), nil
	}
	var err error
	if r.listen, err = listen("LATCHKEY_ADDR", r.cfg.Addr, r.cfg.MaxConnections, tooMany()); err != nil {
		return err
	}
	metrics.WatchConnections(r.listen.open.Load, r.listen.evicted.Load)
	if r.extAuthz != nil {
		if r.ask, err = listen("LATCHKEY_EXTAUTHZ_ADDR", r.cfg.ExtAuthzAddr, r.cfg.MaxConnections, ""); err != nil {
			return err
		}
		r.ask.calls = true
	}
	if r.cfg.AdminAddr != "" {
		r.watch, err = listen("LATCHKEY_ADMIN_ADDR", r.cfg.AdminAddr, maxWatchers, tooMany())
	}
	return err
}

// addr is where the API listens.
func (r *replica) addr() string { return r.listen.Addr().String() }

// adminAddr is where the admin listener is, "" for nowhere.
func (r *replica) adminAddr() string {
	if r.watch == nil {
		return ""
	}
	return r.watch.Addr().String()
}

// extAuthzAddr is where ext_authz listens, "" for nowhere.
func (r *replica) extAuthzAddr() string {
	if r.ask == nil {
		return ""
	}
	return r.ask.Addr().String()
}

// ready tells why the replica should get no requests now, or nil.
func (r *replica) ready() error { return *r.state.Load() }

// setState changes what ready tells. Draining is final: a look at Redis that was
// under way when it began does not undo it.
func (r *replica) setState(err error) {
	r.setting.Lock()
	defer r.setting.Unlock()
	if before := r.state.Load(); before != nil && errors.Is(*before, errDraining) {
		return
	}
	r.state.Store(&err)
	if r.extAuthz != nil {
		r.extAuthz.SetReady(err == nil)
	}
}

// check asks Redis whether it answers, and brings the record of K and the keys
// up to date: after Redis lost its data this is what restores them.
func (r *replica) check(ctx context.Context) error {
	if err := r.store.Open(ctx); err != nil {
		return err
	}
	return r.keys.sync(ctx)
}

// booted tells whether the follower has read the log once. Tokens are checked in
// Redis before, so this is about speed, and about not being sent traffic early.
func (r *replica) booted() error {
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

// run serves until ctx ends, and then finishes what is under way. It returns an
// error if the replica cannot work here, or could not end in order.
func (r *replica) run(ctx context.Context) error {
	// The servers outlive ctx: they end by Shutdown.
	serving, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer func() {
		r.closeServers()
		stop(nil)
		r.feed.Close()
		wg.Wait() // the follower says goodbye: Redis is needed until then
		r.flushTraces(ctx)
		_ = r.rdb.Close()
	}()

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
		r.setState(r.booted())
	}
	serve := func(s *http.Server, l *crowd) {
		if l == nil {
			return
		}
		wg.Go(func() { // drain closes the listener before the server
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				stop(err)
			}
		})
	}
	serve(r.api, r.listen)
	serve(r.admin, r.watch)
	if r.extAuthz != nil {
		wg.Go(func() {
			if err := r.extAuthz.Serve(r.ask); err != nil {
				stop(err)
			}
		})
	}
	r.pulse.beat(time.Now())
	wg.Go(func() { r.pulse.run(serving) })
	wg.Go(func() {
		if err := r.watchRedis(serving); err != nil {
			stop(err)
		}
	})
	if r.audit != nil {
		wg.Go(func() { r.audit.Run(serving) })
	}
	if r.follower != nil {
		wg.Go(func() { r.follower.Run(serving) })
	}
	r.log.LogAttrs(ctx, slog.LevelInfo, "serving",
		slog.String("address", r.addr()), slog.String("admin", r.adminAddr()), slog.String("ext_authz", r.extAuthzAddr()),
		slog.String("redis", dialOptions(r.cfg).Describe()), slog.String("version", buildVersion()))

	select {
	case <-ctx.Done():
	case <-serving.Done():
		return context.Cause(serving)
	}
	return r.drain(context.WithoutCancel(ctx))
}

// watchRedis keeps what /readyz shows true, once a second, and the keys up to date:
// at once, when one was revoked. It has Redis looked at again when it may be
// another, and returns an error if that is the first look, and the replica must
// not serve.
func (r *replica) watchRedis(ctx context.Context) error {
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
		before := r.ready()
		err := r.check(ctx)
		if err == nil && r.preflight.due(before != nil) {
			if err = r.preflight.look(ctx); errors.Is(err, errPreflight) {
				return err
			}
		}
		err = cmp.Or(err, r.booted())
		before = r.ready()
		if errors.Is(before, errDraining) || ctx.Err() != nil {
			return nil
		}
		r.setState(err)
		switch {
		case err != nil && before == nil:
			r.log.LogAttrs(ctx, slog.LevelError, "not ready", slog.String("cause", err.Error()))
		case err == nil && before != nil:
			r.log.LogAttrs(ctx, slog.LevelInfo, "ready")
		}
	}
}

// drain ends the replica in order: readiness first, then, after a delay in which
// balancers notice, the listeners, then what is under way. Every connection that was
// accepted has its first request answered. The admin listener goes last.
func (r *replica) drain(ctx context.Context) error {
	r.setState(errDraining)
	r.log.LogAttrs(ctx, slog.LevelInfo, "shutting down")
	if r.cfg.ShutdownDelay > 0 {
		timer := time.NewTimer(r.cfg.ShutdownDelay)
		defer timer.Stop()
		<-timer.C
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.ShutdownTimeout)
	defer cancel()
	// Together: each may need all of the time.
	asked := make(chan error, 1)
	go func() {
		if r.extAuthz == nil {
			asked <- nil
			return
		}
		r.ask.settle(ctx)
		asked <- r.extAuthz.Shutdown(ctx)
	}()
	r.listen.settle(ctx)
	err := r.api.Shutdown(ctx)
	if err := errors.Join(err, <-asked); err != nil {
		return fmt.Errorf("requests were still under way after LATCHKEY_SHUTDOWN_TIMEOUT: %w", err)
	}
	if r.watch != nil {
		ctx, cancel := context.WithTimeout(ctx, firstRequest) // a profile may take longer: nobody waits for that
		defer cancel()
		r.watch.settle(ctx)
		_ = r.admin.Shutdown(ctx)
	}
	return nil
}

// leaving tells clients, while the replica drains, that each connection ends with
// the answer on it (RFC 9112 section 9.6). A balancer that keeps connections open
// has thereby given them up before the listener closes, instead of sending a
// request into one that is just being closed.
func (r *replica) leaving(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if errors.Is(r.ready(), errDraining) {
			w.Header().Set("Connection", "close")
		}
		api.ServeHTTP(w, q)
	})
}

// flushTraces sends the last spans, and ends the sending.
func (r *replica) flushTraces(ctx context.Context) {
	if r.traces == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tracesFlush)
	defer cancel()
	if err := r.traces.Shutdown(ctx); err != nil {
		r.log.LogAttrs(ctx, slog.LevelWarn, "the last traces were not sent", slog.String("cause", err.Error()))
	}
}

// closeServers ends what is left of the listeners, also where run never got so
// far as to serve.
func (r *replica) closeServers() {
	_ = r.api.Close()
	_ = r.admin.Close()
	if r.extAuthz != nil {
		r.extAuthz.Close()
	}
	for _, l := range []*crowd{r.listen, r.ask, r.watch} {
		if l != nil {
			_ = l.Close()
		}
	}
}

// close gives up a replica that is not run.
func (r *replica) close() {
	r.closeServers()
	_ = r.rdb.Close()
}

// redisLog takes go-redis's own messages: at debug level, since what they tell
// of shows in the answers, the metrics and /readyz.
type redisLog struct{ log *slog.Logger }

func (l redisLog) Printf(ctx context.Context, format string, v ...any) {
	l.log.LogAttrs(ctx, slog.LevelDebug, "redis client", slog.String("message", fmt.Sprintf(format, v...)))
}

// newLogger returns the program's log.
func newLogger(cfg *config.Config, w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: cfg.Level()}
	var h slog.Handler = slog.NewJSONHandler(w, o)
	if cfg.LogFormat == "text" {
		h = slog.NewTextHandler(w, o)
	}
	if cfg.Traces != "off" {
		h = tracedLog{h}
	}
	logger := slog.New(h)
	redis.SetLogger(redisLog{logger})
	return logger
}
