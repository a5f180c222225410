package handlers

import (
	"bytes"
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

const (
	auditQueue = 4096 // events that wait for Redis: about 2 MB
	auditBatch = 256  // events in one round trip
	auditPause = time.Second
	auditFlush = 2 * time.Second // for what waits when the replica ends
)

// AuditStream copies the security events to a stream in Redis. No request waits
// for it: events queue in memory, and those that come while the queue is full
// are dropped and counted. The log has them all.
type AuditStream struct {
	stream  *tokenstore.AuditStream
	keep    int64
	log     *slog.Logger
	queue   chan []byte
	failing atomic.Bool
	written prometheus.Counter
	dropped prometheus.Counter
}

// NewAuditStream returns a stream that keeps about the last keep events. Run
// sends; Handler takes the events.
func NewAuditStream(stream *tokenstore.AuditStream, keep int, m *Metrics, log *slog.Logger) *AuditStream {
	s := &AuditStream{
		stream: stream, keep: int64(keep), log: log, queue: make(chan []byte, auditQueue),
		written: prometheus.NewCounter(prometheus.CounterOpts{Name: "latchkey_audit_written_total", Help: "Security events written to the audit stream."}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "latchkey_audit_dropped_total", Help: "Security events that the audit stream lacks; the log has them."}),
	}
	m.Registry.MustRegister(s.written, s.dropped, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "latchkey_audit_queue_depth", Help: "Security events waiting to be written to the audit stream.",
	}, func() float64 { return float64(len(s.queue)) }))
	return s
}

// Handler is the [Dependencies] Audit: it makes each event a JSON object, as the
// log does.
func (s *AuditStream) Handler() slog.Handler { return slog.NewJSONHandler(queueWriter{s}, nil) }

// queueWriter is given one event at a time.
type queueWriter struct{ s *AuditStream }

func (w queueWriter) Write(p []byte) (int, error) {
	select {
	case w.s.queue <- bytes.Clone(bytes.TrimSuffix(p, []byte("\n"))):
	default:
		w.s.dropped.Inc()
	}
	return len(p), nil
}

// Run writes events until ctx ends, and then for up to two seconds those that wait.
func (s *AuditStream) Run(ctx context.Context) {
	for {
		select {
		case e := <-s.queue:
			s.send(ctx, s.batch(e))
		case <-ctx.Done():
			s.flush(ctx)
			return
		}
	}
}

// batch adds to an event those that wait.
func (s *AuditStream) batch(first []byte) [][]byte {
	list := [][]byte{first}
	for len(list) < auditBatch {
		select {
		case e := <-s.queue:
			list = append(list, e)
		default:
			return list
		}
	}
	return list
}

// send writes a batch, again and again until it is written or ctx ends.
func (s *AuditStream) send(ctx context.Context, batch [][]byte) {
	for {
		err := s.stream.Append(context.WithoutCancel(ctx), batch, s.keep)
		if err == nil {
			s.failing.Store(false)
			s.written.Add(float64(len(batch)))
			return
		}
		if !s.failing.Swap(true) { // once for each outage
			s.log.LogAttrs(ctx, slog.LevelWarn, "the audit stream cannot be written; events wait, and are dropped when the queue is full",
				slog.String("cause", err.Error()))
		}
		timer := time.NewTimer(auditPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			s.dropped.Add(float64(len(batch)))
			return
		}
	}
}

// flush writes what waits, and counts what it cannot.
func (s *AuditStream) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditFlush)
	defer cancel()
	for len(s.queue) > 0 {
		s.send(ctx, s.batch(<-s.queue))
	}
}
