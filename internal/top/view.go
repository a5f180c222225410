package top

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/latchkey-auth/latchkey/internal/terminal"
)

// view lays out what the replicas said, in 80 columns.
type view struct{ colour bool }

const (
	screenWidth = 80
	maxRoutes   = 6 // at most
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// fleetView is all replicas over the last interval.
type fleetView []interval

func (f fleetView) rate(name string, pick where) float64 {
	var v float64
	for _, i := range f {
		v += i.rate(name, pick)
	}
	return v
}

func (f fleetView) quantile(q float64, name string, pick where) float64 {
	counts := map[float64]float64{}
	for _, i := range f {
		i.buckets(name, pick, counts)
	}
	return quantile(q, counts)
}

const (
	mRequests = "latchkey_http_requests_total"
	mDuration = "latchkey_http_request_duration_seconds"
	mConfirm  = "latchkey_confirmation_duration_seconds"
	mLag      = "latchkey_revocation_lag_seconds"
	mStore    = "latchkey_store_operation_duration_seconds"
)

func serverError(label func(string) string) bool { return strings.HasPrefix(label("code"), "5") }

// frame is what is shown at one moment, line by line.
func (v view) frame(before map[string]sample, now []sample) []string {
	p := &terminal.Printer{Colour: v.colour}
	var f fleetView
	versions := map[string]bool{}
	ready := 0
	for _, n := range now {
		if n.err == nil {
			f = append(f, interval{before[n.addr], n})
			for _, version := range n.values("latchkey_build_info", "version") {
				versions[version] = true
			}
			ready += int(n.sum("latchkey_ready", all))
		}
	}
	head := fmt.Sprintf("%s, %d ready", terminal.Plural(len(now), "replica"), ready)
	if ready < len(now) {
		head = p.Red(head)
	}
	lines := []string{
		p.Bold("latchkey top") + "  " + head + "  " + p.Dim(strings.Join(sortedKeys(versions), " ")+"  "+time.Now().Format("15:04:05")+"  figures are per second"),
		"",
	}
	lines = append(lines, v.summary(p, f)...)
	lines = append(lines, "")
	lines = append(lines, v.replicas(p, before, now)...)
	lines = append(lines, "")
	return append(lines, v.routes(p, f)...)
}

// figure is a name and what it is worth, both lit up when it is bad.
func figure(p *terminal.Printer, name, value string, bad bool) string {
	if bad {
		return p.Red(name + " " + value)
	}
	return p.Dim(name) + " " + value
}

// summary is the fleet as a whole: one line for each thing that can go wrong.
func (v view) summary(p *terminal.Printer, f fleetView) []string {
	line := func(title string, figures ...string) string {
		return p.Bold(fmt.Sprintf("%-9s", title)) + " " + strings.Join(figures, "  ")
	}
	count := func(name, outcome string) float64 { return f.rate(name, is("outcome", outcome)) }
	requests, errors := f.rate(mRequests, all), f.rate(mRequests, serverError)
	verify := f.quantile(.99, mDuration, func(l func(string) string) bool { return strings.HasPrefix(l("route"), "/auth/verify") })
	logout := f.quantile(.99, mConfirm, is("outcome", "ok"))
	refused := 0.0
	for _, o := range []string{"ambiguous", "invalid", "expired", "revoked", "superseded", "foreign", "key"} {
		refused += count("latchkey_refreshes_total", o)
	}
	lost, calls := f.rate(mStore, is("outcome", "unavailable")), f.rate(mStore, all)
	var members, behind, gaps, restored float64
	for _, i := range f {
		members = max(members, i.now.sum("latchkey_edge_members", all))
		behind = max(behind, i.now.sum("latchkey_edge_seq_lag", all))
		gaps += i.now.sum("latchkey_edge_gaps_total", all)
		restored += i.now.sum("latchkey_edge_restored_total", all)
	}
	reuse := count("latchkey_refreshes_total", "reuse")
	rollback := count("latchkey_refreshes_total", "rollback")
	unconfirmed := f.rate(mConfirm, is("outcome", "unavailable"))
	return []string{
		line("requests", figure(p, "all", terminal.Number(requests), false), figure(p, "5xx", share(errors, requests), errors > 0.001*requests && errors > 0),
			figure(p, "verify p99", seconds(verify), verify > 0.05), figure(p, "cached", v.hits(f), false)),
		line("logouts", figure(p, "all", terminal.Number(f.rate("latchkey_logouts_total", all)), false), figure(p, "confirmed p99", seconds(logout), logout > 0.5),
			figure(p, "lag p99", seconds(f.quantile(.99, mLag, all)), f.quantile(.99, mLag, all) > 0.25), figure(p, "unconfirmed", terminal.Number(unconfirmed), unconfirmed > 0)),
		line("refreshes", figure(p, "rotated", terminal.Number(count("latchkey_refreshes_total", "rotated")), false),
			figure(p, "same", terminal.Number(count("latchkey_refreshes_total", "same")), false), figure(p, "reuse", terminal.Number(reuse), reuse > 0),
			figure(p, "rollback", terminal.Number(rollback), rollback > 0), figure(p, "refused", terminal.Number(refused), false)),
		line("logins", figure(p, "ok", terminal.Number(count("latchkey_logins_total", "ok")), false),
			figure(p, "failed", terminal.Number(count("latchkey_logins_total", "failed")), false),
			figure(p, "throttled", terminal.Number(count("latchkey_logins_total", "throttled")), false)),
		line("redis", figure(p, "calls", terminal.Number(calls), false), figure(p, "p99", seconds(f.quantile(.99, mStore, all)), f.quantile(.99, mStore, all) > 0.1),
			figure(p, "unavailable", share(lost, calls), lost > 0), figure(p, "pool timeouts", terminal.Number(f.rate("latchkey_redis_pool_timeouts_total", all)), f.rate("latchkey_redis_pool_timeouts_total", all) > 0)),
		line("log", figure(p, "followers", terminal.Number(members), false), figure(p, "not applied", terminal.Number(behind), behind > 1000),
			figure(p, "replaced", terminal.Number(gaps), gaps > 0), figure(p, "put back", terminal.Number(restored), restored > 0)),
	}
}

// hits is the share of checks that found a token verified before.
func (v view) hits(f fleetView) string {
	hits := f.rate("latchkey_edge_cache_hits_total", all)
	return share(hits, hits+f.rate("latchkey_edge_cache_misses_total", all))
}

// replicas is one line for each.
func (v view) replicas(p *terminal.Printer, before map[string]sample, now []sample) []string {
	lines := []string{p.Dim(fmt.Sprintf("%-21s %-7s %6s %6s %6s %6s %6s %7s %6s", "replica", "state", "req/s", "p99", "lease", "shards", "denied", "queue", "cpu"))}
	for _, n := range now {
		name := fmt.Sprintf("%-21s", elided(n.addr, 21))
		if n.err != nil {
			lines = append(lines, name+" "+p.Red(elided("down: "+n.err.Error(), screenWidth-22)))
			continue
		}
		i := interval{before[n.addr], n}
		one := fleetView{i}
		state := p.Green(fmt.Sprintf("%-7s", "ready"))
		if n.sum("latchkey_ready", all) == 0 {
			state = p.Red(fmt.Sprintf("%-7s", "unready"))
		}
		lease, leased := "strict", fmt.Sprintf("%6s", "–")
		if n.families["latchkey_edge_shards"] != nil {
			lease = seconds(n.sum("latchkey_edge_lease_age_seconds", all))
			has, of := n.sum("latchkey_edge_shards_leased", all), n.sum("latchkey_edge_shards", all)
			leased = fmt.Sprintf("%6s", fmt.Sprintf("%.0f/%.0f", has, of))
			if has < of {
				leased = p.Red(leased)
			}
		}
		queued, capacity := n.sum("latchkey_password_queue_depth", all), n.sum("latchkey_password_capacity", all)
		queue := fmt.Sprintf("%7s", fmt.Sprintf("%.0f/%.0f", queued, capacity))
		if queued > capacity/2 {
			queue = p.Red(queue)
		}
		lines = append(lines, fmt.Sprintf("%s %s %6s %6s %6s %s %6s %s %5.0f%%", name, state, terminal.Number(i.rate(mRequests, all)),
			seconds(one.quantile(.99, mDuration, all)), lease, leased, terminal.Number(n.sum("latchkey_edge_denied", all)), queue,
			100*i.rate("process_cpu_seconds_total", all)))
	}
	return lines
}

// routes are those that are asked for most.
func (v view) routes(p *terminal.Printer, f fleetView) []string {
	rates := map[string]float64{}
	for _, i := range f {
		for _, r := range i.now.values(mRequests, "route") {
			rates[r] = 0
		}
	}
	for r := range rates {
		rates[r] = f.rate(mRequests, is("route", r))
	}
	names := slices.SortedFunc(maps.Keys(rates), func(a, b string) int { return cmp.Or(cmp.Compare(rates[b], rates[a]), cmp.Compare(a, b)) })
	lines := []string{p.Dim(fmt.Sprintf("%-36s %8s %8s %8s %8s %7s", "route", "req/s", "p50", "p99", "4xx", "5xx"))}
	for _, r := range names[:min(len(names), maxRoutes)] {
		of := func(class string) float64 {
			return f.rate(mRequests, func(l func(string) string) bool { return l("route") == r && strings.HasPrefix(l("code"), class) })
		}
		bad := fmt.Sprintf("%7s", share(of("5"), rates[r]))
		if of("5") > 0 {
			bad = p.Red(bad)
		}
		lines = append(lines, fmt.Sprintf("%-36s %8s %8s %8s %8s %s", elided(r, 36), terminal.Number(rates[r]),
			seconds(f.quantile(.5, mDuration, is("route", r))), seconds(f.quantile(.99, mDuration, is("route", r))), share(of("4"), rates[r]), bad))
	}
	return lines
}

// seconds is a duration, or – for none.
func seconds(s float64) string {
	if math.IsNaN(s) {
		return "–"
	}
	return terminal.Duration(time.Duration(s * float64(time.Second)))
}

// share is a part of a whole as a percentage, or – of nothing.
func share(part, whole float64) string {
	switch {
	case whole == 0:
		return "–"
	case part == 0:
		return "0%"
	case part < whole/1000:
		return "<0.1%"
	case part < whole/10:
		return fmt.Sprintf("%.1f%%", 100*part/whole)
	}
	return fmt.Sprintf("%.0f%%", 100*part/whole)
}

// fitted is a frame for a terminal of a size: lines cut at its width, as many as
// there is room for, each clearing what stood there.
func fitted(lines []string, width, height int) string {
	var b strings.Builder
	for i, l := range lines[:min(len(lines), max(1, height-1))] {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(cut(l, width) + "\x1b[K")
	}
	return b.String()
}

// cut ends a line after width characters; colours take no room.
func cut(line string, width int) string {
	var b strings.Builder
	for n := 0; line != ""; {
		if strings.HasPrefix(line, "\x1b[") {
			end := strings.IndexByte(line, 'm') + 1
			b.WriteString(line[:end])
			line = line[end:]
			continue
		}
		_, size := utf8.DecodeRuneInString(line)
		if n < width {
			b.WriteString(line[:size])
		}
		n++
		line = line[size:]
	}
	return b.String()
}

// elided is a text of at most width characters, the last of which tells that
// there was more.
func elided(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}
