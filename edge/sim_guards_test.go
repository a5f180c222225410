package edge

import (
	"slices"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// What the simulation cannot find: it runs each step as one, and not for as long
// as tokens live.

func simEntry(before tokenstore.Mark, sid tokenstore.ID, at time.Time, span time.Duration) tokenstore.Entry {
	return tokenstore.NewEntry(before, tokenstore.Entry{Kind: tokenstore.KindSession, ID: sid, At: at, Until: at.Add(span)})
}

// start is the mark of a history before its first entry.
func start(history string) tokenstore.Mark { return tokenstore.Mark{Epoch: history, Chain: history} }

// look lets a shard renew until it wants no more, on a log that holds entries and leads to
// their last one. It returns what that came to, all together.
func (s *shard) look(history string, log []tokenstore.Entry, now instant) outcome {
	head := start(history)
	for _, e := range log {
		head = head.After(e)
	}
	var all outcome
	for out := (outcome{more: true}); out.more; {
		r := s.renewal("m", now)
		v := tokenstore.View{Now: time.UnixMilli(simEpoch), Head: head}
		for _, e := range log {
			if e.Seq > r.After {
				v.Entries = append(v.Entries, e)
			}
		}
		out = s.renewed(r, v, now)
		all.gap = all.gap || out.gap
		all.restore = append(all.restore, out.restore...)
	}
	return all
}

// tail lets a shard take entries that came after what it has.
func (s *shard) tail(entries []tokenstore.Entry, now instant) outcome {
	from, _ := s.reads()
	return s.tailed(from, entries, now)
}

// bootedShard has followed the history named, from its beginning, since now.
func bootedShard(history string, width time.Duration, now instant) *shard {
	s := newShard(0, time.Second, 10_000, width)
	s.look(history, nil, now)
	return s
}

// A check that is held up between its steps, while the follower gives up one
// history and boots in the next, must not judge by the lease of the one and the
// look-up of the other.
func TestACheckIsOfOneHistory(t *testing.T) {
	var now instant
	s := bootedShard("before", time.Minute, now)
	sid := tokenstore.ID{0, 1}
	token := &tokenstore.AccessToken{SID: sid, LogEpoch: "after"}
	revoked := simEntry(start("after"), sid, time.UnixMilli(simEpoch), time.Minute)
	moved := false
	verdict, _ := s.check(token, 0, func() instant {
		if !moved {
			moved = true
			if out := s.look("after", []tokenstore.Entry{revoked}, now); !out.gap {
				t.Fatal("the change of history was not noticed")
			}
		}
		return now
	})
	if verdict == accepted {
		t.Error("a token that was revoked before the check began is accepted")
	}
	if verdict, _ := s.check(token, 0, func() instant { return now }); verdict != refused {
		t.Errorf("afterwards: %v", verdict)
	}
}

// An entry names tokens that may live for longer than those that are issued here,
// and says so itself: the tail brings it before any renewal could tell.
func TestADenialLastsAsLongAsItsEntrySays(t *testing.T) {
	const here, there = 15 * time.Minute, time.Hour
	var now instant
	s := bootedShard("h", here, now)
	at, sid := time.UnixMilli(simEpoch), tokenstore.ID{0, 1}
	s.tail([]tokenstore.Entry{simEntry(s.mark, sid, at, there)}, now)
	for seq := uint64(2); now.mono < there*101/100; seq++ {
		if !s.deny.denies(&tokenstore.AccessToken{SID: sid}, "h") {
			t.Fatalf("forgotten after %v", now.mono)
		}
		now = now.add(5 * time.Minute)
		s.tail([]tokenstore.Entry{simEntry(s.mark, tokenstore.ID{0, 2, byte(seq)}, at.Add(now.mono), here)}, now)
	}
}

// A follower's clock may be fast by as much as clocks are allowed to differ.
func TestADenialLastsByAFastClock(t *testing.T) {
	const span = time.Hour
	d := newDenylist(100, 0)
	sid := tokenstore.ID{0, 1}
	d.widen(span)
	d.turn(span)
	came := span + d.width - time.Second // as late in its generation as can be
	d.add(tokenstore.Entry{Kind: tokenstore.KindSession, ID: sid}, came)
	for now := came; now < came+time.Duration(float64(span)*(1+drift)); now += time.Second {
		d.turn(now)
		if !d.names(sid) {
			t.Fatalf("forgotten %v after it came, by a clock that may be fast by %v", now-came, drift)
		}
	}
}

// logOf makes entries that follow one another from the beginning of the history h: of sessions
// whose ids begin with these bytes.
func logOf(ids ...byte) []tokenstore.Entry {
	at := start("h")
	list := make([]tokenstore.Entry, len(ids))
	for i, b := range ids {
		list[i] = simEntry(at, tokenstore.ID{0, b}, time.UnixMilli(simEpoch), time.Minute)
		at = at.After(list[i])
	}
	return list
}

func headOf(log []tokenstore.Entry) tokenstore.Mark {
	m := start("h")
	for _, e := range log {
		m = m.After(e)
	}
	return m
}

// A boot that reads its pages from two histories has read neither.
func TestABootIsOfOneHistory(t *testing.T) {
	var now instant
	lost, kept := logOf(1, 2, 3), logOf(1, 12, 13, 14)
	s := newShard(0, time.Second, 100, time.Minute)
	// A page of two; then a failover puts other entries in the place of 2 and 3.
	out := s.renewed(s.renewal("m", now), tokenstore.View{Head: headOf(lost), Entries: lost[:2]}, now)
	if !out.behind || !s.lagging {
		t.Fatalf("a part of the log: %+v", out)
	}
	from, _ := s.reads()
	if out := s.tailed(from, kept[2:], now); !out.gap {
		t.Error("the follower goes on in another history")
	}
	if _, booted := s.applied(); booted {
		t.Error("the follower has booted without the second entry")
	}
	if s.look("h", kept, now); !s.deny.denies(&tokenstore.AccessToken{SID: kept[1].ID}, "h") {
		t.Error("it does not read the log from the beginning again")
	}
}

func userEntry(before tokenstore.Mark, epoch uint64, uid, except tokenstore.ID) tokenstore.Entry {
	at := time.UnixMilli(simEpoch)
	return tokenstore.NewEntry(before, tokenstore.Entry{
		Kind: tokenstore.KindUser, ID: uid, Epoch: epoch, Except: except, At: at, Until: at.Add(time.Minute),
	})
}

// A failover loses that a user has ended all sessions but one, and another session that
// it had revived ends all but itself. What was known stays known, and the later exception
// is void.
func TestALaterExceptionRevivesNobody(t *testing.T) {
	uid, kept, thief := tokenstore.ID{0, 'u'}, tokenstore.ID{0, 1}, tokenstore.ID{0, 2}
	old := &tokenstore.AccessToken{SID: thief, UID: uid, UserEpoch: 0, LogEpoch: "h"}
	first := userEntry(start("h"), 1, uid, thief)
	later := []tokenstore.Entry{first, userEntry(start("h").After(first), 2, uid, thief)}
	for name, theirs := range map[string][]tokenstore.Entry{"later": later, "of the same number": later[:1], "later, by the tail": later} {
		t.Run(name, func(t *testing.T) {
			var now instant
			s := bootedShard("h", time.Minute, now)
			s.tail([]tokenstore.Entry{userEntry(s.mark, 1, uid, kept)}, now)
			if name == "later, by the tail" {
				if out := s.tail(theirs[1:], now); !out.gap {
					t.Error("the tail goes on in another history")
				}
			}
			if !s.deny.denies(old, "h") {
				t.Error("accepted before the failover is noticed")
			}
			out := s.look("h", theirs, now)
			if !out.gap && name != "later, by the tail" {
				t.Fatal("the failover was not noticed")
			}
			if !s.deny.denies(old, "h") {
				t.Error("accepted afterwards")
			}
			last := theirs[len(theirs)-1]
			if n := len(out.restore); n == 0 || out.restore[n-1].Epoch <= last.Epoch || out.restore[n-1].Except != (tokenstore.ID{}) {
				t.Errorf("put back: %+v", out.restore)
			}
		})
	}
	// In one history the one that is excepted has begun after what came before.
	s := bootedShard("h", time.Minute, instant{})
	s.tail([]tokenstore.Entry{userEntry(s.mark, 1, uid, kept)}, instant{})
	s.tail([]tokenstore.Entry{userEntry(s.mark, 2, uid, thief)}, instant{})
	if s.deny.denies(&tokenstore.AccessToken{SID: thief, UID: uid, UserEpoch: 1, LogEpoch: "h"}, "h") {
		t.Error("the excepted session is refused")
	}
}

// What is to be put back gives way to a later logout only if that says as much.
func TestALaterLogoutDoesNotCoverAnother(t *testing.T) {
	var now instant
	uid, kept, other := tokenstore.ID{0, 'u'}, tokenstore.ID{0, 1}, tokenstore.ID{0, 2}
	s := bootedShard("h", time.Minute, now)
	s.owe(userEntry(tokenstore.Mark{}, 2, uid, kept), now)
	if out := s.tail([]tokenstore.Entry{userEntry(s.mark, 3, uid, other)}, now); len(out.restore) != 1 || out.restore[0].Epoch != 4 {
		t.Errorf("put back: %+v", out.restore)
	}
	s.tail([]tokenstore.Entry{userEntry(s.mark, 4, uid, tokenstore.ID{})}, now)
	if len(s.owed) != 0 {
		t.Errorf("still owed: %v", s.owed)
	}
}

// After a failover a follower reads on from a mark that both histories have, and puts back
// what only the old one has. Without such a mark it reads all of the log again.
func TestAfterAFailoverTheCommonPastIsNotReadAgain(t *testing.T) {
	var now instant
	long := make([]byte, 100)
	for i := range long {
		long[i] = byte(i)
	}
	before, after := logOf(append(slices.Clone(long), 200, 201)...), logOf(append(slices.Clone(long), 210)...)
	s := bootedShard("h", time.Minute, now)
	s.tail(before, now)
	if out := s.renewed(s.renewal("m", now), tokenstore.View{Head: headOf(after)}, now); !out.gap {
		t.Fatal("the failover was not noticed")
	}
	r := s.renewal("m", now)
	if r.After != 0 || r.Member != "" || r.from.Chain != "h" {
		t.Errorf("it reads on from %+v, and shows a beat: %v", r.from, r.Member != "")
	}
	// Nothing is put back but what was lost, and what was made meanwhile is known.
	out := s.look("h", after, now)
	var ids []byte
	for _, e := range out.restore {
		ids = append(ids, e.ID[1])
	}
	slices.Sort(ids)
	if !slices.Equal(ids, []byte{200, 201}) || !s.deny.denies(&tokenstore.AccessToken{SID: tokenstore.ID{0, 210}}, "h") {
		t.Errorf("put back: %v", ids)
	}

	// More is lost than is remembered: the other history parts before the oldest mark.
	many := make([]byte, 0, 600)
	for i := range 600 {
		many = append(many, byte(i%200))
	}
	s = bootedShard("h", time.Minute, now)
	s.tail(logOf(many...), now)
	other := logOf(append([]byte{250}, many...)...)
	out = s.look("h", other, now)
	if mark, booted := s.applied(); !booted || mark != headOf(other) || !s.deny.denies(&tokenstore.AccessToken{SID: other[0].ID}, "h") {
		t.Errorf("it has not read the other history: %+v %v", mark, booted)
	}
}

// A follower that is more than a page behind takes no part: a beat of one that cannot say
// that it has applied an entry would only hold up those who wait for it.
func TestWhoLagsShowsNoBeat(t *testing.T) {
	var now instant
	log := logOf(1, 2, 3, 4)
	s := bootedShard("h", time.Minute, now)
	out := s.renewed(s.renewal("m", now), tokenstore.View{Head: headOf(log), Entries: log[:2]}, now)
	if !out.behind || out.more {
		t.Errorf("a page of more: %+v", out)
	}
	if r := s.renewal("m", now); r.Member != "" || r.After != tokenstore.NoEntries {
		t.Errorf("it shows %+v", r.Renewal)
	}
	if _, missing := s.told("h", log[3], now); missing || len(s.early) > 0 {
		t.Error("what it is told of keeps it from reading the log, or is kept")
	}
	if _, ok := s.acknowledge(now); ok {
		t.Error("it acknowledges")
	}
	from, ok := s.reads()
	if !ok || from.after != 2 {
		t.Fatalf("it reads on after %d, %v", from.after, ok)
	}
	if out := s.tailed(from, log[2:], now); !out.more {
		t.Error("it has caught up, and does not say so")
	}
	look := s.renewal("m", now)
	if look.Member != "" || look.After != 4 {
		t.Errorf("it shows a beat before it has seen that nothing is left: %+v", look.Renewal)
	}
	if out := s.renewed(look, tokenstore.View{Head: headOf(log)}, now); !out.more {
		t.Error("it does not take part again")
	}
	if r := s.renewal("m", now); r.Member == "" || r.Mark.Seq != 4 {
		t.Errorf("it shows %+v", r.Renewal)
	}
	// Nor does one that has heard nothing for a lease, as after having been frozen.
	now = now.add(time.Second)
	if r := s.renewal("m", now); r.Member != "" {
		t.Error("after a lease without an answer it shows a beat at once")
	}
}

// What a read brings that was begun before a boot is not of it: taken for the first entry of
// the log, it would hide what comes before.
func TestAReadOfBeforeABootIsNotBelieved(t *testing.T) {
	var now instant
	log := logOf(1, 2, 3)
	s := bootedShard("h", time.Minute, now)
	s.tail(log[:2], now)
	from, _ := s.reads()
	s.lost()
	s.lost() // in vain: from the beginning
	s.tailed(from, log[2:], now)
	if s.mark.Seq != 0 {
		t.Errorf("it has begun at %+v", s.mark)
	}
}

// Entries that are trimmed while a boot reads the log have outlived the tokens they name.
func TestABootGoesOnWhereTheLogWasTrimmed(t *testing.T) {
	var now instant
	log := logOf(1, 2, 3, 4, 5, 6)
	s := newShard(0, time.Second, 100, time.Minute)
	s.renewed(s.renewal("m", now), tokenstore.View{Head: headOf(log), Entries: log[:2]}, now)
	from, _ := s.reads()
	if out := s.tailed(from, log[3:], now); out.gap || !out.more {
		t.Fatalf("entries 1 to 3 were trimmed: %+v", out)
	}
	s.look("h", log, now)
	if mark, booted := s.applied(); !booted || mark != headOf(log) {
		t.Errorf("it has not booted: %+v", mark)
	}
}

// A denylist that is full still notices that two histories except different sessions.
func TestAFullDenylistNoticesAConflict(t *testing.T) {
	uid, kept, other := tokenstore.ID{0, 'u'}, tokenstore.ID{0, 1}, tokenstore.ID{0, 2}
	d := newDenylist(2, time.Minute)
	d.add(userEntry(tokenstore.Mark{}, 1, uid, kept), 0)
	d.add(simEntry(tokenstore.Mark{}, tokenstore.ID{0, 3}, time.UnixMilli(simEpoch), time.Minute), 0)
	if got := d.add(userEntry(tokenstore.Mark{}, 1, uid, other), 0); got != conflict {
		t.Errorf("another exception under the same number: %v", got)
	}
	if !d.denies(&tokenstore.AccessToken{SID: kept, UID: uid}, "") || !d.denies(&tokenstore.AccessToken{SID: other, UID: uid}, "") {
		t.Error("an exception holds though the other history ends it")
	}
	if got := d.add(userEntry(tokenstore.Mark{}, 1, tokenstore.ID{0, 'v'}, other), 0); got != full || d.complete(0) {
		t.Errorf("another user: %v", got)
	}
}
