package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/latchkey-auth/latchkey/internal/terminal"
)

// progress draws how far a phase is, on a terminal alone. The caller calls what
// it returns at the end.
func (b *runner) progress(name string, part func() (share, perSecond float64)) (end func()) {
	f, ok := b.Progress.(*os.File)
	if !ok || b.JSON || !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" {
		return func() {}
	}
	width := 40
	if columns, _, err := term.GetSize(int(f.Fd())); err == nil {
		width = max(1, min(width, columns-27)) // a line that wraps cannot be drawn over
	}
	quit, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			share, perSecond := part()
			share = min(1, share)
			fmt.Fprintf(f, "\r  %-8s %s %3.0f %% %5s/s ", name, bar(share, width, "·"), 100*share, terminal.Number(perSecond))
			select {
			case <-quit:
				fmt.Fprint(f, "\r\x1b[K") // the table says it all
				return
			case <-tick.C:
			}
		}
	}()
	return func() { close(quit); <-gone }
}

// bar is a share of a width, in eighths of a character, and the rest in fill.
func bar(share float64, width int, fill string) string {
	eighths := int(math.Round(min(1, max(0, share)) * float64(width) * 8))
	s := strings.Repeat("█", eighths/8)
	n := eighths / 8
	if rest := eighths % 8; rest > 0 {
		s += string([]rune(" ▏▎▍▌▋▊▉")[rest])
		n++
	}
	return s + strings.Repeat(fill, width-n)
}

// print shows the table, the histogram and the verdict, in 80 columns.
func (b *runner) print(p *terminal.Printer) {
	p.Line(p.Dim(fmt.Sprintf("%-9s %9s %7s %9s %7s %7s %7s %7s %8s", "", "requests", "failed", "per sec", "p50", "p90", "p99", "p99.9", "max")))
	for _, ph := range b.phases {
		h := ph.times
		failed := fmt.Sprintf("%7d", ph.failures())
		if ph.failures() > 0 {
			failed = p.Red(failed)
		}
		at := func(q float64) string {
			return terminal.Duration(time.Duration(h.ValueAtQuantile(q)) * time.Microsecond)
		}
		p.Line(fmt.Sprintf("%s %9d %s %9s %7s %7s %7s %7s %8s", p.Bold(fmt.Sprintf("%-9s", ph.name)), h.TotalCount(), failed,
			terminal.Number(float64(h.TotalCount())/ph.took.Seconds()), at(50), at(90), at(99), at(99.9), terminal.Duration(time.Duration(h.Max())*time.Microsecond)))
	}
	p.Line("")
	b.histogram(p)
	for _, ph := range b.phases {
		for _, reason := range slices.Sorted(maps.Keys(ph.failed)) {
			p.Line(p.Red("✗ ") + fmt.Sprintf("%s: %d failed: %s", ph.name, ph.failed[reason], reason))
			if ph != b.phases[0] {
				continue
			}
			if lines := b.refused[reason]; len(lines) > 0 {
				p.Line("  of --users: " + lineNumbers(lines))
			}
			if strings.HasPrefix(reason, "429 ") {
				p.Line("  Too many logins failed before; correct the passwords, and wait some minutes.")
			}
		}
	}
	if n := b.again.Load(); n > 0 {
		p.Line(fmt.Sprintf("  sent again after a 503: %s", terminal.Plural(int(n), "request")))
	}
	verdict := fmt.Sprintf("%s logged out, and each token shown again at %s: %d accepted", terminal.Plural(len(b.sessions), "session"), terminal.Plural(len(b.URLs), "URL"), b.accepted)
	if b.unclear > 0 {
		verdict += fmt.Sprintf(", %d not answered", b.unclear)
	}
	mark := p.Green("✓ ")
	if b.accepted+b.unclear > 0 || len(b.sessions) == 0 {
		mark = p.Red("✗ ")
	}
	p.Line(mark + verdict)
}

// lineNumbers names lines, a few at most.
func lineNumbers(lines []int) string {
	const most = 8
	names := make([]string, 0, most)
	for _, l := range lines[:min(most, len(lines))] {
		names = append(names, strconv.Itoa(l))
	}
	text := "line " + names[0]
	if len(lines) > 1 {
		text = "lines " + strings.Join(names, ", ")
	}
	if more := len(lines) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// histogram shows how the times of each phase are spread, side by side, over
// bounds that double.
func (b *runner) histogram(p *terminal.Printer) {
	const columns, width = 4, 10
	lowest, highest := int64(math.MaxInt64), int64(0)
	for _, ph := range b.phases {
		if ph.times.TotalCount() > 0 {
			lowest, highest = min(lowest, ph.times.Min()), max(highest, ph.times.Max())
		}
	}
	if highest == 0 {
		return
	}
	title := fmt.Sprintf("%-9s", "up to")
	for _, ph := range b.phases[:min(columns, len(b.phases))] {
		title += fmt.Sprintf(" %-16s", ph.name)
	}
	p.Line(p.Dim(strings.TrimRight(title, " ")))
	bound := int64(1)
	for bound < lowest {
		bound *= 2
	}
	for from := int64(0); from < highest; from, bound = bound, bound*2 {
		row := fmt.Sprintf("%8s ", terminal.Duration(time.Duration(bound)*time.Microsecond))
		for _, ph := range b.phases[:min(columns, len(b.phases))] {
			var n int64
			for _, v := range ph.times.Distribution() {
				if v.From > from && v.From <= bound {
					n += v.Count
				}
			}
			share := float64(n) / max(1, float64(ph.times.TotalCount()))
			percent := "     "
			if n > 0 {
				percent = fmt.Sprintf("%4.0f%%", 100*share)
				if share < 0.005 {
					percent = "  <1%"
				}
			}
			row += " " + p.Cyan(bar(share, width, " ")) + percent + " "
		}
		p.Line(strings.TrimRight(row, " "))
	}
	p.Line("")
}

// Report is the result as JSON. Times are milliseconds.
type Report struct {
	URLs       []string         `json:"urls"`
	Users      int              `json:"users"`
	Sessions   int              `json:"sessions"`
	Parallel   int              `json:"parallel"`
	Operations []Operation      `json:"operations"`
	Refused    map[string][]int `json:"refused_lines,omitempty"` // of --users, by reason
	SentAgain  int64            `json:"sent_again"`              // after a 503 with Retry-After
	Logout     map[string]int   `json:"after_logout"`            // shown, accepted, unanswered
}

// Operation is one kind of request in a Report.
type Operation struct {
	Name     string             `json:"name"`
	Requests int64              `json:"requests"` // answered as they should be
	Failed   map[string]int64   `json:"failed"`   // by reason
	Seconds  float64            `json:"seconds"`
	Rate     float64            `json:"per_second"`
	Latency  map[string]float64 `json:"latency_ms"`
}

func (b *runner) printJSON(w io.Writer) error {
	r := Report{
		URLs: b.URLs, Users: len(b.Users), Sessions: len(b.sessions), Parallel: b.Parallel, Refused: b.refused, SentAgain: b.again.Load(),
		Logout: map[string]int{"shown": b.shown, "accepted": b.accepted, "unanswered": b.unclear},
	}
	for _, ph := range b.phases {
		h := ph.times
		ms := func(us int64) float64 { return float64(us) / 1000 }
		r.Operations = append(r.Operations, Operation{
			Name: ph.name, Requests: h.TotalCount(), Failed: ph.failed,
			Seconds: ph.took.Seconds(), Rate: float64(h.TotalCount()) / ph.took.Seconds(),
			Latency: map[string]float64{
				"min": ms(h.Min()), "mean": h.Mean() / 1000, "p50": ms(h.ValueAtQuantile(50)), "p90": ms(h.ValueAtQuantile(90)),
				"p99": ms(h.ValueAtQuantile(99)), "p99.9": ms(h.ValueAtQuantile(99.9)), "max": ms(h.Max()),
			},
		})
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
