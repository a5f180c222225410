package edge

import (
	"slices"
	"strconv"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// simEpoch is what Redis TIME reads at the beginning of a schedule.
const simEpoch = int64(1_700_000_000_000)

// never is later than any schedule lasts.
const never = time.Duration(1 << 62)

// writing is one renewal's write. It is lost when a failover forgets it.
type writing struct{ lost bool }

// effectKind says what a script wrote.
type effectKind int

const (
	wroteHead    effectKind = iota // a new head
	wroteStretch                   // the longest access lifetime
	wroteLine                      // a follower's line in the table
	wroteStrike                    // a follower out of the table
	wroteEntry                     // an entry of the log, and what it denies
	wroteSession                   // a login
	wroteRaise                     // the epoch of an excepted session
	wroteTouch                     // nothing that matters: a write for WAIT's sake
	wroteAck                       // what a follower acknowledges
)

// effect is one write, as a replica of Redis gets it.
type effect struct {
	kind    effectKind
	epoch   string
	longest time.Duration
	member  *tokenstore.Member
	by      *writing
	entry   *tokenstore.Entry
	nonce   uint64
	sid     tokenstore.ID
	uid     tokenstore.ID
	number  uint64
	expires time.Duration
	due     time.Duration // when the replica has it; never if the link is cut
}

// denial is the key of a denied session.
type denial struct{ expires time.Duration }

// userState is what the key of a user's epoch holds.
type userState struct {
	epoch  uint64
	except tokenstore.ID
	nonce  uint64
}

// sessionState is what matters here of a refresh key.
type sessionState struct {
	uid   tokenstore.ID
	epoch uint64
}

// keyspace is what one Redis holds of one shard.
type keyspace struct {
	head     tokenstore.Mark // no head if its epoch is empty
	longest  time.Duration
	chains   []string // of the head at each seq: more than Redis keeps
	log      []tokenstore.Entry
	logEnds  time.Duration // expiry of the log
	denied   map[tokenstore.ID]denial
	users    map[tokenstore.ID]userState
	sessions map[tokenstore.ID]sessionState
	members  []tokenstore.Member
	acks     map[string]tokenstore.Mark
}

func newKeyspace() *keyspace {
	return &keyspace{
		denied: map[tokenstore.ID]denial{}, users: map[tokenstore.ID]userState{}, sessions: map[tokenstore.ID]sessionState{},
		acks: map[string]tokenstore.Mark{},
	}
}

// apply makes one write. Times are those of the Redis that made it first.
func (k *keyspace) apply(e *effect) {
	switch e.kind {
	case wroteHead:
		k.head = tokenstore.Mark{Epoch: e.epoch, Chain: e.epoch}
		k.log, k.chains = nil, nil
	case wroteStretch:
		k.longest = e.longest
	case wroteLine:
		k.setLine(*e.member)
	case wroteAck:
		k.acks[e.member.Name] = e.member.Mark
	case wroteStrike:
		delete(k.acks, e.member.Name)
		k.members = slices.DeleteFunc(k.members, func(m tokenstore.Member) bool { return m.Name == e.member.Name })
	case wroteEntry:
		k.append(e)
	case wroteSession:
		k.sessions[e.sid] = sessionState{uid: e.uid, epoch: e.number}
	case wroteRaise:
		if s, ok := k.sessions[e.sid]; ok {
			s.epoch = e.number
			k.sessions[e.sid] = s
		}
	case wroteTouch:
		if d, ok := k.denied[e.sid]; ok {
			d.expires = e.expires
			k.denied[e.sid] = d
		}
	}
}

func (k *keyspace) setLine(m tokenstore.Member) {
	for i := range k.members {
		if k.members[i].Name == m.Name {
			k.members[i] = m
			return
		}
	}
	k.members = append(k.members, m)
}

// has reports whether a mark is in this history.
func (k *keyspace) has(m tokenstore.Mark) bool {
	return m.Seq > 0 && m.Seq <= uint64(len(k.chains)) && k.chains[m.Seq-1] == m.Chain
}

// append is log.lua: the entry, the trimming of up to three old ones, and the
// log's expiry; then the keys that revoke.lua and revoke_user.lua set.
func (k *keyspace) append(e *effect) {
	now := time.Duration(e.entry.At.UnixMilli()-simEpoch) * time.Millisecond
	keep := k.longest + simPad
	if now >= k.logEnds {
		k.log = nil
	}
	k.head = k.head.After(*e.entry)
	k.chains = append(k.chains, k.head.Chain)
	k.log = append(k.log, *e.entry)
	old := 0
	for i := range min(3, len(k.log)) {
		if k.log[i].At.Add(keep).Before(e.entry.At) {
			old = i + 1
		}
	}
	k.log = k.log[old:]
	k.logEnds = now + keep
	switch e.entry.Kind {
	case tokenstore.KindSession:
		delete(k.sessions, e.entry.ID)
		k.denied[e.entry.ID] = denial{expires: now + keep}
	case tokenstore.KindUser:
		k.users[e.entry.ID] = userState{epoch: e.entry.Epoch, except: e.entry.Except, nonce: e.nonce}
	}
}

// server is one Redis of one shard, with the semantics of the Lua scripts.
type server struct {
	w       *world
	name    string
	space   *keyspace
	stream  []effect      // what was written: its replica gets a prefix
	dead    bool          // refuses connections
	frozen  bool          // executes nothing
	inbox   []func()      // while frozen
	leads   bool          // has a replica of its own that confirms what it has
	skew    time.Duration // of its TIME
	longDue time.Duration // when the last write reaches the replica
}

func (s *server) time() time.Duration {
	return (s.w.now + s.skew).Truncate(time.Millisecond)
}

func (s *server) wall() time.Time {
	return time.UnixMilli(simEpoch + s.time().Milliseconds())
}

// thaw executes what has come meanwhile, in any order: it came on different
// connections.
func (s *server) thaw() {
	s.frozen = false
	waiting := s.inbox
	s.inbox = nil
	s.w.rng.Shuffle(len(waiting), func(i, j int) { waiting[i], waiting[j] = waiting[j], waiting[i] })
	for i, run := range waiting {
		s.w.after(time.Duration(i)*20*time.Microsecond, run)
	}
}

func (s *server) die() {
	s.dead = true
	s.inbox = nil
}

func (s *server) write(e effect) {
	s.space.apply(&e)
	e.due = never
	if s.leads {
		s.longDue = max(s.longDue, s.w.now+s.w.replicationLag())
		e.due = s.longDue
	}
	if s != s.w.primary {
		s.w.lose(&e, s.space.head.Epoch) // deposed
	}
	s.stream = append(s.stream, e)
}

// cut breaks the link to the replica: what it does not have yet it never gets.
func (s *server) cut() {
	s.leads = false
	for i := len(s.stream) - 1; i >= 0 && s.stream[i].due > s.w.now; i-- {
		s.stream[i].due = never
	}
}

// attach gives the server a replica that has everything.
func (s *server) attach() {
	s.leads = true
	for i := range s.stream {
		if s.stream[i].due > s.w.now {
			s.stream[i].due = s.w.now
		}
	}
	s.longDue = s.w.now
}

// settled calls then when the last write counts: at once, or behind WAIT.
func (s *server) settled(then func(bool)) {
	if !s.w.plan.wait || s.w.faults.waitForNone {
		then(true)
		return
	}
	i := len(s.stream) - 1
	due := s.stream[i].due
	if due == never {
		s.w.after(simTimeout/2, func() { then(s.stream[i].due <= s.w.now && s.leads) })
		return
	}
	s.w.after(max(0, due-s.w.now)+100*time.Microsecond, func() {
		if s.stream[i].due <= s.w.now {
			then(true)
			return
		}
		s.w.after(simTimeout/2, func() { then(false) })
	})
}

// openHead is head.lua's open_head and stretch.
func (s *server) openHead(access time.Duration) {
	if s.space.head.Epoch == "" {
		s.w.epochs++
		s.write(effect{kind: wroteHead, epoch: "history" + strconv.Itoa(s.w.epochs)})
	}
	if access > s.space.longest {
		s.write(effect{kind: wroteStretch, longest: access})
	}
}

// entries is XRANGE, of at most a page unless more are asked for.
func (s *server) entries(after uint64) []tokenstore.Entry {
	if s.w.faults.wholeLog {
		return s.all(after)
	}
	list := s.all(after)
	return list[:min(len(list), s.w.plan.page)]
}

func (s *server) all(after uint64) []tokenstore.Entry {
	log := s.space.log
	if s.time() >= s.space.logEnds {
		log = nil
	}
	from := 0
	for from < len(log) && log[from].Seq <= after {
		from++
	}
	return log[from:len(log):len(log)]
}

// id is primary.lua's primary_id, with the epoch.
func (s *server) id() tokenstore.Server {
	id := tokenstore.Server{Epoch: s.space.head.Epoch, Primary: s.name}
	if s.w.plan.nameless {
		id.Primary = ""
	}
	return id
}

// renew is renew.lua.
func (s *server) renew(q tokenstore.Renewal, access time.Duration, by *writing) tokenstore.View {
	s.openHead(access)
	if q.Member != "" {
		line := tokenstore.Member{Name: q.Member, Mark: tokenstore.Mark{Seq: q.Mark.Seq, Chain: q.Mark.Chain}, Beat: q.Beat}
		if s.w.faults.acknowledgeHead {
			line.Mark = tokenstore.Mark{Seq: s.space.head.Seq, Chain: s.space.head.Chain}
		}
		if i := slices.IndexFunc(s.space.members, func(m tokenstore.Member) bool { return m.Name == q.Member }); i >= 0 &&
			beatsOnlyRise && !s.w.faults.beatsFall && s.space.members[i].Beat > q.Beat {
			line = s.space.members[i]
		}
		s.write(effect{kind: wroteLine, member: &line, by: by})
	}
	v := tokenstore.View{
		Now: s.wall(), Head: s.space.head, Longest: s.space.longest + simPad, Members: slices.Clone(s.space.members), Server: s.id(),
	}
	if s.space.head.Seq > q.After {
		v.Entries = s.entries(q.After)
	}
	return v
}

// look is look.lua.
func (s *server) look(after uint64) tokenstore.View {
	v := tokenstore.View{Now: s.wall(), Head: s.space.head, Members: slices.Clone(s.space.members), Server: s.id()}
	for i, m := range v.Members {
		v.Members[i].Acked = s.space.acks[m.Name]
	}
	if s.space.head.Seq > after {
		v.Entries = s.entries(after)
	}
	return v
}

// ack is Revocations.Acknowledge.
func (s *server) ack(member string, m tokenstore.Mark) {
	mark := tokenstore.Mark{Seq: m.Seq, Chain: m.Chain}
	if s.w.faults.ackHead {
		mark = tokenstore.Mark{Seq: s.space.head.Seq, Chain: s.space.head.Chain}
	}
	s.write(effect{kind: wroteAck, member: &tokenstore.Member{Name: member, Mark: mark}})
}

// log is append_log, with its check of I3: a mark names one prefix.
func (s *server) log(e tokenstore.Entry, nonce uint64, quiet bool) tokenstore.Mark {
	keep := s.space.longest + simPad
	before := s.space.head
	now := s.wall()
	e.At, e.Until = now, now.Add(keep)
	e = tokenstore.NewEntry(before, e)
	s.write(effect{kind: wroteEntry, entry: &e, nonce: nonce})
	s.w.logged(before, e, s.space.head)
	if !quiet {
		s.tell(e)
	}
	return s.space.head
}

// tell is the PUBLISH of log.lua. What is told may be lost.
func (s *server) tell(e tokenstore.Entry) {
	epoch := s.space.head.Epoch
	for _, r := range s.w.replicas {
		if r.strict || r.dead || r.at != s || r.cutOff || s.w.dropped() {
			continue
		}
		hears := func() { r.hears(epoch, e) }
		d := s.w.delay()
		r.after(d, hears)
		if !s.w.healthy && s.w.chance(s.w.plan.repeat) {
			r.after(d+s.w.delay(), hears)
		}
	}
}

// strike is strike.lua.
func (s *server) strike(m tokenstore.Member) {
	for _, line := range s.space.members {
		if line.Name == m.Name && line.Beat == m.Beat && line.Mark == m.Mark {
			s.write(effect{kind: wroteStrike, member: &m})
			return
		}
	}
}

func (s *server) revocation(mark tokenstore.Mark) *answer {
	r := tokenstore.Revocation{
		Mark: tokenstore.Mark{Seq: mark.Seq, Chain: mark.Chain}, Followers: len(s.space.members), Server: s.id(),
	}
	if r.Followers <= 1 {
		r.Members = slices.Clone(s.space.members)
	}
	return &answer{history: s.space.head.Epoch, made: s.w.now, revocation: r}
}

// revoke is revoke.lua.
func (s *server) revoke(sid tokenstore.ID, access time.Duration, by string) *answer {
	s.openHead(access)
	if d, ok := s.space.denied[sid]; ok && s.time() < d.expires {
		s.write(effect{kind: wroteTouch, sid: sid, expires: s.time() + s.space.longest + simPad})
		return s.revocation(s.space.head)
	}
	alone := len(s.space.members) == 1 && s.space.members[0].Name == by
	a := s.revocation(s.log(tokenstore.Entry{Kind: tokenstore.KindSession, ID: sid}, 0, alone))
	a.revocation.Entry = s.space.log[len(s.space.log)-1]
	return a
}

// revokeUser is revoke_user.lua.
func (s *server) revokeUser(uid, except tokenstore.ID, nonce uint64, access time.Duration) *answer {
	s.openHead(access)
	u := s.space.users[uid]
	if u.nonce == nonce {
		s.write(effect{kind: wroteTouch})
		a := s.revocation(s.space.head)
		a.epoch = u.epoch
		return a
	}
	epoch := u.epoch
	if except != (tokenstore.ID{}) {
		mine, alive := s.space.sessions[except]
		if !alive || (mine.epoch < epoch && u.except != except) {
			return &answer{code: 1} // the excepted session is not alive
		}
		epoch = max(epoch, mine.epoch)
	}
	epoch++
	mark := s.log(tokenstore.Entry{Kind: tokenstore.KindUser, ID: uid, Epoch: epoch, Except: except}, nonce, false)
	if except != (tokenstore.ID{}) {
		s.write(effect{kind: wroteRaise, sid: except, number: epoch})
	}
	a := s.revocation(mark)
	a.epoch = epoch
	return a
}

// restoreEpoch is restore_epoch.lua.
func (s *server) restoreEpoch(e tokenstore.Entry, access time.Duration) {
	s.openHead(access)
	u := s.space.users[e.ID]
	if u.epoch >= e.Epoch {
		return
	}
	if u.epoch > 0 && u.except != e.Except {
		e.Epoch, e.Except = e.Epoch+1, tokenstore.ID{}
	}
	s.log(tokenstore.Entry{Kind: tokenstore.KindUser, ID: e.ID, Epoch: e.Epoch, Except: e.Except}, 0, false)
}

// verify is verify.lua.
func (s *server) verify(t *token) int {
	s.openHead(0)
	switch u := s.space.users[t.ids.UID]; {
	case s.space.head.Epoch != t.ids.LogEpoch:
		return 4
	case s.time() < s.space.denied[t.ids.SID].expires:
		return 2
	case t.ids.UserEpoch < u.epoch && t.ids.SID != u.except:
		return 3
	case !s.wall().Before(t.ids.Expires):
		return 5
	}
	return 0
}

// login is login.lua: it returns the token that is made from it.
func (s *server) login(sid, uid tokenstore.ID, access time.Duration) *token {
	s.openHead(access)
	epoch := s.space.users[uid].epoch
	s.write(effect{kind: wroteSession, sid: sid, uid: uid, number: epoch})
	return s.mint(sid, uid, epoch, access)
}

// rotate is what matters here of rotate.lua: a fresh token of a live session.
func (s *server) rotate(sid tokenstore.ID, access time.Duration) *token {
	s.openHead(access)
	session, ok := s.space.sessions[sid]
	u := s.space.users[session.uid]
	if !ok || (session.epoch < u.epoch && u.except != sid) {
		return nil
	}
	return s.mint(sid, session.uid, max(session.epoch, u.epoch), access)
}

func (s *server) mint(sid, uid tokenstore.ID, epoch uint64, access time.Duration) *token {
	return &token{ids: tokenstore.AccessToken{
		SID: sid, UID: uid, UserEpoch: epoch, LogEpoch: s.space.head.Epoch, Expires: s.wall().Add(access),
	}}
}
