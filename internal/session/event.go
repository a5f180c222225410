package session

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"log/slog"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
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

// eventSchema is the version of the events' form: docs/audit-events.schema.json. A new
// optional member leaves it as it is; any other change counts it up.
const eventSchema = 2

// Record logs and counts one security event, and sends it to the audit stream if there is
// one, whether or not ctx has ended. Attributes may name a subject, a session and a reason;
// never a token or a password.
func (s *Service) Record(ctx context.Context, from Origin, e Event, attrs ...slog.Attr) {
	ctx = context.WithoutCancel(ctx)
	reason := ""
	for _, at := range attrs {
		if at.Key == "reason" {
			reason = at.Value.String()
		}
	}
	s.Observe.Event(e, reason)
	level := slog.LevelInfo
	if e == EventRefreshReuse || e == EventRefreshRollback {
		level = slog.LevelWarn
	}
	logged := s.Log.Enabled(ctx, level)
	if !logged && s.Audit == nil {
		return
	}
	r := slog.NewRecord(time.Now(), level, "security", 0)
	r.AddAttrs(
		slog.Int("schema", eventSchema),
		slog.String("id", newEventID()),
		slog.String("event", string(e)),
		slog.String("request_id", from.RequestID),
		slog.String("address", from.Address),
	)
	r.AddAttrs(attrs...)
	if s.Audit != nil {
		_ = s.Audit.Handle(ctx, r.Clone()) // it does not block, and counts what it drops
	}
	if logged {
		_ = s.Log.Handler().Handle(ctx, r) // nobody could be told that the log cannot be written
	}
}

// newEventID returns 80 random bits.
func newEventID() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // it does not fail: the program would end
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// end calls commit, which revokes sessions in Redis, waits until no replica accepts them,
// and records event e with confirmed=true. If commit or the confirmation fails with
// ErrUnavailable, the event is recorded all the same, with confirmed=false. If commit fails
// with another error, nothing has happened, and no event is recorded.
//
// commit runs to its end even if the client goes away; otherwise nobody would know whether
// it took effect. The wait for the confirmation ends with the request.
//
// Errors: those of commit; [tokenstore.ErrUnavailable], after which the request may be sent
// again.
func (s *Service) end(ctx context.Context, from Origin, e Event, commit func(context.Context) (tokenstore.Revocation, error), attrs ...slog.Attr) error {
	happened, confirmed := true, false
	defer func() { // also if there is a panic
		if happened {
			s.Record(ctx, from, e, append(attrs, slog.Bool("confirmed", confirmed))...)
		}
	}()
	revoked, err := commit(context.WithoutCancel(ctx))
	if err != nil {
		happened = errors.Is(err, tokenstore.ErrUnavailable) // it may have
		return err
	}
	err = s.confirm(ctx, revoked)
	confirmed = err == nil
	return err
}

// confirm returns once no replica accepts what was revoked. Error:
// [tokenstore.ErrUnavailable]; the request may be sent again.
func (s *Service) confirm(ctx context.Context, r tokenstore.Revocation) error {
	start := time.Now()
	err := s.Confirmer.Confirm(ctx, r)
	s.Observe.Confirmed(time.Since(start), err)
	return err
}

// endOne ends a session that a token of ours names, and returns nil once no replica
// accepts it.
func (s *Service) endOne(ctx context.Context, from Origin, e Event, end tokenstore.SessionEnd) error {
	err := s.end(ctx, from, e, func(ctx context.Context) (tokenstore.Revocation, error) {
		return s.Store.Sessions.Revoke(ctx, end)
	}, slog.String("sid", end.SID.String()))
	if errors.Is(err, tokenstore.ErrNoSession) {
		return nil // its ids are of shards that are no more: nothing accepts it
	}
	return err
}
