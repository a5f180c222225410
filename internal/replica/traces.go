package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/latchkey-auth/latchkey/config"
)

// defaultTracesRatio is the share of requests that are traced when neither the caller nor OTEL_TRACES_SAMPLER decides.
const defaultTracesRatio = 0.1

// TracesFlush is how long sending the last spans may take when a replica ends.
const TracesFlush = 3 * time.Second

// newTraces returns nil if the settings want no traces. It does not connect yet; without a collector only the spans
// are lost.
func newTraces(ctx context.Context, cfg *config.Config, version string, logger *slog.Logger) (*sdktrace.TracerProvider, error) {
	if cfg.Traces != "otlp" {
		return nil, nil
	}
	exporter, err := otlptracehttp.New(ctx) // configured by OTEL_EXPORTER_OTLP_*
	if err != nil {
		return nil, fmt.Errorf("LATCHKEY_TRACES: %w", err)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(semconv.ServiceName("latchkey"), semconv.ServiceVersion(version)),
		resource.WithHost(), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		logger.LogAttrs(context.Background(), slog.LevelWarn, "traces", slog.String("cause", err.Error()))
	}))
	o := []sdktrace.TracerProviderOption{sdktrace.WithBatcher(exporter), sdktrace.WithResource(about)}
	if os.Getenv("OTEL_TRACES_SAMPLER") == "" { // else the SDK does as it says
		o = append(o, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(defaultTracesRatio))))
	}
	return sdktrace.NewTracerProvider(o...), nil
}

// tracerOf returns nil if there are no traces.
func tracerOf(p *sdktrace.TracerProvider) trace.Tracer {
	if p == nil {
		return nil
	}
	return p.Tracer("github.com/latchkey-auth/latchkey")
}

// traceStore returns a function for [tokenstore.Options] Trace. An operation gets a span if the request it serves has
// one; a follower's own operations get none. A span names the script, never its keys or arguments. Of an error it says
// only that there was one, because Redis quotes its input in error texts.
func traceStore(tracer trace.Tracer) func(context.Context, string) (context.Context, func(error)) {
	return func(ctx context.Context, operation string) (context.Context, func(error)) {
		if !trace.SpanFromContext(ctx).IsRecording() {
			return ctx, func(error) {}
		}
		ctx, span := tracer.Start(ctx, "redis "+operation, trace.WithSpanKind(trace.SpanKindClient),
			trace.WithAttributes(semconv.DBSystemNameRedis, semconv.DBStoredProcedureName(operation)))
		return ctx, func(err error) {
			if err != nil && !errors.Is(err, context.Canceled) { // the caller went away: not a failure of Redis
				span.SetAttributes(semconv.ErrorTypeKey.String("unavailable"))
				span.SetStatus(codes.Error, "")
			}
			span.End()
		}
	}
}

// tracedLog adds the ids of the current trace and span to each line.
type tracedLog struct{ slog.Handler }

// Handle implements [slog.Handler].
func (h tracedLog) Handle(ctx context.Context, r slog.Record) error {
	if s := trace.SpanContextFromContext(ctx); s.IsValid() {
		r.AddAttrs(slog.String("trace_id", s.TraceID().String()), slog.String("span_id", s.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (h tracedLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return tracedLog{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements [slog.Handler].
func (h tracedLog) WithGroup(name string) slog.Handler { return tracedLog{h.Handler.WithGroup(name)} }
