//go:build unix

package docs_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

const (
	workers = 16 // requests under way at once
	rounds  = 3  // of each measurement; the least of them counts, as others share the machine
)

// BenchmarkScaling counts what each operation costs Redis and Latchkey, and what
// followers cost Redis when nothing happens, and writes both into scaling.md. Run it
// once: make bench-scaling.
func BenchmarkScaling(b *testing.B) {
	for b.Loop() {
		operations := measureOperations(b)
		fmt.Printf("\n%s", operations)
		followers := measureFollowers(b)
		fmt.Printf("\n%s", followers)
		text := readPage(b, scalingPage)
		text = between(b, text, "operations", operations)
		text = between(b, text, "followers", followers)
		text = between(b, text, "carried", carried(b, text))
		fmt.Printf("\n%s", section(b, text, "carried"))
		if err := os.WriteFile(scalingPage, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(0, "ns/op")
	}
}

// usage is what was used since some beginning.
type usage struct {
	scripts, reads, commands float64
	in, out                  float64 // bytes, without replication
	redis, copied, latchkey  float64 // CPU of Redis, of its replica, and of Latchkey, in microseconds
	at                       time.Time
}

func (u usage) minus(v usage) usage {
	return usage{
		u.scripts - v.scripts, u.reads - v.reads, u.commands - v.commands, u.in - v.in, u.out - v.out,
		u.redis - v.redis, u.copied - v.copied, u.latchkey - v.latchkey, v.at,
	}
}

// per divides by n, after it took off what goes on without any operation.
func (u usage) per(n float64, idle usage, seconds float64) usage {
	less := func(have, background float64) float64 { return max(0, have-background*seconds) / n }
	return usage{
		less(u.scripts, idle.scripts), less(u.reads, idle.reads), less(u.commands, idle.commands), less(u.in, idle.in), less(u.out, idle.out),
		less(u.redis, idle.redis), less(u.copied, idle.copied), less(u.latchkey, idle.latchkey), u.at,
	}
}

// least is the round that the rest of the machine disturbed least, for each part.
func least(list []usage) usage {
	u := list[0]
	for _, v := range list[1:] {
		u = usage{
			min(u.scripts, v.scripts), min(u.reads, v.reads), min(u.commands, v.commands), min(u.in, v.in), min(u.out, v.out),
			min(u.redis, v.redis), min(u.copied, v.copied), min(u.latchkey, v.latchkey), u.at,
		}
	}
	return u
}

// gauge reads usage: of Redis servers, of a replica of Redis, and of one of Latchkey's.
type gauge struct {
	b         *testing.B
	primaries []*redis.Client
	replica   *redis.Client // nil for none
	admin     string        // of Latchkey; "" for none
}

func (g gauge) read() usage {
	g.b.Helper()
	u := usage{at: time.Now()}
	for _, rdb := range g.primaries {
		i := info(g.b, rdb)
		u.redis += cpu(i)
		u.in += i["total_net_input_bytes"] - i["total_net_repl_input_bytes"]
		u.out += i["total_net_output_bytes"] - i["total_net_repl_output_bytes"]
		u.commands += i["total_commands_processed"]
		u.scripts += i["cmdstat_evalsha"] + i["cmdstat_eval"]
		u.reads += i["cmdstat_xread"]
	}
	if g.replica != nil {
		u.copied = cpu(info(g.b, g.replica))
	}
	if g.admin != "" {
		m := regexp.MustCompile(`(?m)^process_cpu_seconds_total (\S+)`).FindStringSubmatch(get(g.b, "http://"+g.admin+"/metrics"))
		seconds, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			g.b.Fatal(err)
		}
		u.latchkey = seconds * 1e6
	}
	return u
}

func cpu(i map[string]float64) float64 { return (i["used_cpu_user"] + i["used_cpu_sys"]) * 1e6 }

// info is the numbers of INFO, and of each command how often it was called.
func info(b *testing.B, rdb *redis.Client) map[string]float64 {
	b.Helper()
	text, err := rdb.Info(b.Context(), "everything").Result()
	if err != nil {
		b.Fatal(err)
	}
	numbers := map[string]float64{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if calls, ok := strings.CutPrefix(value, "calls="); ok {
			value, _, _ = strings.Cut(calls, ",")
		}
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			numbers[name] = n
		}
	}
	return numbers
}

// idle is what is used in a second in which nothing is asked for.
func (g gauge) idle() usage {
	var all []usage
	for range rounds {
		before := g.read()
		time.Sleep(2 * time.Second) // what is measured is a time in which nothing happens
		u := g.read()
		all = append(all, u.minus(before).per(time.Since(before.at).Seconds(), usage{}, 0))
	}
	return least(all)
}

// each calls do n times, by so many workers, and returns what one call used.
func (g gauge) each(idle usage, workers, n int, do func(worker, i int)) usage {
	var all []usage
	for range rounds {
		before := g.read()
		var wg sync.WaitGroup
		var next atomic.Int64
		for w := range workers {
			wg.Go(func() {
				for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
					do(w, i)
				}
			})
		}
		wg.Wait()
		u := g.read()
		all = append(all, u.minus(before).per(float64(n), idle, time.Since(before.at).Seconds()))
	}
	return least(all)
}

// session is what a client holds.
type session struct{ access, refresh string }

// measureOperations asks real replicas over HTTP, on a Redis with an append-only
// file and a replica of its own.
func measureOperations(b *testing.B) string {
	b.Helper()
	server := redistest.Start(b, "--appendonly", "yes")
	host, port, _ := strings.Cut(server.Addr(), ":")
	copied := redistest.Start(b, "--replicaof", host+" "+port)
	bin := stacktest.Build(b, "..")
	start := func(settings ...string) *stacktest.Replica {
		return stacktest.NewFleet(b, bin, 1, server.URL(), append(settings, "LATCHKEY_LOG_LEVEL=warn", "LATCHKEY_SESSIONS_PER_USER=1000")...).Replicas[0]
	}
	cheap := []string{"LATCHKEY_PASSWORD_MEMORY=7168", "LATCHKEY_PASSWORD_ITERATIONS=1"} // for sessions that others use
	hasher := start()
	follow, strict := start(cheap...), start(append(cheap, "LATCHKEY_VERIFY=strict")...)
	env := []string{"LATCHKEY_REDIS_URL=" + server.URL(), "LATCHKEY_SECRET=a secret of the tests of deployments of 32 bytes and more"}
	for _, user := range []string{"alice", "bob"} {
		stacktest.Run(b, env, "correct horse", bin, "user", "add", user)
	}
	client := server.Client()
	on := func(r *stacktest.Replica) gauge {
		return gauge{b: b, primaries: []*redis.Client{client}, replica: copied.Client(), admin: r.Admin}
	}
	stacktest.Eventually(b, "Redis's replica follows", func() bool { return info(b, client)["connected_slaves"] == 1 })

	login := func(r *stacktest.Replica, user string) session {
		_, s := ask(b, r, "/auth/token", "", url.Values{"username": {user}, "password": {"correct horse"}, "refresh_delivery": {"body"}})
		return s
	}
	sessions := func(n int) []session {
		list := make([]session, n)
		for i := range list {
			list[i] = login(follow, "alice")
		}
		return list
	}
	must := func(status, want int) {
		if status != want {
			b.Errorf("status %d, want %d", status, want)
		}
	}
	login(hasher, "bob") // stores the hash anew, if need be
	idle := map[*stacktest.Replica]usage{}
	for _, r := range []*stacktest.Replica{hasher, follow, strict} {
		idle[r] = on(r).idle()
	}
	var rows strings.Builder
	rows.WriteString("| operation | scripts | commands | bytes in | bytes out | Redis µs | Redis replica µs | Latchkey µs |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n")
	row := func(name string, u usage) {
		fmt.Fprintf(&rows, "| %s | %.1f | %.1f | %.0f | %.0f | %.0f | %.0f | %.0f |\n", name, u.scripts, u.commands, u.in, u.out, u.redis, u.copied, u.latchkey)
	}

	row("login", on(hasher).each(idle[hasher], workers, 60, func(int, int) { login(hasher, "bob") }))
	chains := sessions(workers)
	fresh := sessions(rounds * 500) // the first refresh of a session rotates; more within the grace would not
	var refreshed atomic.Int64
	row("refresh", on(follow).each(idle[follow], workers, 500, func(int, int) {
		status, _ := ask(b, follow, "/auth/refresh", "", url.Values{"refresh_token": {fresh[refreshed.Add(1)-1].refresh}})
		must(status, http.StatusOK)
	}))
	verify := func(r *stacktest.Replica) usage {
		return on(r).each(idle[r], workers, 5000, func(w, _ int) {
			status, _ := ask(b, r, "/auth/verify", chains[w].access, nil)
			must(status, http.StatusNoContent)
		})
	}
	row("verify, follow", verify(follow))
	row("verify, strict", verify(strict))
	out := sessions(rounds * 500)
	var ended atomic.Int64
	row("logout", on(follow).each(idle[follow], workers, 500, func(int, int) {
		status, _ := ask(b, follow, "/auth/logout", out[ended.Add(1)-1].access, nil)
		must(status, http.StatusOK)
	}))
	row("logout-all", on(follow).each(idle[follow], workers, 500, func(int, int) {
		status, _ := ask(b, follow, "/auth/logout-all?except_current=true", chains[0].access, nil)
		must(status, http.StatusOK)
	}))
	return rows.String()
}

// ask sends a request: a POST with a form, or about an access token.
func ask(b testing.TB, r *stacktest.Replica, path, access string, form url.Values) (status int, s session) {
	method := http.MethodPost
	if path == "/auth/verify" {
		method = http.MethodGet
	}
	q, err := http.NewRequestWithContext(b.Context(), method, "http://"+r.Addr+path, strings.NewReader(form.Encode()))
	if err != nil {
		b.Error(err)
		return 0, s
	}
	if form != nil {
		q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if access != "" {
		q.Header.Set("Authorization", "Bearer "+access)
	}
	a, err := keptAlive.RoundTrip(q)
	if err != nil {
		b.Error(err)
		return 0, s
	}
	body, err := io.ReadAll(a.Body)
	_ = a.Body.Close()
	if err != nil {
		b.Error(err)
	}
	for part, to := range map[string]*string{"access_token": &s.access, "refresh_token": &s.refresh} {
		if _, after, ok := strings.Cut(string(body), `"`+part+`":"`); ok {
			*to, _, _ = strings.Cut(after, `"`)
		}
	}
	return a.StatusCode, s
}

// keptAlive holds a connection for each worker, as a proxy does.
var keptAlive = &http.Transport{MaxIdleConnsPerHost: workers}

func get(b *testing.B, where string) string {
	b.Helper()
	q, err := http.NewRequestWithContext(b.Context(), http.MethodGet, where, http.NoBody)
	if err != nil {
		b.Fatal(err)
	}
	a, err := keptAlive.RoundTrip(q)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = a.Body.Close() }()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		b.Fatal(err)
	}
	return string(text)
}

// measureFollowers runs that many followers in this process, each with connections
// of its own, and counts what they ask Redis all the time, and what a logout adds.
func measureFollowers(b *testing.B) string {
	b.Helper()
	var rows strings.Builder
	rows.WriteString("| followers | renewals/s | tail reads/s | KiB out/s | Redis CPU | µs/renewal | a logout adds: renewals | Redis µs | of 16 at once: renewals | Redis µs |\n" +
		"| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, m := range []struct {
		followers, primaries int
	}{{1, 1}, {10, 1}, {100, 1}, {10, 3}} {
		g, redisURL := gauge{b: b}, ""
		what := strconv.Itoa(m.followers)
		if m.primaries == 1 {
			server := redistest.Start(b, "--appendonly", "yes")
			g.primaries, redisURL = []*redis.Client{server.Client()}, server.URL()
		} else {
			what += clustered
			cluster := redistest.StartCluster(b, m.primaries, 0, redistest.Options{Args: []string{"--appendonly", "yes"}})
			redisURL = cluster.URL()
			for _, p := range cluster.Primaries(b) {
				g.primaries = append(g.primaries, p.Client())
			}
		}
		bin := stacktest.Build(b, "..")
		settings := []string{
			"LATCHKEY_PASSWORD_MEMORY=7168", "LATCHKEY_PASSWORD_ITERATIONS=1", "LATCHKEY_LOG_LEVEL=error", "LATCHKEY_SESSIONS_PER_USER=1000",
			"LATCHKEY_REDIS_TIMEOUT=1s", // so many followers share this machine
		}
		fleet := stacktest.NewFleet(b, bin, 1, redisURL, settings...) // the first follower
		const one, many = 20, 10 * workers
		list := make([]session, rounds*(one+many))
		for u := range workers { // of as many users, and so of several shards
			user := "user-" + strconv.Itoa(u)
			fleet.Command(b, "correct horse", "user", "add", user)
			for i := u; i < len(list); i += workers {
				_, list[i] = ask(b, fleet.Replicas[0], "/auth/token", "", url.Values{"username": {user}, "password": {"correct horse"}, "refresh_delivery": {"body"}})
			}
		}
		stop := follow(b, redisURL, m.followers-1)
		idle := g.idle()
		var ended atomic.Int64
		logout := func(int, int) {
			if status, _ := ask(b, fleet.Replicas[0], "/auth/logout", list[ended.Add(1)-1].access, nil); status != http.StatusOK {
				b.Errorf("logout: %d", status)
			}
		}
		alone, crowd := g.each(idle, 1, one, logout), g.each(idle, workers, many, logout)
		fmt.Fprintf(&rows, "| %s | %.0f | %.0f | %.0f | %.1f %% | %.0f | %.0f | %.0f | %.0f | %.0f |\n", what, idle.scripts, idle.reads, idle.out/1024,
			idle.redis/1e4, idle.redis/idle.scripts, alone.scripts, alone.redis, crowd.scripts, crowd.redis)
		stop()
		fleet.Replicas[0].Terminate(b)
	}
	return rows.String()
}

// follow runs n followers until the function that it returns is called.
func follow(b *testing.B, redisURL string, n int) (stop func()) {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var all []*edge.Follower
	for range n {
		store, done, err := edge.Dial(b.Context(), edge.RedisOptions{URL: redisURL, Timeout: time.Second})
		if err != nil {
			b.Fatal(err)
		}
		f := edge.NewFollower(edge.FollowerOptions{Store: store})
		wg.Go(func() {
			f.Run(ctx)
			_ = done() // the process ends anyway
		})
		all = append(all, f)
	}
	for _, f := range all {
		select {
		case <-f.Ready():
		case <-time.After(time.Minute):
			b.Fatal("a follower does not boot")
		}
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

const (
	scalingPage = "scaling.md"
	clustered   = ", on 3 primaries" // behind a number of followers
)

// The mix of requests that the table of scaling.md is for: that of make load.
var mix = map[string]float64{"verify, follow": 1000, "refresh": 50, "login": 5, "logout": 5}

const (
	busy  = 0.7 // how busy a core may be
	cores = 2   // of a replica of Latchkey

	shards   = 16 // LATCHKEY_SHARDS
	renewals = 3  // a second of each shard's lease: three in each LATCHKEY_EDGE_LEASE of 1 s
)

// carried computes, from the measured tables of a page, what deployments carry.
func carried(t testing.TB, page string) string {
	t.Helper()
	operations, followers := table(t, page, "operations"), table(t, page, "followers")
	cost := func(table map[string][]float64, row string, column int) float64 {
		if column >= len(table[row]) {
			t.Fatalf("%s: no row %q", scalingPage, row)
		}
		return table[row][column]
	}
	var total, service, store float64
	for _, name := range slices.Sorted(maps.Keys(mix)) {
		total += mix[name]
		service += mix[name] * cost(operations, name, 6)
		if name != "logout" {
			store += mix[name] * cost(operations, name, 4)
		}
	}
	var rows strings.Builder
	rows.WriteString("| replicas | primaries of Redis | the busiest, without requests | requests/s that the replicas carry | that Redis carries | first bottleneck |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, n := range []int{1, 10, 100} {
		// Not the CPU that was measured: so many followers did not renew in time on one machine.
		background := float64(n) * shards * renewals * cost(followers, strconv.Itoa(n), 4)
		alone, crowd := cost(followers, strconv.Itoa(n), 6), cost(followers, strconv.Itoa(n), 8)
		replicas := float64(n) * cores * busy * 1e6 / (service / total)
		for _, p := range []int{1, 3, 12} {
			if p == 3 { // and 12: on a Cluster each shard's renewal is sent by itself
				background *= cost(followers, "10"+clustered, 4) / cost(followers, "10", 4)
			}
			even := evenly(p)
			carries := func(logout float64) float64 {
				return max(0, (even*busy*1e6-background)/((store+mix["logout"]*logout)/total))
			}
			least, most := carries(max(alone, crowd)), carries(min(alone, crowd))
			bottleneck := "Latchkey's CPU, most of it password hashes"
			if least < replicas {
				bottleneck = "Redis: each logout reaches every follower"
			}
			if background > even*busy*1e6/2 {
				bottleneck = "Redis: renewals"
			}
			fmt.Fprintf(&rows, "| %d | %d | %s | %s | %s to %s | %s |\n", n, p, percent(background/even/1e6), round(replicas), round(least), round(most), bottleneck)
		}
	}
	return rows.String()
}

// evenly is how many primaries would carry as much as p do if the shards were
// spread evenly: the one with most is full first. Redis Cluster places a shard by the CRC16
// of its number, and gives each primary a range of the slots.
func evenly(p int) float64 {
	count := make([]int, p)
	for shard := range shards {
		crc := uint16(0)
		for _, digit := range []byte(strconv.Itoa(shard)) {
			crc ^= uint16(digit) << 8
			for range 8 {
				carry := crc&0x8000 != 0
				crc <<= 1
				if carry {
					crc ^= 0x1021
				}
			}
		}
		count[int(crc)%16384*p/16384]++
	}
	return float64(shards) / float64(slices.Max(count))
}

func percent(share float64) string { return strconv.FormatFloat(share*100, 'f', 1, 64) + " %" }

// round is two significant figures: the measurements are no better.
func round(n float64) string {
	if n <= 0 {
		return "none"
	}
	text, _ := strconv.ParseFloat(strconv.FormatFloat(n, 'g', 2, 64), 64)
	return strconv.FormatFloat(text, 'f', -1, 64)
}

// table is the numbers of a page's table by the first cell of each row; of the
// same first cell the first row.
func table(t testing.TB, page, name string) map[string][]float64 {
	t.Helper()
	rows := map[string][]float64{}
	for line := range strings.Lines(section(t, page, name)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		first := strings.TrimSpace(cells[0])
		if _, ok := rows[first]; ok {
			continue
		}
		for _, cell := range cells[1:] {
			n, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(cell), " %"), 64)
			rows[first] = append(rows[first], n)
		}
	}
	return rows
}

// section is what stands between two comments of a page.
func section(t testing.TB, page, name string) string {
	t.Helper()
	_, after, ok := strings.Cut(page, "<!-- "+name+":begin -->\n")
	text, _, ended := strings.Cut(after, "<!-- "+name+":end -->")
	if !ok || !ended {
		t.Fatalf("no section %s", name)
	}
	return text
}

// between replaces that.
func between(t testing.TB, page, name, text string) string {
	t.Helper()
	return strings.Replace(page, section(t, page, name), text, 1)
}

// The table of what deployments carry is the one that follows from the measurements above it.
func TestCarriedFollowsFromTheMeasurements(t *testing.T) {
	t.Parallel()
	page := readPage(t, scalingPage)
	if got, want := section(t, page, "carried"), carried(t, page); got != want {
		t.Errorf("%s has\n%s\nand the measurements give\n%s", scalingPage, got, want)
	}
}

func readPage(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
