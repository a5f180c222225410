package config

import (
	"errors"
	"strings"
	"time"
)

// Outage says what a check of a token is answered when nobody can tell: zero
// denies it, and a ServeStale answers from memory for that long.
type Outage struct {
	ServeStale time.Duration `env:"-"` // 0, or 1 s to 1 h
}

const (
	outageDeny  = "deny"
	outageStale = "serve-stale:"
	maxStale    = time.Hour
)

var errOutage = errors.New("not an outage rule")

// ParseOutage reads deny or serve-stale:DURATION.
func ParseOutage(s string) (Outage, error) {
	if s == outageDeny {
		return Outage{}, nil
	}
	text, ok := strings.CutPrefix(s, outageStale)
	d, err := time.ParseDuration(text)
	if !ok || err != nil || d < time.Second || d > maxStale {
		return Outage{}, errOutage
	}
	return Outage{ServeStale: d}, nil
}

// String returns the form that [ParseOutage] reads.
func (o Outage) String() string {
	if o.ServeStale == 0 {
		return outageDeny
	}
	return outageStale + formatDuration(o.ServeStale)
}

// MarshalText returns String's form; encoding/json and others use it.
func (o Outage) MarshalText() ([]byte, error) { return []byte(o.String()), nil }
