package edge

import (
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
	mark  tokenstore.Mark // applied; meaningless until booted
	boot  bool            // booted
	after uint64          // while booting: entries up to here were read
	// incarnation counts boots: what was asked for before one is not believed after.
	incarnation uint64
	beat        uint64
	lastGrant   instant // when the last lease ended or will: for a bounded serve-stale
	heal        *healing
	// Since when this history is followed, and when the last renewal was sent that
	// found it to be Redis's: what [Confirmer.Beside] needs to know.
	bootedAt, foundAt time.Duration
}

// healing is what a follower knew before it had to boot again.
type healing struct {
	epoch string
	known []tokenstore.Entry
	found map[tokenstore.ID]uint64 // in the log since: user epoch, or 0 for a session
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
	more    bool               // there are entries left: renew again at once
	gap     bool               // this is not the history that was followed: boot again
	restore []tokenstore.Entry // what Redis has lost
	oldest  time.Time          // of the applied entries, when it was made; zero if none
}

// renewed takes the answer to a renewal.
func (s *shard) renewed(r sent, v tokenstore.View, now instant) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.incarnation != s.incarnation || r.booted != s.boot {
		return outcome{more: true}
	}
	s.deny.widen(v.Longest)
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
			s.mark = at
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
	s.foundAt = max(s.foundAt, r.at.mono)
	s.grant(r.at, now)
	return out
}

// bootFrom takes a page of the whole retained log.
func (s *shard) bootFrom(r sent, v tokenstore.View, now instant) outcome {
	var out outcome
	expect := uint64(0)
	if r.After > 0 {
		expect = r.After + 1
	}
	if s.mark.Epoch != v.Head.Epoch {
		if r.After > 0 {
			return s.lost() // Redis was replaced between two pages
		}
		s.deny.forgetUsers()
		s.mark = tokenstore.Mark{Epoch: v.Head.Epoch}
	}
	last := r.After
	for _, e := range v.Entries {
		if expect != 0 && e.Seq != expect {
			return s.lost()
		}
		expect, last = e.Seq+1, e.Seq
		s.apply(e, now, &out)
		if s.heal != nil {
			s.heal.found[e.ID] = max(s.heal.found[e.ID], e.Epoch)
		}
	}
	switch {
	case len(v.Entries) > 0 && last < v.Head.Seq:
		s.after, out.more = last, true
		return out
	case len(v.Entries) > 0 && last > v.Head.Seq:
		return s.lost()
	case len(v.Entries) == 0 && r.After > 0 && r.After != v.Head.Seq:
		return s.lost()
	}
	// An empty log under a head that has counted is one whose entries have all
	// outlived the tokens they name.
	s.mark, s.boot, s.after = v.Head, true, 0
	epoch := v.Head.Epoch
	s.history.Store(&epoch)
	out.restore = s.missing(v.Head.Epoch)
	s.bootedAt, s.foundAt = now.mono, r.at.mono
	s.grant(r.at, now)
	return out
}

// missing is what this follower knew and Redis no longer does. Under another
// epoch Redis has lost everything: all tokens of before are dead by that alone.
func (s *shard) missing(epoch string) []tokenstore.Entry {
	h := s.heal
	s.heal = nil
	if h == nil || h.epoch != epoch {
		return nil
	}
	var list []tokenstore.Entry
	for _, e := range h.known {
		if found, ok := h.found[e.ID]; !ok || found < e.Epoch {
			list = append(list, e)
		}
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
			s.mark = s.mark.After(e)
		default:
			return s.lost()
		}
	}
	return out
}

// apply remembers one revocation. The version moves after the entry is in: who
// sees the old version began before.
func (s *shard) apply(e tokenstore.Entry, now instant, out *outcome) {
	s.deny.add(e, now.mono)
	s.version.Add(1)
	out.applied++
	if out.oldest.IsZero() || e.At.Before(out.oldest) {
		out.oldest = e.At
	}
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
	if s.heal == nil && s.boot {
		s.heal = &healing{epoch: s.mark.Epoch}
	}
	if s.heal != nil {
		s.heal.known, s.heal.found = s.deny.entries(), map[tokenstore.ID]uint64{}
	}
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
// be passed the next time. The clock is read last: an answer given by a lease is
// given while it holds.
func (s *shard) check(t *tokenstore.AccessToken, seen uint64, clock func() instant) (verdict, uint64) {
	version := s.version.Load() + 1 // 0 is "never"
	if version != seen {
		s.mu.RLock()
		denied := s.deny.denies(t, s.mark.Epoch)
		s.mu.RUnlock()
		if denied {
			return refused, 0
		}
	}
	end := s.granted.Load()
	if end == nil || !clock().before(*end) {
		return unknown, version
	}
	if h := s.history.Load(); *h != t.LogEpoch {
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

// trusts reports whether a table of followers that was read after a moment is
// known to be whole: Redis still has, after it, the history that has been
// followed here for so long that no lease of another is left.
func (s *shard) trusts(after, now, silent time.Duration) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.boot && s.foundAt >= after && now-s.bootedAt >= silent
}

// applied returns how far the log was applied, and whether there was a boot.
func (s *shard) applied() (tokenstore.Mark, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mark, s.boot
}
