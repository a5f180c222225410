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
