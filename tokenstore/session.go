package tokenstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	// ErrNoSession says that there is no such session: it expired, or there never was one.
	ErrNoSession = errors.New("no such session")
	// ErrRevoked says that the session was ended before its time.
	ErrRevoked = errors.New("the session was revoked")
	// ErrReuse says that a spent refresh token was shown again: theft. The session is over.
	ErrReuse = errors.New("a refresh token was used twice")
	// ErrRollback says that a refresh token is newer than Redis knows: Redis
	// lost writes. The session is over.
	ErrRollback = errors.New("a refresh token is newer than the store")
	// ErrSuperseded says that the user's credentials changed, or the user
	// logged out everywhere, after the caller's proof of identity was read.
	ErrSuperseded = errors.New("the credentials were superseded")
	// ErrForeign says that the session's tokens were issued to another client.
	ErrForeign = errors.New("the token was issued to another client")
	// ErrKeyBinding says that the session is bound to a key, and the caller has
	// proven to hold another, or none; or that it is bound to none.
	ErrKeyBinding = errors.New("the session is not bound to the key shown")
	// ErrTooLarge says that what is stored of the session may not fit into a token.
	ErrTooLarge = errors.New("the session may not fit into a token")
	// ErrScope says that more was asked for than the session was granted.
	ErrScope = errors.New("the scope was not granted")
)

// errNotTogether is a fault of the caller: it made ids in two shards.
var errNotTogether = errors.New("the session's ids are of different shards")

// NewSession is what Login records. The secrets stay with the client: Redis
// gets the hash.
type NewSession struct {
	SID      ID
	UID      ID
	Hash     [32]byte // SHA-256 of the first refresh token's secret
	Subject  string
	Username string
	Scope    string
	Claims   string // JSON object of the account's own, or empty
	ClientID string
	Device   string // at most 64 bytes, so that the session stays compact in Redis
	Address  string
	// JKT is the thumbprint of the key that the tokens are bound to (RFC 9449), or "".
	JKT string
	// ReadAt is when the account was read, as [Attempts.Lookup] returned it.
	ReadAt time.Time
	// Leaving are sessions that the caller ends once this one is there. Those of the same
	// user do not count towards [Options.SessionsPerUser].
	Leaving []ID
	// Charge is what the attempt was charged that found the password right: it is taken
	// back in the same round trip, if it can be.
	Charge Charge
}

// Grant is what an access token may say: who, since when, until when.
type Grant struct {
	Now           time.Time // Redis TIME of the decision: iat
	RefreshExpiry time.Time // of the refresh token, and of its key
	AuthTime      time.Time // of the login
	UserEpoch     uint64
	LogEpoch      string
	Subject       string
	Username      string
	Scope         string
	ClientID      string
	Claims        string
	// JKT is the thumbprint of the key that the access token is bound to, or "".
	JKT string
	// Place is where status lists show whether the access token was revoked; zero if
	// it has none.
	Place Place
	// Same is set when nothing changed: the session has rotated within the grace already.
	// The shown token is the current one, or its parent.
	Same bool
	// Current is set when the shown refresh token is the current one, and stays it. It is
	// the token to hand out then, in place of a successor.
	Current bool
	// Ended are the user's sessions that a login has ended because there were too many. If
	// Redis did not answer, they may live on.
	Ended []ID
}

// Login makes a session. If the user then has more than [Options.SessionsPerUser], Login
// ends up to four of the surplus in a second round trip: of the sessions beyond the limit,
// the four that would expire last. If that fails, Login succeeds all the same, and a later
// login ends them. Errors: [ErrSuperseded], [ErrUnavailable].
func (s *Sessions) Login(ctx context.Context, n NewSession) (Grant, error) {
	if !s.together(n.SID, n.UID) {
		return Grant{}, errNotTogether
	}
	epoch, err := s.freshEpoch()
	if err != nil {
		return Grant{}, err
	}
	username := n.Username
	if username == n.Subject {
		username = ""
	}
	shard := n.SID[0]
	keys := []string{s.rtKey(n.SID), s.userKey(n.UID), s.epochKey(n.UID), s.headKey(shard), s.logKey(shard), s.denyKey(n.SID)}
	if s.statusLists {
		keys = append(keys, s.livingKey(n.UID))
	}
	login := call{script: s.scripts.login, keys: keys, args: []any{
		epoch, n.SID.String(), n.Hash[:], n.Subject, username, n.Scope, n.ClientID, n.Device, n.Address,
		milliseconds(s.life.Refresh), milliseconds(s.life.Session), milliseconds(s.life.Access), milliseconds(skewPad),
		n.ReadAt.UnixMilli(), n.Claims, n.JKT, s.perUser,
	}}
	for _, sid := range n.Leaving {
		login.args = append(login.args, sid.String())
	}
	replies, err := s.runAll(ctx, append([]call{login}, n.Charge.refunds...), 0)
	if err != nil {
		return Grant{}, err
	}
	r := replies[0]
	now := r.time(1)
	if r.code() == 1 {
		return Grant{}, r.verdict(ErrSuperseded)
	}
	g := Grant{
		Now: now, RefreshExpiry: r.time(2), AuthTime: r.time(5),
		UserEpoch: r.count(3), LogEpoch: r.string(4),
		Subject: n.Subject, Username: n.Username, Scope: n.Scope, ClientID: n.ClientID,
		Claims: n.Claims, JKT: n.JKT, Place: s.place(r, 6, 4),
	}
	surplus := r.ids(7)
	s.observeTime(g.Now)
	if err := r.oneOf(0); err != nil {
		return Grant{}, err
	}
	g.Ended = s.endSurplus(ctx, n.UID, surplus)
	return g, nil
}

// endSurplus ends sessions of a user and returns those that may have ended: all of them,
// even if Redis did not answer. Nobody is told that they have, so it waits neither for
// replicas of Redis nor for followers.
func (s *core) endSurplus(ctx context.Context, uid ID, sids []ID) []ID {
	if len(sids) == 0 {
		return nil
	}
	ends := make([]SessionEnd, len(sids))
	for i, sid := range sids {
		ends[i] = SessionEnd{SID: sid, UID: uid}
	}
	c, err := s.revokeCall("", ends...)
	if err != nil {
		return nil
	}
	_, _ = s.runAll(ctx, []call{c}, 0)
	return sids
}

// Rotation is one refresh token shown, and the one that would follow it.
type Rotation struct {
	SID  ID
	UID  ID
	Gen  uint32
	Hash [32]byte // SHA-256 of the secret shown
	Next [32]byte // SHA-256 of its successor's secret
	// IssuedTo is the registered client that shows the token; "" stands for the
	// service's own logins, whatever client id they were given.
	IssuedTo string
	// Scope, if set, is asked for: it must be among what the session was granted,
	// and does not change what that is.
	Scope string
	// JKT is the thumbprint of the key that whoever shows the token has proven to
	// hold, or "". It must be that of the session; for a registered client, which may
	// change its key, it must be there if the session has one.
	JKT string
	// Room is the most bytes that the stored session may add to an access token: twice
	// the length of its subject, plus its scope, claims and client id. Members is the most
	// claims that it may have. Rotate fails with [ErrTooLarge] beyond either. Room 0
	// turns both checks off.
	Room, Members int
}

const (
	// none is what rotate answers when there is no such session.
	none = 2
	// kept is what it answers when the token shown stays the current one.
	kept = 11
)

// Rotate makes the successor current, at most once in [Lifetimes.Grace]: the grant says
// whether it did, or which token is current (Same, Current). The first token of a login
// rotates at once. Errors: [ErrNoSession], [ErrRevoked],
// [ErrSuperseded], [ErrReuse] and [ErrRollback], after which the session is
// over; [ErrForeign], [ErrKeyBinding], [ErrTooLarge] and [ErrScope], after which nothing
// has changed;
// [ErrUnavailable], after which the same token may be shown again. It gives up after half
// a grace, if the store's timeout has not ended it before.
// A [Revocation] comes with ErrReuse, ErrRollback and ErrRevoked (a repeated request with
// a stolen token gets ErrRevoked). An error that is both ErrReuse or ErrRollback and
// ErrUnavailable means that the session was ended, but that it is not known whether
// WaitReplicas replicas of Redis have that; it comes with no Revocation.
func (s *Sessions) Rotate(ctx context.Context, t Rotation) (Grant, Revocation, error) {
	if !s.together(t.SID, t.UID) {
		return Grant{}, Revocation{}, ErrNoSession
	}
	epoch, err := s.freshEpoch()
	if err != nil {
		return Grant{}, Revocation{}, err
	}
	shard := t.SID[0]
	// A copy of this request that ran after the grace would look like theft: no copy runs,
	// or is sent, later than half a grace from now. A store without a grace, as some tests
	// make, has no such bound.
	limited, cancel := ctx, context.CancelFunc(func() {})
	if s.life.Grace > 0 && 2*s.timeout > s.life.Grace/2 { // else the timeout of each of two calls is the bound
		limited, cancel = context.WithTimeout(ctx, s.life.Grace/2)
	}
	defer cancel()
	rotate := func(run func(context.Context, *script, []string, ...any) (*reply, error)) (*reply, error) {
		r, err := run(limited, s.scripts.rotate,
			[]string{s.rtKey(t.SID), s.userKey(t.UID), s.epochKey(t.UID), s.denyKey(t.SID), s.headKey(shard), s.logKey(shard), s.membersKey(shard), s.invalidKey(shard), s.livingKey(t.UID)},
			epoch, t.SID.String(), t.Gen, t.Hash[:], t.Next[:],
			milliseconds(s.life.Refresh), milliseconds(s.life.Access), milliseconds(s.life.Grace), milliseconds(skewPad),
			flag(s.statusLists), t.IssuedTo, t.Scope, t.JKT, t.Room, t.Members)
		if err == nil {
			s.observeTime(r.time(1))
		}
		return r, err
	}
	r, err := rotate(s.run)
	if err == nil && r.code() == none && s.waitReplicas > 0 {
		// One primary's word is not enough to end a session either: it may have been
		// deposed before the session began, and not know yet.
		r, err = rotate(s.runDurably)
	}
	if err != nil {
		return Grant{}, Revocation{}, err
	}
	switch code := r.code(); code {
	case 0, 1, kept:
		g := Grant{
			Now: r.time(1), RefreshExpiry: r.time(2), UserEpoch: r.count(3),
			LogEpoch: r.string(4), AuthTime: r.time(5),
			Subject: r.string(6), Username: r.string(7), Scope: r.string(8), ClientID: r.string(9), Claims: r.string(10),
			JKT: t.JKT, Place: s.place(r, 11, 4), Same: code != 0, Current: code == kept,
		}
		if err := r.err(); err != nil {
			return Grant{}, Revocation{}, err
		}
		if g.Username == "" {
			g.Username = g.Subject
		}
		return g, Revocation{}, nil
	case none:
		return Grant{}, Revocation{}, r.verdict(ErrNoSession)
	case 3:
		return s.endFamily(ctx, t, r, ErrRevoked)
	case 4:
		return Grant{}, Revocation{}, r.verdict(ErrSuperseded)
	case 5:
		return s.endFamily(ctx, t, r, ErrReuse)
	case 6:
		return s.endFamily(ctx, t, r, ErrRollback)
	case 8:
		return Grant{}, Revocation{}, r.verdict(ErrForeign)
	case 9:
		return Grant{}, Revocation{}, r.verdict(ErrScope)
	case 10:
		return Grant{}, Revocation{}, r.verdict(ErrKeyBinding)
	case 12:
		return Grant{}, Revocation{}, r.verdict(ErrTooLarge)
	default:
		return Grant{}, Revocation{}, r.unknown()
	}
}

// endFamily returns the revocation that a rotation made or found, and first makes sure
// of it where replicas have to have it.
func (s *core) endFamily(ctx context.Context, t Rotation, r *reply, why error) (Grant, Revocation, error) {
	rev, err := r.revocation(t.SID)
	if err == nil && s.waitReplicas > 0 {
		rev, err = (&Sessions{s}).Revoke(ctx, SessionEnd{SID: t.SID, UID: t.UID})
	}
	switch {
	case err != nil && errors.Is(why, ErrRevoked): // nothing was ended now
		return Grant{}, Revocation{}, err
	case err != nil:
		return Grant{}, Revocation{}, fmt.Errorf("%w: %w", err, why)
	}
	return Grant{}, rev, why
}

// Revocation is what has to be confirmed after a revocation: a position in a shard's log,
// and the followers that have to apply the log up to it before every replica is known to
// refuse what was revoked.
type Revocation struct {
	Shard int
	Mark  Mark // the revocation's own entry; the last entry of the log if it was revoked before
	// Entry is the entry that [Sessions.Revoke] has made. It is zero, with Seq 0, for any other
	// revocation, and for a session that was revoked before.
	Entry Entry
	// Followers is how many followers the revoking script saw, 2 standing for any number above
	// 1, and Members their table if there is one at most.
	Followers int
	Members   []Member
	Server    Server // that has the table
}

// revocation reads seq, chain, followers, members, epoch and primary_id where all scripts that
// revoke but revoke return them. The caller has looked at the code.
func (r *reply) revocation(id ID) (Revocation, error) {
	rev := Revocation{
		Shard: id.Shard(), Mark: Mark{Seq: r.count(2), Chain: r.string(3)},
		Followers: int(r.count(4)), Members: r.members(5), //nolint:gosec // was an int64
		Server: Server{Epoch: r.string(6), Primary: r.string(7)},
	}
	r.checkRevocation(rev)
	if err := r.err(); err != nil {
		return Revocation{}, err
	}
	return rev, nil
}

// checkRevocation notes what cannot be true of a revocation that a script returned.
func (r *reply) checkRevocation(rev Revocation) {
	if rev.Followers <= 1 && len(rev.Members) != rev.Followers {
		r.failed(5, "the table of followers")
	}
	if rev.Mark.Seq == 0 {
		r.failed(2, "a sequence number")
	}
}

// SessionEnd names the session to revoke and what is known of it.
type SessionEnd struct {
	SID ID
	UID ID
	// Owner, if set, is the subject that must own the session.
	Owner string
	// IssuedTo, if set, is whom a session that is alive must have been issued to,
	// as [Rotation.IssuedTo] names them.
	IssuedTo *string
	// JTI and Expires are the access token that was shown, if one was, and Place what
	// it says of status lists.
	JTI     ID
	Expires time.Time
	Place   Place
}

// Revoke ends a session. It succeeds for one that is already over. Errors:
// [ErrNoSession] if Owner is set and has no such session, or the ids were never
// issued here; [ErrForeign] if IssuedTo is set and the session is another's;
// [ErrUnavailable].
func (s *Sessions) Revoke(ctx context.Context, e SessionEnd) (Revocation, error) {
	if !s.together(e.SID, e.UID) || (!e.Expires.IsZero() && !s.together(e.SID, e.JTI)) {
		return Revocation{}, ErrNoSession
	}
	return s.revokeTogether(ctx, e)
}

// errUndone says that Redis has refused what a script was to do for one session of several.
var errUndone = errors.New("this session of several could not be ended")

// revoked reads what lua/revoke.lua answers about a session.
func (s *core) revoked(sid ID, now time.Time, primary string, r *reply) (Revocation, error) {
	switch r.code() {
	case 0:
		rev := Revocation{
			Shard: sid.Shard(), Mark: Mark{Seq: r.count(1), Chain: r.string(2)},
			Followers: int(r.count(3)), Members: r.members(4), //nolint:gosec // was an int64
			Server: Server{Epoch: r.string(5), Primary: primary},
		}
		keep := r.milliseconds(6)
		r.checkRevocation(rev)
		if err := r.err(); err != nil {
			return Revocation{}, err
		}
		if keep > 0 {
			rev.Entry = Entry{Seq: rev.Mark.Seq, Kind: KindSession, ID: sid, At: now, Until: now.Add(keep), Chain: rev.Mark.Chain}
			rev.Entry.line = rev.Entry.text()
		}
		return rev, nil
	case 1:
		return Revocation{}, r.verdict(ErrNoSession)
	case 2:
		return Revocation{}, r.verdict(ErrForeign)
	case 3:
		return Revocation{}, r.verdict(unavailable(r.operation, fmt.Errorf("%w: %s", errUndone, r.string(1))))
	default:
		return Revocation{}, r.unknown()
	}
}

// revokeCall calls lua/revoke.lua for sessions that may share a script. by is the follower of
// this process, "" for none.
func (s *core) revokeCall(by string, ends ...SessionEnd) (call, error) {
	epoch, err := s.freshEpoch()
	if err != nil {
		return call{}, err
	}
	const keysEach, argsShared, argsEach = 9, 4, 6
	c := call{
		script: s.scripts.revoke,
		keys:   make([]string, 0, keysEach*len(ends)),
		args:   append(make([]any, 0, argsShared+argsEach*len(ends)+1), epoch, milliseconds(s.life.Access), milliseconds(skewPad), by),
	}
	for _, e := range ends {
		shard, denied := e.SID[0], s.denyKey(e.SID)
		deniedToken, expiry := denied, int64(0)
		if !e.Expires.IsZero() {
			deniedToken, expiry = s.denyKey(e.JTI), e.Expires.UnixMilli()
		}
		only, client := "", ""
		if e.IssuedTo != nil {
			only, client = "1", *e.IssuedTo
		}
		c.keys = append(c.keys, s.rtKey(e.SID), s.userKey(e.UID), denied, s.headKey(shard), s.logKey(shard), s.membersKey(shard),
			s.invalidKey(shard), s.livingKey(e.UID), deniedToken)
		c.args = append(c.args, e.SID.String(), e.Owner, only, client, e.Place.String(), expiry)
	}
	return c, nil
}

// UserEnd names the user whose sessions end.
type UserEnd struct {
	UID ID
	// Except, if not nil, is the one session that stays.
	Except *ID
	// ChangedAt, if set, is when the user's credentials were changed, as the
	// account operation returned it: a login that read them before is refused.
	ChangedAt time.Time
}

// RevokeUser ends every session of a user. Errors: [ErrNoSession] if the
// excepted session is not alive, and then nothing was revoked; [ErrUnavailable].
func (s *Sessions) RevokeUser(ctx context.Context, e UserEnd) (Revocation, error) {
	if !s.together(e.UID) || (e.Except != nil && !s.together(e.UID, *e.Except)) {
		return Revocation{}, ErrNoSession
	}
	epoch, err := s.freshEpoch()
	if err != nil {
		return Revocation{}, err
	}
	shard := e.UID[0]
	keys := []string{
		s.epochKey(e.UID), s.userKey(e.UID), s.headKey(shard), s.logKey(shard), s.membersKey(shard),
		s.invalidKey(shard), s.livingKey(e.UID),
	}
	var changed int64
	if !e.ChangedAt.IsZero() {
		changed = e.ChangedAt.UnixMilli()
	}
	args := []any{
		epoch, e.UID.String(), milliseconds(s.life.Session), milliseconds(s.life.Access), milliseconds(skewPad), changed,
	}
	if e.Except != nil {
		keys = append(keys, s.rtKey(*e.Except))
		args = append(args, e.Except.String())
	}
	r, err := s.runDurably(ctx, s.scripts.revokeUser, keys, args...)
	if err != nil {
		return Revocation{}, err
	}
	s.observeTime(r.time(1))
	switch r.code() {
	case 0:
		ended := r.ids(8)
		rev, err := r.revocation(e.UID)
		if err != nil {
			return Revocation{}, err
		}
		s.forget(ctx, ended)
		return rev, nil
	case 1:
		return Revocation{}, r.verdict(ErrNoSession)
	default:
		return Revocation{}, r.unknown()
	}
}

// supersededKept is how long the refresh key of a session stays after its user's epoch has
// ended it. It is longer than a copy of the login may be on its way ([skewPad]): the copy
// must find the key, or it would make the session anew.
const supersededKept = time.Minute

// forget has Redis drop the refresh keys of sessions that the user's epoch has ended.
// Without it they would stay until they expire, for days, and no limit counts them any more.
// It is no part of ending the sessions, so nobody is told if it fails.
func (s *core) forget(ctx context.Context, sids []ID) {
	sids = slices.DeleteFunc(sids, func(sid ID) bool { return !s.together(sid) })
	if len(sids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	pipe := s.rdb.Pipeline()
	for _, sid := range sids {
		pipe.PExpire(ctx, s.rtKey(sid), supersededKept)
	}
	_, err := pipe.Exec(ctx)
	s.observe("forget", time.Since(start), unavailable("forget", err))
}

// Session is what a user may see of one of the sessions.
type Session struct {
	SID      ID
	Subject  string
	Username string
	ClientID string
	Scope    string
	Device   string
	Address  string
	Created  time.Time
	LastUsed time.Time // of the last refresh, or the login
	Expires  time.Time // unless it is refreshed before
}

// sessionFields are those of the refresh key that Session shows.
func sessionFields() []string {
	return []string{"sub", "user", "client", "scope", "dev", "ip", "cre", "rot", "ue"}
}

// Get reads one session. Errors: [ErrNoSession], [ErrUnavailable].
func (s *Sessions) Get(ctx context.Context, sid ID) (Session, error) {
	list, err := s.readSessions(ctx, "session", []ID{sid}, 0, "")
	if err != nil {
		return Session{}, err
	}
	if len(list) == 0 {
		return Session{}, ErrNoSession
	}
	return list[0], nil
}

// MaxSessionPage is how many sessions [Sessions.List] returns at most.
const MaxSessionPage = 100

// ErrCursor says that a cursor is none that [Sessions.List] returned.
var ErrCursor = errors.New("not a cursor of a list of sessions")

// List lists a user's live sessions, those that expire last first: at most limit of
// them, 1 to [MaxSessionPage]. It begins after the cursor, "" for the beginning, and
// returns the cursor to go on from, "" at the end. There may be more to come after a page
// of less than limit, or of none.
//
// It reads in two round trips and is no decision: a session may end before the caller
// sees it, and one that is refreshed between two pages moves to the front. Errors:
// [ErrCursor], [ErrUnavailable].
func (s *Sessions) List(ctx context.Context, uid ID, cursor string, limit int) (list []Session, next string, err error) {
	limit = max(1, min(limit, MaxSessionPage))
	score, after, _ := strings.Cut(cursor, ".")
	if cursor != "" {
		sid, err := ParseID(after)
		if _, err2 := strconv.ParseUint(score, 10, 63); err != nil || err2 != nil || !s.together(uid, sid) {
			return nil, "", ErrCursor
		}
	}
	// One more than is wanted tells whether there are more.
	r, err := s.run(ctx, s.scripts.sessionPage, []string{s.userKey(uid), s.epochKey(uid)}, limit+1, after, score)
	if err != nil {
		return nil, "", err
	}
	s.observeTime(r.time(0))
	members := r.pairs(3)
	sids := make([]ID, 0, limit)
	for i, m := range members {
		if len(sids) == limit {
			next = members[i-1][1] + "." + members[i-1][0]
			break
		}
		sid, err := ParseID(m[0])
		if _, err2 := strconv.ParseUint(m[1], 10, 63); err != nil || err2 != nil {
			r.failed(3, "a list of sessions")
		}
		sids = append(sids, sid)
	}
	epoch, except := r.count(1), r.string(2)
	if err := r.err(); err != nil {
		return nil, "", err
	}
	list, err = s.readSessions(ctx, "sessions", sids, epoch, except)
	if err != nil {
		return nil, "", err
	}
	return list, next, nil
}

// readSessions reads the refresh keys of sessions, leaving out those that are gone, or of
// an epoch before the user's. It is measured as operation.
func (s *core) readSessions(ctx context.Context, operation string, sids []ID, epoch uint64, except string) ([]Session, error) {
	sids = slices.DeleteFunc(sids, func(sid ID) bool { return !s.together(sid) })
	if len(sids) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	pipe := s.rdb.Pipeline()
	hashes := make([]*redis.SliceCmd, 0, len(sids))
	ttls := make([]*redis.DurationCmd, 0, len(sids))
	for _, sid := range sids {
		hashes = append(hashes, pipe.HMGet(ctx, s.rtKey(sid), sessionFields()...))
		ttls = append(ttls, pipe.PTTL(ctx, s.rtKey(sid)))
	}
	_, err := pipe.Exec(ctx)
	err = unavailable(operation, err)
	s.observe(operation, time.Since(start), err)
	if err != nil {
		return nil, err
	}
	now := s.Now()
	list := make([]Session, 0, len(sids))
	for i, sid := range sids {
		f := newHash(operation, hashes[i].Val(), len(sessionFields()))
		if f.optional(0) == "" && f.err() == nil {
			continue // it has ended
		}
		v := Session{
			SID: sid, Subject: f.string(0), Username: f.optional(1), ClientID: f.optional(2), Scope: f.optional(3),
			Device: f.optional(4), Address: f.optional(5), Created: f.time(6), LastUsed: f.time(7), Expires: now.Add(ttls[i].Val()),
		}
		superseded := f.count(8) < epoch && sid.String() != except
		if err := f.err(); err != nil {
			return nil, err
		}
		if superseded {
			continue
		}
		if v.Username == "" {
			v.Username = v.Subject
		}
		list = append(list, v)
	}
	return list, nil
}
