package edge

import (
	"maps"
	"math"
	"slices"
	"strings"
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

	mu   sync.RWMutex
	deny *denylist
	// mark is the last entry that was applied. While the shard boots its Epoch is empty
	// until the head was read, and its Chain until the first entry was.
	mark tokenstore.Mark
	boot bool // booted: all that the log retains has been applied
	// lagging is set while more entries are left to read than one renewal brings.
	// [Follower.catchUp] then reads the log, and renewals only ask for the head: they do not
	// write this follower's line into the table of followers, so that no logout waits for
	// it, and they grant no lease.
	lagging bool
	// atHead is when the last request was sent whose answer left nothing to read. If that
	// is a lease ago, the next renewal only reads, and the one after it takes part again.
	atHead time.Duration
	head   uint64 // seq of the last entry in Redis, as last heard

	// incarnation counts boots: what was asked for before one is not believed after.
	incarnation uint64
	beat        uint64
	lastGrant   instant // when the last lease ended or will: for a bounded serve-stale
	heal        *healing
	// owed was to be put back into Redis and has not been seen in its log yet:
	// the next failover may have lost it again.
	owed    map[tokenstore.ID]tokenstore.Entry
	reminds time.Duration // when it was last asked for
	// restoring is set while the follower puts back what is owed.
	restoring atomic.Bool
	// Since when this history is followed, and when the last renewal was sent that
	// found it to be Redis's: what [Confirmer.Beside] needs to know.
	bootedAt, foundAt time.Duration
	// tenure is of who answers this follower's renewals.
	tenure tenure
	recent recent
	// early has entries whose predecessors have not been applied yet, by seq: see told.
	early map[uint64]tokenstore.Entry
	// shown is the last mark that was shown to the others.
	shown tokenstore.Mark
}

// longAgo is a moment before any other of the monotonic clock.
const longAgo = time.Duration(math.MinInt64 / 2)

// recent is the marks that were passed last, and the entries that led to them, each at its
// seq modulo their number.
type recent [256]struct {
	mark  tokenstore.Mark
	entry tokenstore.Entry // zero for the mark at which the shard booted
}

// at returns the mark of a seq, if it is remembered.
func (r *recent) at(seq uint64) tokenstore.Mark {
	if p := &r[seq%uint64(len(r))]; p.mark.Seq == seq {
		return p.mark
	}
	return tokenstore.Mark{}
}

// since returns the oldest mark from which everything up to seq is remembered, and the
// entries that follow it. The mark is zero if there is none but that of seq.
func (r *recent) since(seq uint64) (tokenstore.Mark, []tokenstore.Entry) {
	first := seq
	for r.at(first).Seq == first && first > 0 && r[first%uint64(len(r))].entry.Seq == first &&
		r.at(first-1).Chain != "" && seq-first < uint64(len(r))-1 {
		first--
	}
	if first == seq {
		return tokenstore.Mark{}, nil
	}
	var list []tokenstore.Entry
	for n := first + 1; n <= seq; n++ {
		list = append(list, r[n%uint64(len(r))].entry)
	}
	return r.at(first), list
}

// healing is what a follower knew before it had to boot again and what has not been seen in
// the log since.
type healing struct {
	sessions map[tokenstore.ID]uint32 // until when their tokens may live, in Unix seconds
	users    []tokenstore.Entry
	read     map[tokenstore.ID]cutoff // of users, that the log has
}

// saw notes an entry that the log has.
func (h *healing) saw(e tokenstore.Entry) {
	switch e.Kind {
	case tokenstore.KindSession:
		delete(h.sessions, e.ID)
	case tokenstore.KindUser:
		h.read[e.ID] = h.read[e.ID].and(cutoffOf(e))
	}
}

// sent is a renewal under way: what was shown, and when.
type sent struct {
	tokenstore.Renewal
	from        tokenstore.Mark // the last entry applied when it was sent
	at          instant
	booted      bool
	incarnation uint64
}

func newShard(number int, lease time.Duration, limit int, width time.Duration) *shard {
	return &shard{number: number, lease: lease, deny: newDenylist(limit, width), atHead: longAgo}
}

// renewal returns what to show now. The lease that its answer may bring counts
// from now: from before it is sent.
func (s *shard) renewal(member string, now instant) sent {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := tokenstore.Renewal{Shard: s.number, After: s.mark.Seq}
	switch {
	case s.lagging:
		r.After = tokenstore.NoEntries
	case now.mono-s.atHead < s.lease:
		s.beat++
		r.Member, r.Beat, r.Mark = member, s.beat, s.mark
		s.shown = s.mark
	}
	return sent{Renewal: r, from: s.mark, at: now, booted: s.boot, incarnation: s.incarnation}
}

// outcome is what a renewal came to.
type outcome struct {
	applied int                // entries
	more    bool               // there are entries left, or to be shown: renew again at once
	behind  bool               // there are more entries left than a renewal brings: read the log
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
	if !s.boot && s.mark.Epoch != v.Head.Epoch {
		s.begin(v.Head.Epoch)
		if r.from.Chain != "" || r.After == tokenstore.NoEntries {
			return outcome{more: true} // what it brought is not the beginning
		}
	}
	if v.Head.Epoch != s.mark.Epoch || v.Head.Seq < r.from.Seq {
		return s.lost()
	}
	s.head, s.deny.redis = v.Head.Seq, v.Now.UnixMilli()
	if r.After == tokenstore.NoEntries {
		return s.lookedAtHead(v.Head)
	}
	// Walk from where the shard was to the head: each entry must follow the one before,
	// and the last must be the head.
	var out outcome
	at := r.from
	at.Epoch = s.mark.Epoch
	ours := s.mark == at
	for i, e := range v.Entries {
		next, ok := s.next(at, &e, i == 0)
		if !ok {
			return s.lost()
		}
		at = next
		// Applied even if the tail has brought an entry of this number meanwhile:
		// whether it is the same one is not known.
		s.apply(e, now, &out)
		s.version.Add(1)
		if ours {
			s.pass(at, &e)
			out.more = true // somebody may be waiting to see it applied
		}
		ours = ours || s.mark == at // from where the tail left off
	}
	switch {
	case at.Seq < v.Head.Seq && len(v.Entries) > 0:
		s.lagging, s.atHead = true, longAgo
		s.deny.expect(v.Head.Seq - at.Seq)
		out.more, out.behind = false, true
		return out
	case !s.boot && ours && len(v.Entries) == 0 && (at.Chain == "" || at.Seq < v.Head.Seq):
		// Nothing is retained between here and the head: it has outlived the tokens
		// that it names.
		at = v.Head
		s.pass(at, &tokenstore.Entry{})
	}
	switch {
	case at != v.Head:
		return s.lost()
	case !ours && s.mark.Seq <= at.Seq:
		return s.lost() // what the tail brought is not in this history
	}
	s.lagging, s.atHead = false, max(s.atHead, r.at.mono)
	if r.Member == "" || (!s.boot && !ours) {
		out.more = true // it was a look; now take part
		return out
	}
	if !s.boot {
		s.booted(v, now)
		out.restore = append(out.restore, s.missing(v.Now, now)...)
	}
	out.restore = append(out.restore, s.dead(v.Dead, &out)...)
	s.foundAt = max(s.foundAt, r.at.mono)
	s.grant(r.at, now)
	out.restore = append(out.restore, s.remind(v.Now, now)...)
	return out
}

// begin starts to read the log of the history epoch from its first entry. If another history
// was followed before, all of its tokens are dead already, and none of its revocations has
// to be put back.
func (s *shard) begin(epoch string) {
	if s.mark.Epoch != "" {
		s.deny.forgetUsers()
		s.heal = nil
	}
	s.early = nil
	s.mark, s.recent = tokenstore.Mark{Epoch: epoch}, recent{}
	s.lagging = false
	s.incarnation++
}

// booted ends the boot.
func (s *shard) booted(v tokenstore.View, now instant) {
	s.boot, s.bootedAt = true, now.mono
	epoch := v.Head.Epoch
	s.history.Store(&epoch)
}

// lookedAtHead takes the answer to a renewal that asked for the head alone, because the
// shard lags.
func (s *shard) lookedAtHead(head tokenstore.Mark) outcome {
	switch {
	case head.Seq == s.mark.Seq && head.Chain != s.mark.Chain:
		return s.lost()
	case head.Seq > s.mark.Seq:
		return outcome{behind: s.lagging}
	}
	s.lagging = false
	return outcome{more: true}
}

// next returns the mark behind an entry that was read after the mark at, or false if it
// does not follow it. Of what one reply brought only the first entry is checked by its
// chain: the rest is of the same history, which one Redis had at one moment.
func (s *shard) next(at tokenstore.Mark, e *tokenstore.Entry, first bool) (tokenstore.Mark, bool) {
	behind := tokenstore.Mark{Epoch: at.Epoch, Seq: e.Seq, Chain: e.Chain}
	switch {
	case !s.boot && (at.Chain == "" || e.Seq > at.Seq+1):
		// The first entry that the log retains, or the first that it still does:
		// what came before has outlived the tokens that it names.
		return behind, true
	case e.Seq != at.Seq+1:
		return behind, false
	case first:
		return behind, at.After(*e).Chain == e.Chain
	}
	return behind, true
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

// missing returns the revocations that this follower knew, that Redis has lost, and that
// still name unexpired tokens. They are to be put back.
func (s *shard) missing(at time.Time, now instant) []tokenstore.Entry {
	h := s.heal
	s.heal = nil
	if h == nil {
		return nil
	}
	var list []tokenstore.Entry
	for sid, until := range h.sessions {
		if end := time.Unix(int64(until), 0); end.After(at) {
			list = append(list, tokenstore.Entry{Kind: tokenstore.KindSession, ID: sid, Until: end})
		}
	}
	cutoffs := h.read // that Redis knows, or is about to
	for _, e := range h.users {
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

// remind returns what has not appeared in the log for a lease's time, and is still denied
// at a Redis TIME.
func (s *shard) remind(at time.Time, now instant) []tokenstore.Entry {
	if len(s.owed) == 0 || now.mono-s.reminds < s.lease {
		return nil
	}
	s.reminds = now.mono
	list := make([]tokenstore.Entry, 0, len(s.owed))
	for id, e := range s.owed {
		if !e.Until.After(at) || !s.deny.names(id) {
			delete(s.owed, id)
			continue
		}
		list = append(list, e)
	}
	return list
}

// owes reports whether an entry has not appeared in the log yet.
func (s *shard) owes(e tokenstore.Entry) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	owed, ok := s.owed[e.ID]
	return ok && owed.Epoch <= e.Epoch
}

// position is where one read of the log begins.
type position struct {
	after       uint64
	incarnation uint64
}

// reads returns what to read of the log next, if the shard lags.
func (s *shard) reads() (position, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return position{after: s.mark.Seq, incarnation: s.incarnation}, s.lagging
}

// tailed takes entries that a read of the log has brought. They are applied at once;
// that the log still leads to the head from there, the next renewal tells.
func (s *shard) tailed(from position, entries []tokenstore.Entry, now instant) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out outcome
	if from.incarnation != s.incarnation {
		return out
	}
	first, changed := true, uint64(0)
	defer func() { s.version.Add(changed) }() // once, since this loop is what a boot spends its time in
	for i := range entries {
		e := &entries[i]
		if e.Seq <= s.mark.Seq {
			continue
		}
		next, ok := s.next(s.mark, e, first)
		if !ok {
			return s.lost()
		}
		s.apply(*e, now, &out)
		changed = 1
		if i+len(s.recent) < len(entries) {
			s.mark = next // recent would not keep it
		} else {
			s.pass(next, e)
		}
		first = false
	}
	out.more = s.lagging && (len(entries) == 0 || s.mark.Seq >= s.head)
	if out.more {
		s.lagging = false
	}
	s.goOn(now, &out)
	return out
}

// told takes an entry that Redis has told of, or that this process has made itself. It is
// applied if it is the next one: its chain covers all entries before it. An entry that comes
// before its predecessors is kept until they are there, and missing reports that.
func (s *shard) told(epoch string, e tokenstore.Entry, now instant) (out outcome, missing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.boot || s.lagging || epoch != s.mark.Epoch || e.Seq <= s.mark.Seq {
		return out, false
	}
	if e.Seq-s.mark.Seq < uint64(len(s.recent)) {
		if s.early == nil {
			s.early = map[uint64]tokenstore.Entry{}
		}
		s.early[e.Seq] = e
		s.goOn(now, &out)
	}
	return out, s.mark.Seq < e.Seq
}

// goOn applies the entries that came early and follow the mark.
func (s *shard) goOn(now instant, out *outcome) {
	if len(s.early) == 0 {
		return
	}
	applied := out.applied
	for e, ok := s.early[s.mark.Seq+1]; ok; e, ok = s.early[s.mark.Seq+1] {
		next := s.mark.After(e)
		if next.Chain != e.Chain {
			break // it is of another history
		}
		s.apply(e, now, out)
		s.pass(next, &e)
	}
	if out.applied > applied {
		s.version.Add(1)
	}
	maps.DeleteFunc(s.early, func(seq uint64, _ tokenstore.Entry) bool { return seq <= s.mark.Seq })
}

// acknowledge returns the mark to show to those who wait for this follower; false if it was
// shown before, or if this follower takes no part now: see renewal.
func (s *shard) acknowledge(now instant) (tokenstore.Mark, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.boot || s.lagging || s.mark == s.shown || now.mono-s.atHead >= s.lease {
		return tokenstore.Mark{}, false
	}
	s.shown = s.mark
	return s.mark, true
}

// passed reports whether this follower has applied the entry that a mark names, and remembers
// it.
func (s *shard) passed(m tokenstore.Mark) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	passed := s.recent.at(m.Seq)
	return s.boot && m.Chain != "" && passed.Seq == m.Seq && passed.Chain == m.Chain
}

// apply remembers one revocation. One that does not fit ends the lease at once: the next
// renewal shows it as applied, and then it may be answered. The caller moves the version
// afterwards, before any lease is granted: who sees the old version began before.
func (s *shard) apply(e tokenstore.Entry, now instant, out *outcome) {
	// An entry's own span is how long the tokens it names may live, whatever the
	// lifetimes are set to here or now.
	s.deny.widen(e.Until.Sub(e.At))
	out.key = out.key || e.Kind == tokenstore.KindKey
	if s.heal != nil {
		s.heal.saw(e)
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
	if added == conflict {
		next := s.outbid(e, now)
		s.owe(next, now)
		out.restore = append(out.restore, next)
	}
	if !s.deny.complete(now.mono) {
		s.granted.Store(nil)
	}
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

// lost drops the lease and boots again, since the log is not the one that was followed.
// What is denied stays denied.
//
// After a failover the two logs usually differ in their last entries only. So the boot
// reads on from the oldest mark in recent: if the first entry that it reads follows that
// mark, the older part is the same. If not, lost is called again and the whole log is read.
func (s *shard) lost() outcome {
	s.granted.Store(nil)
	s.incarnation++
	h := &healing{read: map[tokenstore.ID]cutoff{}}
	from, known := tokenstore.Mark{}, []tokenstore.Entry(nil)
	if s.boot {
		from, known = s.recent.since(s.mark.Seq)
	}
	h.users = s.deny.userEntries()
	if from.Chain == "" {
		h.sessions = s.deny.sessions()
	} else {
		h.sessions = map[tokenstore.ID]uint32{}
		since := map[tokenstore.ID]bool{}
		for _, e := range slices.AppendSeq(known, maps.Values(s.owed)) {
			since[e.ID] = true
			if e.Kind == tokenstore.KindSession {
				h.sessions[e.ID] = seconds(e.Until)
			}
		}
		h.users = slices.DeleteFunc(h.users, func(e tokenstore.Entry) bool { return !since[e.ID] })
	}
	epoch := s.mark.Epoch
	s.mark, s.recent, s.heal, s.owed = tokenstore.Mark{Epoch: epoch}, recent{}, h, nil
	if from.Chain != "" {
		s.pass(from, &tokenstore.Entry{})
	}
	s.early = nil
	s.boot, s.lagging, s.atHead = false, false, longAgo
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

// pass moves the mark behind an entry.
func (s *shard) pass(to tokenstore.Mark, e *tokenstore.Entry) {
	to.Chain = strings.Clone(to.Chain) // it is a part of the reply that brought it
	s.mark = to
	p := &s.recent[to.Seq%uint64(len(s.recent))]
	p.mark, p.entry = to, e.Bare()
}

// trusts reports whether a revocation may be confirmed by the table of followers: this
// follower has followed the revocation's history for as long as silent, so every lease of
// before has ended. The mark made is of that history if this follower has passed it, or if
// a renewal that was sent later than after, when the revocation was there already, has
// found the history to be Redis's.
func (s *shard) trusts(made tokenstore.Mark, after, now, silent time.Duration) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	passed := s.recent.at(made.Seq)
	ours := passed.Seq == made.Seq && passed.Chain == made.Chain && passed.Epoch == s.mark.Epoch
	return s.boot && (ours || s.foundAt >= after) && now-s.bootedAt >= silent
}

// applied returns how far the log was applied, and whether there was a boot.
func (s *shard) applied() (tokenstore.Mark, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mark, s.boot
}
