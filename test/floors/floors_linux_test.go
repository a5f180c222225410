package main_test

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// plan says how much is measured.
type plan struct {
	rounds   int
	duration time.Duration // of each load by a client of our own; wrk takes a second
	replicas []int         // that a logout is confirmed by
	tokens   int           // that are shown in turn
	only     *regexp.Regexp
	latchkey string
	loads    []load
	settings []string // of the replicas; none for figures
	together bool     // all servers of a round at once: the figures mean nothing then
}

// BenchmarkFloors measures the program from outside, beside the least that servers of its kind can do, and writes the
// table into docs/benchmarks.md. Run it once: make bench-floors.
func BenchmarkFloors(b *testing.B) {
	rounds, err := strconv.Atoi(cmp.Or(os.Getenv("FLOORS_ROUNDS"), "5"))
	if err != nil || rounds < 1 {
		b.Fatalf("FLOORS_ROUNDS is %q: it is how often each server is loaded, 1 or more", os.Getenv("FLOORS_ROUNDS"))
	}
	only, err := regexp.Compile(os.Getenv("FLOORS_ONLY"))
	if err != nil {
		b.Fatalf("FLOORS_ONLY: %v", err)
	}
	p := plan{
		rounds: rounds, duration: time.Second, replicas: []int{1, 3, 10}, tokens: 5000, only: only, loads: []load{{1, 32}, {2, 128}},
		latchkey: cmp.Or(os.Getenv("LATCHKEY"), stacktest.Build(b, "../..")),
	}
	for b.Loop() {
		text := p.measure(b)
		fmt.Printf("\n%s\n", text)
		b.ReportMetric(0, "ns/op")
		if only.String() != "" || rounds < 5 {
			fmt.Println("docs/benchmarks.md and README.md are left as they are: they have five rounds or more of everything.")
			continue
		}
		writeSection(b, benchmarksPage, "floors", text)
		writeSection(b, readmePage, "figures", figures(b, text))
	}
}

// The benchmark prints each row, and no request of it fails.
func TestFloors(t *testing.T) {
	t.Parallel()
	p := plan{
		rounds: 1, duration: 200 * time.Millisecond, replicas: []int{1, 2}, tokens: 100, only: regexp.MustCompile(""),
		latchkey: stacktest.Build(t, "../.."),
		// Whatever else the machine does, nothing times out.
		loads: []load{{1, 2}, {2, 4}}, settings: []string{"LATCHKEY_REDIS_TIMEOUT=5s", "LATCHKEY_EDGE_LEASE=2s"}, together: true,
	}
	text := p.measure(t)
	for _, name := range []string{
		"bare Gin", "Gin, Latchkey's timeouts and headers", "Latchkey, one token", "Latchkey, 100 tokens in turn",
		"Gin + golang-jwt's parse", "Latchkey, tokens not in its cache", "Gin + golang-jwt + EXISTS", "Latchkey, strict", "Gin + one EVALSHA",
		"gRPC ext_authz that does nothing", "Latchkey, gRPC ext_authz", "Latchkey, refresh", "Latchkey, logout, 1 replica", "Latchkey, logout, 2 replicas",
	} {
		if n := len(regexp.MustCompile(`(?m)^\| [A-Z] \| `+regexp.QuoteMeta(name)+` \| [1-9]\d* \| `).FindAllString(text, -1)); n != len(p.loads) {
			t.Errorf("%d rows for %q, want %d", n, name, len(p.loads))
		}
	}
	for _, n := range []string{"1 replica", "2 replicas"} {
		if !regexp.MustCompile(`(?m)^\| ` + n + ` \| [1-9]\d* \| `).MatchString(text) {
			t.Errorf("no row of an open loop for %s", n)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// contender is one server and what it is asked for.
type contender struct {
	name  string
	floor string // the name of the contender that it is compared with, besides the first; "" for none
	run   func(context.Context, load) (measured, error)
}

// rounds are the results of contenders, by contender and round.
type rounds [][]measured

// inTurn loads all contenders in each round. What else the machine does meets all of them, and ratios are of one round.
func (p plan) inTurn(t testing.TB, list []contender, l load) rounds {
	t.Helper()
	results := make(rounds, len(list))
	for range p.rounds {
		errs := make([]error, len(list))
		var wg sync.WaitGroup
		for i, c := range list {
			run := func() {
				m, err := c.run(t.Context(), l)
				if err != nil {
					errs[i] = fmt.Errorf("%s, %s: %w", c.name, l, err)
				}
				results[i] = append(results[i], m)
			}
			if wg.Go(run); !p.together {
				wg.Wait()
			}
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return results
}

// measure returns the tables.
func (p plan) measure(t testing.TB) string {
	t.Helper()
	f := build(t)
	bare := p.bareGin(t, f)
	var sections []string
	if parts := p.checks(t, f, bare); len(parts) > 1 {
		for _, l := range p.loads {
			sections = append(sections, table(l, parts, p.inTurn(t, parts, l)))
		}
	}
	var logouts [][]string // by load
	var open []string
	for _, n := range p.replicas {
		name := "Latchkey, logout, " + count(n, "replica")
		if !p.only.MatchString(name) {
			continue
		}
		closed, rate := p.logouts(t, f, bare, n, name)
		logouts, open = append(logouts, closed), append(open, rate)
	}
	if logouts != nil {
		for i, l := range p.loads {
			if len(sections) <= i {
				sections = append(sections, heading(l))
			}
			for _, rows := range logouts {
				sections[i] += rows[i]
			}
		}
		sections = append(sections, openHeading+strings.Join(open, ""))
	}
	return strings.Join(sections, "\n")
}

// bareGin is the first contender of all.
func (p plan) bareGin(t testing.TB, f floorsCommand) contender {
	t.Helper()
	w := wrk{bin: stacktest.Installed(t, "wrk", "wrk")}
	return byWrk("bare Gin", "", w, f.start(t, nil, "gin"))
}

// server is a process that listens.
type server struct {
	addr string
	pids pids
}

// start starts a floor.
func (f floorsCommand) start(t testing.TB, redis []int, kind string, args ...string) server {
	t.Helper()
	addr, pid := f.serve(t, kind, args...)
	return server{addr, pids{server: pid, redis: redis}}
}

// byWrk is a contender of checks over HTTP.
func byWrk(name, floor string, w wrk, s server) contender {
	return contender{name, floor, func(ctx context.Context, l load) (measured, error) {
		return s.pids.during(func() (measured, error) { return w.run(ctx, "http://"+s.addr+verifyPath, l) })
	}}
}

const verifyPath = "/auth/verify"

// checks are the contenders of checks and refreshes, of those that p wants.
func (p plan) checks(t testing.TB, f floorsCommand, bare contender) []contender {
	t.Helper()
	redis := redistest.Start(t)
	pid := []int{redisPID(t, redis)}
	replica := func(settings ...string) server {
		r := p.fleet(t, 1, redis.URL(), settings...).Replicas[0]
		return server{r.Addr, pids{server: r.PID(), redis: pid}}
	}
	extAuthz := "127.0.0.1:" + stacktest.FreePort(t)
	latchkey := replica("LATCHKEY_EXTAUTHZ_ADDR=" + extAuthz)
	forgetful, strict := replica("LATCHKEY_EDGE_CACHE=16"), replica("LATCHKEY_VERIFY=strict")
	tokens := f.writeTokens(t, latchkey.addr, redis.URL(), p.tokens)
	text, err := os.ReadFile(tokens)
	if err != nil {
		t.Fatal(err)
	}
	one := wrk{bin: stacktest.Installed(t, "wrk", "wrk"), tokens: tokens}
	one.token, _, _ = strings.Cut(string(text), "\n")
	turns := one
	turns.script = filepath.Join(t.TempDir(), "tokens.lua")
	if err := os.WriteFile(turns.script, []byte(tokensInTurn), 0o600); err != nil {
		t.Fatal(err)
	}
	// Once before the rounds, so that the replica knows these tokens.
	if _, err := turns.run(t.Context(), "http://"+latchkey.addr+verifyPath, p.loads[0]); err != nil {
		t.Fatal(err)
	}
	all, identity := answered(t, latchkey.addr, one.token)
	jwks := []string{"-jwks", "http://" + latchkey.addr + "/.well-known/jwks.json", "-redis", redis.URL()}

	list := []contender{
		byWrk("Gin, Latchkey's timeouts and headers", "", one, f.start(t, pid, "gin-headers", all...)),
		byWrk("Latchkey, one token", "Gin, Latchkey's timeouts and headers", one, latchkey),
		byWrk("Latchkey, "+thousands(p.tokens)+" tokens in turn", "Gin, Latchkey's timeouts and headers", turns, latchkey),
		byWrk("Gin + golang-jwt's parse", "", turns, f.start(t, pid, "parse", jwks...)),
		byWrk("Latchkey, tokens not in its cache", "Gin + golang-jwt's parse", turns, forgetful),
		byWrk("Gin + golang-jwt + EXISTS", "", one, f.start(t, pid, "textbook", jwks...)),
		byWrk("Latchkey, strict", "Gin + golang-jwt + EXISTS", one, strict),
		byWrk("Gin + one EVALSHA", "", one, f.start(t, pid, "script", jwks...)),
		f.byClient("gRPC ext_authz that does nothing", "", p.client("ext_authz", "-tokens", tokens), f.start(t, pid, "ext_authz", identity...)),
		f.byClient("Latchkey, gRPC ext_authz", "gRPC ext_authz that does nothing", p.client("ext_authz", "-tokens", tokens), server{extAuthz, latchkey.pids}),
		f.byClient("Latchkey, refresh", "Gin + one EVALSHA", p.client("refresh", "-redis", redis.URL(), "-sessions", p.stock(15_000)), latchkey),
	}
	wanted := []contender{bare}
	for _, c := range list {
		if p.only.MatchString(c.name) || slices.ContainsFunc(list, func(o contender) bool { return o.floor == c.name && p.only.MatchString(o.name) }) {
			wanted = append(wanted, c)
		}
	}
	return wanted
}

// client is the arguments of a client.
func (p plan) client(kind string, args ...string) []string {
	return append([]string{kind, "-for", p.duration.String()}, args...)
}

// stock is how many sessions a client makes that cannot use more in a second.
func (p plan) stock(perSecond int) string {
	return strconv.Itoa(int(float64(perSecond) * p.duration.Seconds()))
}

// byClient is a contender that a client of our own loads.
func (f floorsCommand) byClient(name, floor string, args []string, s server) contender {
	return contender{name, floor, func(ctx context.Context, l load) (measured, error) {
		return f.load(ctx, s.pids, l, args[0], append([]string{"-addr", s.addr}, args[1:]...)...)
	}}
}

// fleet starts replicas with nothing set but what they must be told, and these settings.
func (p plan) fleet(t testing.TB, n int, redisURL string, settings ...string) *stacktest.Fleet {
	t.Helper()
	env := slices.Concat([]string{"LATCHKEY_SECRET=" + secret, "LATCHKEY_REDIS_URL=" + redisURL}, p.settings, settings)
	return stacktest.NewFleetOf(t, p.latchkey, n, env...)
}

// logouts measures logouts, all sent to the first of n replicas: the rows by load, and that of an open loop.
func (p plan) logouts(t testing.TB, f floorsCommand, bare contender, n int, name string) (closed []string, open string) {
	t.Helper()
	redis := redistest.Start(t)
	fleet := p.fleet(t, n, redis.URL())
	s := first(fleet, redisPID(t, redis))
	parts := []contender{bare, f.byClient(name, "", p.client("logout", "-redis", redis.URL(), "-sessions", p.stock(10_000)), s)}
	for _, l := range p.loads {
		closed = append(closed, row(string(rune('M'+slices.Index(p.replicas, n))), parts, 1, p.inTurn(t, parts, l)))
	}
	timed := p.inTurn(t, []contender{p.steadily(f, name, redis.URL(), s)}, load{1, 128})
	for _, r := range fleet.Replicas {
		r.Terminate(t)
	}
	return closed, openRow(n, timed[0])
}

// first is the first replica of a fleet as a server, with all processes of the fleet and those of Redis.
func first(fleet *stacktest.Fleet, redis ...int) server {
	s := server{fleet.Replicas[0].Addr, pids{server: fleet.Replicas[0].PID(), redis: redis}}
	for _, r := range fleet.Replicas[1:] {
		s.pids.others = append(s.pids.others, r.PID())
	}
	return s
}

// steadily is a contender of 500 logouts a second, for twice as long as other loads take.
func (p plan) steadily(f floorsCommand, name, redisURL string, s server) contender {
	const rate = 500
	p.duration *= 2
	return f.byClient(name, "", p.client("logout", "-redis", redisURL, "-rate", strconv.Itoa(rate), "-sessions", p.stock(rate)), s)
}

// answered returns the flags that give a floor the headers of a check's answer: all, and those that say who it is.
func answered(t testing.TB, addr, token string) (all, identity []string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+verifyPath, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+token)
	a, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(q)
	if err != nil {
		t.Fatal(err)
	}
	_ = a.Body.Close()
	if a.StatusCode != http.StatusNoContent {
		t.Fatalf("a check is answered %s", a.Status)
	}
	for name, values := range a.Header {
		if name == "Date" || name == "Connection" { // net/http's own
			continue
		}
		all = append(all, "-header", name+": "+values[0])
		if strings.HasPrefix(name, "X-Auth-") {
			identity = append(identity, "-header", strings.ToLower(name)+": "+values[0])
		}
	}
	if len(identity) == 0 {
		t.Fatalf("a check is answered without saying who it is: %v", a.Header)
	}
	return all, identity
}

// listens reports whether something listens at an address.
func listens(t testing.TB, addr string) bool {
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}
