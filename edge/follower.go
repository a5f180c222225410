package edge

import (
	"context"
	"crypto/rand"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// FollowerOptions are what a Follower is made of.
type FollowerOptions struct {
	Revocations *tokenstore.Revocations
	// Lease is S: for how long the follower answers without having heard from
	// Redis. All replicas must be given the same. 0 means one second.
	Lease time.Duration
	// MaxDenied is how many revocations are remembered at most, over all shards.
	// Beyond, the shards concerned ask Redis: nothing is forgotten. 0 means 4,000,000.
	MaxDenied int
	// Observe, if set, is told what happens. Its functions must not block.
	Observe FollowerObserver
}

// FollowerObserver is told what happens to a follower; each function may be nil.
type FollowerObserver struct {
	Lag      func(time.Duration) // from a revocation in Redis to its application here
	Gap      func()              // the log was not the one that was followed
	Restored func(entries int)   // put back into a Redis that had lost them
	Failed   func(error)         // a renewal or a read did not succeed
	Key      func()              // a signing key was revoked
	// Lease is told of another follower's lease if it is longer than S and all before. Logouts
	// wait for that one from then on: see [Confirmer].
	Lease func(time.Duration)
}

// Follower keeps a copy of the denylist in this process. While a shard's lease
// holds, the copy is known to have every revocation that was answered.
type Follower struct {
	store    *tokenstore.Revocations
	name     string
	lease    time.Duration
	observe  FollowerObserver
	clock    func() instant
	shards   []*shard
	booted   chan struct{} // closed when all shards have booted once
	left     atomic.Int64  // shards that have not booted yet; -1 once it has ended
	counted  []atomic.Bool
	gaps     atomic.Int64
	restored atomic.Int64
	members  []atomic.Int64
	heads    []atomic.Uint64 // as last seen
	// behind, by shard, wakes catchUp when a shard lags. Shards of one group share a
	// channel.
	behind  []chan struct{}
	news    chan struct{} // wakes acknowledge
	pages   chan struct{} // bounds how many catchUps read at once
	longest atomic.Int64  // nanoseconds: of the leases of all followers that were ever seen
	repairs sync.WaitGroup
}

// BytesPerDenied is about what one remembered revocation takes.
const BytesPerDenied = 50

const (
	defaultLease     = time.Second
	defaultMaxDenied = 4_000_000
	// restorers is how many lost revocations are put back at once, over all shards.
	restorers = 16
	// catchUp reads at most catchUpPage entries of catchUpShards shards at once, which
	// takes Redis a millisecond. Half the page costs a boot a quarter more CPU.
	catchUpShards = 4
	catchUpPage   = 512
)

// NewFollower returns a follower; Run makes it follow.
func NewFollower(o FollowerOptions) *Follower {
	if o.Lease == 0 {
		o.Lease = defaultLease
	}
	if o.MaxDenied == 0 {
		o.MaxDenied = defaultMaxDenied
	}
	k := o.Revocations.Shards()
	f := &Follower{
		store: o.Revocations, name: memberName(o.Lease), lease: o.Lease, observe: o.Observe, clock: systemClock(),
		booted: make(chan struct{}), counted: make([]atomic.Bool, k), members: make([]atomic.Int64, k), heads: make([]atomic.Uint64, k),
		pages: make(chan struct{}, catchUpShards), news: make(chan struct{}, 1),
	}
	o.Revocations.FollowedBy(f.name, f.made)
	f.left.Store(int64(k))
	limit := max(1, o.MaxDenied/k)
	for i := range k {
		f.shards = append(f.shards, newShard(i, o.Lease, limit, o.Revocations.Lifetimes().Access))
		f.behind = append(f.behind, make(chan struct{}, 1))
		if o.Revocations.TailsTogether() {
			f.behind[i] = f.behind[0]
		}
	}
	return f
}

// memberName is a new name for a follower, by which others know its lease.
func memberName(lease time.Duration) string {
	return rand.Text() + ":" + strconv.FormatInt(lease.Milliseconds(), 10)
}

// leaseOf returns the lease of a follower by its name; 0 if the name does not say.
func leaseOf(name string) time.Duration {
	_, text, _ := strings.Cut(name, ":")
	ms, err := strconv.ParseInt(text, 10, 64)
	if err != nil || ms < 0 || ms > time.Hour.Milliseconds() {
		return 0
	}
	return time.Duration(ms) * time.Millisecond
}

// silence is after how long without a beat every follower's lease is over.
func (f *Follower) silence() time.Duration { return silence(time.Duration(f.longest.Load())) }

// meet notes a lease of another follower that is longer than all before.
func (f *Follower) meet(members []tokenstore.Member) {
	for _, m := range members {
		lease := int64(leaseOf(m.Name))
		for known := f.longest.Load(); lease > known && lease > int64(f.lease); known = f.longest.Load() {
			if f.longest.CompareAndSwap(known, lease) && f.observe.Lease != nil {
				f.observe.Lease(time.Duration(lease))
			}
		}
	}
}

// Ready is closed once every shard has read its log: before, tokens are checked
// in Redis.
func (f *Follower) Ready() <-chan struct{} { return f.booted }

// Run follows until ctx ends.
func (f *Follower) Run(ctx context.Context) {
	var wg sync.WaitGroup
	groups := [][]*shard{f.shards}
	if !f.store.TailsTogether() {
		groups = nil
		for _, s := range f.shards {
			groups = append(groups, []*shard{s})
		}
	}
	for _, g := range groups {
		wg.Go(func() { f.renewEvery(ctx, g) })
		wg.Go(func() { f.catchUp(ctx, g) })
	}
	wg.Go(func() { f.listen(ctx) })
	wg.Go(func() { f.acknowledge(ctx) })
	wg.Wait()
	f.repairs.Wait()
	f.leave()
}

// leave gives up all leases and then leaves the tables, so that no logout waits
// for this follower. If Redis does not hear of it, they wait one lease.
func (f *Follower) leave() {
	f.left.Store(-1)
	for _, s := range f.shards {
		s.end()
	}
	ctx, cancel := context.WithTimeout(context.Background(), f.lease)
	defer cancel()
	if err := f.store.Leave(ctx, f.name); err != nil && f.observe.Failed != nil {
		f.observe.Failed(err)
	}
}

// renewEvery renews a group's leases three times in each.
func (f *Follower) renewEvery(ctx context.Context, group []*shard) {
	tick := time.NewTicker(f.lease / 3)
	defer tick.Stop()
	for {
		f.renew(ctx, group)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// renew shows what was applied and takes what is beyond, until there is no more. It returns
// after a third of a lease at the latest: a shard whose log grows all the time, as while
// others put back what Redis has lost, must not keep the other shards from their renewals.
// renewEvery goes on with all of them then.
func (f *Follower) renew(ctx context.Context, group []*shard) {
	for began := f.clock().mono; len(group) > 0 && ctx.Err() == nil && f.left.Load() >= 0; {
		now := f.clock()
		shown := make([]sent, len(group))
		renewals := make([]tokenstore.Renewal, len(group))
		for i, s := range group {
			shown[i] = s.renewal(f.name, now)
			renewals[i] = shown[i].Renewal
		}
		// What comes after the lease could not extend it.
		asking, cancel := context.WithTimeout(ctx, f.lease)
		views, err := f.store.Renew(asking, renewals)
		cancel()
		if err != nil {
			f.failed(ctx, err)
			return
		}
		var again []*shard
		for i, s := range group {
			f.heads[s.number].Store(views[i].Head.Seq)
			f.members[s.number].Store(int64(len(views[i].Members)))
			f.meet(views[i].Members)
			out := s.renewed(shown[i], views[i], f.clock())
			f.took(ctx, s, out)
			if out.more {
				again = append(again, s)
			}
		}
		if f.clock().mono-began >= f.lease/3 {
			return
		}
		group = again
	}
}

// listen applies entries as Redis tells of them. One that it is not told of comes with the
// next renewal, which is at once if a later one comes.
func (f *Follower) listen(ctx context.Context) {
	take := func(t tokenstore.Told) {
		s := f.shards[t.Shard]
		out, missing := s.told(t.Epoch, t.Entry, f.clock())
		f.took(ctx, s, out)
		if out.applied > 0 {
			wake(f.news)
		}
		if missing {
			f.renew(ctx, []*shard{s})
		}
	}
	for ctx.Err() == nil {
		err := f.store.Listen(ctx, f.lease, func() { f.renew(ctx, f.shards) }, take)
		f.failed(ctx, err)
		pause(ctx, f.lease/10)
	}
}

// made applies a revocation that this process has made. Nobody else waits for that, so it is
// not acknowledged by itself.
func (f *Follower) made(r tokenstore.Revocation) {
	if r.Entry.Seq > 0 {
		s := f.shards[r.Shard]
		out, _ := s.told(r.Server.Epoch, r.Entry, f.clock())
		f.took(context.Background(), s, out) // it restores nothing: that is for what users did
	}
}

// acknowledge shows what was applied: somebody may be waiting to answer a logout. While one
// exchange is under way, what is applied meanwhile gathers for the next.
func (f *Follower) acknowledge(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.news:
		}
		var acks []tokenstore.Ack
		now := f.clock()
		for _, s := range f.shards {
			if mark, ok := s.acknowledge(now); ok {
				acks = append(acks, tokenstore.Ack{Shard: s.number, Member: f.name, Mark: mark})
			}
		}
		if len(acks) == 0 {
			continue
		}
		if err := f.store.Acknowledge(ctx, acks); err != nil {
			f.failed(ctx, err) // the next renewal shows it
		}
	}
}

// catchUp reads the logs of the shards of a group that lag, a page at a time, until none of
// them lags. After a failure it waits, and goes on behind the last entry that it applied,
// with half the page size.
func (f *Follower) catchUp(ctx context.Context, group []*shard) {
	limit, wait := catchUpPage, time.Duration(0)
	for ctx.Err() == nil {
		from, after := positions(group)
		if len(after) == 0 {
			select {
			case <-ctx.Done():
			case <-f.behind[group[0].number]:
			}
			continue
		}
		f.pages <- struct{}{}
		asking, cancel := context.WithTimeout(ctx, f.lease)
		news, err := f.store.ReadLog(asking, after, limit)
		cancel()
		<-f.pages
		if err != nil {
			f.failed(ctx, err)
			limit, wait = max(limit/2, tokenstore.Page/8), min(max(2*wait, f.lease/20), f.lease/4)
			pause(ctx, wait)
			continue
		}
		limit, wait = min(2*limit, catchUpPage), 0
		f.read(ctx, from, news)
	}
}

// positions returns where to go on reading the log of each shard that lags, of at most
// catchUpShards.
func positions(group []*shard) (map[*shard]position, map[int]uint64) {
	from, after := map[*shard]position{}, map[int]uint64{}
	for _, s := range group {
		if p, ok := s.reads(); ok && len(after) < catchUpShards {
			from[s], after[s.number] = p, p.after
		}
	}
	return from, after
}

// read applies entries that were read from the log, and renews the shards that have caught
// up or have to boot again.
func (f *Follower) read(ctx context.Context, from map[*shard]position, news map[int][]tokenstore.Entry) {
	var changed []*shard
	for s, p := range from {
		out := s.tailed(p, news[s.number], f.clock())
		f.took(ctx, s, out)
		if out.more {
			changed = append(changed, s)
		}
	}
	if len(changed) > 0 {
		f.renew(ctx, changed)
	}
}

// took reports an outcome, and puts back what Redis has lost.
func (f *Follower) took(ctx context.Context, s *shard, out outcome) {
	if _, ok := s.applied(); ok && f.counted[s.number].CompareAndSwap(false, true) && f.left.Add(-1) == 0 {
		close(f.booted)
	}
	if out.applied > 0 && f.observe.Lag != nil {
		f.observe.Lag(max(0, f.store.Now().Sub(out.oldest)))
	}
	if out.gap {
		f.gaps.Add(1)
		if f.observe.Gap != nil {
			f.observe.Gap()
		}
	}
	if out.key && f.observe.Key != nil {
		f.observe.Key()
	}
	if out.behind {
		wake(f.behind[s.number])
	}
	// If the shard is already being repaired, skip this: remind returns the same entries
	// again after a lease.
	if len(out.restore) > 0 && s.restoring.CompareAndSwap(false, true) {
		f.repairs.Go(func() {
			defer s.restoring.Store(false)
			f.restore(ctx, s, out.restore)
		})
	}
}

// wake tells who waits on c, now or later, to look again.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// restore revokes again, by the ordinary scripts, what Redis has lost of a shard. What
// another follower has put back meanwhile is passed over.
func (f *Follower) restore(ctx context.Context, s *shard, list []tokenstore.Entry) {
	var wg sync.WaitGroup
	var restored atomic.Int64
	jobs := make(chan tokenstore.Entry)
	for range max(1, restorers/len(f.shards)) {
		wg.Go(func() {
			for e := range jobs {
				for ctx.Err() == nil && (e.Kind == tokenstore.KindKey || s.owes(e)) {
					err := f.store.Restore(ctx, e)
					if !errors.Is(err, ErrUnavailable) {
						restored.Add(1)
						break
					}
					f.failed(ctx, err)
					pause(ctx, f.lease/10)
				}
			}
		})
	}
	for _, e := range list {
		jobs <- e
	}
	close(jobs)
	wg.Wait()
	f.restored.Add(restored.Load())
	if f.observe.Restored != nil {
		f.observe.Restored(int(restored.Load()))
	}
}

func (f *Follower) failed(ctx context.Context, err error) {
	if f.observe.Failed != nil && ctx.Err() == nil {
		f.observe.Failed(err)
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// FollowerStats is how a follower is doing, over all shards.
type FollowerStats struct {
	Shards   int
	Leased   int           // shards that answer by themselves now
	LeaseAge time.Duration // how long ago the oldest of the leases was asked for
	Lag      uint64        // entries of the log not applied yet, as last seen
	Denied   int           // revocations remembered
	Members  int           // followers, in the shard that has most
	Gaps     int64
	Restored int64
}

// Stats returns how the follower is doing.
func (f *Follower) Stats() FollowerStats {
	st := FollowerStats{Shards: len(f.shards), Gaps: f.gaps.Load(), Restored: f.restored.Load()}
	now := f.clock()
	for i, s := range f.shards {
		if end := s.granted.Load(); end != nil && now.before(*end) {
			st.Leased++
			st.LeaseAge = max(st.LeaseAge, f.lease-(end.mono-now.mono))
		}
		s.mu.RLock()
		st.Denied += s.deny.len()
		if head := f.heads[i].Load(); head > s.mark.Seq {
			st.Lag += head - s.mark.Seq
		}
		s.mu.RUnlock()
		st.Members = max(st.Members, int(f.members[i].Load()))
	}
	return st
}
