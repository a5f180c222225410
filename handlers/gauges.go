package handlers

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// ReplicaState is what a replica tells of itself at each scrape. Its functions
// must not block.
type ReplicaState struct {
	Ready           func() error
	Pool            func() tokenstore.PoolStats
	PasswordWorkers int // hashes computed at once
	PasswordQueue   int // logins that may wait beyond
	MaxDenied       int // revocations that fit into memory; 0: none are kept there
}

// start makes the series of every outcome, at zero: the rate of one that appears
// with its first event misses that event, and an alert would too.
func (m *Metrics) start() {
	for v, values := range map[*prometheus.CounterVec][]string{
		m.logins:    {"ok", "failed", "throttled"},
		m.refreshes: {"rotated", "same", "reuse", "rollback", "ambiguous", "invalid", "expired", "revoked", "superseded", "foreign", "key"},
		m.logouts:   {"session", "all", "other"},
	} {
		for _, value := range values {
			v.WithLabelValues(value)
		}
	}
	for _, outcome := range []string{"ok", "unavailable"} {
		m.confirms.WithLabelValues(outcome)
	}
}

// WatchReplica shows how a replica is doing.
func (m *Metrics) WatchReplica(s ReplicaState) {
	gauge := func(name, help string, value func() float64) {
		m.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	count := func(name, help string, value func() uint64) {
		m.Registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help},
			func() float64 { return float64(value()) }))
	}
	gauge("latchkey_ready", "1 if the replica wants requests, as /readyz says; else 0.", func() float64 {
		if s.Ready() != nil {
			return 0
		}
		return 1
	})
	gauge("latchkey_password_capacity", "Password hashes that may run or wait; one more is refused.",
		func() float64 { return float64(s.PasswordWorkers + s.PasswordQueue) })
	if s.MaxDenied > 0 {
		gauge("latchkey_edge_denied_capacity", "Revocations that fit into memory; beyond, tokens are checked in Redis.",
			func() float64 { return float64(s.MaxDenied) })
	}
	gauge("latchkey_redis_connections", "Connections to Redis.", func() float64 { return float64(s.Pool().Open) })
	gauge("latchkey_redis_connections_idle", "Connections to Redis that nobody uses now.", func() float64 { return float64(s.Pool().Idle) })
	count("latchkey_redis_pool_waits_total", "Times that a connection to Redis had to be waited for.", func() uint64 { return s.Pool().Waits })
	count("latchkey_redis_pool_timeouts_total", "Times that no connection to Redis came free in time.", func() uint64 { return s.Pool().Timeouts })
}
