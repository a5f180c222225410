package main_test

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

const scalingPage = "../../docs/scaling.md"

// BenchmarkScaling measures what operations cost, and what a logout costs by the number of replicas, and writes both
// into docs/scaling.md with what follows from them. Run it once: make bench-scaling.
func BenchmarkScaling(b *testing.B) {
	p := plan{
		rounds: 3, duration: time.Second, tokens: 1, only: regexp.MustCompile("one token|strict|refresh"), loads: []load{{1, 32}},
		latchkey: cmp.Or(os.Getenv("LATCHKEY"), stacktest.Build(b, "../..")),
	}
	for b.Loop() {
		f := build(b)
		writeSection(b, scalingPage, "operations", p.operations(b, f))
		rows := replicasHeading
		for _, n := range []int{1, 3, 10, 30} {
			rows += p.byReplicas(b, f, n, 1)
		}
		rows += p.byReplicas(b, f, 10, 3)
		writeSection(b, scalingPage, "replicas", rows)
		writeComputed(b)
		b.ReportMetric(0, "ns/op")
	}
}

// micros is the CPU of one request, in microseconds.
func micros(list []measured, cpu func(measured) float64) float64 { return per100k(list, cpu) * 10 }

// operations is the table of what one request costs a replica and Redis.
func (p plan) operations(t testing.TB, f floorsCommand) string {
	t.Helper()
	redis := redistest.Start(t, "--appendonly", "yes")
	fleet := p.fleet(t, 1, redis.URL(), "LATCHKEY_SESSIONS_PER_USER=1000")
	fleet.Command(t, password, "user", "add", username)
	s := first(fleet, redisPID(t, redis))
	list := append(p.checks(t, f, p.bareGin(t, f)), f.byClient("Latchkey, login", "", p.client("login"), s))
	results := p.inTurn(t, list, p.loads[0])
	var b strings.Builder
	b.WriteString("| operation | Redis µs | Latchkey µs |\n| --- | --- | --- |\n")
	for _, o := range []struct{ name, row string }{
		{"login", "Latchkey, login"}, {"refresh", "Latchkey, refresh"}, {"check", "Latchkey, one token"}, {"check, strict", "Latchkey, strict"},
	} {
		r := results[slices.IndexFunc(list, func(c contender) bool { return c.name == o.row })]
		fmt.Fprintf(&b, "| %s | %.0f | %.0f |\n", o.name, micros(r, ofRedis), micros(r, ofServer))
	}
	fleet.Replicas[0].Terminate(t)
	return b.String()
}

const replicasHeading = "| replicas | no requests: Redis CPU | KiB/s out of Redis | CPU of a replica | logouts/s, 32 connections | 500/s: p50 / p99 ms | " +
	"a logout: Redis µs | replica that is asked µs | each other replica µs |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"

// byReplicas is the row of n replicas, on so many primaries of Redis.
func (p plan) byReplicas(t testing.TB, f floorsCommand, n, primaries int) string {
	t.Helper()
	name, redisURL, servers := strconv.Itoa(n), "", []*redistest.Server(nil)
	if primaries == 1 {
		server := redistest.Start(t, "--appendonly", "yes")
		servers, redisURL = []*redistest.Server{server}, server.URL()
	} else {
		name += fmt.Sprintf(", on %d primaries", primaries)
		cluster := redistest.StartCluster(t, primaries, 0, redistest.Options{Args: []string{"--appendonly", "yes"}})
		servers, redisURL = cluster.Primaries(t), cluster.URL()
	}
	var clients []*redis.Client
	var processes []int
	for _, s := range servers {
		clients, processes = append(clients, s.Client()), append(processes, redisPID(t, s))
	}
	fleet := p.fleet(t, n, redisURL)
	s := first(fleet, processes...)

	const seconds = 5
	before := bytesOut(t, clients)
	idle, err := s.pids.during(func() (measured, error) {
		time.Sleep(seconds * time.Second) // what is measured is a time without requests
		return measured{requests: 1, seconds: seconds}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	out := (bytesOut(t, clients) - before) / 1024 / seconds
	closed := f.byClient("logouts", "", p.client("logout", "-redis", redisURL, "-sessions", p.stock(6_000)), s)
	results := p.inTurn(t, []contender{closed, p.steadily(f, "logouts at 500/s", redisURL, s)}, load{1, 32})
	for _, r := range fleet.Replicas {
		r.Terminate(t)
	}
	steady := results[1]
	// Without what goes on without requests.
	var requests, took float64
	for _, m := range steady {
		requests, took = requests+m.requests, took+m.seconds
	}
	each := func(cpu func(measured) float64) float64 {
		return max(0, micros(steady, cpu)-cpu(idle)/seconds*took/requests*1e6)
	}
	others := 0.0
	if n > 1 {
		others = each(ofOthers) / float64(n-1)
	}
	return fmt.Sprintf("| %s | %.1f %% | %.0f | %.1f %% | %.0f | %.1f / %.1f | %.0f | %.0f | %.0f |\n", name,
		idle.redis/seconds*100, out, (idle.server+idle.others)/float64(n)/seconds*100, median(perRound(results[0], measured.rate)),
		median(perRound(steady, p50)), median(perRound(steady, p99)), each(ofRedis), each(ofServer), others)
}

// bytesOut is what the servers have sent to clients.
func bytesOut(t testing.TB, clients []*redis.Client) (sum float64) {
	t.Helper()
	for _, c := range clients {
		text, err := c.Info(t.Context(), "stats").Result()
		m := regexp.MustCompile(`total_net_output_bytes:(\d+)`).FindStringSubmatch(text)
		if err != nil || m == nil {
			t.Fatalf("INFO: %v\n%s", err, text)
		}
		n, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// The mix of requests that the computed table is for: that of make load.
const (
	mixChecks, mixRefreshes, mixLogins, mixLogouts = 1000, 50, 5, 5
	mixAll                                         = mixChecks + mixRefreshes + mixLogins + mixLogouts
)

const (
	busy  = 0.7 // how busy a core may be
	cores = 2   // of a replica
)

// cost is a row of the table by replicas, as numbers.
type cost struct {
	n                       float64
	idleRedis, idleReplica  float64 // µs a second
	redis, asked, eachOther float64 // µs for each logout
}

// computed is what follows from the measured tables: the row of 100 replicas, and what deployments carry.
func computed(t testing.TB) (hundred, carried string) {
	t.Helper()
	operations, byReplicas := numbers(t, "operations"), numbers(t, "replicas")
	of := func(n int) cost {
		r := byReplicas[strconv.Itoa(n)]
		if len(r) < 8 {
			t.Fatalf("%s has no row of %d replicas", scalingPage, n)
		}
		return cost{n: float64(n), idleRedis: r[0] * 1e4, idleReplica: r[2] * 1e4, redis: r[5], asked: r[6], eachOther: r[7]}
	}
	list := []cost{of(1), of(3), of(10), of(30)}
	list = append(list, extrapolate(list[2], list[3], 100))
	op := func(name string, column int) float64 {
		if len(operations[name]) <= column {
			t.Fatalf("%s has no row of a %s", scalingPage, name)
		}
		return operations[name][column]
	}
	var b strings.Builder
	b.WriteString("| replicas | logouts/s at most | first bottleneck | of the mix: requests/s that the replicas carry | that Redis carries | first bottleneck |\n" +
		"| --- | --- | --- | --- | --- | --- |\n")
	for _, c := range list {
		// All logouts spread over the replicas, each of which also applies what the others are asked for.
		perLogout := c.asked + (c.n-1)*c.eachOther
		all := c.n * max(0, cores*busy*1e6-c.idleReplica)
		redis := max(0, busy*1e6-c.idleRedis)
		byRedis, byReplicas := redis/c.redis, all/perLogout
		stop := "Redis's one thread"
		if byReplicas < byRedis {
			stop = "the replicas' CPU"
		}
		service := (mixChecks*op("check", 1) + mixRefreshes*op("refresh", 1) + mixLogins*op("login", 1) + mixLogouts*perLogout) / mixAll
		store := (mixRefreshes*op("refresh", 0) + mixLogins*op("login", 0) + mixLogouts*c.redis) / mixAll
		first := "the replicas' CPU, " + strconv.Itoa(int(math.Round(mixLogins*op("login", 1)/mixAll/service*100))) + " % of it password hashes"
		if redis/store < all/service {
			first = "Redis's one thread"
		}
		fmt.Fprintf(&b, "| %.0f | %s | %s | %s | %s | %s |\n", c.n, round(min(byRedis, byReplicas)), stop, round(all/service), round(redis/store), first)
	}
	h := list[len(list)-1]
	return fmt.Sprintf("| replicas | no requests: Redis CPU | CPU of a replica | a logout: Redis µs | replica that is asked µs | each other replica µs |\n"+
		"| --- | --- | --- | --- | --- | --- |\n| 100 | %s %% | %s %% | %s | %s | %s |\n",
		round(h.idleRedis/1e4), round(h.idleReplica/1e4), round(h.redis), round(h.asked), round(h.eachOther)), b.String()
}

// extrapolate continues what grows from a to b at the same power of the number of replicas. What shrinks stays.
func extrapolate(a, b cost, n float64) cost {
	further := func(at, then float64) float64 {
		if at <= 0 || then <= at {
			return then
		}
		power := math.Log(then/at) / math.Log(b.n/a.n)
		return then * math.Pow(n/b.n, power)
	}
	return cost{
		n: n, idleRedis: further(a.idleRedis, b.idleRedis), idleReplica: further(a.idleReplica, b.idleReplica),
		redis: further(a.redis, b.redis), asked: further(a.asked, b.asked), eachOther: further(a.eachOther, b.eachOther),
	}
}

// round is two significant figures: the measurements are no better.
func round(n float64) string {
	if n <= 0 {
		return "none"
	}
	text, _ := strconv.ParseFloat(strconv.FormatFloat(n, 'g', 2, 64), 64)
	return strconv.FormatFloat(text, 'f', -1, 64)
}

// numbers are the columns of a table of the page after the first, by the first. Of two numbers in a cell it is the
// first, and 0 where there is none.
func numbers(t testing.TB, name string) map[string][]float64 {
	t.Helper()
	_, text, _ := section(t, scalingPage, name)
	rows := map[string][]float64{}
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		key := strings.TrimSpace(cells[0])
		for _, cell := range cells[1:] {
			number, _, _ := strings.Cut(strings.TrimSpace(cell), " ")
			n, _ := strconv.ParseFloat(number, 64)
			rows[key] = append(rows[key], n)
		}
	}
	return rows
}

func writeComputed(t testing.TB) {
	t.Helper()
	hundred, carried := computed(t)
	writeSection(t, scalingPage, "hundred", hundred)
	writeSection(t, scalingPage, "carried", carried)
}

// What the page computes follows from what it measured.
func TestComputedFollowsFromTheMeasurements(t *testing.T) {
	t.Parallel()
	hundred, carried := computed(t)
	for name, want := range map[string]string{"hundred": hundred, "carried": carried} {
		if _, got, _ := section(t, scalingPage, name); got != want {
			t.Errorf("%s has\n%s\nand the measurements give\n%s", scalingPage, got, want)
		}
	}
}
