package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Rate is a limit: Burst events at once, and as many again over each Period.
// Its text form is BURST/PERIOD, such as 10/5m.
type Rate struct {
	Burst  int           `env:"-"` // 1 to 1,000,000
	Period time.Duration `env:"-"` // 1 s to 24 h
}

// The bounds of a Rate.
const (
	maxBurst  = 1_000_000
	minPeriod = time.Second
	maxPeriod = 24 * time.Hour
)

var errRate = errors.New("not a rate")

// ParseRate reads BURST/PERIOD. Errors say only that it is none; the bounds are
// for [Config.Validate].
func ParseRate(s string) (Rate, error) {
	burst, period, ok := strings.Cut(s, "/")
	if !ok {
		return Rate{}, errRate
	}
	n, err := strconv.Atoi(burst)
	if err != nil {
		return Rate{}, errRate
	}
	d, err := time.ParseDuration(period)
	if err != nil {
		return Rate{}, errRate
	}
	return Rate{Burst: n, Period: d}, nil
}

// String returns the form that [ParseRate] reads.
func (r Rate) String() string { return fmt.Sprintf("%d/%s", r.Burst, formatDuration(r.Period)) }

// MarshalText returns String's form; encoding/json and others use it.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r Rate) inBounds() bool {
	return r.Burst >= 1 && r.Burst <= maxBurst && r.Period >= minPeriod && r.Period <= maxPeriod
}

// formatDuration writes 15m where time.Duration writes 15m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
