package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

// tracesFlush is how long the spans of the last requests may take to be sent
// when a replica ends.
const tracesFlush = 3 * time.Second

// newTraces returns what makes and sends spans, or nil if the settings want
// none. It does not connect yet, and a collector that is away costs spans only.
func newTraces(ctx context.Context, cfg *config.Config, logger *slog.Logger) (*sdktrace.TracerProvider, error) {
	if cfg.Traces != "otlp" {
		return nil, nil
	}
	exporter, err := otlptracehttp.New(ctx) // configured by OTEL_EXPORTER_OTLP_*
	if err != nil {
		return nil, fmt.Errorf("LATCHKEY_TRACES: %w", err)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(semconv.ServiceName("latchkey"), semconv.ServiceVersion(buildVersion())),
		resource.WithHost(), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		logger.LogAttrs(context.Background(), slog.LevelWarn, "traces", slog.String("cause", err.Error()))
	}))
	return sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter), sdktrace.WithResource(about),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(cfg.TracesRatio)))), nil
}

// traceStore returns the [tokenstore.Options] Trace of a replica. An operation
// has a span if the request it serves has one: what a follower asks for all day
// is no part of any request. A span names the script, never its keys or
// arguments, and of an error only that there was one: Redis quotes what it was sent.
func traceStore(tracer trace.Tracer) func(context.Context, string) (context.Context, func(error)) {
	return func(ctx context.Context, operation string) (context.Context, func(error)) {
		if !trace.SpanFromContext(ctx).IsRecording() {
			return ctx, func(error) {}
		}
		ctx, span := tracer.Start(ctx, "redis "+operation, trace.WithSpanKind(trace.SpanKindClient),
			trace.WithAttributes(semconv.DBSystemNameRedis, semconv.DBStoredProcedureName(operation)))
		return ctx, func(err error) {
			if err != nil && !errors.Is(err, context.Canceled) { // else nobody waited any more
				span.SetAttributes(semconv.ErrorTypeKey.String("unavailable"))
				span.SetStatus(codes.Error, "")
			}
			span.End()
		}
	}
}

// tracedLog adds to each line the trace and the span in which it was written.
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
