package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// preflightEvery is the shortest time between two preflights for which new connections are the reason.
const preflightEvery = 10 * time.Second

// ErrPreflight says that a logout would not last on this Redis.
var ErrPreflight = errors.New("this Redis must not hold tokens as it is")

// preflight checks that Redis is fit to hold tokens, when the replica starts and whenever the Redis behind its
// connections may have changed.
type preflight struct {
	store *tokenstore.Store
	log   *slog.Logger
	off   bool // for the embedded Redis of `latchkey dev`

	connected atomic.Bool // a connection was made since the last preflight
	passed    bool        // a preflight has passed
	at        time.Time   // of the last preflight
	logged    string      // the findings that were logged last
}

// newPreflight returns a preflight whose store the caller sets before the first look.
func newPreflight(cfg *config.Config, log *slog.Logger) *preflight {
	return &preflight{log: log, off: cfg.Secret == config.DevSecret}
}

// due reports whether to look: after an outage, and after new connections, which a failover makes, but at most once in
// preflightEvery for those.
func (p *preflight) due(recovered bool) bool {
	return recovered || p.connected.Load() && time.Since(p.at) >= preflightEvery
}

// look checks Redis and logs every finding that is not fine, unless the same findings were logged last. It returns
// [tokenstore.ErrUnavailable] if Redis does not answer, and ErrPreflight if Redis is unfit and no preflight has passed.
// Once one has passed, findings are only logged: ending the replica would log everybody out.
func (p *preflight) look(ctx context.Context) error {
	if p.off {
		return nil
	}
	p.connected.Store(false)
	p.at = time.Now()
	findings, err := Preflight(ctx, p.store)
	if err != nil {
		p.connected.Store(true) // unfinished
	}
	var refused []string
	found := fmt.Sprint(findings)
	for _, f := range findings {
		if f.Severity == tokenstore.Forbidden {
			refused = append(refused, f.Check+": "+f.Text)
		}
		if f.Severity == tokenstore.Fine || found == p.logged {
			continue
		}
		p.log.LogAttrs(ctx, severityLevel(f.Severity), "redis check",
			slog.String("check", f.Check), slog.String("server", f.Server), slog.String("result", f.Severity.String()),
			slog.String("detail", f.Text), slog.String("see", Section(f)))
	}
	p.logged = found
	if refused != nil && !p.passed {
		return fmt.Errorf("%w:\n  %s\nsee docs/redis.md, or run: latchkey doctor", ErrPreflight, strings.Join(refused, "\n  "))
	}
	p.passed = p.passed || err == nil
	return err
}

// severityLevel is the log level of a finding.
func severityLevel(s tokenstore.Severity) slog.Level {
	switch s {
	case tokenstore.Forbidden:
		return slog.LevelError
	case tokenstore.Worrying:
		return slog.LevelWarn
	default:
		return slog.LevelInfo
	}
}

// Section is the part of the documentation that explains a finding.
func Section(f tokenstore.Finding) string { return "docs/redis.md#" + f.Check }
