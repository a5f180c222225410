package tokenstore

import (
	"context"
	"errors"
	"fmt"
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
	// ReadAt is when the account was read, as [Store.Lookup] returned it.
	ReadAt time.Time
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
	// Same is set when the shown token was the parent of the current one within
	// the grace: nothing changed.
	Same bool
}

// Login makes a session. Errors: [ErrSuperseded], [ErrUnavailable].
func (s *Store) Login(ctx context.Context, n NewSession) (Grant, error) {
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
	keys := []string{s.rtKey(n.SID), s.userKey(n.UID), s.epochKey(n.UID), s.headKey(shard), s.logKey(shard)}
	if s.statusLists {
		keys = append(keys, s.livingKey(n.UID))
	}
	r, err := s.run(ctx, s.scripts.login, keys,
		epoch, n.SID.String(), n.Hash[:], n.Subject, username, n.Scope, n.ClientID, n.Device, n.Address,
		milliseconds(s.life.Refresh), milliseconds(s.life.Session), milliseconds(s.life.Access), milliseconds(skewPad),
		n.ReadAt.UnixMilli(), n.Claims, n.JKT)
	if err != nil {
		return Grant{}, err
	}
	if r.int(0) == 1 {
		return Grant{}, ErrSuperseded
	}
	now := r.time(1)
	s.observeTime(now)
	return Grant{
		Now: now, RefreshExpiry: r.time(2), AuthTime: now,
		UserEpoch: uint64(r.int(3)), LogEpoch: r.string(4), //nolint:gosec // an epoch counts up from 0
		Subject: n.Subject, Username: n.Username, Scope: n.Scope, ClientID: n.ClientID,
		Claims: n.Claims, JKT: n.JKT, Place: r.place(5, 4),
	}, nil
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
}

const (
	// none is what rotate answers when there is no such session.
	none = 2
	// late is what it answers when it reached Redis after its caller had gone.
	late = 7
)

// Rotate makes the successor current. Errors: [ErrNoSession], [ErrRevoked],
// [ErrSuperseded], [ErrReuse] and [ErrRollback], after which the session is
// over; [ErrForeign], [ErrKeyBinding] and [ErrScope], after which nothing has changed;
// [ErrUnavailable], after which the same token may be shown again.
// A [Revocation] accompanies ErrReuse, ErrRollback and ErrRevoked: the last may be
// the answer to a theft that was sent twice. An error that is ErrReuse or ErrRollback and
// also ErrUnavailable says that the session was ended, and that too few replicas are known
// to have that.
func (s *Store) Rotate(ctx context.Context, t Rotation) (Grant, Revocation, error) {
	if !s.together(t.SID, t.UID) {
		return Grant{}, Revocation{}, ErrNoSession
	}
	epoch, err := s.freshEpoch()
	if err != nil {
		return Grant{}, Revocation{}, err
	}
	shard := t.SID[0]
	rotate := func(run func(context.Context, *script, []string, ...any) (reply, error)) (reply, error) {
		r, err := run(ctx, s.scripts.rotate,
			[]string{s.rtKey(t.SID), s.userKey(t.UID), s.epochKey(t.UID), s.denyKey(t.SID), s.headKey(shard), s.logKey(shard), s.membersKey(shard), s.invalidKey(shard), s.livingKey(t.UID)},
			epoch, t.SID.String(), t.Gen, t.Hash[:], t.Next[:],
			milliseconds(s.life.Refresh), milliseconds(s.life.Access), milliseconds(s.life.Grace), milliseconds(skewPad),
			s.Now().Add(s.timeout).UnixMilli(), t.IssuedTo, t.Scope, t.JKT, flag(s.statusLists))
		if err == nil {
			s.observeTime(r.time(1))
		}
		return r, err
	}
	r, err := rotate(s.run)
	if err == nil && r.int(0) == late {
		r, err = rotate(s.run) // the estimate of Redis time was off, and is not any more
	}
	if err == nil && r.int(0) == none && s.waitReplicas > 0 {
		// One primary's word is not enough to end a session either: it may have been
		// deposed before the session began, and not know yet.
		r, err = rotate(s.runDurably)
	}
	if err != nil {
		return Grant{}, Revocation{}, err
	}
	switch code := r.int(0); code {
	case 0, 1:
		g := Grant{
			Now: r.time(1), RefreshExpiry: r.time(2), UserEpoch: uint64(r.int(3)), //nolint:gosec // an epoch counts up from 0
			LogEpoch: r.string(4), AuthTime: r.time(5),
			Subject: r.string(6), Username: r.string(7), Scope: r.string(8), ClientID: r.string(9), Claims: r.string(10),
			JKT: t.JKT, Place: r.place(11, 4), Same: code == 1,
		}
		if g.Username == "" {
			g.Username = g.Subject
		}
		return g, Revocation{}, nil
	case none:
		return Grant{}, Revocation{}, ErrNoSession
	case 3:
		return s.endFamily(ctx, t, r, ErrRevoked)
	case 4:
		return Grant{}, Revocation{}, ErrSuperseded
	case 5:
		return s.endFamily(ctx, t, r, ErrReuse)
	case 6:
		return s.endFamily(ctx, t, r, ErrRollback)
	case late:
		return Grant{}, Revocation{}, fmt.Errorf("%w: rotate: it reached Redis too late", ErrUnavailable)
	case 8:
		return Grant{}, Revocation{}, ErrForeign
	case 9:
		return Grant{}, Revocation{}, ErrScope
	case 10:
		return Grant{}, Revocation{}, ErrKeyBinding
	default:
		return Grant{}, Revocation{}, fmt.Errorf("rotate: unknown reply %d", code)
	}
}

// endFamily returns the revocation that a rotation made, and first makes sure
// of it where replicas have to have it.
func (s *Store) endFamily(ctx context.Context, t Rotation, r reply, why error) (Grant, Revocation, error) {
	if s.waitReplicas == 0 {
		return Grant{}, r.revocation(t.SID), why
	}
	rev, err := s.Revoke(ctx, SessionEnd{SID: t.SID, UID: t.UID})
	switch {
	case err != nil && errors.Is(why, ErrRevoked): // nothing was ended now
		return Grant{}, Revocation{}, err
	case err != nil:
		return Grant{}, Revocation{}, fmt.Errorf("%w: %w", err, why)
	}
	return Grant{}, rev, why
}

// Revocation names one entry of a shard's log, and the followers that have to
// apply it before every replica is known to refuse what it revokes.
type Revocation struct {
	Shard   int
	Mark    Mark
	Members []Member // as the revoking script saw them; none: nobody follows
	Server  Server   // that has them
}

// revocation reads seq, chain, members and server from where revoke returns them.
func (r reply) revocation(id ID) Revocation {
	return Revocation{
		Shard: id.Shard(), Mark: Mark{Seq: uint64(r.int(2)), Chain: r.string(3)}, //nolint:gosec // a sequence number counts up from 1
		Members: r.members(4), Server: Server{Epoch: r.string(5), Primary: r.string(6)},
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
func (s *Store) Revoke(ctx context.Context, e SessionEnd) (Revocation, error) {
	if !s.together(e.SID, e.UID) || (!e.Expires.IsZero() && !s.together(e.SID, e.JTI)) {
		return Revocation{}, ErrNoSession
	}
	epoch, err := s.freshEpoch()
	if err != nil {
		return Revocation{}, err
	}
	shard := e.SID[0]
	keys := []string{s.rtKey(e.SID), s.userKey(e.UID), s.denyKey(e.SID), s.headKey(shard), s.logKey(shard), s.membersKey(shard), s.invalidKey(shard), s.livingKey(e.UID)}
	args := []any{epoch, e.SID.String(), milliseconds(s.life.Access), milliseconds(skewPad), e.Owner, "", "", e.Place.String()}
	if e.IssuedTo != nil {
		args[5], args[6] = "1", *e.IssuedTo
	}
	if !e.Expires.IsZero() {
		keys = append(keys, s.denyKey(e.JTI))
		args = append(args, e.Expires.UnixMilli())
	}
	r, err := s.runDurably(ctx, s.scripts.revoke, keys, args...)
	if err != nil {
		return Revocation{}, err
	}
	s.observeTime(r.time(1))
	switch r.int(0) {
	case 1:
		return Revocation{}, ErrNoSession
	case 2:
		return Revocation{}, ErrForeign
	}
	return r.revocation(e.SID), nil
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
func (s *Store) RevokeUser(ctx context.Context, e UserEnd) (Revocation, error) {
	if !s.together(e.UID) || (e.Except != nil && !s.together(e.UID, *e.Except)) {
		return Revocation{}, ErrNoSession
	}
	epoch, err := s.freshEpoch()
	if err != nil {
		return Revocation{}, err
	}
	nonce, err := s.freshEpoch()
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
		epoch, e.UID.String(), nonce,
		milliseconds(s.life.Session), milliseconds(s.life.Access), milliseconds(skewPad), changed,
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
	if r.int(0) == 1 {
		return Revocation{}, ErrNoSession
	}
	return r.revocation(e.UID), nil
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

// Session reads one session. Errors: [ErrNoSession], [ErrUnavailable].
func (s *Store) Session(ctx context.Context, sid ID) (Session, error) {
	list, err := s.readSessions(ctx, []redis.Z{{Member: sid.String()}}, 0, "")
	if err != nil {
		return Session{}, err
	}
	if len(list) == 0 {
		return Session{}, ErrNoSession
	}
	return list[0], nil
}

// maxSessions is how many sessions Sessions returns at most.
const maxSessions = 1000

// Sessions lists a user's live sessions, those that expire last first, at most
// 1000. It reads in two round trips and is no decision: a session may end
// before the caller sees it.
func (s *Store) Sessions(ctx context.Context, uid ID) ([]Session, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	pipe := s.rdb.Pipeline()
	members := pipe.ZRevRangeWithScores(ctx, s.userKey(uid), 0, maxSessions-1)
	user := pipe.HMGet(ctx, s.epochKey(uid), "e", "x")
	_, err := pipe.Exec(ctx)
	err = unavailable("sessions", err)
	s.observe("sessions", time.Since(start), err)
	if err != nil {
		return nil, err
	}
	u := reply(user.Val())
	return s.readSessions(ctx, members.Val(), u.int(0), u.string(1))
}

// readSessions reads the refresh keys that members name, leaving out those that
// are gone, or of an epoch before the user's.
func (s *Store) readSessions(ctx context.Context, members []redis.Z, epoch int64, except string) ([]Session, error) {
	if len(members) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	pipe := s.rdb.Pipeline()
	sids := make([]ID, 0, len(members))
	hashes := make([]*redis.SliceCmd, 0, len(members))
	ttls := make([]*redis.DurationCmd, 0, len(members))
	for _, m := range members {
		text, _ := m.Member.(string)
		sid, err := ParseID(text)
		if err != nil || !s.together(sid) {
			continue
		}
		sids = append(sids, sid)
		hashes = append(hashes, pipe.HMGet(ctx, s.rtKey(sid), sessionFields()...))
		ttls = append(ttls, pipe.PTTL(ctx, s.rtKey(sid)))
	}
	if len(sids) == 0 {
		return nil, nil
	}
	_, err := pipe.Exec(ctx)
	err = unavailable("session", err)
	s.observe("session", time.Since(start), err)
	if err != nil {
		return nil, err
	}
	now := s.Now()
	list := make([]Session, 0, len(sids))
	for i, sid := range sids {
		f := reply(hashes[i].Val())
		if f.string(0) == "" || (f.int(8) < epoch && sid.String() != except) {
			continue
		}
		v := Session{
			SID: sid, Subject: f.string(0), Username: f.string(1), ClientID: f.string(2), Scope: f.string(3),
			Device: f.string(4), Address: f.string(5), Created: f.time(6), LastUsed: f.time(7), Expires: now.Add(ttls[i].Val()),
		}
		if v.Username == "" {
			v.Username = v.Subject
		}
		list = append(list, v)
	}
	return list, nil
}
