package main_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// median is the middle of a list, of an even number the greater of the two.
func median(list []float64) float64 {
	return slices.Sorted(slices.Values(list))[len(list)/2]
}

// perRound is a figure of every round.
func perRound(list []measured, figure func(measured) float64) []float64 {
	all := make([]float64, len(list))
	for i, m := range list {
		all[i] = figure(m)
	}
	return all
}

// per100k is the CPU seconds for 100,000 requests. It is counted in hundredths, so over all rounds.
func per100k(list []measured, cpu func(measured) float64) float64 {
	var used, requests float64
	for _, m := range list {
		used, requests = used+cpu(m), requests+m.requests
	}
	return used / requests * 1e5
}

func ofServer(m measured) float64 { return m.server }
func ofRedis(m measured) float64  { return m.redis }
func ofOthers(m measured) float64 { return m.others }
func p50(m measured) float64      { return m.p50 }
func p99(m measured) float64      { return m.p99 }

// ratio is the median of the rounds' ratios, and their range.
func ratio(list, floor []measured) string {
	all := make([]float64, len(list))
	for i, m := range list {
		all[i] = m.rate() / floor[i].rate()
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", median(all), slices.Min(all), slices.Max(all))
}

func heading(l load) string {
	return fmt.Sprintf("### %d connections (%s)\n\n", l.connections, "`"+l.String()+"`") +
		"| | server | requests/s | of A (range) | of its floor (range) | p50 / p99 ms | CPU s for 100,000: server | Redis | other replicas |\n" +
		"| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
}

// table is the rows of contenders, by letter; the first is A.
func table(l load, list []contender, results rounds) string {
	var b strings.Builder
	b.WriteString(heading(l))
	for i := range list {
		b.WriteString(row(string(rune('A'+i)), list, i, results))
	}
	return b.String()
}

// row is that of contender i, which is compared with the first and with its floor.
func row(letter string, list []contender, i int, results rounds) string {
	floor := ""
	if at := slices.IndexFunc(list, func(c contender) bool { return c.name == list[i].floor }); at >= 0 {
		floor = ratio(results[i], results[at]) + " of " + string(rune('A'+at))
	}
	r := results[i]
	return fmt.Sprintf("| %s | %s | %.0f | %s | %s | %.2f / %.2f | %.2f | %.2f | %s |\n", letter, list[i].name, median(perRound(r, measured.rate)),
		ratio(r, results[0]), floor, median(perRound(r, p50)), median(perRound(r, p99)), per100k(r, ofServer), per100k(r, ofRedis), others(r))
}

// others is the CPU of the other replicas together, if there are any.
func others(list []measured) string {
	if n := per100k(list, ofOthers); n > 0 {
		return fmt.Sprintf("%.2f", n)
	}
	return ""
}

const openHeading = "### 500 logouts a second, whether earlier ones were answered or not\n\n" +
	"| replicas | logouts/s | p50 / p99 ms | CPU ms for each: replica that is asked | Redis | other replicas together |\n" +
	"| --- | --- | --- | --- | --- | --- |\n"

func openRow(n int, list []measured) string {
	ms := func(of func(measured) float64) float64 { return per100k(list, of) / 100 }
	return fmt.Sprintf("| %s | %.0f | %.2f / %.2f | %.3f | %.3f | %.3f |\n", count(n, "replica"), median(perRound(list, measured.rate)),
		median(perRound(list, p50)), median(perRound(list, p99)), ms(ofServer), ms(ofRedis), ms(ofOthers))
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// thousands is 5000 as 5,000.
func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

const (
	benchmarksPage = "../../docs/benchmarks.md"
	readmePage     = "../../README.md"
)

// quoted are the rows of README's table: what each says, the row and the column of the benchmarks' tables that it
// quotes, and what it is compared with.
var quoted = []struct {
	says, row string
	column    int
	floor     string
}{
	{"a check", "Latchkey, one token", ofFloor, "Gin with the same timeouts and headers"},
	{"the same", "Latchkey, one token", ofFirst, "a bare Gin handler that answers 204"},
	{"a check with `LATCHKEY_VERIFY=strict`", "Latchkey, strict", ofFloor, "golang-jwt and an `EXISTS` in Redis"},
	{"a refresh", "Latchkey, refresh", ofFirst, "bare Gin"},
	{"a logout, 1 replica", "Latchkey, logout, 1 replica", ofFirst, "bare Gin"},
	{"a logout, 10 replicas", "Latchkey, logout, 10 replicas", ofFirst, "bare Gin"},
}

// Columns of a table of contenders.
const (
	ofFirst = 3
	ofFloor = 4
)

// figures is README's table, which quotes the tables of the benchmarks' page.
func figures(t testing.TB, tables string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| of the floor (range) | 32 connections | 128 connections | the floor |\n| --- | --- | --- | --- |\n")
	for _, q := range quoted {
		cells := cellsOf(tables, q.row, q.column)
		if len(cells) != 2 {
			t.Fatalf("%s has %d rows %q, want one for each load", benchmarksPage, len(cells), q.row)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", q.says, cells[0], cells[1], q.floor)
	}
	return b.String()
}

// cellsOf are the cells of a column in the rows of that name, which is in the first column or the second. A ratio to
// a floor goes without the floor's letter.
func cellsOf(tables, name string, column int) []string {
	var found []string
	for line := range strings.Lines(tables) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if column < len(cells) && slices.Contains(cells[:2], name) {
			cell, _, _ := strings.Cut(cells[column], " of ")
			found = append(found, cell)
		}
	}
	return found
}

// README quotes the page of the benchmarks.
func TestReadmeQuotesTheBenchmarks(t *testing.T) {
	t.Parallel()
	_, tables, _ := section(t, benchmarksPage, "floors")
	_, got, _ := section(t, readmePage, "figures")
	if want := figures(t, tables); got != want {
		t.Errorf("README.md has\n%s\nand docs/benchmarks.md gives\n%s", got, want)
	}
}

// section is what stands between two comments of a page, and what stands before and after, with the comments.
func section(t testing.TB, path, name string) (before, text, after string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- "+name+":begin -->\n", "<!-- "+name+":end -->"
	before, rest, ok := strings.Cut(string(raw), begin)
	text, after, ended := strings.Cut(rest, end)
	if !ok || !ended {
		t.Fatalf("%s has no section %s", path, name)
	}
	return before + begin, text, end + after
}

// writeSection replaces what stands between two comments of a page.
func writeSection(t testing.TB, path, name, text string) {
	t.Helper()
	before, _, after := section(t, path, name)
	if err := os.WriteFile(path, []byte(before+text+after), 0o600); err != nil {
		t.Fatal(err)
	}
}
