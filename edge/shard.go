package edge

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// shard is one shard as a follower knows it: what it has applied of the log,
// what that denies, and how long it may answer from it. It does no I/O: the
// follower, and the simulation that tests the protocol, drive it.
type shard struct {
	number int
	lease  time.Duration // S

	// version counts the changes of deny. A token that was found good at the
	// present version need not be looked up again.
	version atomic.Uint64
	// granted is the instant at which the lease ends; nil is no lease.
	granted atomic.Pointer[instant]
	// history is the epoch of the log that the lease is for. It says nothing of
	// tokens that were issued under another.
	history atomic.Pointer[string]

	mu    sync.RWMutex
	deny  *denylist
	mark  tokenstore.Mark // applied; while booting: of the head, as far as it was walked
	boot  bool            // booted
	after uint64          // while booting: entries up to here were read
	// incarnation counts boots: what was asked for before one is not believed after.
	incarnation uint64
	beat        uint64
	lastGrant   instant // when the last lease ended or will: for a bounded serve-stale
	heal        *healing
	// owed was to be put back into Redis and has not been seen in its log yet:
	// the next failover may have lost it again.
	owed    map[tokenstore.ID]tokenstore.Entry
	reminds time.Duration // when it was last asked for
	// unproven are the sessions that the log has ended since a renewal last proved its
	// history: if it is another, they may be of the next one.
	unproven []tokenstore.ID
	// Since when this history is followed, and when the last renewal was sent that
	// found it to be Redis's: what [Confirmer.Beside] needs to know.
	bootedAt, foundAt time.Duration
	// tenure is of who answers this follower's renewals.
	tenure tenure
	// recent are the marks that were passed lately, each at its seq modulo their number.
	recent [256]tokenstore.Mark
}

// healing is what a follower knew before it had to boot again, and what it has
// read of the log since.
type healing struct {
	known, read []tokenstore.Entry
}

// sent is a renewal under way: what was shown, and when.
type sent struct {
	tokenstore.Renewal
	epoch       string
	at          instant
	booted      bool
	incarnation uint64
}

func newShard(number int, lease time.Duration, limit int, width time.Duration) *shard {
	return &shard{number: number, lease: lease, deny: newDenylist(limit, width)}
}

// renewal returns what to show now. The lease that its answer may bring counts
// from now: from before it is sent.
func (s *shard) renewal(member string, now instant) sent {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beat++
	r := tokenstore.Renewal{Shard: s.number, Member: member, Beat: s.beat, After: s.after}
	if s.boot {
		r.Mark, r.After = s.mark, s.mark.Seq
	}
	return sent{Renewal: r, epoch: s.mark.Epoch, at: now, booted: s.boot, incarnation: s.incarnation}
}

// outcome is what a renewal came to.
type outcome struct {
	applied int                // entries
	more    bool               // there are entries left, or to be shown: renew again at once
	gap     bool               // this is not the history that was followed: boot again
	restore []tokenstore.Entry // what Redis has lost
	oldest  time.Time          // of the applied entries, when it was made; zero if none
	key     bool               // a signing key was revoked
}

// renewed takes the answer to a renewal.
func (s *shard) renewed(r sent, v tokenstore.View, now instant) outcome {
	s.tenure.heard(v.Server, now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.incarnation != s.incarnation || r.booted != s.boot {
		return outcome{more: true}
	}
	if !s.boot {
		return s.bootFrom(r, v, now)
	}
	// Walk from what was shown to the head: each entry must follow the one before,
	// and the last must be the head.
	at := r.Mark
	at.Epoch = r.epoch
	if v.Head.Epoch != at.Epoch || v.Head.Seq < at.Seq {
		return s.lost()
	}
	var out outcome
	ours := s.mark.Seq == at.Seq && s.mark.Chain == at.Chain
	for _, e := range v.Entries {
		if e.Seq != at.Seq+1 {
			return s.lost()
		}
		at = at.After(e)
		// Applied even if the tail has brought an entry of this number meanwhile:
		// whether it is the same one is not known.
		s.apply(e, now, &out)
		if ours {
			s.pass(at)
			out.more = true // somebody may be waiting to see it applied
		}
		ours = ours || s.mark == at // from where the tail left off
	}
	switch {
	case at.Seq < v.Head.Seq && len(v.Entries) > 0:
		out.more = true
		return out
	case at != v.Head:
		return s.lost()
	case !ours && s.mark.Seq <= at.Seq:
		return s.lost() // what the tail brought is not in this history
	}
	out.restore = append(out.restore, s.dead(v.Dead, &out)...)
	s.foundAt = max(s.foundAt, r.at.mono)
	s.unproven = nil
	s.grant(r.at, now)
	out.restore = append(out.restore, s.remind(now)...)
	return out
}

// bootFrom takes a page of the whole retained log. What came before that log
// cannot be checked, so the pages are tied together by the head that the first
// one had: the others go on from it to theirs.
func (s *shard) bootFrom(r sent, v tokenstore.View, now instant) outcome {
	if r.After != s.after {
		return outcome{more: true} // two were under way
	}
	expect := uint64(0)
	if s.after > 0 {
		expect = s.after + 1
	} else {
		if s.mark.Epoch != v.Head.Epoch {
			// All tokens of before are dead by that alone: nothing of it is to be put back.
			s.deny.forgetUsers()
			s.heal = nil
			for _, sid := range s.unproven {
				if s.heal == nil {
					s.heal = &healing{}
				}
				s.heal.known = append(s.heal.known, tokenstore.Entry{Kind: tokenstore.KindSession, ID: sid})
			}
		}
		s.mark = v.Head
	}
	if v.Head.Epoch != s.mark.Epoch || v.Head.Seq < s.mark.Seq {
		return s.lost()
	}
	var out outcome
	last := s.after
	for _, e := range v.Entries {
		if expect != 0 && e.Seq != expect {
			return s.lost()
		}
		expect, last = e.Seq+1, e.Seq
		if e.Seq == s.mark.Seq+1 {
			s.mark = s.mark.After(e)
		}
		s.apply(e, now, &out)
		if s.heal != nil {
			s.heal.read = append(s.heal.read, e)
		}
	}
	switch {
	case len(v.Entries) > 0 && last < v.Head.Seq:
		s.after, out.more = last, true
		return out
	case len(v.Entries) == 0 && s.after > 0 && s.after != v.Head.Seq, s.mark != v.Head:
		return s.lost()
	}
	// An empty log under a head that has counted is one whose entries have all
	// outlived the tokens they name.
	s.boot, s.after, s.unproven, out.more = true, 0, nil, true
	epoch := v.Head.Epoch
	s.history.Store(&epoch)
	out.restore = append(out.restore, s.missing(v.Now, now)...)
	out.restore = append(out.restore, s.dead(v.Dead, &out)...)
	s.bootedAt, s.foundAt = now.mono, r.at.mono
	s.grant(r.at, now)
	return out
}

// dead takes the list of the signing keys that were revoked, of which the log need
// not tell any more, and returns those that Redis has lost.
func (s *shard) dead(list []tokenstore.ID, out *outcome) []tokenstore.Entry {
	for _, id := range list {
		if s.deny.addKey(id) {
			s.version.Add(1)
			out.key = true
		}
	}
	var lost []tokenstore.Entry
	if len(s.deny.keys) > len(list) {
		for id := range s.deny.keys {
			if !slices.Contains(list, id) {
				lost = append(lost, tokenstore.Entry{Kind: tokenstore.KindKey, ID: id})
			}
		}
	}
	return lost
}

// missing is what this follower knew and Redis no longer does.
func (s *shard) missing(at time.Time, now instant) []tokenstore.Entry {
	h := s.heal
	s.heal = nil
	if h == nil {
		return nil
	}
	ended := make(map[tokenstore.ID]bool, len(h.read))
	cutoffs := map[tokenstore.ID]cutoff{} // that Redis knows, or is about to
	for _, e := range h.read {
		if e.Kind == tokenstore.KindUser {
			cutoffs[e.ID] = cutoffs[e.ID].and(cutoffOf(e))
		} else {
			ended[e.ID] = true
		}
	}
	var list []tokenstore.Entry
	for _, e := range h.known {
		if e.Kind == tokenstore.KindSession {
			if !ended[e.ID] {
				list = append(list, e)
			}
			continue
		}
		there, ok := cutoffs[e.ID]
		if there.covers(e) || !e.Until.After(at) {
			continue
		}
		if ok && there.except != e.Except {
			e.Epoch = max(e.Epoch, there.epoch)
			e = s.outbid(e, now)
		}
		cutoffs[e.ID] = there.and(cutoffOf(e))
		list = append(list, e)
	}
	for _, e := range list {
		s.owe(e, now)
	}
	return list
}

// owe notes that an entry is to appear in the log.
func (s *shard) owe(e tokenstore.Entry, now instant) {
	if s.owed == nil {
		s.owed = map[tokenstore.ID]tokenstore.Entry{}
	}
	if old, ok := s.owed[e.ID]; !ok || old.Epoch < e.Epoch {
		s.owed[e.ID] = e
	}
	s.reminds = now.mono
}

// remind returns what has not appeared for a lease's time, and is still denied.
func (s *shard) remind(now instant) []tokenstore.Entry {
	if len(s.owed) == 0 || now.mono-s.reminds < s.lease {
		return nil
	}
	s.reminds = now.mono
	list := make([]tokenstore.Entry, 0, len(s.owed))
	for id, e := range s.owed {
		if !s.deny.names(id) {
			delete(s.owed, id)
			continue
		}
		list = append(list, e)
	}
	return list
}

// tailed takes entries that the log has brought since. They are applied at once;
// whether their history is the right one, the next renewal tells.
func (s *shard) tailed(entries []tokenstore.Entry, now instant) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out outcome
	if !s.boot {
		return out
	}
	for _, e := range entries {
		switch {
		case e.Seq <= s.mark.Seq:
		case e.Seq == s.mark.Seq+1:
			s.apply(e, now, &out)
			s.pass(s.mark.After(e))
		default:
			return s.lost()
		}
	}
	return out
}

// apply remembers one revocation. The version moves after the entry is in: who
// sees the old version began before. One that does not fit ends the lease at
// once: the next renewal shows it as applied, and then it may be answered.
func (s *shard) apply(e tokenstore.Entry, now instant, out *outcome) {
	// An entry's own span is how long the tokens it names may live, whatever the
	// lifetimes are set to here or now.
	s.deny.widen(e.Until.Sub(e.At))
	out.key = out.key || e.Kind == tokenstore.KindKey
	if s.boot && e.Kind == tokenstore.KindSession {
		s.unproven = append(s.unproven, e.ID)
	}
	added := s.deny.add(e, now.mono)
	if owed, ok := s.owed[e.ID]; ok {
		switch {
		case cutoffOf(e).covers(owed):
			delete(s.owed, e.ID)
		case e.Epoch >= owed.Epoch && added == remembered:
			added = conflict // it excepts whom the other has ended, and Redis would not take that any more
		}
	}
	switch added {
	case full:
		s.granted.Store(nil)
	case conflict:
		next := s.outbid(e, now)
		s.owe(next, now)
		out.restore = append(out.restore, next)
	}
	s.version.Add(1)
	out.applied++
	if out.oldest.IsZero() || e.At.Before(out.oldest) {
		out.oldest = e.At
	}
}

// outbid is a user's next cut-off, without an exception: of two that failovers
// have set against each other, each excepts a session that the other has ended.
func (s *shard) outbid(e tokenstore.Entry, now instant) tokenstore.Entry {
	e.Epoch, e.Except = e.Epoch+1, tokenstore.ID{}
	s.deny.add(e, now.mono)
	return e
}

// grant lets the shard answer by itself for one lease, counted from before the
// renewal was sent.
func (s *shard) grant(from, now instant) {
	s.deny.turn(now.mono)
	if !s.deny.complete(now.mono) {
		s.granted.Store(nil)
		return
	}
	end := from.add(s.lease)
	if old := s.granted.Load(); old == nil || old.mono < end.mono {
		s.granted.Store(&end)
		s.lastGrant = end
	}
}

// lost drops the lease and begins again. What is denied stays denied.
func (s *shard) lost() outcome {
	s.granted.Store(nil)
	s.heal, s.owed = &healing{known: s.deny.entries()}, nil
	s.boot, s.after = false, 0
	s.incarnation++
	return outcome{gap: true, more: true}
}

// end gives up the lease, and whatever a renewal under way may bring.
func (s *shard) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.incarnation++
	s.granted.Store(nil)
	s.lastGrant = instant{}
}

// verdict is what a shard can say of a token by itself.
type verdict int

const (
	unknown  verdict = iota // no lease: somebody else must be asked
	accepted                // not revoked, and the lease holds
	refused                 // revoked
)

// check judges a token whose signature was checked. seen is the version at which
// it was last found good; the version it was found good at now is returned, to
// be passed the next time.
//
// The order matters. The lease is taken up first, then the denylist is looked at,
// then the clock is read: all that the lease stands for was applied before it was
// granted, and is seen; and the answer is given while the lease holds. A lease
// that is granted after the look could stand for an entry that the look missed.
// And all of it must be of one history: a boot meanwhile is seen at the end.
func (s *shard) check(t *tokenstore.AccessToken, seen uint64, clock func() instant) (verdict, uint64) {
	history := s.history.Load()
	end := s.granted.Load()
	version := s.version.Load() + 1 // 0 is "never"
	if version != seen {
		s.mu.RLock()
		denied := s.deny.denies(t, s.mark.Epoch)
		s.mu.RUnlock()
		if denied {
			return refused, 0
		}
	}
	if end == nil || !clock().before(*end) || s.history.Load() != history {
		return unknown, version
	}
	if *history != t.LogEpoch {
		// Issued under another history: before a loss of data, and then it is
		// dead; or after one that this follower has not noticed. Redis knows.
		return unknown, version
	}
	return accepted, version
}

// stale reports whether the last lease ended less than bound ago.
func (s *shard) stale(now instant, bound time.Duration) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.lastGrant != instant{} && now.before(s.lastGrant.add(bound))
}

// pass moves the mark.
func (s *shard) pass(to tokenstore.Mark) {
	s.mark = to
	s.recent[to.Seq%uint64(len(s.recent))] = to
}

// trusts reports whether the table of followers was whole when a revocation was
// made: it continues the history that has been followed here, and for so long
// that no lease from before is left. That it does so, its chain tells; for one
// that was made long ago and is asked for again, a renewal that was sent after.
func (s *shard) trusts(made tokenstore.Mark, after, now, silent time.Duration) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	passed := s.recent[made.Seq%uint64(len(s.recent))]
	ours := passed.Seq == made.Seq && passed.Chain == made.Chain && passed.Epoch == s.mark.Epoch
	return s.boot && (ours || s.foundAt >= after) && now-s.bootedAt >= silent
}

// applied returns how far the log was applied, and whether there was a boot.
func (s *shard) applied() (tokenstore.Mark, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mark, s.boot
}
