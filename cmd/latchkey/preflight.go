package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// preflightEvery bounds how often connections that come and go make a replica
// look at Redis again.
const preflightEvery = 10 * time.Second

// errPreflight says that a logout would not hold on this Redis.
var errPreflight = errors.New("this Redis must not hold tokens as it is")

// preflight has Redis looked at when the replica starts and whenever the Redis
// behind its connections may have become another.
type preflight struct {
	store         *tokenstore.Store
	log           *slog.Logger
	allowEviction bool
	off           bool // the embedded Redis of `latchkey dev` has nothing to look at

	connected atomic.Bool // a connection was made since the last look
	passed    bool        // once
	at        time.Time   // of the last look
	told      string      // what the last one found
}

// due tells whether to look: after an outage, and after new connections, which a
// failover makes, but no more than every ten seconds for those.
func (p *preflight) due(recovered bool) bool {
	return recovered || p.connected.Load() && time.Since(p.at) >= preflightEvery
}

// look checks Redis and logs what is not fine, unless it is what was told last.
// Errors: errPreflight, on a Redis that has never passed; afterwards it is
// logged, since ending the replica would log everybody out instead of somebody
// in. [tokenstore.ErrUnavailable].
func (p *preflight) look(ctx context.Context) error {
	if p.off {
		return nil
	}
	p.connected.Store(false)
	p.at = time.Now()
	findings, err := p.store.Preflight(ctx, p.allowEviction)
	if err != nil {
		p.connected.Store(true) // unfinished
	}
	var refused []string
	told := fmt.Sprint(findings)
	for _, f := range findings {
		if f.Severity == tokenstore.Forbidden {
			refused = append(refused, f.Check+": "+f.Text)
		}
		if f.Severity == tokenstore.Fine || told == p.told {
			continue
		}
		p.log.LogAttrs(ctx, severityLevel(f.Severity), "redis check",
			slog.String("check", f.Check), slog.String("server", f.Server), slog.String("result", f.Severity.String()),
			slog.String("detail", f.Text), slog.String("see", section(f)))
	}
	p.told = told
	if refused != nil && !p.passed {
		return fmt.Errorf("%w:\n  %s\nsee docs/redis.md, or run: latchkey doctor", errPreflight, strings.Join(refused, "\n  "))
	}
	p.passed = p.passed || err == nil
	return err
}

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

// section is where a finding is explained.
func section(f tokenstore.Finding) string { return "docs/redis.md#" + f.Check }
