package handlers

import (
	"net/http"

	"github.com/gin-gonic/gin"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"
	"go.opentelemetry.io/otel/trace"
)

// trace gives every request a span, below the caller's if it sent one (W3C Trace
// Context). Its name and attributes are closed sets, as the labels of the
// metrics are: never a path, a query, an address or a header.
func (a *api) trace(c *gin.Context) {
	verb := method(c.Request.Method)
	name, route := verb, c.FullPath()
	attributes := []trace.SpanStartOption{
		trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(semconv.HTTPRequestMethodKey.String(verb)),
	}
	if route != "" {
		name += " " + route
		attributes = append(attributes, trace.WithAttributes(semconv.HTTPRoute(route)))
	}
	ctx := propagation.TraceContext{}.Extract(c.Request.Context(), propagation.HeaderCarrier(c.Request.Header))
	ctx, span := a.Tracer.Start(ctx, name, attributes...)
	defer span.End()
	c.Request = c.Request.WithContext(ctx)
	c.Next()
	status := c.Writer.Status()
	span.SetAttributes(semconv.HTTPResponseStatusCode(status))
	if status >= http.StatusInternalServerError { // what a client did wrong is no error of the server's
		span.SetStatus(codes.Error, "")
	}
}
