package edge

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Where the protocol leans on what the scripts and the store do.
const (
	// beatsOnlyRise: renew.lua never lets an older beat replace a newer one.
	beatsOnlyRise = true
	// redisTimeLags: Store.Now may be behind by as long as a reply was under way,
	// or the machine suspended.
	redisTimeLags = true
)

// replica is one process of the service: a follower, a confirmer and a verifier,
// which do what follower.go, confirm.go and edge.go make them do.
type replica struct {
	w       *world
	name    string
	shard   *shard
	waiting *waiting
	access  time.Duration // its own setting
	at      *server       // the primary, as far as it knows

	rate  float64 // of its clocks
	base  time.Duration
	wall  int64
	stood time.Duration // for how long the monotonic clock stood still

	strict    bool // it has no follower
	command   bool // it serves nobody, and ends after its logout
	dead      bool
	stopped   bool // executes nothing
	cutOff    bool // from Redis
	suspended bool // nor does its monotonic clock go on
	since     time.Duration
	inbox     []func() // while stopped

	good       map[*token]uint64
	known      []fact // all that it was ever told
	leases     []held
	confirming []*confirming
	catching   bool // reads the log, since it lags
	polling    bool
	acking     bool

	redis    time.Time // TIME, as last read
	redisAt  time.Duration
	observed bool
}

// held is a lease and the write that it rests on.
type held struct {
	end instant
	by  *writing
}

// confirming is a logout that waits for its confirmation.
type confirming struct {
	ticket  *ticket
	request *request
}

// answer is what a script returns.
type answer struct {
	view       tokenstore.View
	revocation tokenstore.Revocation
	epoch      uint64
	history    string
	made       time.Duration
	code       int
}

// join starts a process with a follower.
func (w *world) join() {
	r := w.start(false)
	r.after(w.between(0, 5*time.Millisecond), r.tick)
}

// start starts a process.
func (w *world) start(strict bool) *replica {
	r := &replica{
		w: w, name: fmt.Sprintf("replica%d", len(w.replicas)+1), at: w.primary, strict: strict,
		access: w.plan.access[w.rng.IntN(2)],
		rate:   []float64{0.9951, 0.9951 + 0.0098*w.rng.Float64(), 1.0049}[w.rng.IntN(3)], // any two within one percent
		base:   w.between(0, time.Hour), wall: w.rng.Int64N(1 << 50),
		good: map[*token]uint64{},
	}
	r.shard = newShard(0, simLease, w.plan.limit, r.access)
	silent := silence(simLease)
	if w.faults.silence != 0 {
		silent = w.faults.silence
	}
	r.waiting = newWaiting(0, silent, &pace{})
	if !strict {
		r.waiting.own, r.waiting.name = r.shard, r.name
	}
	w.replicas = append(w.replicas, r)
	if w.tracing {
		w.logf("%s starts (strict: %v)", r.name, strict)
	}
	return r
}

func (w *world) crash() {
	alive := 0
	for _, r := range w.replicas {
		if !r.dead && !r.command {
			alive++
		}
	}
	if alive < 2 || w.healthy {
		return
	}
	r := w.anyReplica()
	if w.tracing {
		w.logf("%s crashes", r.name)
	}
	r.dead = true
	if w.chance(0.8) {
		w.after(w.between(0, 500*time.Millisecond), w.join)
	}
}

// cutOff is a partition: the replica goes on, and no message comes through.
func (w *world) cutOff() {
	r := w.anyReplica()
	if r.cutOff || w.healthy {
		return
	}
	d := w.between(100*time.Millisecond, 2*time.Second)
	if w.tracing {
		w.logf("%s is cut off for %v", r.name, d)
	}
	r.cutOff = true
	w.after(d, func() { r.cutOff = false })
}

func (w *world) pause(suspend bool) {
	r := w.anyReplica()
	if r.stopped || w.healthy {
		return
	}
	d := w.between(5*time.Millisecond, 50*time.Millisecond) << w.rng.IntN(6)
	if w.tracing {
		w.logf("%s stops for %v (suspended: %v)", r.name, d, suspend)
	}
	r.stopped, r.suspended, r.since = true, suspend, w.now
	w.after(d, func() {
		if r.stopped && r.since+d <= w.now {
			r.wake()
		}
	})
}

// wake goes on; what has come meanwhile is handled in any order.
func (r *replica) wake() {
	w := r.w
	if w.tracing {
		w.logf("%s goes on", r.name)
	}
	if r.suspended {
		r.stood += w.now - r.since
	}
	r.stopped, r.suspended = false, false
	waiting := r.inbox
	r.inbox = nil
	w.rng.Shuffle(len(waiting), func(i, j int) { waiting[i], waiting[j] = waiting[j], waiting[i] })
	for i, run := range waiting {
		r.after(time.Duration(i)*50*time.Microsecond, run)
	}
}

// clock reads the clocks of its machine.
func (r *replica) clock() instant {
	i := instant{
		mono: r.base + time.Duration(r.rate*float64(r.w.now-r.stood)),
		wall: r.wall + int64(r.rate*float64(r.w.now)),
	}
	if r.w.faults.ignoreWall {
		i.wall = r.wall + int64(i.mono)
	}
	return i
}

func (r *replica) deliver(run func()) {
	switch {
	case r.dead:
	case r.stopped:
		r.inbox = append(r.inbox, run)
	default:
		run()
	}
}

func (r *replica) after(d time.Duration, run func()) {
	r.w.after(d, func() { r.deliver(run) })
}

// call is one request to Redis and its answer.
type call struct {
	r        *replica
	s        *server
	started  time.Duration // by the replica's clock
	deadline time.Duration
	timeout  time.Duration
	over     bool // done was called
	armed    bool
	exec     func(*server, *call) // the script; it ends in reply
	done     func(*answer)        // called once: with nil if there is no answer in time
	late     func(*answer)        // if not nil, called with an answer that comes later
}

// ask sends a request to the primary that the replica believes in.
func (r *replica) ask(timeout time.Duration, exec func(*server, *call), done, late func(*answer)) {
	w := r.w
	c := &call{
		r: r, s: r.at, started: r.clock().mono, deadline: w.now + timeout, timeout: timeout, exec: exec, done: done, late: late,
	}
	d := w.delay()
	if w.dropped() || r.cutOff {
		c.arm()
		return
	}
	if w.now+d > c.deadline {
		c.arm()
	}
	w.after(d, c.arrive)
	if !w.healthy && w.chance(w.plan.repeat) {
		// The client sends again what it believes to be lost.
		w.after(d+w.delay(), c.arrive)
	}
}

// arm makes the request fail at its deadline.
func (c *call) arm() {
	if !c.armed {
		c.armed = true
		c.r.after(c.deadline-c.r.w.now, c.fail)
	}
}

func (c *call) fail() {
	if !c.over {
		c.over = true
		c.done(nil)
	}
}

// arrive is the moment at which the request is at the server.
func (c *call) arrive() {
	switch {
	case c.s.dead:
		c.r.after(c.r.w.delay(), c.fail)
	case c.s.frozen:
		c.arm()
		c.s.inbox = append(c.s.inbox, c.arrive)
	default:
		c.exec(c.s, c)
	}
}

// reply sends an answer on its way; nil is an error.
func (c *call) reply(a *answer) {
	w := c.r.w
	// What is too large for the time that a reply has fails, and would fail again.
	large := a != nil && len(a.view.Entries) > w.plan.large
	if large || w.dropped() || c.r.cutOff {
		c.arm()
		return
	}
	d := w.delay()
	if w.now+d > c.deadline {
		c.arm()
	}
	if a == nil {
		c.r.after(d, c.fail)
		return
	}
	take := func() { c.take(a) }
	c.r.after(d, take)
	if !w.healthy && w.chance(w.plan.repeat) {
		c.r.after(d+w.delay(), take)
	}
}

// settle replies once what was written counts.
func (c *call) settle(a *answer) {
	c.s.settled(func(ok bool) {
		if !ok {
			a = nil
		}
		c.reply(a)
	})
}

func (c *call) take(a *answer) {
	switch {
	case c.over:
		if c.late != nil && !c.r.w.healthy {
			c.late(a)
		}
	case c.r.clock().mono-c.started > c.timeout && c.r.w.chance(0.5):
		c.fail()
	default:
		c.over = true
		c.done(a)
	}
}

// tick is one round of Follower.renewEvery.
func (r *replica) tick() {
	next := r.w.now + time.Duration(float64(simLease/3)/r.rate)
	r.renew(func() { r.after(next-r.w.now, r.tick) })
}

// renew is Follower.renew.
func (r *replica) renew(then func()) {
	shown := r.shard.renewal(r.name, r.clock())
	by := &writing{}
	r.ask(simTimeout, func(s *server, c *call) {
		c.settle(&answer{view: s.renew(shown.Renewal, r.access, by)})
	}, func(a *answer) {
		if a != nil && r.renewed(shown, a.view, by).more {
			r.renew(then)
			return
		}
		then()
	}, func(a *answer) { r.renewed(shown, a.view, by) })
}

func (r *replica) renewed(shown sent, v tokenstore.View, by *writing) outcome {
	f := &r.w.faults
	r.observe(v.Now)
	before := r.shard.granted.Load()
	if f.leaseFromReply {
		shown.at = r.clock()
	}
	if f.skipChain && shown.booted && shown.After != tokenstore.NoEntries {
		at := shown.from
		at, v.Entries = rechain(at, v.Entries)
		if at.Seq == v.Head.Seq && at.Epoch == v.Head.Epoch {
			v.Head = at
			r.shard.mark = shown.from
		}
	}
	out := r.shard.renewed(shown, v, r.clock())
	r.learn(v.Entries)
	r.took(out)
	if now := r.shard.granted.Load(); now != before && now != nil {
		r.leases = append(r.leases[max(0, len(r.leases)-7):], held{*now, by})
	}
	return out
}

// rechain makes entries look as if they followed a mark.
func rechain(at tokenstore.Mark, entries []tokenstore.Entry) (tokenstore.Mark, []tokenstore.Entry) {
	list := slices.Clone(entries)
	for i := range list {
		at = at.After(list[i])
		list[i].Chain = at.Chain
	}
	return at, list
}

// took is Follower.took.
func (r *replica) took(out outcome) {
	w := r.w
	if out.behind && !r.catching {
		r.catching = true
		r.catchUp(simLease / 20)
	}
	if out.gap {
		w.tally.gaps++
		if w.tracing {
			w.logf("%s: gap", r.name)
		}
		if w.faults.forgetAtGap {
			r.shard.deny = newDenylist(w.plan.limit, r.access)
			r.shard.heal = nil
		}
	}
	if w.faults.dropEarly {
		r.shard.deny.width, r.shard.deny.current.until, r.shard.deny.previous.until = 300*time.Millisecond, 0, 0
	}
	if w.faults.skipRestore {
		return
	}
	// In one order, for the schedule to replay.
	slices.SortFunc(out.restore, func(a, b tokenstore.Entry) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	for _, e := range out.restore {
		w.tally.restores++
		if w.tracing {
			w.logf("%s puts back %s %d (epoch %d)", r.name, e.Kind, e.ID[3]+e.ID[2], e.Epoch)
		}
		r.restore(e)
	}
}

func (r *replica) restore(e tokenstore.Entry) {
	r.ask(simTimeout, func(s *server, c *call) {
		if e.Kind == tokenstore.KindSession {
			s.revoke(e.ID, r.access, r.name)
			c.settle(&answer{})
			return
		}
		s.restoreEpoch(e, r.access)
		c.reply(&answer{})
	}, func(a *answer) {
		if a == nil {
			r.after(simLease/10, func() { r.restore(e) })
		}
	}, nil)
}

// learn notes what the replica now denies.
func (r *replica) learn(entries []tokenstore.Entry) {
	d := r.shard.deny
	for _, e := range entries {
		held := false
		for _, g := range [...]*generation{&d.current, &d.previous} {
			if e.Kind == tokenstore.KindSession {
				_, ok := g.sids[e.ID]
				held = held || ok
			} else if c, ok := g.users[e.ID]; ok {
				held = held || c.covers(e)
			}
		}
		same := func(f fact) bool {
			return f.Kind == e.Kind && f.ID == e.ID && f.Epoch == e.Epoch && f.Except == e.Except && f.history == r.shard.mark.Epoch
		}
		if held && !slices.ContainsFunc(r.known, same) {
			r.known = append(r.known, fact{e, r.shard.mark.Epoch})
		}
	}
}

// knew reports whether the replica was ever told that a token is revoked.
func (r *replica) knew(t *token) bool { return slices.ContainsFunc(r.known, t.revokedBy) }

// leaseWasLost reports whether every lease that could hold now rests on a
// renewal that a failover has lost.
func (r *replica) leaseWasLost() bool {
	now := r.clock()
	for _, l := range r.leases {
		if now.before(l.end) && !l.by.lost {
			return false
		}
	}
	return true
}

// hears is a message of Follower.listen.
func (r *replica) hears(epoch string, e tokenstore.Entry) {
	out, missing := r.told(epoch, e)
	if out.applied > 0 {
		r.acknowledge()
	}
	if missing {
		r.renew(func() {})
	}
}

func (r *replica) told(epoch string, e tokenstore.Entry) (outcome, bool) {
	f := &r.w.faults
	lease := r.shard.granted.Load()
	if before := e.Seq - 1; f.outOfOrder && r.shard.boot && before > r.shard.mark.Seq && before <= uint64(len(r.at.space.chains)) {
		r.shard.mark = tokenstore.Mark{Epoch: r.shard.mark.Epoch, Seq: before, Chain: r.at.space.chains[before-1]}
	}
	if f.skipChain && r.shard.boot && e.Seq == r.shard.mark.Seq+1 {
		e.Chain = r.shard.mark.After(e).Chain
	}
	out, missing := r.shard.told(epoch, e, r.clock())
	r.learn([]tokenstore.Entry{e})
	r.took(out)
	if f.acceptWhenFull && !out.gap {
		r.shard.granted.Store(lease)
	}
	return out, missing
}

// acknowledge is one round of Follower.acknowledge.
func (r *replica) acknowledge() {
	if r.acking {
		return
	}
	mark, ok := r.shard.acknowledge(r.clock())
	if !ok {
		return
	}
	r.acking = true
	next := func(*answer) {
		r.acking = false
		r.acknowledge()
	}
	r.ask(simTimeout, func(s *server, c *call) {
		s.ack(r.name, mark)
		c.reply(&answer{})
	}, next, nil)
}

// catchUp is one round of Follower.catchUp.
func (r *replica) catchUp(wait time.Duration) {
	from, ok := r.shard.reads()
	if !ok {
		r.catching = false
		return
	}
	r.ask(simTimeout, func(s *server, c *call) {
		c.reply(&answer{view: tokenstore.View{Entries: s.entries(from.after)}})
	}, func(a *answer) {
		switch {
		case a == nil:
			r.after(wait, func() { r.catchUp(min(2*wait, simLease/4)) })
		case r.tailed(from, a.view.Entries).more:
			r.renew(func() { r.catchUp(simLease / 20) })
		default:
			r.catchUp(simLease / 20)
		}
	}, func(a *answer) { r.tailed(from, a.view.Entries) })
}

func (r *replica) tailed(from position, entries []tokenstore.Entry) outcome {
	lease := r.shard.granted.Load()
	if r.w.faults.skipChain && r.shard.boot {
		mark := r.shard.mark
		_, entries = rechain(mark, slices.DeleteFunc(slices.Clone(entries), func(e tokenstore.Entry) bool { return e.Seq <= mark.Seq }))
	}
	if r.w.faults.staleReads {
		from.incarnation = r.shard.incarnation
	}
	out := r.shard.tailed(from, entries, r.clock())
	r.learn(entries)
	r.took(out)
	if r.w.faults.acceptWhenFull && !out.gap {
		r.shard.granted.Store(lease)
	}
	return out
}

// observe is Store.observeTime.
func (r *replica) observe(t time.Time) {
	now := r.clock().mono
	if r.observed && now-r.redisAt < time.Second {
		return
	}
	r.redis, r.redisAt, r.observed = t, now, true
}

// redisNow is Store.Now. Before the first reply nothing was cached either.
func (r *replica) redisNow() time.Time {
	if !r.observed {
		return r.w.primary.wall()
	}
	return r.redis.Add(r.clock().mono - r.redisAt)
}

// verify is Verifier.Verify of a token whose signature is good.
func (r *replica) verify(t *token) {
	began := r.w.now
	if !r.redisNow().Before(t.ids.Expires) {
		return
	}
	knew := r.knew(t)
	switch r.ownVerdict(t, r.good[t]) {
	case accepted:
		r.w.accepted(r, t, began, knew, false)
		return
	case refused:
		r.w.refusedToken(r, t)
		return
	}
	r.w.tally.unknowns++
	if r.w.plan.wait && !r.strict && !r.w.faults.strictWhenDurable {
		r.renew(func() {
			switch r.ownVerdict(t, 0) {
			case accepted:
				r.w.accepted(r, t, began, knew, false)
			case refused:
				r.w.refusedToken(r, t)
			}
		})
		return
	}
	r.ask(simTimeout, func(s *server, c *call) {
		c.reply(&answer{code: s.verify(t)})
	}, func(a *answer) {
		if a != nil && a.code == 0 {
			r.w.accepted(r, t, began, knew, true)
		}
	}, nil)
}

func (r *replica) ownVerdict(t *token, seen uint64) verdict {
	v, version := r.shard.check(&t.ids, seen, r.clock)
	if r.w.faults.ignoreLease && v == unknown && r.shard.boot && !r.shard.deny.denies(&t.ids, t.ids.LogEpoch) {
		return accepted
	}
	if v == accepted {
		r.good[t] = version
	}
	return v
}

// logout is a handler: revoke, confirm, answer.
func (r *replica) logout(q *request) {
	w := r.w
	if w.tracing {
		w.logf("%v at %s", q, r.name)
	}
	w.nonces++
	nonce := w.nonces // the client's library may send it twice
	r.ask(simTimeout, func(s *server, c *call) {
		if q.session != (tokenstore.ID{}) {
			c.settle(s.revoke(q.session, r.access, r.name))
			return
		}
		a := s.revokeUser(q.user, q.except, nonce, r.access)
		if a.code != 0 {
			c.reply(a)
			return
		}
		c.settle(a)
	}, func(a *answer) {
		switch {
		case a == nil:
			w.tally.refusedAnswers++
			q.done(false)
		case a.code != 0: // no such session
		default:
			q.epoch, q.history, q.made = a.epoch, a.history, a.made
			r.confirm(q, a.revocation)
		}
	}, nil)
}

// How often Confirmer.await asks.
const (
	awaitFirst = time.Millisecond
	awaitMost  = 100 * time.Millisecond
)

// confirm is Confirmer.Confirm, and Confirmer.everywhere to begin with.
func (r *replica) confirm(q *request, rev tokenstore.Revocation) {
	if r.w.faults.skipWait {
		r.w.answered(q)
		return
	}
	r.made(&rev)
	q.mark, q.after = rev.Mark, r.clock().mono
	t := r.waiting.enter(rev, r.clock())
	if t == nil {
		r.whole(q, rev.Server, r.clock().mono+2*r.waiting.silent, awaitFirst)
		return
	}
	if r.w.faults.earlyLook {
		t.asked = true
	}
	r.confirming = append(r.confirming, &confirming{t, q})
	if !r.polling {
		r.polling = true
		r.poll()
	}
}

// made is Follower.made.
func (r *replica) made(rev *tokenstore.Revocation) {
	f := &r.w.faults
	if f.serverFromMemory && !r.strict {
		rev.Server = r.shard.tenure.server
	}
	if f.alone && !r.strict {
		rev.Followers, rev.Members = 1, []tokenstore.Member{{Name: r.name}}
	}
	if !r.strict && rev.Entry.Seq > 0 {
		r.told(rev.Server.Epoch, rev.Entry)
	}
}

// whole is Confirmer.await, and what follows it.
func (r *replica) whole(q *request, server tokenstore.Server, until, pause time.Duration) {
	now := r.clock()
	var known bool
	if r.strict {
		known = r.w.faults.strictBelieves || r.waiting.tenure.lasts(server, now, silence(simLease))
	} else {
		known = (r.w.faults.anyServer || r.shard.tenure.lasts(server, now, silence(simLease))) &&
			r.shard.trusts(q.mark, q.after, now.mono, silence(simLease))
	}
	fail := func() {
		r.w.tally.refusedAnswers++
		q.done(false)
	}
	switch {
	case r.w.faults.believeTable:
		r.w.answered(q)
	case !known:
		if now.mono >= until {
			fail()
			return
		}
		r.after(pause, func() { r.whole(q, server, until, min(2*pause, awaitMost)) })
	case pause == awaitFirst:
		r.w.answered(q)
	default: // Confirmer.still
		r.look(r.w.now+r.waiting.silent, q.mark.Seq, nil, func(v tokenstore.View, ok bool) {
			if _, found := trailOf(q.mark, v); ok && (found || outlived(q.mark, v)) {
				r.w.answered(q)
				return
			}
			fail()
		})
	}
}

// poll is one round of Confirmer.poll.
func (r *replica) poll() {
	due, waited := r.waiting.due()
	if r.polling = waited; !waited {
		return
	}
	if wait := due - r.clock().mono; wait > 0 {
		r.after(wait, r.poll)
		return
	}
	asked, _ := r.waiting.ask(r.clock())
	r.look(r.w.now+r.waiting.silent, asked, nil, func(v tokenstore.View, ok bool) {
		if ok {
			strikes := r.waiting.settle(v, r.clock())
			if r.w.faults.neverStrike {
				strikes = nil
			}
			for _, m := range strikes {
				if r.w.tracing {
					r.w.logf("%s strikes %s", r.name, m.Name)
				}
				r.ask(simTimeout, func(s *server, c *call) {
					s.strike(m)
					c.reply(&answer{})
				}, func(*answer) {}, nil)
			}
		} else {
			r.waiting.expire(r.clock(), ErrUnavailable)
		}
		r.settled()
		r.after(r.waiting.pace.usual()/4, r.poll)
	})
}

// settled answers those whose ticket was answered.
func (r *replica) settled() {
	waiting := r.confirming
	r.confirming = nil
	for _, c := range waiting {
		select {
		case err := <-c.ticket.done:
			if err == nil {
				r.whole(c.request, c.ticket.server, r.clock().mono+2*r.waiting.silent, awaitFirst)
				continue
			}
			if r.w.tracing {
				r.w.logf("%v: %v", c.request, err)
			}
			if !r.w.lossyYet {
				r.w.refusedConfirmation(r, c, err)
			}
			r.w.tally.refusedAnswers++
			c.request.done(false)
		default:
			r.confirming = append(r.confirming, c)
		}
	}
}

// look is Confirmer.look.
func (r *replica) look(deadline time.Duration, after uint64, all []tokenstore.Entry, then func(tokenstore.View, bool)) {
	r.ask(min(simTimeout, max(0, deadline-r.w.now)), func(s *server, c *call) {
		// Nothing is written, so WAIT has nothing to wait for.
		c.reply(&answer{view: s.look(after)})
	}, func(a *answer) {
		if a == nil {
			then(tokenstore.View{}, false)
			return
		}
		v := a.view
		if len(all) > 0 && (len(v.Entries) == 0 || v.Entries[0].Seq != after+1) {
			then(tokenstore.View{}, false)
			return
		}
		all = append(all, v.Entries...)
		if n := len(v.Entries); n == 0 || v.Entries[n-1].Seq >= v.Head.Seq {
			v.Entries = all
			then(v, true)
			return
		}
		r.look(deadline, v.Entries[len(v.Entries)-1].Seq, all, then)
	}, nil)
}
