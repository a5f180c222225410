package handlers

import (
	"context"
	"log/slog"
	"time"

	"github.com/gin-gonic/gin"
)

// Event is a security event: a log line with this as its "event", and a count.
type Event string

// The security events, all of them.
const (
	EventLogin           Event = "login"        // with confirmed=false if Redis did not answer: the session may be there
	EventLoginFailed     Event = "login_failed" // reason: unknown_user, password, disabled
	EventLoginThrottled  Event = "login_throttled"
	EventRefresh         Event = "refresh"
	EventRefreshSame     Event = "refresh_same"     // the session rotated within the grace already: no new token
	EventRefreshReuse    Event = "refresh_reuse"    // theft: the session was ended
	EventRefreshRollback Event = "refresh_rollback" // Redis lost writes: the session was ended
	// EventRefreshAmbiguous: cookies of several living sessions, or of too many, came along.
	EventRefreshAmbiguous Event = "refresh_ambiguous"
	EventRefreshRefused   Event = "refresh_refused" // reason: invalid, expired, revoked, superseded, foreign, key
	EventLogout           Event = "logout"
	EventLogoutRefused    Event = "logout_refused" // reason: unchecked, key
	EventLogoutAll        Event = "logout_all"
	EventSessionEnded     Event = "session_ended" // by its user, from another session; reason limit: by a login, there were too many
	EventPasswordChanged  Event = "password_changed"
	EventPasswordRefused  Event = "password_refused"
	EventCrossSite        Event = "cross_site_refused"
	EventClientToken      Event = "client_token"   // a client got a token for itself
	EventClientRefused    Event = "client_refused" // reason: unknown, secret, no_secret
	EventTokenRevoked     Event = "token_revoked"  // by its client
	EventProofRefused     Event = "proof_refused"  // of DPoP; reason: invalid, replayed
)

// auditSchema is the version of the events' form: docs/audit-events.schema.json.
// A new optional member leaves it as it is; any other change counts it up.
const auditSchema = 2

// origin is which request a security event comes from.
type origin struct {
	requestID string
	address   string // of the client
}

// note records a security event of a request to the API.
func (a *api) note(c *gin.Context, e Event, attrs ...slog.Attr) {
	a.record(c.Request.Context(), origin{requestID(c), c.ClientIP()}, e, attrs...)
}

// record logs and counts one security event, and sends it to the audit stream if
// there is one. It does not matter whether ctx has ended. Attributes may name a subject,
// a session and a reason; never a token or a password.
func (a *api) record(ctx context.Context, from origin, e Event, attrs ...slog.Attr) {
	ctx = context.WithoutCancel(ctx)
	reason := ""
	for _, at := range attrs {
		if at.Key == "reason" {
			reason = at.Value.String()
		}
	}
	a.Metrics.event(e, reason)
	level := slog.LevelInfo
	if e == EventRefreshReuse || e == EventRefreshRollback {
		level = slog.LevelWarn
	}
	logged := a.Log.Enabled(ctx, level)
	if !logged && a.Audit == nil {
		return
	}
	r := slog.NewRecord(time.Now(), level, "security", 0)
	r.AddAttrs(
		slog.Int("schema", auditSchema),
		slog.String("id", newRequestID()), // an id of the same kind
		slog.String("event", string(e)),
		slog.String("request_id", from.requestID),
		slog.String("address", from.address),
	)
	r.AddAttrs(attrs...)
	if a.Audit != nil {
		_ = a.Audit.Handle(ctx, r.Clone()) // it does not block; what it drops, it counts
	}
	if logged {
		_ = a.Log.Handler().Handle(ctx, r) // nobody reads that the log cannot be written
	}
}
