package edge

import (
	"maps"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// cutoff is what a user's "log out everywhere"s say, all taken together: tokens of an
// older epoch are dead, but those of one excepted session.
type cutoff struct {
	epoch  uint64 // the latest
	except tokenstore.ID
	until  int64 // Unix milliseconds of Redis TIME, when the last token it names has expired
	// floor is the latest of those that except another session, or none: the excepted
	// one's tokens of an older epoch are dead, too. In one history it has none, for
	// it was alive then; but what a failover lost may have been said again otherwise.
	floor uint64
}

func cutoffOf(e tokenstore.Entry) cutoff {
	return cutoff{epoch: e.Epoch, except: e.Except, until: e.Until.UnixMilli()}
}

// and returns what two say together.
func (c cutoff) and(other cutoff) cutoff {
	if other.epoch > c.epoch {
		c, other = other, c
	}
	c.until = max(c.until, other.until)
	if other.except == c.except {
		c.floor = max(c.floor, other.floor)
	} else {
		c.floor = max(c.floor, other.epoch)
	}
	return c
}

// kills reports whether it says that a session's tokens of an epoch are dead.
func (c cutoff) kills(sid tokenstore.ID, epoch uint64) bool {
	return epoch < c.epoch && (sid != c.except || epoch < c.floor)
}

// covers reports whether it says all that an entry does.
func (c cutoff) covers(e tokenstore.Entry) bool {
	return c.epoch >= e.Epoch && (c.except == tokenstore.ID{} || c.except == e.Except || c.floor >= e.Epoch)
}

// generation is what was revoked during one width of time. Its maps hold no
// pointers, so that the garbage collector need not look into them.
type generation struct {
	sids  map[tokenstore.ID]uint32 // until when the session's tokens may live: see seconds
	users map[tokenstore.ID]cutoff
	hint  hint // of what is in both
	// until is when, in Unix milliseconds of Redis TIME, the last token has expired that
	// anything in here names.
	until int64
}

func newGeneration() generation {
	return generation{sids: map[tokenstore.ID]uint32{}, users: map[tokenstore.ID]cutoff{}}
}

func (g generation) len() int { return len(g.sids) + len(g.users) }

// denylist remembers revocations in two generations that are dropped whole: for at least one
// width after they came in, and until the tokens that they name have expired by Redis TIME,
// whichever is later. The two differ when the clock of Redis is set back: tokens then live
// for longer than they were made to. It never forgets a revocation earlier: when it is full
// it takes no more, and says until when it is not to be relied on.
type denylist struct {
	redis             int64 // Redis TIME as last heard, in Unix milliseconds
	current, previous generation
	began             time.Duration // of the current generation, by the monotonic clock
	width             time.Duration // how long an entry is needed
	limit             int
	missing           time.Duration // until when there are revocations that did not fit
	// keys are the signing keys that were revoked. They are few, and are never
	// forgotten: a stolen key signs tokens that never expire.
	keys map[tokenstore.ID]struct{}
}

func newDenylist(limit int, width time.Duration) *denylist {
	return &denylist{current: newGeneration(), previous: newGeneration(), limit: limit, width: width, keys: map[tokenstore.ID]struct{}{}}
}

// addKey remembers a signing key, and reports whether it was not known yet.
func (d *denylist) addKey(id tokenstore.ID) bool {
	_, known := d.keys[id]
	d.keys[id] = struct{}{}
	return !known
}

// expect makes room for n more sessions at once: a map that grows entry by entry is copied
// again and again.
func (d *denylist) expect(n uint64) {
	room := int(min(n, uint64(max(0, d.limit-d.len())))) //nolint:gosec // neither is negative
	if room <= len(d.current.sids) {
		return
	}
	larger := make(map[tokenstore.ID]uint32, len(d.current.sids)+room)
	maps.Copy(larger, d.current.sids)
	d.current.sids = larger
	d.current.hint = newHint(d.current.len()+room, &d.current)
}

// added is what became of an entry.
type added int

const (
	remembered added = iota
	full             // it did not fit
	conflict         // what is remembered is of another history: the user's exception is void; it may not have fit
)

// add remembers an entry.
func (d *denylist) add(e tokenstore.Entry, now time.Duration) added {
	d.turn(now)
	if e.Kind == tokenstore.KindKey {
		d.addKey(e.ID)
		return remembered
	}
	old, known := d.current.users[e.ID]
	if !known {
		old, known = d.previous.users[e.ID]
	}
	result := remembered
	_, there := d.current.users[e.ID]
	switch {
	case !there && d.len() >= d.limit:
		d.missing = max(d.missing, now+d.width)
		result = full
	case e.Kind == tokenstore.KindSession:
		d.current.sids[e.ID] = seconds(e.Until)
		d.current.hint.add(e.ID, &d.current)
	case e.Kind == tokenstore.KindUser:
		d.current.users[e.ID] = d.current.users[e.ID].and(cutoffOf(e))
		if !there {
			d.current.hint.add(e.ID, &d.current)
		}
	}
	if result != full {
		d.current.until = max(d.current.until, e.Until.UnixMilli())
	}
	if e.Kind == tokenstore.KindUser && known && old.epoch == e.Epoch && old.except != e.Except {
		return conflict // a failover lost one of two that have the same number
	}
	return result
}

// turn drops the older generation once everything in it has been needed no more
// for a while.
func (d *denylist) turn(now time.Duration) {
	if now-d.began < d.width || d.redis < d.previous.until {
		return
	}
	d.previous, d.current = d.current, newGeneration()
	if now-d.began >= 2*d.width && d.redis >= d.previous.until {
		d.previous = newGeneration()
	}
	d.began = now
}

// widen makes entries be kept for at least width from now on, by whatever clock.
// An entry that was added under a smaller width is kept for as long as it was
// promised, or longer.
func (d *denylist) widen(width time.Duration) {
	d.width = max(d.width, width+time.Duration(float64(width)*drift))
}

// forgetUsers drops what is known of users' epochs: they count from the start
// again in a new history, and a token of the old one is not judged from memory.
// Sessions stay: their ids are never used again.
func (d *denylist) forgetUsers() {
	clear(d.current.users)
	clear(d.previous.users)
}

// complete reports whether nothing is missing.
func (d *denylist) complete(now time.Duration) bool { return now >= d.missing }

func (d *denylist) len() int { return d.current.len() + d.previous.len() }

// denies reports whether a token is revoked, as far as is known here. history is
// the epoch of the log that is remembered: what it says of users holds for tokens
// of the same history only.
func (d *denylist) denies(t *tokenstore.AccessToken, history string) bool {
	if len(d.keys) > 0 {
		if _, ok := d.keys[t.Key]; ok {
			return true
		}
	}
	for _, g := range [...]*generation{&d.current, &d.previous} {
		if g.hint.may(t.SID) {
			if _, ok := g.sids[t.SID]; ok {
				return true
			}
		}
		if !g.hint.may(t.UID) {
			continue
		}
		if c, ok := g.users[t.UID]; ok && t.LogEpoch == history && c.kills(t.SID, t.UserEpoch) {
			return true
		}
	}
	return false
}

// names reports whether a session or a user is remembered.
func (d *denylist) names(id tokenstore.ID) bool {
	for _, g := range [...]*generation{&d.current, &d.previous} {
		_, session := g.sids[id]
		_, user := g.users[id]
		if session || user {
			return true
		}
	}
	return false
}

// sessions returns the sessions that are remembered, each with the second in which the
// last of its tokens has expired.
func (d *denylist) sessions() map[tokenstore.ID]uint32 {
	all := make(map[tokenstore.ID]uint32, len(d.current.sids)+len(d.previous.sids))
	maps.Copy(all, d.previous.sids)
	maps.Copy(all, d.current.sids)
	return all
}

// userEntries returns what is remembered of users, as entries of a log.
func (d *denylist) userEntries() []tokenstore.Entry {
	var list []tokenstore.Entry
	for _, g := range [...]*generation{&d.current, &d.previous} {
		for uid, c := range g.users {
			e := tokenstore.Entry{Kind: tokenstore.KindUser, ID: uid, Epoch: c.epoch, Except: c.except, Until: time.UnixMilli(c.until)}
			list = append(list, e)
			if c.floor > 0 {
				e.Epoch, e.Except = c.floor, tokenstore.ID{}
				list = append(list, e)
			}
		}
	}
	return list
}

// seconds is a time in Unix seconds, rounded up; 0 if it is before 1970.
func seconds(t time.Time) uint32 {
	return uint32(max(0, t.Add(time.Second-1).Unix())) //nolint:gosec // until 2106
}
