//go:build linux && chaos

package chaos

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

const (
	shards   = 16
	replicas = 4
	users    = 16
	// unsure is for how long before a primary's death its last writes may not have
	// reached the replicas, with nothing done to slow them, on a busy machine.
	unsure = time.Second
	// noticing is after how long every replica of the service goes by Redis's clock again
	// that was set back.
	noticing = 10 * time.Second
	// reckoning is by how much what a replica of the service takes for Redis's time may
	// be ahead of it, a clock that is set aside.
	reckoning = 100 * time.Millisecond
	// healing is for how long a session may still be refreshed whose logout a
	// failover lost, once Redis is at rest: until a replica that knew has put it back.
	healing = 3 * time.Second
	// forgetting is after how long nobody may accept what a total loss ended: a
	// lease, and the answer to what was asked within it.
	forgetting = 2 * time.Second
)

// plan is one run: everything but what the machine decides.
type plan struct {
	seed     uint64
	length   time.Duration
	topology string
	durable  bool
	only     string // words of the names of the faults that are made; "" is all
	bin      string // the program
}

func (p plan) String() string {
	return fmt.Sprintf("CHAOS_SEED=%d CHAOS_TOPOLOGY=%s CHAOS_DURABLE=%t CHAOS_FAULTS='%s'", p.seed, p.topology, p.durable, p.only)
}

// TestChaos is one run. CHAOS_FOR says how long, CHAOS_SEED which faults it makes
// in which order, CHAOS_TOPOLOGY and CHAOS_DURABLE on which Redis, and CHAOS_FAULTS
// which kinds of faults only.
func TestChaos(t *testing.T) {
	seed, err := strconv.ParseUint(setting("CHAOS_SEED", strconv.FormatUint(rand.Uint64(), 10)), 10, 64) //nolint:gosec // a seed to be printed and given again
	if err != nil {
		t.Fatalf("CHAOS_SEED: %v", err)
	}
	length, err := time.ParseDuration(setting("CHAOS_FOR", "10m"))
	if err != nil {
		t.Fatalf("CHAOS_FOR: %v", err)
	}
	topology := setting("CHAOS_TOPOLOGY", "sentinel")
	durable, err := strconv.ParseBool(setting("CHAOS_DURABLE", strconv.FormatBool(topology != "standalone")))
	if err != nil {
		t.Fatalf("CHAOS_DURABLE: %v", err)
	}
	p := plan{seed, length, topology, durable, os.Getenv("CHAOS_FAULTS"), stacktest.Build(t, "../..")}
	t.Log(p)
	broken := p.run(t)
	for _, promise := range broken {
		t.Errorf("broken: %s", promise)
	}
	if len(broken) > 0 {
		t.Errorf("again with: make chaos %s", p)
	}
}

// run returns which promises were broken, and how often.
func (p plan) run(t *testing.T) (broken []string) {
	t.Helper()
	d := &driver{t: t, plan: p, rng: seeded(p.seed, 0), counts: map[string]int{}, store: startStore(t, p.topology, p.durable)}
	d.start()
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	var all []*user
	for i := range users {
		u := &user{load: d.load, number: i, rng: seeded(p.seed, uint64(i)+1)}
		all = append(all, u)
		working.Go(func() { u.live(ctx) })
	}
	faults := d.faults(p.topology, p.only)
	for begun := time.Now(); time.Since(begun) < p.length; {
		d.next(faults)
	}
	cancel()
	working.Wait()

	d.calm()
	wait(healing) // so that whatever is accepted from now on was not put back in time
	for _, u := range all {
		working.Go(u.last)
	}
	working.Wait()
	return d.judge()
}

// driver makes faults.
type driver struct {
	plan
	t      *testing.T
	rng    *rand.Rand
	store  *store
	fleet  *stacktest.Fleet
	load   *load
	counts map[string]int

	kills  int // of primaries, and the like
	losses []*loss
	total  []span
	still  []span // in which no server took a step
	steps  []span // of the clock
	clock  time.Duration
}

// loss is a failover that may have lost what was written during a time.
type loss struct {
	span
	died   time.Duration // when the primary did
	healed time.Duration // when those who knew must have put back what was lost; 0 for nobody knew
}

func (d *driver) start() {
	d.t.Helper()
	wait := 0
	if d.durable {
		wait = d.store.wait
	}
	settings := []string{
		"LATCHKEY_SECRET=a secret of this test alone of 32 bytes and more", "LATCHKEY_REDIS_URL=" + d.store.url, "LATCHKEY_COOKIE_SECURE=false",
		"LATCHKEY_REVOKE_WAIT_REPLICAS=" + strconv.Itoa(wait), "LATCHKEY_SHARDS=" + strconv.Itoa(shards),
		"LATCHKEY_REFRESH_GRACE=" + grace.String(), "LATCHKEY_ACCESS_TTL=2h", "LATCHKEY_LOG_LEVEL=" + setting("CHAOS_LOG", "error"),
		"LATCHKEY_PASSWORD_MEMORY=7168", "LATCHKEY_PASSWORD_ITERATIONS=1", "LATCHKEY_VERIFY=follow",
		"LATCHKEY_LOGIN_LIMIT_CLIENT=100000/1m", "LATCHKEY_LOGIN_LIMIT_ACCOUNT=100000/1m", "LATCHKEY_LOGIN_LIMIT_ADDRESS=100000/1m",
	}
	patient := append([]string{"HOME=" + d.t.TempDir(), "LATCHKEY_REDIS_TIMEOUT=5s"}, settings...)
	for i := range users {
		stacktest.Run(d.t, patient, password, d.bin, "user", "add", userName(i))
	}
	d.fleet = stacktest.NewFleetOf(d.t, d.bin, replicas, settings...)
	for i := range d.fleet.Replicas {
		d.own(i)
	}
	d.load = newLoad(d.fleet.Addrs())
}

func (d *driver) own(i int) { d.store.owners.set(Peer(i), d.fleet.Replicas[i].PID()) }

// fault is one kind of fault; weight is how often it is made.
type fault struct {
	name   string
	weight int
	make   func()
}

// faults are those that make sense on a topology, or those whose names hold one of the words.
func (d *driver) faults(topology, only string) []fault {
	list := []fault{
		{"replica killed", 2, func() { i := d.one(); d.fleet.Replicas[i].Kill(); d.back(i) }},
		{"replica frozen", 2, func() { d.frozen(d.one(), d.some(3*time.Second)) }},
		{"replica rolled", 1, d.roll},
		{"replica cut off from Redis", 2, func() { d.partition(d.one(), d.some(3*time.Second)) }},
		{"replica slow to hear from Redis", 2, d.slow},
		{"primary frozen, shortly", 2, func() { d.freezePrimary(d.some(900 * time.Millisecond)) }},
		{"all of Redis frozen, longer than anybody waits", 2, d.freezeAll},
		{"Redis out of memory", 1, d.outOfMemory},
		{"clocks of Redis set", 1, d.step},
		{"data lost (FLUSHALL)", 1, d.flush},
	}
	if topology == "standalone" {
		list = append(
			list,
			fault{"Redis frozen", 2, func() { d.freezePrimary(d.some(3 * time.Second)) }},
			fault{"Redis killed, restarted from its file", 4, d.restart},
		)
	} else {
		list = append(
			list,
			fault{"primary killed", 5, func() { d.killPrimary(0, nobody) }},
			fault{"primary killed, its replicas behind", 5, func() { d.killPrimary(d.lag(), nobody) }},
			fault{"primary killed, its replicas behind, some of the service away", 3, func() { d.killPrimary(d.lag(), someAway) }},
			fault{"primary and all replicas of the service killed", 3, func() { d.killPrimary(d.lag(), allKilled) }},
			fault{"primary frozen for a failover", 2, d.freezeForFailover},
			fault{"primary cut off with some of the service", 2, d.depose},
			fault{"failover by command", 2, d.failover},
		)
	}
	if topology == "cluster" {
		list = append(list, fault{"slot moved", 3, d.moveSlot})
	}
	if only != "" {
		list = slices.DeleteFunc(list, func(f fault) bool {
			return !slices.ContainsFunc(strings.Split(only, ","), func(word string) bool { return strings.Contains(f.name, word) })
		})
	}
	if len(list) == 0 {
		d.t.Fatalf("CHAOS_FAULTS: %q names none", only)
	}
	return list
}

// next makes one fault and lets things come to rest.
func (d *driver) next(faults []fault) {
	d.t.Helper()
	all := 0
	for _, f := range faults {
		all += f.weight
	}
	n := d.rng.IntN(all)
	for _, f := range faults {
		if n -= f.weight; n < 0 {
			d.counts[f.name]++
			if testing.Verbose() && os.Getenv("CHAOS_LOG") != "" {
				d.t.Logf("%v %s", d.now(), f.name)
			}
			from, before, losses := d.now(), d.store.failovers(), len(d.losses)
			f.make()
			d.store.heal()
			d.store.settle()
			if d.store.failovers() > before+1 || (d.store.failovers() > before && len(d.losses) == losses) {
				d.unclean(from) // one more than was meant, of a machine that is busy
			}
			break
		}
	}
	wait(time.Duration(100+d.rng.IntN(400)) * time.Millisecond)
}

// calm ends all faults, and waits until all replicas serve.
func (d *driver) calm() {
	d.t.Helper()
	d.store.heal()
	d.store.settle()
	for _, r := range d.fleet.Replicas {
		r.AwaitReady(d.t)
	}
}

func (d *driver) now() time.Duration { return d.load.history.Now() }

// one is a replica of the service.
func (d *driver) one() int { return d.rng.IntN(replicas) }

// some is from 0.1 s to most, short ones as likely as long ones.
func (d *driver) some(most time.Duration) time.Duration {
	const least = 100 * time.Millisecond
	for t := least; ; t *= 2 {
		if t*2 >= most || d.rng.IntN(2) == 0 {
			return t + time.Duration(d.rng.Int64N(int64(min(t, most-t)+1)))
		}
	}
}

// lag is how far Redis's replicas may fall behind: for longer than a logout takes, on a
// busy machine too, or none that was answered would be lost.
func (d *driver) lag() time.Duration {
	return time.Duration(20+d.rng.IntN(780)) * time.Millisecond
}

// back starts a replica that has ended, at its address.
func (d *driver) back(i int) {
	d.t.Helper()
	d.fleet.Start(d.t, i)
	d.own(i)
	d.fleet.Replicas[i].AwaitReady(d.t)
}

func (d *driver) frozen(i int, long time.Duration) {
	d.t.Helper()
	r := d.fleet.Replicas[i]
	r.Freeze(d.t)
	wait(long)
	r.Thaw(d.t)
}

func (d *driver) roll() {
	d.t.Helper()
	i := d.one()
	d.fleet.Replicas[i].Terminate(d.t)
	d.back(i)
}

// partition cuts a replica of the service off from all of Redis.
func (d *driver) partition(i int, long time.Duration) {
	for _, l := range d.store.links {
		l.Cut(Peer(i))
	}
	wait(long)
}

func (d *driver) slow() {
	i, by := d.one(), time.Duration(20+d.rng.IntN(300))*time.Millisecond
	for _, l := range d.store.links {
		l.Slow(Peer(i), by)
	}
	wait(d.some(3 * time.Second))
}

// primary is one that takes writes.
func (d *driver) primary() *redistest.Server {
	list := d.store.primaries()
	return list[d.rng.IntN(len(list))]
}

// freezePrimary freezes a primary for less time than its replicas wait, mostly.
func (d *driver) freezePrimary(long time.Duration) {
	d.t.Helper()
	p, from := d.primary(), d.now()
	before := d.store.primaries()
	p.Pause(d.t)
	wait(long)
	p.Resume(d.t)
	d.store.settle()
	if !slices.Equal(before, d.store.primaries()) {
		d.unclean(from)
	}
}

// freezeAll freezes all servers at once for longer than a replica of the service waits
// for them, and the Sentinels too, so that nobody takes the primary for dead.
func (d *driver) freezeAll() {
	d.t.Helper()
	before, from := d.store.primaries(), d.now()
	list := d.store.servers()
	for _, s := range list {
		s.Pause(d.t)
	}
	still := span{from: d.now()}
	wait(time.Second + time.Duration(d.rng.Int64N(int64(400*time.Millisecond))))
	still.to = d.now()
	for _, s := range list {
		s.Resume(d.t)
	}
	d.still = append(d.still, still)
	d.store.settle()
	if !slices.Equal(before, d.store.primaries()) {
		d.unclean(from)
	}
}

// company is what happens to the service while a primary dies.
type company int

const (
	nobody    company = iota
	someAway          // some replicas of it hear of nothing until the others have gone on for a while
	allKilled         // and so nobody heals what the failover loses
)

// killPrimary kills a primary whose replicas are behind by lag.
func (d *driver) killPrimary(lag time.Duration, with company) {
	d.t.Helper()
	p := d.primary()
	slot := d.store.slot(p)
	from := d.now()
	if lag > 0 {
		d.store.link(p).Slow(Node, lag)
		wait(max(lag, d.some(800*time.Millisecond)))
	}
	died := d.now()
	p.Kill(d.t)
	d.store.link(p).Drop()
	lost := d.lossy(min(from, died-unsure), d.now(), died)
	if with == allKilled {
		for _, r := range d.fleet.Replicas {
			r.Kill()
		}
	}
	d.store.heal()
	if with == someAway {
		for i := range 1 + d.rng.IntN(replicas-1) {
			for _, l := range d.store.links {
				l.Cut(Peer(i))
			}
		}
	}
	d.store.replaced(p, slot)
	back := d.now()
	p.Restart(d.t)
	if !d.durable {
		// It takes itself for the primary until it is told, and without min-replicas-to-write
		// takes what it is asked to write by those who have not been told either.
		told := make(chan time.Duration, 1)
		go func() {
			d.store.demoted(p)
			told <- d.now()
		}()
		defer func() {
			end := <-told
			d.lossy(back, end, end).healed = d.now() + healing
		}()
	}
	switch with {
	case allKilled:
		for i := range d.fleet.Replicas {
			d.fleet.Start(d.t, i)
			d.own(i)
		}
		d.store.settle() // which has a time of its own
		for _, r := range d.fleet.Replicas {
			r.AwaitReady(d.t)
		}
	case someAway:
		d.store.settle()
		lost.healed = d.now() + healing // by the others
		wait(d.some(3 * time.Second))
		d.store.heal()
	case nobody:
		d.store.settle()
		lost.healed = d.now() + healing
	}
	d.kills++
}

// freezeForFailover freezes a primary until another has taken its place. Then it
// wakes, and does not know yet.
func (d *driver) freezeForFailover() {
	d.t.Helper()
	p := d.primary()
	slot, from := d.store.slot(p), d.now()
	p.Pause(d.t)
	d.store.replaced(p, slot)
	p.Resume(d.t)
	d.store.settle()
	d.unclean(from)
	d.kills++
}

// depose cuts a primary off from all other servers, together with some replicas
// of the service, which go on with it.
func (d *driver) depose() {
	d.t.Helper()
	p := d.primary()
	slot, from := d.store.slot(p), d.now()
	with := map[Peer]bool{}
	for i := range replicas {
		with[Peer(i)] = d.rng.IntN(2) == 0
	}
	for _, l := range d.store.links {
		for i, together := range with {
			if (l == d.store.link(p)) != together {
				l.Cut(i)
			}
		}
	}
	d.store.link(p).Cut(Node)
	if d.store.cluster != nil {
		// Its bus has no link: the others take it for dead only when it is.
		wait(d.some(2 * time.Second))
	} else {
		d.store.replaced(p, slot)
		wait(d.some(time.Second))
		d.kills++
	}
	d.store.heal()
	d.store.settle()
	d.unclean(from)
}

func (d *driver) failover() {
	d.t.Helper()
	from := d.now()
	if c := d.store.cluster; c != nil {
		c.Failover(d.t, d.store.slotOf(d.rng.IntN(shards))) // loses nothing
		return
	}
	d.store.sentinel.Failover(d.t)
	d.store.settle()
	d.unclean(from)
}

func (d *driver) moveSlot() {
	d.t.Helper()
	slot := d.store.slotOf(d.rng.IntN(shards))
	d.store.cluster.MoveSlot(d.t, slot, d.primary())
}

func (d *driver) restart() {
	d.t.Helper()
	d.store.alone.Restart(d.t)
	d.kills++
}

func (d *driver) outOfMemory() {
	d.t.Helper()
	p := d.primary()
	d.store.configure(p, "maxmemory", "1")
	wait(d.some(2 * time.Second))
	d.store.configure(p, "maxmemory", "0")
}

// step sets the clocks of all Redis servers off, by another amount than before.
func (d *driver) step() {
	from := d.now()
	d.clock = time.Duration(d.rng.Int64N(int64(2*maxOffset))) - maxOffset
	d.store.setClock(d.clock)
	d.steps = append(d.steps, span{from, d.now() + noticing})
}

// flush loses everything, accounts too.
func (d *driver) flush() {
	d.t.Helper()
	from := d.now()
	d.store.flush()
	d.total = append(d.total, span{from, d.now()})
	wait(unsure) // the next fault should not lose the accounts
}

func (d *driver) lossy(from, to, died time.Duration) *loss {
	l := &loss{span: span{from, to}, died: died}
	d.losses = append(d.losses, l)
	return l
}

// unclean notes a failover whose old primary may have taken writes until now.
func (d *driver) unclean(from time.Duration) {
	d.lossy(from-unsure, d.now(), d.now()).healed = d.now() + healing
}

// causes tells the history what may have ended sessions besides logouts.
func (d *driver) causes() {
	for _, s := range d.load.logins {
		unsound := false // data may have been lost before the theft was shown: to a Redis that does not know the session it is none
		end := func(gone span, confirmed bool, cause string) {
			d.load.history.LoggedOut(Logout{Session: s.number, Asked: gone.from, AnsweredAt: gone.to, Confirmed: confirmed, Cause: cause})
			unsound = unsound || gone.from <= s.theft.to
		}
		for _, gone := range d.total {
			switch {
			case s.made.to < gone.from:
				end(span{gone.from, gone.to + forgetting}, true, "all data lost")
			case s.made.from <= gone.to:
				end(gone, false, "all data lost")
			}
		}
		for _, f := range d.losses {
			if slices.ContainsFunc(s.writes, f.overlaps) {
				end(f.span, false, "a failover that lost its last writes")
			}
		}
		if s.theft.to > 0 {
			end(s.theft, !unsound, theft)
		}
		if slices.ContainsFunc(s.unheard, func(a span) bool { return s.refused.to-a.from > grace-2*maxOffset && !d.tooLate(a) }) {
			end(span{s.refused.from, s.refused.from}, false, "an answer lost for longer than the grace")
		}
	}
}

// tooLate reports whether what was asked for then, and answered by a timeout, must have
// reached Redis when nobody waited for it any more, and so have changed nothing.
func (d *driver) tooLate(asked span) bool {
	return !slices.ContainsFunc(d.steps, asked.overlaps) &&
		slices.ContainsFunc(d.still, func(s span) bool { return s.from <= asked.from && asked.to+reckoning <= s.to })
}

// judge prints the table, and returns which promises were broken.
func (d *driver) judge() (broken []string) {
	d.t.Helper()
	d.causes()
	v := d.load.history.Judge()
	var b strings.Builder
	table := func(title string, counts map[string]int) {
		fmt.Fprintf(&b, "%s\n", title)
		for _, k := range slices.Sorted(maps.Keys(counts)) {
			fmt.Fprintf(&b, "  %-52.52s %8d\n", k, counts[k])
		}
	}
	table("faults", d.counts)
	table("operations", d.load.counts)
	lost, explained, stays := d.lost(v)
	fmt.Fprintf(&b, "%-54s %8d\n", "primaries killed or deposed", d.kills)
	fmt.Fprintf(&b, "%-54s %8d\n", "logouts acknowledged", v.Confirmed)
	fmt.Fprintf(&b, "%-54s %8d\n", "of these lost", len(lost))
	fmt.Fprintf(&b, "%-54s %8d\n", "acceptances after", v.Accepted)
	fmt.Fprintf(&b, "%-54s %8d\n", "false logouts", v.FalseLogouts)
	fmt.Fprintf(&b, "%-54s %8d\n", "sessions with an impossible history", len(v.Impossible))
	if len(explained) > 0 {
		fmt.Fprintf(&b, "lost by a failover: answered %v to %v before the primary died, median %v; accepted until %v after the answer at the latest\n",
			slices.Min(explained).Round(time.Millisecond), slices.Max(explained).Round(time.Millisecond),
			median(explained).Round(time.Millisecond), slices.Max(stays).Round(time.Millisecond))
	}
	d.t.Logf("%s\n%s\n%s", d.plan, &b, v)
	breaks := func(n int, promise string) {
		if n > 0 {
			broken = append(broken, fmt.Sprintf("%s: %d", promise, n))
		}
	}
	bad := v.Impossible
	if !d.durable && len(explained) == len(lost) {
		// What is lost so is what durable mode is for: measured, and no promise.
		bad = slices.DeleteFunc(slices.Clone(bad), func(s int) bool { return slices.Contains(lost, s) })
	}
	breaks(v.FalseLogouts, "refused without a cause")
	breaks(len(bad), "sessions with an impossible history")
	breaks(len(v.Forked), "generations with two successors")
	breaks(len(v.Undecided), "sessions that could not be judged")
	breaks(len(d.load.strange), "answers that are none")
	breaks(len(d.load.unwell), "users who could not log in and out within "+resting.String()+" though all was well")
	for _, what := range slices.Concat(d.load.strange, d.load.unwell) {
		d.t.Log(what)
	}
	if v.Confirmed == 0 {
		broken = append(broken, "no logout was acknowledged: nothing is shown")
	}
	for _, s := range bad[:min(3, len(bad))] {
		d.t.Log(d.load.history.Describe(s))
	}
	if len(broken) > 0 {
		for _, f := range d.losses {
			d.t.Logf("may have lost writes from %v to %v", f.from, f.to)
		}
	}
	return broken
}

// lost are the sessions whose logout was undone: how long before a primary's death
// it had been answered, for those that this explains, and until how long after the
// answer they were accepted.
func (d *driver) lost(v Verdict) (sessions []int, before, stays []time.Duration) {
	for _, l := range v.Lost {
		if l.Cause != "" {
			continue
		}
		sessions = append(sessions, l.Session)
		for _, f := range d.losses {
			if f.overlaps(span{l.Ended, l.Ended}) && (f.healed == 0 || l.Until < f.healed) {
				before, stays = append(before, f.died-l.Ended), append(stays, l.Until-l.Ended)
				break
			}
		}
	}
	return sessions, before, stays
}

func median(list []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[len(sorted)/2]
}
