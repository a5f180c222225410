package overload

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// The mix of a load, in tenths. A login costs a hundred times what the others
// cost, so logins set how much of the mix a replica can do.
const (
	verifies  = 7
	refreshes = 2
	logins    = 1
	tenths    = verifies + refreshes + logins
)

// TestOverload offers a replica ten times of a mix of requests that it can do. It
// must go on checking tokens, and refreshing, as if little had happened; it must
// not grow; and whatever it does not do it must say so, with when to come back.
// OVERLOAD_FOR makes it last longer and measures: for how long things take on a machine
// that other tests share, nobody can answer.
func TestOverload(t *testing.T) {
	length, strict := duration(t, "OVERLOAD_FOR", time.Second)
	b := bounds{factor: 5, floor: 8 * time.Millisecond, own: 2 * time.Millisecond, refreshed: .9, grown: .25, recovery: 2 * time.Second}
	alonefor, counting := max(length/4, 3*time.Second), 2*time.Second
	if !strict {
		alonefor, counting = 500*time.Millisecond, 500*time.Millisecond
	}
	server := redistest.Start(t)
	r := start(t, server.URL(), "LATCHKEY_VERIFY=follow")
	const sessions = 40
	o := &offer{t: t, client: newClient(t, r.Addr, 256), refreshed: make(chan session, sessions)}
	for range sessions {
		s := o.client.login(t)
		o.refreshed <- s
		o.access = append(o.access, s.Access)
	}

	capacity := o.capacity(counting)
	rate := 10 * capacity * tenths / logins
	t.Logf("capacity: %.0f logins a second, so %.0f of the mix; offered: %.0f a second for %v", capacity, rate/10, rate, length)
	before := readGauges(t, r)
	// As many checks as the overload has, and nothing else.
	probed := probe(t, r.Addr, get("/auth/verify", o.access[0]))
	alone := o.run(alonefor, rate*verifies/tenths, func(int) kind { return verify })
	probedAlone := probed()
	unloaded, quiet := alone[verify].quantile(.99), ownFigures(before, readGauges(t, r))
	t.Logf("checks alone: %s; %s", alone[verify], quiet)

	before = readGauges(t, r)
	watch := watchMemory(t, r)
	probed = probe(t, r.Addr, get("/auth/verify", o.access[0]))
	all := o.run(length, rate, mixed)
	probedBusy := probed()
	memory := watch()
	after := readGauges(t, r)
	for k, s := range all {
		t.Logf("%-8s %s", kind(k), s)
	}
	busy := ownFigures(before, after)
	t.Logf("now %s", busy)
	for _, class := range []string{"login", "password", "refresh", "session", "connection"} {
		name := `latchkey_shed_total{class="` + class + `"}`
		t.Logf("shed by %s: %.0f", class, after[name]-before[name])
	}
	t.Logf("resident memory: %s", memory)
	t.Logf("the load was behind its schedule by up to %v", o.late.Round(time.Millisecond))

	t.Logf("a client that waits for no CPU: p50 %v, p99 %v; alone: p50 %v, p99 %v",
		probedBusy.quantile(.5), probedBusy.quantile(.99), probedAlone.quantile(.5), probedAlone.quantile(.99))

	if strict {
		if p := all[verify].quantile(.99); p > max(time.Duration(b.factor*float64(unloaded)), b.floor) {
			t.Errorf("checks: p99 %v, alone %v", p, unloaded)
		}
		if busy.check > max(b.factor*quiet.check, b.own.Seconds()) {
			t.Errorf("by its own clock: %s; alone, %s", busy, quiet)
		}
		if s := all[verify]; s.done() < 1 {
			t.Errorf("checks were turned away: %s", s)
		}
		if s := all[refresh]; s.done() < b.refreshed {
			t.Errorf("refreshes were turned away: %s", s)
		}
		if grown := memory.grown(); grown > b.grown {
			t.Errorf("memory is not flat: %s", memory)
		}
	}
	for _, k := range []kind{verify, refresh} {
		if all[k].good.Load() == 0 {
			t.Errorf("%s: none was done", k)
		}
	}
	if all[login].good.Load() == 0 || all[login].shed.Load() == 0 {
		t.Errorf("logins: %s: that is no overload", all[login])
	}
	for k, s := range all {
		if n := s.strange.Load(); n > 0 {
			t.Errorf("%s: %d answers were neither right nor a 503 or 429 with Retry-After: %v", kind(k), n, s.last.Load())
		}
	}
	if strict {
		o.recovers(unloaded, b)
		return
	}
	stacktest.Eventually(t, "a login and a check are as before", func() bool {
		in, err := o.client.ask(loginRequest(crowd))
		check, checkErr := o.client.ask(get("/auth/verify", o.access[0]))
		return err == nil && checkErr == nil && in.status == 200 && check.status == 204
	})
}

// own are figures of the replica's own, in which its clients' share of the machine is
// not.
type own struct {
	check   float64 // p99 of the handler, seconds
	waits   histogram
	garbage float64
}

func ownFigures(before, after gauges) own {
	return own{newHistogram(before, after, checksKey).quantile(.99), newHistogram(before, after, waitsKey), collecting(before, after)}
}

func (o own) String() string {
	return fmt.Sprintf("the replica says: p99 of a check at most %v ms; before, what it had to do waited for a CPU for more than 1 ms in %.2f %%, than 10 ms in %.2f %% of the cases; %.0f %% of the CPUs for garbage",
		1000*o.check, 100*o.waits.above(.0009), 100*o.waits.above(.01), 100*o.garbage)
}

// bounds are what a replica under overload is held to.
type bounds struct {
	factor    float64       // of the unloaded p99 of checks
	floor     time.Duration // below which no p99 that clients see is too much
	own       time.Duration // below which no p99 by the replica's own clock is too much
	refreshed float64       // the least of the refreshes
	grown     float64       // memory
	recovery  time.Duration // until all is as before
}

// recovers fails the test if things are not as before in time.
func (o *offer) recovers(unloaded time.Duration, b bounds) {
	o.t.Helper()
	begun := time.Now()
	for {
		s := o.run(250*time.Millisecond, 300, func(int) kind { return verify })[verify]
		logged, err := o.client.ask(loginRequest(crowd))
		took := time.Since(begun)
		if err == nil && logged.status == 200 && s.quantile(.99) <= max(2*unloaded, b.floor) {
			o.t.Logf("as before after %v", took.Round(time.Millisecond))
			if took > b.recovery {
				o.t.Error("that is too long")
			}
			return
		}
		if took > 20*time.Second {
			o.t.Fatalf("after %v: checks %s, a login %d (%v)", took, s, logged.status, err)
		}
	}
}

// kind of request.
type kind int

const (
	verify kind = iota
	refresh
	login
	kinds
)

func (k kind) String() string { return [...]string{"verify", "refresh", "login"}[k] }

func mixed(i int) kind {
	switch n := i % tenths; {
	case n < verifies:
		return verify
	case n < verifies+refreshes:
		return refresh
	}
	return login
}

// seen is what became of the requests of one kind.
type seen struct {
	times // of those that were done
	good  atomic.Int64
	shed  atomic.Int64
	// strange are answers that are wrong, and those that did not come.
	strange atomic.Int64
	last    atomic.Value // the last of them, a string
	refused times
}

// done is the share of requests that were not turned away.
func (s *seen) done() float64 {
	good, shed := float64(s.good.Load()), float64(s.shed.Load())
	return good / max(good+shed, 1)
}

func (s *seen) String() string {
	return fmt.Sprintf("%d done: p50 %v, p99 %v; %d turned away: p99 %v", s.good.Load(),
		s.quantile(.5).Round(time.Microsecond), s.quantile(.99).Round(time.Microsecond), s.shed.Load(), s.refused.quantile(.99).Round(time.Microsecond))
}

// offer is clients that ask at a rate, whether they are answered or not.
type offer struct {
	t      *testing.T
	client *client
	access []string // tokens to be checked
	// refreshed are the sessions that nobody refreshes now: a client whose request is
	// under way does not send the same token again.
	refreshed chan session
	late      time.Duration // the most by which the load was behind its schedule
	turn      atomic.Int64
}

// run offers a load and returns when all of it is answered. Each request is timed
// from when there is a goroutine for it.
func (o *offer) run(length time.Duration, rate float64, next func(int) kind) [kinds]*seen {
	var all [kinds]*seen
	for k := range all {
		all[k] = &seen{}
	}
	var wg sync.WaitGroup
	begun := time.Now()
	o.late = 0
	for i := 0; ; {
		now := time.Since(begun)
		if now >= length {
			break
		}
		for due := int(rate * now.Seconds()); i < due; i++ {
			k := next(i)
			wg.Go(func() { o.one(k, all[k]) })
		}
		<-time.After(time.Millisecond) // the schedule's grain
		o.late = max(o.late, time.Since(begun)-now-time.Millisecond)
	}
	wg.Wait()
	return all
}

func (o *offer) one(k kind, s *seen) {
	request, wanted := loginRequest(crowd), 200
	var mine session
	switch k {
	case verify:
		request, wanted = get("/auth/verify", o.access[int(o.turn.Add(1))%len(o.access)]), 204
	case refresh:
		mine = <-o.refreshed
		request = mine.refresh()
	}
	begun := time.Now()
	a, err := o.client.ask(request)
	took := time.Since(begun)
	if k == refresh {
		if next, err := a.session(); err == nil {
			mine = next
		}
		o.refreshed <- mine
	}
	switch {
	case err == nil && a.status == wanted:
		s.good.Add(1)
		s.add(took)
	case err == nil && (a.status == 503 || a.status == 429) && a.retryAfter != "":
		s.shed.Add(1)
		s.refused.add(took)
	default:
		s.strange.Add(1)
		s.last.Store(fmt.Sprintf("%d %.200s %v", a.status, a.body, err))
	}
}

// capacity is how many logins a second a few clients get through that wait for
// each answer.
func (o *offer) capacity(length time.Duration) float64 {
	var wg sync.WaitGroup
	var done atomic.Int64
	ctx, cancel := context.WithTimeout(o.t.Context(), length)
	defer cancel()
	begun := time.Now()
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if a, err := o.client.ask(loginRequest(crowd)); err == nil && a.status == 200 {
					done.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return float64(done.Load()) / time.Since(begun).Seconds()
}

// memory is what a process held in RAM, in order of time.
type memory []int64

// watchMemory looks ten times a second until the function is called that it returns.
func watchMemory(t *testing.T, r *stacktest.Replica) func() memory {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	looked := make(chan memory, 1)
	go func() {
		var m memory
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			if n, err := resident(r); err == nil {
				m = append(m, n)
			}
			select {
			case <-ctx.Done():
				looked <- m
				return
			case <-tick.C:
			}
		}
	}()
	return func() memory {
		cancel()
		return <-looked
	}
}

// grown is by how much the most of the last half is above that of the first.
func (m memory) grown() float64 {
	half := len(m) / 2
	return float64(slices.Max(m[half:]))/float64(slices.Max(m[:half])) - 1
}

func (m memory) String() string {
	var b strings.Builder
	for i := range 8 { // the most in each eighth of the time
		part := m[i*len(m)/8 : max((i+1)*len(m)/8, i*len(m)/8+1)]
		fmt.Fprintf(&b, "%d ", slices.Max(part)>>20)
	}
	return b.String() + "MiB"
}
