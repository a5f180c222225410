package edge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// lookPage is how many entries one look brings at most.
const lookPage = 1024

// drift is by how much two monotonic clocks may differ in rate.
const drift = 0.01

// errHistory says that Redis no longer has the entry that was to be confirmed.
var errHistory = errors.New("a failover lost the revocation")

// Confirmer waits until a revocation is known everywhere: until each follower
// has applied its entry, or has been silent for so long that its lease is over.
// One poller serves all who wait, and looks at all their shards at once.
type Confirmer struct {
	store *tokenstore.Revocations
	// silent is after how long without a beat a follower's lease is over: S x (1 + drift).
	// Of a follower with a longer lease, see [waiting.silence].
	silent time.Duration
	clock  func() instant
	shards []*waiting
	beside *Follower // of this process; nil for none
	first  sync.Once // of the confirmations, without a follower
	pace   pace

	mu      sync.Mutex
	polling bool
	came    chan struct{} // tells the poller that somebody has begun to wait
}

// NewConfirmer returns a Confirmer for followers with a lease of S. All replicas should be
// given the same: where a follower has a longer lease, all logouts may wait for that.
func NewConfirmer(store *tokenstore.Revocations, lease time.Duration) *Confirmer {
	c := &Confirmer{store: store, silent: silence(lease), clock: systemClock(), came: make(chan struct{}, 1)}
	for i := range store.Shards() {
		c.shards = append(c.shards, newWaiting(i, c.silent, &c.pace))
	}
	return c
}

// Beside makes the Confirmer take note of the follower of the same process, nil
// for none, and returns it.
//
// A Redis that comes back empty has lost the table of followers too, and one that was
// promoted may lack the last of it, while the leases hold for a while yet. The follower
// tells: it must have heard for at least one lease from the primary that has the table,
// and for as long have followed the history that the revocation is of. That is why the
// first logouts of a process, and those after a failover, may take one lease. Without a
// follower, the Confirmer itself must have heard from that primary one lease ago: each
// shard's first logout may take one.
func (c *Confirmer) Beside(f *Follower) *Confirmer {
	c.beside = f
	if f != nil {
		for i, w := range c.shards {
			w.name, w.own = f.name, f.shards[i]
		}
	}
	return c
}

// silence is after how long without a beat a follower's lease is over, by the
// clock of the one who waits.
func silence(lease time.Duration) time.Duration {
	return time.Duration(float64(lease) * (1 + drift))
}

// Confirm returns nil once no replica accepts what was revoked. Where nobody follows but
// the follower of this process, it costs no round trip but in the first lease. Error:
// [ErrUnavailable], and then the revocation is to be asked for again: it may not be
// everywhere, or be lost.
func (c *Confirmer) Confirm(ctx context.Context, r tokenstore.Revocation) error {
	whole := c.believes(ctx, r)
	server, err := c.everywhere(ctx, r)
	if err != nil {
		return err
	}
	waited, err := c.await(ctx, 2*c.shards[r.Shard].silence(), func() bool { return whole(server) })
	if err != nil || !waited {
		return err
	}
	return c.still(ctx, r)
}

// believes returns what tells whether the table of followers that a server has is known
// to be whole.
func (c *Confirmer) believes(ctx context.Context, r tokenstore.Revocation) func(tokenstore.Server) bool {
	if f := c.beside; f != nil {
		s, after := f.shards[r.Shard], f.clock().mono
		return func(server tokenstore.Server) bool {
			now, silent := f.clock(), max(c.shards[r.Shard].silence(), f.silence())
			return s.tenure.lasts(server, now, silent) && s.trusts(r.Mark, after, now.mono, silent)
		}
	}
	c.first.Do(func() { c.acquaint(ctx) })
	w := c.shards[r.Shard]
	return func(server tokenstore.Server) bool { return w.tenure.lasts(server, c.clock(), w.silence()) }
}

// acquaint hears from all shards, so that who ends sessions in several waits one
// lease for all of them. A shard that does not answer is heard with its revocation.
func (c *Confirmer) acquaint(ctx context.Context) {
	asks := make([]tokenstore.Renewal, len(c.shards))
	for i := range asks {
		asks[i] = tokenstore.Renewal{Shard: i, After: tokenstore.NoEntries}
	}
	ctx, cancel := context.WithTimeout(ctx, c.silent)
	defer cancel()
	views, err := c.store.Renew(ctx, asks)
	if err != nil {
		return
	}
	for i, v := range views {
		c.shards[i].tenure.heard(v.Server, c.clock())
	}
}

// await waits until the table of followers is known to be whole, and reports whether
// that took any time. It gives up after limit.
func (c *Confirmer) await(ctx context.Context, limit time.Duration, whole func() bool) (waited bool, err error) {
	const first, most = 200 * time.Microsecond, 10 * time.Millisecond
	until := c.clock().mono + limit
	for wait := first; !whole(); wait = min(2*wait, most) {
		if c.clock().mono >= until {
			return true, fmt.Errorf("%w: not confirmed: who has the table of followers was not heard from for a lease", ErrUnavailable)
		}
		pause(ctx, wait)
		if ctx.Err() != nil {
			return true, fmt.Errorf("%w: confirm: %w", ErrUnavailable, ctx.Err())
		}
		waited = true
	}
	return waited, nil
}

// still looks whether Redis has a revocation yet: while it was waited for, a
// failover may have lost it.
func (c *Confirmer) still(ctx context.Context, r tokenstore.Revocation) error {
	views, err := c.look(ctx, []tokenstore.Look{{Shard: r.Shard, After: r.Mark.Seq}})
	if err != nil {
		return fmt.Errorf("%w: not confirmed: %w", ErrUnavailable, err)
	}
	if _, ok := trailOf(r.Mark, views[0]); !ok && !outlived(r.Mark, views[0]) {
		return fmt.Errorf("%w: %w", ErrUnavailable, errHistory)
	}
	return nil
}

// everywhere waits until every follower in the table has applied a revocation,
// or is silent. It returns who has that table.
func (c *Confirmer) everywhere(ctx context.Context, r tokenstore.Revocation) (tokenstore.Server, error) {
	w := c.shards[r.Shard]
	t := w.enter(r, c.clock())
	if t == nil {
		return r.Server, nil
	}
	c.poke()
	select {
	case err := <-t.done:
		return t.server, err
	case <-ctx.Done():
		w.leave(t)
		wake(c.came)
		return tokenstore.Server{}, fmt.Errorf("%w: confirm: %w", ErrUnavailable, ctx.Err())
	}
}

// poke has the poller take note of one who has begun to wait.
func (c *Confirmer) poke() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.polling {
		c.polling = true
		go c.poll()
		return
	}
	wake(c.came)
}

// rest ends the polling if nobody waits.
func (c *Confirmer) rest() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, c.polling = c.due()
	return !c.polling
}

// due returns when the next look is due, and whether anybody waits for one.
func (c *Confirmer) due() (at time.Duration, waited bool) {
	for _, w := range c.shards {
		if due, ok := w.due(); ok && (!waited || due < at) {
			at, waited = due, true
		}
	}
	return at, waited
}

// poll looks at the shards in which somebody waits, until nobody does. Nobody waits for
// longer than two leases.
func (c *Confirmer) poll() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	earliest := longAgo // of the next look
	for !c.rest() {
		due, _ := c.due()
		if wait := max(due, earliest) - c.clock().mono; wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-c.came: // the next look may be due earlier
			}
			continue
		}
		c.lookAtAll()
		earliest = c.clock().mono + c.pace.usual()/4
	}
}

// lookAtAll looks at all shards in which somebody waits, in one exchange, and answers those
// whose revocation is confirmed.
func (c *Confirmer) lookAtAll() {
	var looks []tokenstore.Look
	began := c.clock()
	for _, w := range c.shards {
		if seq, ok := w.ask(began); ok {
			looks = append(looks, tokenstore.Look{Shard: w.number, After: seq})
		}
	}
	if len(looks) == 0 { // they have gone away
		return
	}
	views, err := c.look(context.Background(), looks)
	for i, l := range looks {
		w := c.shards[l.Shard]
		if err != nil {
			w.expire(c.clock(), err)
			continue
		}
		for _, m := range w.settle(views[i], c.clock()) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_ = c.store.Strike(ctx, w.number, m) // it is a courtesy to the next who waits
			cancel()
		}
	}
}

// look reads the tables of some shards, their heads, and the entries after the seq that each
// look names.
func (c *Confirmer) look(ctx context.Context, looks []tokenstore.Look) ([]tokenstore.View, error) {
	ctx, cancel := context.WithTimeout(ctx, c.silent)
	defer cancel()
	views, err := c.store.Look(ctx, looks, lookPage)
	if err != nil {
		return nil, err
	}
	for i, l := range looks {
		if views[i], err = c.readOn(ctx, l, views[i]); err != nil {
			return nil, err
		}
	}
	return views, nil
}

// readOn looks again until the view has all entries up to its head.
func (c *Confirmer) readOn(ctx context.Context, l tokenstore.Look, v tokenstore.View) (tokenstore.View, error) {
	all := v.Entries
	for n := len(all); n > 0 && all[n-1].Seq < v.Head.Seq; n = len(all) {
		l.After = all[n-1].Seq
		views, err := c.store.Look(ctx, []tokenstore.Look{l}, lookPage)
		if err != nil {
			return tokenstore.View{}, err
		}
		v = views[0]
		if len(v.Entries) == 0 || v.Entries[0].Seq != l.After+1 {
			return tokenstore.View{}, errors.New("the log was trimmed while it was read")
		}
		all = append(all, v.Entries...)
	}
	v.Entries = all
	return v, nil
}

// pace is how long followers usually take to acknowledge. Its zero value is ready.
type pace struct{ nanoseconds atomic.Int64 }

const (
	paceFirst = time.Millisecond
	paceLeast = 200 * time.Microsecond
	// pollMost is the longest time between two looks.
	pollMost = 10 * time.Millisecond
)

// usual is after how long a first look finds most revocations acknowledged by all.
func (p *pace) usual() time.Duration {
	return cmp.Or(time.Duration(p.nanoseconds.Load()), paceFirst)
}

// took takes note of what the first look that was due for a revocation has found. Four of
// five find it acknowledged when it neither rises nor falls.
func (p *pace) took(found bool) {
	u := p.usual()
	if found {
		u -= u / 64
	} else {
		u += u / 16
	}
	p.nanoseconds.Store(int64(min(max(u, paceLeast), pollMost)))
}

// waiting are those who wait for one shard. It does no I/O.
type waiting struct {
	number int
	tenure tenure // of who answers this Confirmer

	mu      sync.Mutex
	silent  time.Duration       // see silence
	seen    map[string]sighting // by member
	tickets []*ticket
	pace    *pace

	// The follower of this process and its name; nil for none. What it has applied need not
	// be read in the table.
	own  *shard
	name string
}

// sighting is the line that a member was last seen with, and since when.
type sighting struct {
	beat  uint64
	mark  tokenstore.Mark
	since time.Duration // by the waiter's monotonic clock, when it was first seen
}

// ticket is one revocation to be confirmed.
type ticket struct {
	mark  tokenstore.Mark
	since time.Duration // it is given up two of the longest leases later
	due   time.Duration // when the next look is due for it
	looks int           // that were had when they were due
	pause time.Duration // between two of them
	paced bool          // the first of them was taken note of
	asked bool          // a look was begun after it came
	done  chan error
	// server has the table by which it was confirmed, once it is.
	server tokenstore.Server
}

func newWaiting(number int, silent time.Duration, p *pace) *waiting {
	return &waiting{number: number, silent: silent, seen: map[string]sighting{}, pace: p}
}

// silence is after how long without a beat every follower's lease is over: of those that
// were ever seen, the one with the longest lease counts.
func (w *waiting) silence() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.silent
}

// enter takes up a revocation; nil if it is confirmed already: if nobody follows, or nobody
// but the follower of this process, and that has applied it.
func (w *waiting) enter(r tokenstore.Revocation, now instant) *ticket {
	w.tenure.heard(r.Server, now)
	w.mu.Lock()
	defer w.mu.Unlock()
	t := &ticket{mark: r.Mark, since: now.mono, due: now.mono + w.pace.usual(), done: make(chan error, 1)}
	if r.Followers <= 1 {
		w.sight(r.Members, now)
		// At the moment of the revocation the trail is its own entry alone.
		if confirmed, _ := w.confirmed(t, r.Members, map[uint64]string{r.Mark.Seq: r.Mark.Chain}, now); confirmed {
			return nil
		}
	}
	w.tickets = append(w.tickets, t)
	return t
}

// leave gives a ticket back.
func (w *waiting) leave(t *ticket) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keep(func(other *ticket) bool { return other != t })
}

// due returns when the next look is due; false if nobody waits.
func (w *waiting) due() (at time.Duration, waited bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.tickets {
		if !waited || t.due < at {
			at, waited = t.due, true
		}
	}
	return at, waited
}

// ask notes that a look is about to be had for all who wait now, and returns the seq of the
// first entry that one of them waits for; false if nobody waits. Who comes later needs a
// later look: the table must be read after the revocation was made.
func (w *waiting) ask(now instant) (seq uint64, waited bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.tickets {
		t.asked = true
		if seq == 0 || t.mark.Seq < seq {
			seq = t.mark.Seq
		}
		if now.mono >= t.due {
			t.looks++
			t.pause = min(max(2*t.pause, w.pace.usual()/4), pollMost)
			t.due = now.mono + t.pause
		}
	}
	return seq, seq > 0
}

// sight notes which beats are new. A member that is gone is forgotten.
func (w *waiting) sight(members []tokenstore.Member, now instant) {
	seen := make(map[string]sighting, len(members))
	for _, m := range members {
		s, ok := w.seen[m.Name]
		if !ok || s.beat != m.Beat || s.mark != m.Mark {
			s = sighting{beat: m.Beat, mark: m.Mark, since: now.mono}
		}
		seen[m.Name] = s
		w.silent = max(w.silent, silence(leaseOf(m.Name)))
	}
	w.seen = seen
}

// settle answers those whose revocation is confirmed by a look that was had
// after it, or has been lost, or has waited too long. It returns the members that are dead.
func (w *waiting) settle(v tokenstore.View, now instant) (strikes []tokenstore.Member) {
	w.tenure.heard(v.Server, now)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sight(v.Members, now)
	dead := map[string]bool{}
	w.keep(func(t *ticket) bool {
		if !t.asked {
			return true
		}
		t.server = v.Server
		if outlived(t.mark, v) {
			t.done <- nil
			return false
		}
		trail, ok := trailOf(t.mark, v)
		if !ok {
			t.done <- fmt.Errorf("%w: %w", ErrUnavailable, errHistory)
			return false
		}
		confirmed, silent := w.confirmed(t, v.Members, trail, now)
		if !t.paced && (confirmed || t.looks > 0) {
			t.paced = true
			w.pace.took(confirmed)
		}
		for _, m := range silent {
			if !dead[m.Name] {
				dead[m.Name] = true
				strikes = append(strikes, m)
			}
		}
		if confirmed {
			t.done <- nil
			return false
		}
		return !w.overdue(t, now, errors.New("a follower neither applies it nor falls silent"))
	})
	return strikes
}

// expire gives up those who have waited too long while Redis did not answer.
func (w *waiting) expire(now instant, why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keep(func(t *ticket) bool { return !w.overdue(t, now, why) })
}

func (w *waiting) overdue(t *ticket, now instant, why error) bool {
	if now.mono < t.since+2*w.silent {
		return false
	}
	t.done <- fmt.Errorf("%w: not confirmed: %w", ErrUnavailable, why)
	return true
}

func (w *waiting) keep(stays func(*ticket) bool) {
	kept := w.tickets[:0]
	for _, t := range w.tickets {
		if stays(t) {
			kept = append(kept, t)
		}
	}
	clear(w.tickets[len(kept):])
	w.tickets = kept
}

// confirmed reports whether every member has applied the entry, or is silent;
// and which are silent. A member has applied it if its mark is on the trail that
// leads from the entry to the head: a mark of another history, which a failover
// replaced, says nothing.
func (w *waiting) confirmed(t *ticket, members []tokenstore.Member, trail map[uint64]string, now instant) (bool, []tokenstore.Member) {
	all := true
	var silent []tokenstore.Member
	for _, m := range members {
		if onTrail(m.Mark, t.mark, trail) || onTrail(m.Acked, t.mark, trail) || (w.own != nil && m.Name == w.name && w.own.passed(t.mark)) {
			continue
		}
		if now.mono-w.seen[m.Name].since >= w.silent {
			silent = append(silent, m)
			continue
		}
		all = false
	}
	return all, silent
}

// onTrail reports whether a mark is on the trail that begins at from.
func onTrail(m, from tokenstore.Mark, trail map[uint64]string) bool {
	return m.Seq >= from.Seq && m.Chain != "" && trail[m.Seq] == m.Chain
}

// outlived reports whether what follows an entry has been trimmed from the log
// already: it is then older than every token that it names. Nobody has to know
// it any more. It cannot be one that a failover has lost: the history that has
// replaced it would be as old.
func outlived(from tokenstore.Mark, v tokenstore.View) bool {
	if len(v.Entries) == 0 {
		return v.Head.Seq > from.Seq
	}
	return v.Entries[0].Seq > from.Seq+1
}

// trailOf returns the chain at each seq from an entry to the head, or false if
// the entry is not in the head's history.
func trailOf(from tokenstore.Mark, v tokenstore.View) (map[uint64]string, bool) {
	at := from
	trail := map[uint64]string{at.Seq: at.Chain}
	for _, e := range v.Entries {
		if e.Seq <= at.Seq {
			continue
		}
		if e.Seq != at.Seq+1 {
			return nil, false
		}
		at = at.After(e)
		trail[at.Seq] = at.Chain
	}
	return trail, at.Seq == v.Head.Seq && at.Chain == v.Head.Chain
}
