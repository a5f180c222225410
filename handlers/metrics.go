package handlers

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

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
		requests: counter("latchkey_http_requests_total", "Requests by route template, method and status code.", "route", "method", "code"),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "latchkey_http_request_duration_seconds", Help: "How long requests took.", Buckets: requestBuckets,
		}, []string{"route", "method"}),
		store: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "latchkey_store_operation_duration_seconds", Help: "How long calls of the token store took, by operation and outcome (ok, unavailable).",
			Buckets: requestBuckets,
		}, []string{"operation", "outcome"}),
		logins:    counter("latchkey_logins_total", "Password logins by outcome: ok, failed, throttled.", "outcome"),
		refreshes: counter("latchkey_refreshes_total", "Refreshes by outcome: rotated, same, reuse, rollback, invalid, expired, revoked, superseded.", "outcome"),
		logouts:   counter("latchkey_logouts_total", "Logouts by kind: session, all, other.", "kind"),
		events:    counter("latchkey_security_events_total", "Security events, as in the log.", "event"),
		panics:    prometheus.NewCounter(prometheus.CounterOpts{Name: "latchkey_panics_total", Help: "Requests that panicked: each is a bug."}),
	}
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "latchkey_build_info", Help: "Always 1; the labels tell the version.",
		ConstLabels: prometheus.Labels{"version": version, "go_version": goVersion},
	}, func() float64 { return 1 })
	depth := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "latchkey_password_queue_depth", Help: "Password hashes running or waiting for a worker.",
	}, func() float64 { return float64(queue()) })
	m.Registry.MustRegister(m.requests, m.duration, m.store, m.logins, m.refreshes, m.logouts, m.events, m.panics, build, depth,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *Metrics) request(route, method, code string, took time.Duration) {
	m.requests.WithLabelValues(route, method, code).Inc()
	m.duration.WithLabelValues(route, method).Observe(took.Seconds())
}

// StoreCall is the [tokenstore.Options] Observe of a replica.
func (m *Metrics) StoreCall(operation string, took time.Duration, err error) {
	outcome := "ok"
	if errors.Is(err, tokenstore.ErrUnavailable) {
		outcome = "unavailable"
	}
	m.store.WithLabelValues(operation, outcome).Observe(took.Seconds())
}

// event counts a security event, and where it is the outcome of a login, a
// refresh or a logout, that too.
func (m *Metrics) event(e Event, reason string) {
	m.events.WithLabelValues(string(e)).Inc()
	switch e {
	case EventLogin:
		m.logins.WithLabelValues("ok").Inc()
	case EventLoginFailed:
		m.logins.WithLabelValues("failed").Inc()
	case EventLoginThrottled:
		m.logins.WithLabelValues("throttled").Inc()
	case EventRefresh:
		m.refreshes.WithLabelValues("rotated").Inc()
	case EventRefreshSame:
		m.refreshes.WithLabelValues("same").Inc()
	case EventRefreshReuse:
		m.refreshes.WithLabelValues("reuse").Inc()
	case EventRefreshRollback:
		m.refreshes.WithLabelValues("rollback").Inc()
	case EventRefreshRefused:
		m.refreshes.WithLabelValues(reason).Inc()
	case EventLogout:
		m.logouts.WithLabelValues("session").Inc()
	case EventLogoutAll:
		m.logouts.WithLabelValues("all").Inc()
	case EventSessionEnded:
		m.logouts.WithLabelValues("other").Inc()
	}
}
