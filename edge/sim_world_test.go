package edge

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// The simulation runs the protocol's own code, shard and waiting, which do no
// I/O, against a model of Redis, in virtual time and in one goroutine: one seed
// is one schedule. Redis may freeze, lose what its replica did not have yet, or
// lose everything; replicas of the service may pause, be suspended, crash and
// join; messages may be lost, late, out of order and doubled.

const (
	simLease   = time.Second
	simTimeout = 750 * time.Millisecond
	// simPad is longer than a reply can be under way, as the real one is.
	simPad = 900 * time.Millisecond
)

// faults are guards of the protocol that a schedule runs without, to show that
// the simulation would notice. The zero value is the protocol.
type faults struct {
	skipWait          bool          // a logout is answered without waiting for anybody
	ignoreLease       bool          // tokens are accepted after the lease too
	leaseFromReply    bool          // the lease counts from when its reply came
	ignoreWall        bool          // the lease ends by the monotonic clock alone
	acknowledgeHead   bool          // a renewal shows the head before it was read
	skipChain         bool          // seq alone names a history
	forgetAtGap       bool          // what was known is dropped when the history changed
	skipRestore       bool          // what Redis has lost is not put back
	silence           time.Duration // after which a follower is dead; 0 is the right one
	dropEarly         bool          // generations are turned too early
	acceptWhenFull    bool          // the lease goes on though a revocation did not fit
	earlyLook         bool          // a table read before the revocation counts
	believeTable      bool          // a table that Redis may have lost is believed
	anyServer         bool          // a table counts whoever has it
	strictBelieves    bool          // the same, without a follower
	neverStrike       bool          // the dead stay in the table
	strictWhenDurable bool          // one primary's word counts though WAIT is required
	waitForNone       bool          // WAIT is not waited for
	beatsFall         bool          // an older beat may replace a newer one
	wholeLog          bool          // a follower asks for all of the log in one answer
	staleReads        bool          // a read of the log that was begun before a boot counts
	ackHead           bool          // an acknowledgement names the head before it was read
	outOfOrder        bool          // an entry is applied before those that it follows
	alone             bool          // a process takes itself for the only one that follows
	serverFromMemory  bool          // who has the table is not asked with the revocation
}

// plan is what a schedule is made of.
type plan struct {
	replicas, users, sessions, logouts           int
	wait                                         bool // WAIT for the replica
	nameless                                     bool // Redis does not tell who it is
	strict                                       int  // replicas without a follower
	commands                                     int  // processes without one that end after a logout
	page, limit                                  int
	access                                       [2]time.Duration
	active                                       time.Duration
	loss, slow, repeat                           float64
	pauses, suspensions, crashes, joins, freezes int
	partitions                                   int
	failovers                                    int
	lossy, total, deposed                        bool
	lag                                          time.Duration
	stream                                       bool // of revocations while it heals
	backlog                                      int  // revocations in the log before anybody reads it
	large                                        int  // an answer with more entries than this never arrives in time
}

func newPlan(rng *rand.Rand) plan {
	pick := func(n int) bool { return rng.IntN(n) == 0 }
	p := plan{
		replicas: 3, users: 2, sessions: 4 + rng.IntN(3), logouts: 2 + rng.IntN(4),
		wait: pick(4), page: 100, limit: 1000, access: [2]time.Duration{time.Minute, time.Minute},
		active: time.Duration(800+rng.IntN(1200)) * time.Millisecond,
		loss:   []float64{0, 0, 0.03, 0.12}[rng.IntN(4)], slow: []float64{0, 0.03, 0.15}[rng.IntN(3)],
		repeat: []float64{0, 0, 0.1}[rng.IntN(3)],
		lag:    []time.Duration{time.Millisecond, 20 * time.Millisecond, 300 * time.Millisecond}[rng.IntN(3)],
		stream: pick(8),
	}
	if pick(5) {
		p.replicas = 4 + rng.IntN(2)
	} else if pick(8) {
		p.replicas = 1
	}
	if pick(2) {
		p.pauses = 1 + rng.IntN(3)
	}
	if pick(4) {
		p.suspensions = 1
	}
	if pick(3) {
		p.crashes = 1 + rng.IntN(2)
	}
	if pick(3) {
		p.joins = 1 + rng.IntN(2)
	}
	if pick(4) {
		p.freezes = 1
	}
	if pick(4) {
		p.partitions = 1 + rng.IntN(2)
	}
	if pick(2) {
		p.failovers = 1
		p.lossy = !pick(4)
		p.total = pick(10)
		if p.deposed = p.wait && pick(2); p.deposed {
			p.active += simLease
		}
		if pick(4) {
			p.failovers = 2
		}
	}
	p.nameless = pick(8)
	if pick(3) {
		p.strict, p.commands = rng.IntN(2), rng.IntN(3)
	}
	if pick(3) {
		p.page = 1 + rng.IntN(4)
	}
	p.large = p.page
	if pick(8) {
		p.limit = 1 + rng.IntN(4)
	} else if pick(4) {
		p.page = 4 + rng.IntN(12)
		p.large = p.page
		p.backlog = p.page * (1 + rng.IntN(8))
	}
	if pick(8) {
		// Lifetimes so short that the generations of the denylist turn.
		for i := range p.access {
			p.access[i] = time.Duration(500+rng.IntN(1500)) * time.Millisecond
		}
		p.active += time.Duration(2000+rng.IntN(3000)) * time.Millisecond
	}
	return p
}

// While all is well, the leases have to be back after healBy. Then a logout is
// asked for; if somebody has died, or a history has just begun, it has to wait for
// firstProbe at most. It strikes the dead, and the next one may not be delayed.
const (
	healBy      = 1200 * time.Millisecond
	firstProbe  = simLease*102/100 + 150*time.Millisecond
	secondProbe = simLease/3 + 260*time.Millisecond // some tails may still hang
)

// token is one access token and what became of it.
type token struct {
	ids      tokenstore.AccessToken
	name     string
	issued   time.Duration
	touched  bool          // somebody has asked for its revocation
	revoked  bool          // a confirmed revocation was answered
	answered time.Duration // when
	// lostUntil is until when its revocation may be unknown to those who never
	// had it: a failover has lost it.
	lostUntil time.Duration
	keepers   []*replica // those who knew it when it was lost
	lostAt    time.Duration
}

// fact is an entry and the history that it was made in: users' epochs count from
// the start again in each.
type fact struct {
	tokenstore.Entry
	history string
}

func (t *token) revokedBy(f fact) bool {
	switch f.Kind {
	case tokenstore.KindSession:
		return t.ids.SID == f.ID
	default:
		return t.ids.LogEpoch == f.history && t.ids.UID == f.ID && t.ids.UserEpoch < f.Epoch && t.ids.SID != f.Except
	}
}

// happening is something that happens at a moment of true time.
type happening struct {
	at    time.Duration
	order uint64
	run   func()
}

// tally counts what schedules have had.
type tally struct {
	schedules, events, answers, refusedAnswers, accepts, refusals, unknowns uint64
	unhealed, lostLeases                                                    uint64 // accepted, and why that is right
	failovers, gaps, restores                                               uint64
}

func (a *tally) add(b tally) {
	a.schedules += b.schedules
	a.events += b.events
	a.answers += b.answers
	a.refusedAnswers += b.refusedAnswers
	a.accepts += b.accepts
	a.refusals += b.refusals
	a.unknowns += b.unknowns
	a.unhealed += b.unhealed
	a.lostLeases += b.lostLeases
	a.failovers += b.failovers
	a.gaps += b.gaps
	a.restores += b.restores
}

// world is one schedule.
type world struct {
	plan     plan
	faults   faults
	rng      *rand.Rand
	now      time.Duration
	queue    []happening // a heap
	order    uint64
	primary  *server
	replicas []*replica // that are alive or were
	tokens   []*token
	sids     uint64
	nonces   uint64
	epochs   int
	servers  int
	end      time.Duration
	healthy  bool // nothing more goes wrong
	lossyYet bool
	origins  map[tokenstore.Mark]origin
	found    string // the violation
	tracing  bool
	trace    []string
	tally    tally
}

// origin is how a mark came to be.
type origin struct {
	before tokenstore.Mark
	kind   tokenstore.Kind
	id     tokenstore.ID
	epoch  uint64
	except tokenstore.ID
	until  int64
}

func newWorld(seed uint64, f faults, adjust func(*plan), tracing bool) *world {
	rng := rand.New(rand.NewPCG(seed, 0x1a7c4)) //nolint:gosec // a schedule has to replay
	p := newPlan(rng)
	if adjust != nil {
		adjust(&p)
	}
	w := &world{plan: p, faults: f, rng: rng, tracing: tracing, origins: map[tokenstore.Mark]origin{}, queue: make([]happening, 0, 128)}
	w.tally.schedules = 1
	return w
}

func (w *world) logf(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%9.4fs  ", w.now.Seconds())+fmt.Sprintf(format, args...))
}

// fail notes the first violation; it ends the schedule.
func (w *world) fail(format string, args ...any) {
	if w.found == "" {
		w.found = fmt.Sprintf(format, args...)
		if w.tracing {
			w.logf("VIOLATION: %s", w.found)
		}
	}
}

func (w *world) after(d time.Duration, run func()) {
	w.order++
	w.queue = append(w.queue, happening{w.now + max(0, d), w.order, run})
	for i := len(w.queue) - 1; i > 0; {
		up := (i - 1) / 2
		if !w.queue[i].before(w.queue[up]) {
			break
		}
		w.queue[i], w.queue[up] = w.queue[up], w.queue[i]
		i = up
	}
}

func (e happening) before(other happening) bool {
	return e.at < other.at || (e.at == other.at && e.order < other.order)
}

func (w *world) next() happening {
	q := w.queue
	first, last := q[0], len(q)-1
	q[0], q[last] = q[last], happening{}
	q = q[:last]
	for i := 0; ; {
		down := 2*i + 1
		if down >= last {
			break
		}
		if down+1 < last && q[down+1].before(q[down]) {
			down++
		}
		if !q[down].before(q[i]) {
			break
		}
		q[i], q[down] = q[down], q[i]
		i = down
	}
	w.queue = q
	return first
}

// between returns a duration in [from, to).
func (w *world) between(from, to time.Duration) time.Duration {
	return from + time.Duration(w.rng.Int64N(int64(to-from)))
}

func (w *world) chance(p float64) bool { return p > 0 && w.rng.Float64() < p }

// delay is how long a message is under way.
func (w *world) delay() time.Duration {
	if !w.healthy && w.chance(w.plan.slow) {
		return w.between(5*time.Millisecond, 900*time.Millisecond)
	}
	return w.between(50*time.Microsecond, 2*time.Millisecond)
}

func (w *world) dropped() bool { return !w.healthy && w.chance(w.plan.loss) }

func (w *world) replicationLag() time.Duration {
	if w.healthy {
		return w.between(0, time.Millisecond)
	}
	return w.between(0, w.plan.lag)
}

// run plays the schedule and returns the violation that it found, if any.
func (w *world) run() string {
	w.primary = w.newServer()
	w.primary.attach()
	for range w.plan.backlog {
		w.primary.revoke(w.newSID(), w.plan.access[0], "")
	}
	for range w.plan.replicas {
		w.join()
	}
	for range w.plan.strict {
		w.start(true)
	}
	for range w.plan.sessions {
		w.login()
	}
	w.misfortunes()
	w.end = w.plan.active + healBy + time.Second
	w.after(w.plan.active, w.heal)
	for len(w.queue) > 0 && w.found == "" {
		e := w.next()
		if e.at > w.end {
			break
		}
		w.now = e.at
		w.tally.events++
		e.run()
	}
	if w.found == "" {
		w.healed()
	}
	return w.found
}

func (w *world) newServer() *server {
	w.servers++
	s := &server{w: w, name: fmt.Sprintf("redis%d", w.servers), space: newKeyspace()}
	if w.servers > 1 {
		s.skew = w.between(-simPad/20, simPad/20)
	}
	return s
}

// sometime calls do n times while things go wrong.
func (w *world) sometime(n int, do func()) {
	for range n {
		w.after(w.between(0, w.plan.active), do)
	}
}

// misfortunes are what will happen, and the clients.
func (w *world) misfortunes() {
	p := w.plan
	w.sometime(p.pauses, func() { w.pause(false) })
	w.sometime(p.suspensions, func() { w.pause(true) })
	w.sometime(p.crashes, w.crash)
	w.sometime(p.partitions, w.cutOff)
	w.sometime(p.joins, func() { w.join() })
	w.sometime(p.freezes, w.freeze)
	w.sometime(p.failovers, w.failover)
	w.sometime(p.logouts, w.logout)
	w.sometime(p.commands, w.command)
	w.sometime(2, w.login)
	w.sometime(2, w.refresh)
	w.sometime(6, func() { w.check(w.anyToken()) })
}

// heal ends the misfortunes: what follows is the bounded time in which all has
// to be well again.
func (w *world) heal() {
	if w.tracing {
		w.logf("from here on all is well")
	}
	w.healthy = true
	if w.primary.frozen {
		w.primary.thaw()
	}
	w.primary.attach()
	for _, r := range w.replicas {
		r.at, r.cutOff = w.primary, false
		if r.stopped {
			r.wake()
		}
	}
	if w.plan.stream {
		for i := range 20 {
			w.after(healBy-time.Duration(i)*15*time.Millisecond, w.logout)
		}
	}
	w.after(healBy, func() {
		w.leased("in time")
		w.end = w.now + secondProbe + time.Millisecond
		if w.settledLong() {
			w.probe(secondProbe)
			return
		}
		w.end += firstProbe
		w.probe(firstProbe)
		w.after(firstProbe, func() { w.probe(secondProbe) })
	})
}

// settledLong reports whether nobody is dead, and every replica has followed its
// history for long enough to confirm at once.
func (w *world) settledLong() bool {
	for _, r := range w.replicas {
		if !r.command && (r.dead || (!r.strict && !r.shard.vouches(r.clock(), silence(simLease)))) {
			return false
		}
	}
	return true
}

// leased is I4: every live follower has a lease, unless it says itself that
// there are revocations that did not fit.
func (w *world) leased(when string) {
	for _, r := range w.replicas {
		if r.dead || r.strict {
			continue
		}
		now := r.clock()
		if end := r.shard.granted.Load(); (end == nil || !now.before(*end)) && r.shard.deny.complete(now.mono-simLease) {
			w.fail("I4: %s has no lease %s", r.name, when)
		}
	}
}

// probe asks for a logout that has to be confirmed within a bound.
func (w *world) probe(bound time.Duration) {
	r := w.anyReplica()
	if r.strict { // it may never have heard from this primary
		bound = firstProbe
		w.end = max(w.end, w.now+bound+time.Millisecond)
	}
	t := w.primary.login(w.newSID(), simUID(0), w.plan.access[0])
	t.name, t.issued = "probe", w.now
	w.tokens = append(w.tokens, t)
	started := w.now
	answered := false
	r.logout(&request{session: t.ids.SID, done: func(ok bool) {
		answered = ok
		if ok && w.now-started > bound {
			w.fail("a logout took %v, and may take %v", w.now-started, bound)
		}
	}})
	w.after(bound, func() {
		if !answered {
			w.fail("a logout is not confirmed after %v", bound)
		}
	})
}

// healed is what holds at the end.
func (w *world) healed() {
	w.leased("at the end")
	for _, r := range w.replicas {
		for _, c := range r.confirming {
			if !r.dead && r.clock().mono > c.ticket.since+2*r.waiting.silent+simLease {
				w.fail("a logout at %s is waiting for ever", r.name)
			}
		}
	}
	for _, t := range w.tokens {
		alive := slices.IndexFunc(t.keepers, func(r *replica) bool { return !r.dead })
		if alive < 0 || w.now-t.lostAt < healBy {
			continue
		}
		if w.primary.verify(t) == 0 {
			w.fail("I8: the revocation of %s was lost in a failover, %s knew it, and Redis accepts it", t.name, t.keepers[alive].name)
		}
	}
}

func simUID(n int) tokenstore.ID { return tokenstore.ID{0, 'u', byte(n)} }

func (w *world) newSID() tokenstore.ID {
	w.sids++
	return tokenstore.ID{0, 's', byte(w.sids >> 8), byte(w.sids)}
}

func (w *world) login() {
	if w.primary.dead || w.primary.frozen {
		return
	}
	t := w.primary.login(w.newSID(), simUID(w.rng.IntN(w.plan.users)), w.plan.access[w.rng.IntN(2)])
	w.issued(t)
}

func (w *world) refresh() {
	old := w.anyToken()
	if w.primary.dead || w.primary.frozen {
		return
	}
	if t := w.primary.rotate(old.ids.SID, w.plan.access[w.rng.IntN(2)]); t != nil {
		// The login's revocation is this token's too.
		t.touched, t.revoked, t.answered, t.lostUntil, t.keepers = old.touched, old.revoked && t.ids.UserEpoch <= old.ids.UserEpoch,
			old.answered, old.lostUntil, old.keepers
		w.issued(t)
	}
}

func (w *world) issued(t *token) {
	t.name = fmt.Sprintf("token%d(sid %d, user %d, epoch %d)", len(w.tokens), t.ids.SID[3], t.ids.UID[2], t.ids.UserEpoch)
	t.issued = w.now
	w.tokens = append(w.tokens, t)
	if w.tracing {
		w.logf("issued %s in %s until %v", t.name, t.ids.LogEpoch, t.ids.Expires.UnixMilli()-simEpoch)
	}
	// Shortly before it expires its denial is needed most.
	left := time.Duration(t.ids.Expires.UnixMilli()-simEpoch)*time.Millisecond - w.now
	for i := 0; i < 3 && w.now+left < w.end; i++ {
		w.after(left-w.between(time.Millisecond, 300*time.Millisecond), func() { w.check(t) })
	}
}

func (w *world) anyToken() *token { return w.tokens[w.rng.IntN(len(w.tokens))] }

// anyReplica returns a live one.
func (w *world) anyReplica() *replica {
	for {
		if r := w.replicas[w.rng.IntN(len(w.replicas))]; !r.dead && !r.command {
			return r
		}
	}
}

// check shows a token to some replica.
func (w *world) check(t *token) {
	r := w.anyReplica()
	r.deliver(func() { r.verify(t) })
}

// request is a client's wish to end a session, or all of a user's but one.
type request struct {
	session tokenstore.ID
	user    tokenstore.ID
	except  tokenstore.ID
	epoch   uint64 // that it came to
	history string // in which
	made    time.Duration
	mark    tokenstore.Mark
	after   time.Duration // it was made before this, by the clock of who confirms it
	tries   int
	done    func(bool)
}

func (q *request) String() string {
	if q.session != (tokenstore.ID{}) {
		return fmt.Sprintf("logout of sid %d", q.session[3])
	}
	return fmt.Sprintf("logout of user %d but sid %d", q.user[2], q.except[3])
}

// fact is what the request revokes, once it is known.
func (q *request) fact() fact {
	if q.session != (tokenstore.ID{}) {
		return fact{tokenstore.Entry{Kind: tokenstore.KindSession, ID: q.session}, q.history}
	}
	return fact{tokenstore.Entry{Kind: tokenstore.KindUser, ID: q.user, Epoch: q.epoch, Except: q.except}, q.history}
}

// logout asks some replica for one.
func (w *world) logout() {
	t := w.anyToken()
	q := &request{session: t.ids.SID}
	if w.chance(0.25) {
		q = &request{user: t.ids.UID}
		if w.chance(0.6) {
			q.except = t.ids.SID
		}
	}
	w.ask(q)
}

// command is an operator's, in a process of its own.
func (w *world) command() {
	t := w.anyToken()
	r := w.start(true)
	r.command = true
	r.logout(&request{session: t.ids.SID, done: func(bool) { r.dead = true }})
}

func (w *world) ask(q *request) {
	q.tries++
	r := w.anyReplica()
	q.done = func(ok bool) {
		if !ok && q.tries < 3 && w.chance(0.7) {
			w.after(w.between(time.Millisecond, 50*time.Millisecond), func() { w.ask(q) })
		}
	}
	r.deliver(func() { r.logout(q) })
}

// answered is the moment of a 200: from here on I1 holds for what it names.
func (w *world) answered(q *request) {
	w.tally.answers++
	if w.tracing {
		w.logf("200 to the %v", q)
	}
	f := q.fact()
	for _, t := range w.tokens {
		if !t.revokedBy(f) || (f.Kind == tokenstore.KindUser && t.issued > q.made) {
			continue
		}
		if !t.revoked {
			t.revoked, t.answered = true, w.now
		}
		if w.primary.space.has(q.mark) {
			t.lostUntil = 0
		}
		for range 4 {
			d := time.Duration(0)
			if w.rng.IntN(3) > 0 {
				d = w.between(0, 20*time.Millisecond) << w.rng.IntN(7)
			}
			w.after(d+1, func() { w.check(t) })
		}
	}
	q.done(true)
}

// accepted is I1: no acceptance begins after the answer.
func (w *world) accepted(r *replica, t *token, began time.Duration, knew, strictly bool) {
	w.tally.accepts++
	if !t.revoked || began <= t.answered {
		return
	}
	if redisTimeLags && !w.primary.wall().Before(t.ids.Expires) {
		return
	}
	if !w.plan.wait && began < t.lostUntil && !knew {
		w.tally.unhealed++
		return
	}
	if r.strict && w.plan.deposed {
		return // only a follower makes sure that it asks no deposed primary
	}
	if w.plan.nameless && !strictly && !w.plan.wait && !w.plan.total && r.leaseWasLost() {
		w.tally.lostLeases++
		return
	}
	w.fail("I1: %s accepted %s at %v, %v after its logout was answered (strict: %v)", r.name, t.name, began, began-t.answered, strictly)
}

// refusedToken checks the other side: nothing is refused that nobody revoked.
func (w *world) refusedToken(r *replica, t *token) {
	w.tally.refusals++
	if h := r.shard.history.Load(); !t.touched && !w.lossyYet && (h == nil || *h == t.ids.LogEpoch) && w.primary.wall().Before(t.ids.Expires) {
		w.fail("%s refused %s, which nobody has revoked", r.name, t.name)
	}
}

// logged is I3: a mark names one prefix of one history.
func (w *world) logged(before tokenstore.Mark, e tokenstore.Entry, after tokenstore.Mark) {
	o := origin{before: before, kind: e.Kind, id: e.ID, epoch: e.Epoch, except: e.Except, until: e.Until.UnixMilli()}
	if old, ok := w.origins[after]; ok && old != o {
		w.fail("I3: %v names two histories", after)
	}
	w.origins[after] = o
	if w.tracing {
		w.logf("logged %d %s %d (epoch %d) %s", e.Seq, e.Kind, e.ID[3]+e.ID[2], e.Epoch, after.Chain)
	}
	for _, t := range w.tokens {
		if !t.revokedBy(fact{e, after.Epoch}) {
			continue
		}
		t.touched = true
		if t.lostUntil == never {
			// What was lost is there again; leases from before may still not have it.
			t.lostUntil = w.now + simLease*102/100
		}
	}
}

// lose notes what a failover has lost of a history.
func (w *world) lose(e *effect, history string) {
	w.lossyYet = true
	if e.by != nil {
		e.by.lost = true
	}
	if e.kind != wroteEntry {
		return
	}
	for _, t := range w.tokens {
		if !t.revokedBy(fact{*e.entry, history}) {
			continue
		}
		t.lostAt, t.lostUntil = w.now, never
		for _, r := range w.replicas {
			if !r.dead && r.knew(t) && !slices.Contains(t.keepers, r) {
				t.keepers = append(t.keepers, r)
			}
		}
	}
}

func (w *world) freeze() {
	s := w.primary
	if s.dead || s.frozen || w.healthy {
		return
	}
	d := w.between(100*time.Millisecond, 2*time.Second)
	if w.tracing {
		w.logf("%s freezes for %v", s.name, d)
	}
	s.frozen = true
	w.after(d, func() {
		if s.frozen && !s.dead {
			s.thaw()
		}
	})
}

// failover promotes the replica of Redis, with what it has.
func (w *world) failover() {
	if w.healthy || w.primary.dead {
		return
	}
	if w.plan.lossy && !w.plan.total && w.chance(0.5) {
		// The replica falls behind first.
		w.primary.cut()
		w.after(w.between(0, 1200*time.Millisecond), w.promote)
		return
	}
	w.promote()
}

func (w *world) promote() {
	if w.healthy {
		return
	}
	w.tally.failovers++
	old := w.primary
	has := 0
	for has < len(old.stream) && (!w.plan.lossy || old.stream[has].due <= w.now) {
		has++
	}
	if w.plan.total {
		has = 0
	}
	next := w.newServer()
	for i := range old.stream[:has] {
		next.space.apply(&old.stream[i])
	}
	next.stream = slices.Clone(old.stream[:has])
	if w.tracing {
		w.logf("%s is promoted; %d writes are lost", next.name, len(old.stream)-has)
	}
	w.primary = next
	for i := has; i < len(old.stream); i++ {
		w.lose(&old.stream[i], old.space.head.Epoch)
	}
	old.cut()
	w.after(w.between(0, 100*time.Millisecond), func() {
		if next == w.primary {
			next.attach()
		}
	})
	notice := 400 * time.Millisecond
	if w.plan.deposed {
		notice = 3 * simLease
		w.after(w.between(0, notice), func() { old.die() })
	} else {
		old.die()
	}
	for _, r := range w.replicas {
		w.after(w.between(0, notice), func() {
			if r.at == old {
				r.at = w.primary
			}
		})
	}
}

// refusedConfirmation is called when a confirmation fails though Redis has lost
// nothing: the revocation must then still be in the log.
func (w *world) refusedConfirmation(r *replica, c *confirming, err error) {
	if errors.Is(err, errHistory) {
		w.fail("%s was told that a failover has lost the %v, and there was none", r.name, c.request)
	}
}
