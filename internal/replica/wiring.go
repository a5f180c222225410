package replica

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"log/slog"
	"os"
	"time"

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

const (
	// introspectionCache is how many tokens that were introspected a replica keeps in memory.
	introspectionCache = 4096
	// maxInFlight is how many refreshes, how many requests about sessions, and how many requests for unknown status lists
	// are served at the same time. One more is answered 503.
	maxInFlight = 512
	// claimsTimeout is how long the claims webhook may take.
	claimsTimeout = time.Second
	// publicClient is the client_id of tokens that a password login issues.
	publicClient = "latchkey"
)

func newHasher(cfg *config.Config) (*credential.Hasher, error) {
	return credential.NewHasher(credential.Options{
		MemoryKiB: cfg.PasswordMemory, Iterations: cfg.PasswordIterations,
		Workers: cfg.PasswordWorkers, MaxWait: cfg.PasswordWait,
	})
}

// secrets are the keys that are derived from LATCHKEY_SECRET. Of each list the first is used for what is new.
type secrets struct {
	sealer     *accesstoken.Sealer
	refresh    *refreshtoken.Codec
	deviceKeys [][]byte     // of known devices' cookies
	nonces     *dpop.Nonces // nil: no nonces
}

func deriveSecrets(cfg *config.Config) (s secrets, err error) {
	root := rootSecrets(cfg)
	if s.sealer, err = accesstoken.NewSealer(root...); err != nil {
		return s, err
	}
	if s.refresh, err = refreshtoken.New(root...); err != nil {
		return s, err
	}
	if s.deviceKeys, err = deriveKeys(root, "latchkey known device v1"); err != nil {
		return s, err
	}
	if cfg.DPoPNonce {
		keys, err := deriveKeys(root, "latchkey dpop nonce v1")
		if err != nil {
			return s, err
		}
		s.nonces = dpop.NewNonces(keys...)
	}
	return s, nil
}

// rootSecrets are the secrets of LATCHKEY_SECRET, the one in use first.
func rootSecrets(cfg *config.Config) [][]byte {
	var list [][]byte
	for _, s := range cfg.Secret.List() {
		list = append(list, s.Reveal())
	}
	return list
}

// deriveKeys derives a key of 32 bytes for one purpose from each root secret.
func deriveKeys(root [][]byte, purpose string) ([][]byte, error) {
	keys := make([][]byte, len(root))
	for i, secret := range root {
		var err error
		if keys[i], err = hkdf.Key(sha256.New, secret, nil, purpose, 32); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// newFollower returns nil in strict mode.
func newFollower(cfg *config.Config, revocations *tokenstore.Revocations, metrics *handlers.Metrics, keys *keyKeeper, log *slog.Logger) *edge.Follower {
	if cfg.Verify != "follow" {
		return nil
	}
	observe := metrics.EdgeObserver()
	observe.Key = keys.wake
	observe.Lease = func(other time.Duration) {
		log.Warn("another replica has a longer LATCHKEY_EDGE_LEASE, for which logouts may now wait here: give all replicas the same",
			"lease", cfg.EdgeLease.String(), "other", other.String())
	}
	return edge.NewFollower(edge.FollowerOptions{
		Revocations: revocations, Lease: cfg.EdgeLease, MaxDenied: cfg.EdgeMaxDenied, Observe: observe,
	})
}

func newVerifier(cfg *config.Config, revocations *tokenstore.Revocations, keys *keyKeeper, follower *edge.Follower) (*edge.Verifier, error) {
	return edge.New(edge.Options{
		Revocations: revocations, Ring: keys.ring, Issuer: cfg.Issuer, Audience: cfg.Audience, Refetch: keys.sync,
		Follower: follower, CacheSize: cfg.EdgeCache, ServeStale: cfg.EdgeOutage.ServeStale,
	})
}

// newIntrospectionVerifier returns a verifier for every token that was issued here, for whatever audience.
func newIntrospectionVerifier(cfg *config.Config, revocations *tokenstore.Revocations, keys *keyKeeper, follower *edge.Follower) (*edge.Verifier, error) {
	return edge.New(edge.Options{
		Revocations: revocations, Ring: keys.ring, Issuer: cfg.Issuer, AnyAudience: true, Refetch: keys.sync,
		Follower: follower, CacheSize: introspectionCache, ServeStale: cfg.EdgeOutage.ServeStale,
	})
}

func newFeed(ctx context.Context, cfg *config.Config, revocations *tokenstore.Revocations, log *slog.Logger) *edge.Feed {
	return edge.NewFeed(edge.FeedOptions{Revocations: revocations, Lease: cfg.EdgeLease, Failed: func(err error) {
		log.LogAttrs(context.WithoutCancel(ctx), slog.LevelWarn, "the log of revocations cannot be read for GET /revocations", slog.String("cause", err.Error()))
	}})
}

// newAuditStream returns nil if no events are kept in Redis.
func newAuditStream(cfg *config.Config, stream *tokenstore.AuditStream, metrics *handlers.Metrics, log *slog.Logger) *handlers.AuditStream {
	if cfg.AuditStream == 0 {
		return nil
	}
	return handlers.NewAuditStream(stream, cfg.AuditStream, metrics, log)
}

// auditHandler adds the name of this replica to each event of a stream. The log needs no name: its collector knows.
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

// newClaimsWebhook returns nil if no webhook is set.
func newClaimsWebhook(cfg *config.Config) *claimhook.Webhook {
	if cfg.ClaimsURL == "" {
		return nil
	}
	return claimhook.New(claimhook.Options{URL: cfg.ClaimsURL, Key: cfg.ClaimsSecret.Reveal(), Timeout: claimsTimeout})
}

// dependencies are what the handlers call.
func (r *Replica) dependencies(s secrets, metrics *handlers.Metrics, verifier, introspected *edge.Verifier) handlers.Dependencies {
	d := handlers.Dependencies{
		Stalled:     func() bool { return r.stalls.stalled(time.Now()) },
		Store:       r.store,
		Verifier:    verifier,
		Issued:      introspected,
		Confirmer:   edge.NewConfirmer(r.store.Revocations, r.cfg.EdgeLease).Beside(r.follower),
		Signer:      accesstoken.NewSigner(r.keys.ring),
		Refresh:     s.refresh,
		Passwords:   r.passwords,
		Revocations: r.feed,
		Metrics:     metrics,
		Log:         r.log,
		Rand:        rand.Reader,
		Settings:    r.settings(s),
	}
	if r.audit != nil {
		d.Audit = auditHandler(r.audit, r.traces != nil)
	}
	return d
}

// settings are what the handlers read of the configuration.
func (r *Replica) settings(s secrets) handlers.Settings {
	cfg := r.cfg
	h := handlers.Settings{
		Issuer: cfg.Issuer, Audience: cfg.Audience, ClientID: publicClient,
		CookieName: cfg.CookieName, CookieSecure: cfg.CookieSecure, CookieDomain: cfg.CookieDomain, CookiePath: cfg.CookiePath, AccessCookie: cfg.AccessCookie,
		AllowedOrigins: cfg.AllowedOrigins, TrustedProxies: cfg.TrustedProxies,
		Limits: tokenstore.AttemptLimits{
			Client: tokenstore.Limit(cfg.LoginLimitClient), Account: tokenstore.Limit(cfg.LoginLimitAccount),
			Address: tokenstore.Limit(cfg.LoginLimitAddress),
		},
		DeviceKey: s.deviceKeys[0], OlderDeviceKeys: s.deviceKeys[1:], JWKSMaxAge: cfg.JWKSMaxAge, RevocationsToken: cfg.RevocationsToken.Reveal(),
		MaxInFlight: maxInFlight,
		ScopeClaims: cfg.ClaimsOfScopes(), ClaimsOmit: cfg.ClaimsFailure == "omit",
		Version: r.version, Docs: cfg.Docs, Nonces: s.nonces,
	}
	if cfg.KeysDir == "" { // the keys of a folder may be of any algorithm
		h.SignatureSize = accesstoken.Algorithm(cfg.Algorithm).SignatureSize()
	}
	if cfg.StatusList {
		h.StatusListTTL = cfg.StatusListTTL
	}
	return h
}
