package edge

import (
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// What the simulation cannot find: it runs each step as one, and not for as long
// as tokens live.

func simEntry(seq uint64, sid tokenstore.ID, at time.Time, span time.Duration) tokenstore.Entry {
	return tokenstore.NewEntry(tokenstore.Entry{Seq: seq, Kind: tokenstore.KindSession, ID: sid, At: at, Until: at.Add(span)})
}

// bootedShard has followed the history named, from its beginning, since now.
func bootedShard(history string, width time.Duration, now instant) *shard {
	s := newShard(0, time.Second, 100, width)
	s.renewed(s.renewal("m", now), tokenstore.View{Head: tokenstore.Mark{Epoch: history, Chain: history}}, now)
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
	revoked := simEntry(1, sid, time.UnixMilli(simEpoch), time.Minute)
	head := tokenstore.Mark{Epoch: "after", Chain: "after"}.After(revoked)
	moved := false
	verdict, _ := s.check(token, 0, func() instant {
		if !moved {
			moved = true
			v := tokenstore.View{Head: head, Entries: []tokenstore.Entry{revoked}}
			if out := s.renewed(s.renewal("m", now), v, now); !out.gap {
				t.Fatal("the change of history was not noticed")
			}
			s.renewed(s.renewal("m", now), v, now)
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
	s.tailed([]tokenstore.Entry{simEntry(1, sid, at, there)}, now)
	for seq := uint64(2); now.mono < there*101/100; seq++ {
		if !s.deny.denies(&tokenstore.AccessToken{SID: sid}, "h") {
			t.Fatalf("forgotten after %v", now.mono)
		}
		now = now.add(5 * time.Minute)
		s.tailed([]tokenstore.Entry{simEntry(seq, tokenstore.ID{0, 2, byte(seq)}, at.Add(now.mono), here)}, now)
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

// A boot that reads its pages from two histories has read neither.
func TestABootIsOfOneHistory(t *testing.T) {
	var now instant
	at := time.UnixMilli(simEpoch)
	start := tokenstore.Mark{Epoch: "h", Chain: "h"}
	entry := func(seq uint64, b byte) tokenstore.Entry {
		return simEntry(seq, tokenstore.ID{0, byte(seq), b}, at, time.Minute)
	}
	lost, kept := []tokenstore.Entry{entry(1, 0), entry(2, 1), entry(3, 1)}, []tokenstore.Entry{entry(1, 0), entry(2, 2), entry(3, 2), entry(4, 2)}
	headOf := func(list []tokenstore.Entry) tokenstore.Mark {
		m := start
		for _, e := range list {
			m = m.After(e)
		}
		return m
	}
	s := newShard(0, time.Second, 100, time.Minute)
	// A page of two; then a failover puts other entries in the place of 2 and 3.
	s.renewed(s.renewal("m", now), tokenstore.View{Head: headOf(lost), Entries: lost[:2]}, now)
	out := s.renewed(s.renewal("m", now), tokenstore.View{Head: headOf(kept), Entries: kept[2:]}, now)
	if _, booted := s.applied(); booted || !out.gap {
		t.Error("the follower has booted without the second entry")
	}
}

func userEntry(seq, epoch uint64, uid, except tokenstore.ID) tokenstore.Entry {
	at := time.UnixMilli(simEpoch)
	return tokenstore.NewEntry(tokenstore.Entry{
		Seq: seq, Kind: tokenstore.KindUser, ID: uid, Epoch: epoch, Except: except, At: at, Until: at.Add(time.Minute),
	})
}

// A failover loses that a user has ended all sessions but one, and another session that
// it had revived ends all but itself. What was known stays known, also before it is
// noticed that the histories differ, and the later exception is void.
func TestALaterExceptionRevivesNobody(t *testing.T) {
	uid, kept, thief := tokenstore.ID{0, 'u'}, tokenstore.ID{0, 1}, tokenstore.ID{0, 2}
	old := &tokenstore.AccessToken{SID: thief, UID: uid, UserEpoch: 0, LogEpoch: "h"}
	for name, theirs := range map[string][]tokenstore.Entry{
		"later":              {userEntry(1, 1, uid, thief), userEntry(2, 2, uid, thief)},
		"of the same number": {userEntry(1, 1, uid, thief)},
		"later, by the tail": {userEntry(1, 1, uid, thief), userEntry(2, 2, uid, thief)},
	} {
		t.Run(name, func(t *testing.T) {
			var now instant
			s := bootedShard("h", time.Minute, now)
			s.tailed([]tokenstore.Entry{userEntry(1, 1, uid, kept)}, now)
			head := tokenstore.Mark{Epoch: "h", Chain: "h"}
			for _, e := range theirs {
				head = head.After(e)
			}
			if name == "later, by the tail" {
				s.tailed(theirs[1:], now)
			}
			if !s.deny.denies(old, "h") {
				t.Error("accepted before the failover is noticed")
			}
			v := tokenstore.View{Now: time.UnixMilli(simEpoch), Head: head, Entries: theirs}
			out := s.renewed(s.renewal("m", now), tokenstore.View{Now: v.Now, Head: head}, now)
			if !out.gap {
				t.Fatal("the failover was not noticed")
			}
			out = s.renewed(s.renewal("m", now), v, now)
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
	s.tailed([]tokenstore.Entry{userEntry(1, 1, uid, kept), userEntry(2, 2, uid, thief)}, instant{})
	if s.deny.denies(&tokenstore.AccessToken{SID: thief, UID: uid, UserEpoch: 1, LogEpoch: "h"}, "h") {
		t.Error("the excepted session is refused")
	}
}

// What is to be put back gives way to a later logout only if that says as much.
func TestALaterLogoutDoesNotCoverAnother(t *testing.T) {
	var now instant
	uid, kept, other := tokenstore.ID{0, 'u'}, tokenstore.ID{0, 1}, tokenstore.ID{0, 2}
	s := bootedShard("h", time.Minute, now)
	s.owe(userEntry(0, 2, uid, kept), now)
	if out := s.tailed([]tokenstore.Entry{userEntry(1, 3, uid, other)}, now); len(out.restore) != 1 || out.restore[0].Epoch != 4 {
		t.Errorf("put back: %+v", out.restore)
	}
	s.tailed([]tokenstore.Entry{userEntry(2, 4, uid, tokenstore.ID{})}, now)
	if len(s.owed) != 0 {
		t.Errorf("still owed: %v", s.owed)
	}
}

// Redis loses everything, and then the first logouts of the new history. A follower
// that had read those, before it knew that the history is another, puts them back.
func TestWhatCameOfTheNextHistoryIsPutBack(t *testing.T) {
	var now instant
	s := bootedShard("before", time.Minute, now)
	gone := tokenstore.ID{0, 1}
	s.tailed([]tokenstore.Entry{simEntry(1, gone, time.UnixMilli(simEpoch), time.Minute)}, now)
	v := tokenstore.View{Now: time.UnixMilli(simEpoch), Head: tokenstore.Mark{Epoch: "after", Chain: "after"}}
	if out := s.renewed(s.renewal("m", now), v, now); !out.gap {
		t.Fatal("the change of history was not noticed")
	}
	out := s.renewed(s.renewal("m", now), v, now)
	if len(out.restore) != 1 || out.restore[0].ID != gone {
		t.Errorf("put back: %+v", out.restore)
	}
}
