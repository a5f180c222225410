package handlers

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/session"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Metrics are what the admin listener shows at /metrics. Every label has a
// closed set of values: never a subject, an address or a token.
type Metrics struct {
	Registry *prometheus.Registry

	requests  *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	store     *prometheus.HistogramVec
	logins    *prometheus.CounterVec
	refreshes *prometheus.CounterVec
	logouts   *prometheus.CounterVec
	events    *prometheus.CounterVec
	panics    prometheus.Counter
	confirms  *prometheus.HistogramVec
	hook      *prometheus.HistogramVec
	lag       prometheus.Histogram
	gaps      prometheus.Counter
	restored  prometheus.Counter
	failures  prometheus.Counter
	shed      *prometheus.CounterVec
	inFlight  *prometheus.GaugeVec

	mu     sync.Mutex                          // held while series is replaced
	series atomic.Pointer[map[string][]series] // by route
}

// NewMetrics returns the metrics of one replica. queue tells how many password
// hashes are running or waiting.
func NewMetrics(version, goVersion string, queue func() int) *Metrics {
	requestBuckets := []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
		requests: counter("latchkey_http_requests_total", "Requests by route template, method and status code; 499: the client went away before it was answered.", "route", "method", "code"),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "latchkey_http_request_duration_seconds", Help: "How long requests took.", Buckets: requestBuckets,
		}, []string{"route", "method"}),
		store: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "latchkey_store_operation_duration_seconds", Help: "How long calls of the token store took, by operation and outcome (ok, unavailable, canceled: the client went away).",
			Buckets: requestBuckets,
		}, []string{"operation", "outcome"}),
		logins:    counter("latchkey_logins_total", "Password logins by outcome: ok, failed, throttled.", "outcome"),
		refreshes: counter("latchkey_refreshes_total", "Refreshes by outcome: rotated, same, reuse, rollback, ambiguous, invalid, expired, revoked, superseded, foreign, key.", "outcome"),
		logouts:   counter("latchkey_logouts_total", "Ended sessions by kind: session, all, other (by its user, from another session), limit (by a login, there were too many).", "kind"),
		events:    counter("latchkey_security_events_total", "Security events, as in the log.", "event"),
		confirms: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "latchkey_confirmation_duration_seconds", Help: "How long it took until no replica accepted what was revoked, by outcome (ok, unavailable, canceled: the client went away).",
			Buckets: requestBuckets,
		}, []string{"outcome"}),
		hook: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "latchkey_claims_webhook_duration_seconds", Help: "How long the claims webhook took, by outcome (ok, failed, canceled: the client went away).",
			Buckets: requestBuckets,
		}, []string{"outcome"}),
		lag: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "latchkey_revocation_lag_seconds", Help: "From a revocation in Redis to its application in this replica, by Redis time.",
			Buckets: requestBuckets,
		}),
		gaps:     prometheus.NewCounter(prometheus.CounterOpts{Name: "latchkey_edge_gaps_total", Help: "Times the log was not the one that was followed, and was read anew."}),
		restored: prometheus.NewCounter(prometheus.CounterOpts{Name: "latchkey_edge_restored_total", Help: "Revocations put back into a Redis that had lost them."}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "latchkey_edge_failures_total", Help: "Renewals and reads of the log that did not succeed."}),
		shed:     counter("latchkey_shed_total", "Requests and connections turned away because too many were under way, by class: connection, login, password, refresh, session, status_list, stream, ext_authz.", "class"),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "latchkey_requests_in_flight", Help: "Requests under way, by class: login, refresh, session."}, []string{"class"}),
		panics:   prometheus.NewCounter(prometheus.CounterOpts{Name: "latchkey_panics_total", Help: "Requests that panicked: each is a bug."}),
	}
	m.series.Store(&map[string][]series{})
	m.start()
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "latchkey_build_info", Help: "Always 1; the labels tell the version.",
		ConstLabels: prometheus.Labels{"version": version, "go_version": goVersion},
	}, func() float64 { return 1 })
	depth := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "latchkey_password_queue_depth", Help: "Password hashes running or waiting for a worker.",
	}, func() float64 { return float64(queue()) })
	// What tells a replica that is short of CPU: how long goroutines wait for one, and
	// how much of it goes to garbage.
	busy := collectors.GoRuntimeMetricsRule{Matcher: regexp.MustCompile(`^/(sched/latencies:seconds|cpu/classes/(gc/)?total:cpu-seconds)$`)}
	m.Registry.MustRegister(m.requests, m.duration, m.store, m.logins, m.refreshes, m.logouts, m.events, m.panics, build, depth,
		m.confirms, m.hook, m.lag, m.gaps, m.restored, m.failures, m.shed, m.inFlight,
		collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(busy)), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// series is what requests of one method and status to one route count in.
type series struct {
	method string
	status int
	count  prometheus.Counter
	took   prometheus.Observer
}

// request counts one request: by the route's template, never by its path. The series
// are looked up by label once, and then found in a map that is replaced, never changed.
func (m *Metrics) request(route, method string, status int, took time.Duration) {
	s := find((*m.series.Load())[route], method, status)
	if s == nil {
		s = m.newSeries(route, method, status)
	}
	s.count.Inc()
	s.took.Observe(took.Seconds())
}

func find(list []series, method string, status int) *series {
	for i := range list {
		if list[i].status == status && list[i].method == method {
			return &list[i]
		}
	}
	return nil
}

func (m *Metrics) newSeries(route, method string, status int) *series {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := *m.series.Load()
	if s := find(old[route], method, status); s != nil {
		return s // somebody else was first
	}
	s := series{
		method: method, status: status,
		count: m.requests.WithLabelValues(route, method, strconv.Itoa(status)),
		took:  m.duration.WithLabelValues(route, method),
	}
	next := maps.Clone(old)
	next[route] = append(slices.Clone(old[route]), s)
	m.series.Store(&next)
	return &s
}

// Shed counts a request, or a connection, that was turned away.
func (m *Metrics) Shed(where Shed) { m.shed.WithLabelValues(string(where)).Inc() }

// WatchConnections shows what a listener holds: how many connections are open, and
// how many have been closed to make room.
func (m *Metrics) WatchConnections(open, evicted func() int64) {
	m.Registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "latchkey_connections", Help: "Connections of the API's listener.",
		}, func() float64 { return float64(open()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "latchkey_connections_evicted_total", Help: "Silent connections closed to make room for others.",
		}, func() float64 { return float64(evicted()) }))
}

// outcome is the label of what ended with err: failed, unless nobody waited for it any more.
func outcome(err error, failed string) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return failed
}

// StoreCall is the [tokenstore.Options] Observe of a replica.
func (m *Metrics) StoreCall(operation string, took time.Duration, err error) {
	if !errors.Is(err, tokenstore.ErrUnavailable) {
		err = nil // Redis has answered
	}
	m.store.WithLabelValues(operation, outcome(err, "unavailable")).Observe(took.Seconds())
}

// confirmed times a confirmation.
func (m *Metrics) confirmed(took time.Duration, err error) {
	m.confirms.WithLabelValues(outcome(err, "unavailable")).Observe(took.Seconds())
}

// asked times a call of the claims webhook.
func (m *Metrics) asked(took time.Duration, err error) {
	m.hook.WithLabelValues(outcome(err, "failed")).Observe(took.Seconds())
}

// EdgeObserver is the [edge.FollowerOptions] Observe of a replica.
func (m *Metrics) EdgeObserver() edge.FollowerObserver {
	return edge.FollowerObserver{
		Lag:      func(d time.Duration) { m.lag.Observe(d.Seconds()) },
		Gap:      m.gaps.Inc,
		Restored: func(n int) { m.restored.Add(float64(n)) },
		Failed:   func(error) { m.failures.Inc() },
	}
}

// WatchEdge shows how a replica's verifier and follower are doing; the follower
// may be nil.
func (m *Metrics) WatchEdge(v *edge.Verifier, f *edge.Follower) {
	m.Registry.MustRegister(&edgeCollector{verifier: v, follower: f})
}

// KeyStats is how a replica's signing keys are doing.
type KeyStats struct {
	Next, Active, Retiring int
	Now, Since             time.Time // Redis time, and since when the active key signs; zero if not known
	Rotates                time.Time // when the next one will; zero for never
	FolderFaults           int64     // readings of LATCHKEY_KEYS_DIR that failed
}

// WatchKeys shows how the signing keys are doing; look must not block.
func (m *Metrics) WatchKeys(look func() KeyStats) { m.Registry.MustRegister(keyCollector(look)) }

// keyCollector reads the keys once for each scrape.
type keyCollector func() KeyStats

// keyGauges are the names and meanings of what keyCollector shows.
func keyGauges() (keys, age, rotates, faults *prometheus.Desc) {
	return prometheus.NewDesc("latchkey_signing_keys", "Signing keys by state: next (published, will sign), active, retiring (verifies).", []string{"state"}, nil),
		prometheus.NewDesc("latchkey_signing_key_age_seconds", "For how long the active key has been signing.", nil, nil),
		prometheus.NewDesc("latchkey_signing_key_rotation_seconds", "Until the next key signs; not there if nothing is due.", nil, nil),
		prometheus.NewDesc("latchkey_signing_key_folder_faults_total", "Readings of LATCHKEY_KEYS_DIR that failed; the keys of before stay.", nil, nil)
}

// Describe implements [prometheus.Collector].
func (keyCollector) Describe(ch chan<- *prometheus.Desc) {
	keys, age, rotates, faults := keyGauges()
	for _, d := range []*prometheus.Desc{keys, age, rotates, faults} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (c keyCollector) Collect(ch chan<- prometheus.Metric) {
	s := c()
	keys, age, rotates, faults := keyGauges()
	for state, n := range map[string]int{"next": s.Next, "active": s.Active, "retiring": s.Retiring} {
		ch <- prometheus.MustNewConstMetric(keys, prometheus.GaugeValue, float64(n), state)
	}
	ch <- prometheus.MustNewConstMetric(faults, prometheus.CounterValue, float64(s.FolderFaults))
	if !s.Since.IsZero() {
		ch <- prometheus.MustNewConstMetric(age, prometheus.GaugeValue, s.Now.Sub(s.Since).Seconds())
	}
	if !s.Rotates.IsZero() {
		ch <- prometheus.MustNewConstMetric(rotates, prometheus.GaugeValue, s.Rotates.Sub(s.Now).Seconds())
	}
}

// edgeCollector reads the edge once for each scrape.
type edgeCollector struct {
	verifier *edge.Verifier
	follower *edge.Follower
}

// edgeGauges are the names and meanings of what edgeCollector shows.
func edgeGauges() map[string]*prometheus.Desc {
	d := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }
	return map[string]*prometheus.Desc{
		"hits":    d("latchkey_edge_cache_hits_total", "Checks of a token that had been verified before."),
		"misses":  d("latchkey_edge_cache_misses_total", "Checks of a token that had not."),
		"size":    d("latchkey_edge_cache_tokens", "Verified tokens remembered."),
		"shards":  d("latchkey_edge_shards", "Shards followed."),
		"leased":  d("latchkey_edge_shards_leased", "Shards whose tokens are checked in memory now."),
		"age":     d("latchkey_edge_lease_age_seconds", "How long ago the oldest lease in force was asked for."),
		"lag":     d("latchkey_edge_seq_lag", "Log entries not applied yet, as last seen."),
		"denied":  d("latchkey_edge_denied", "Revocations in memory."),
		"bytes":   d("latchkey_edge_denied_bytes", "Memory of the revocations, estimated."),
		"members": d("latchkey_edge_members", "Followers known to Redis, in the shard that has most."),
	}
}

// Describe implements [prometheus.Collector].
func (c *edgeCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range edgeGauges() {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *edgeCollector) Collect(ch chan<- prometheus.Metric) {
	d := edgeGauges()
	show := func(name string, kind prometheus.ValueType, v float64) {
		ch <- prometheus.MustNewConstMetric(d[name], kind, v)
	}
	cache := c.verifier.CacheStats()
	show("hits", prometheus.CounterValue, float64(cache.Hits))
	show("misses", prometheus.CounterValue, float64(cache.Misses))
	show("size", prometheus.GaugeValue, float64(cache.Size))
	if c.follower == nil {
		return
	}
	s := c.follower.Stats()
	show("shards", prometheus.GaugeValue, float64(s.Shards))
	show("leased", prometheus.GaugeValue, float64(s.Leased))
	show("age", prometheus.GaugeValue, s.LeaseAge.Seconds())
	show("lag", prometheus.GaugeValue, float64(s.Lag))
	show("denied", prometheus.GaugeValue, float64(s.Denied))
	show("bytes", prometheus.GaugeValue, float64(s.Denied)*edge.BytesPerDenied)
	show("members", prometheus.GaugeValue, float64(s.Members))
}

// event counts a security event, and where it is the outcome of a login, a
// refresh or a logout, that too.
func (m *Metrics) event(e session.Event, reason string) {
	m.events.WithLabelValues(string(e)).Inc()
	switch e {
	case session.EventLogin:
		m.logins.WithLabelValues("ok").Inc()
	case session.EventLoginFailed:
		m.logins.WithLabelValues("failed").Inc()
	case session.EventLoginThrottled:
		m.logins.WithLabelValues("throttled").Inc()
	case session.EventRefresh:
		m.refreshes.WithLabelValues("rotated").Inc()
	case session.EventRefreshSame:
		m.refreshes.WithLabelValues("same").Inc()
	case session.EventRefreshReuse:
		m.refreshes.WithLabelValues("reuse").Inc()
	case session.EventRefreshRollback:
		m.refreshes.WithLabelValues("rollback").Inc()
	case session.EventRefreshAmbiguous:
		m.refreshes.WithLabelValues("ambiguous").Inc()
	case session.EventRefreshRefused:
		m.refreshes.WithLabelValues(reason).Inc()
	case session.EventLogout:
		m.logouts.WithLabelValues("session").Inc()
	case session.EventLogoutAll:
		m.logouts.WithLabelValues("all").Inc()
	case session.EventSessionEnded:
		m.logouts.WithLabelValues(cmp.Or(reason, "other")).Inc()
	}
}
