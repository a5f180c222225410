package tokenstore_test

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// listed fails unless a status list shows as revoked exactly the sessions whose tokens
// are refused.
func (h *history) listed(rt *rapid.T, s int) {
	f := h.stores[s]
	for i, x := range h.sessions {
		g, uid := h.grants[s][i], f.UserID(x.user)
		err := f.Revocations.Verify(h.t.Context(), tokenstore.AccessToken{
			JTI: h.nextSID(uid), SID: x.sid, UID: uid, UserEpoch: g.UserEpoch, LogEpoch: g.LogEpoch, Expires: g.Now.Add(15 * time.Minute),
		})
		if shown := f.shows(x.sid.Shard(), g.Place); shown != errors.Is(err, tokenstore.ErrRevoked) {
			rt.Fatalf("session %d of %s: a check says %v, its status list that it was revoked: %v", i, x.user, err, shown)
		}
	}
}

// history keeps what the clients hold; it is the same for both stores.
type history struct {
	t        *testing.T
	stores   []*fixture
	sessions []held
	grants   [2]map[int]tokenstore.Grant
}

type held struct {
	user string
	sid  tokenstore.ID
	gen  int
}

// secret derives what the n-th generation of a session holds: a stand-in for
// the refresh token's own derivation.
func (h held) secret(gen int) [32]byte {
	return sha256.Sum256(binary.BigEndian.AppendUint32(h.sid[:], uint32(gen)))
}

func (h *history) pick(n int) (int, bool) {
	if len(h.sessions) == 0 {
		return 0, false
	}
	return n % len(h.sessions), true
}

func (h *history) do(s int, op, user string, n, back int) string {
	f := h.stores[s]
	ctx := h.t.Context()
	uid := f.UserID(user)
	if h.grants[s] == nil {
		h.grants[s] = map[int]tokenstore.Grant{}
	}
	if op == "login" {
		sid := h.nextSID(uid)
		x := held{user: user, sid: sid}
		secret := x.secret(1)
		g, err := f.Sessions.Login(ctx, tokenstore.NewSession{SID: sid, UID: uid, Hash: sha256.Sum256(secret[:]), Subject: user, Username: user, ReadAt: time.Now().Add(time.Hour)})
		h.grants[s][len(h.sessions)] = g
		return fmt.Sprintf("%v %d %d", err, g.UserEpoch, g.Place.N)
	}
	if op == "failed" {
		l, err := f.Attempts.Lookup(ctx, attempt(user, "192.0.2.1"))
		if n%2 == 0 {
			err = errors.Join(err, f.Attempts.Refund(ctx, l.Charge))
		}
		return fmt.Sprint(err, l.Found, l.Wait.Round(10*time.Minute))
	}
	i, ok := h.pick(n)
	if !ok {
		return "nothing held"
	}
	x := h.sessions[i]
	xuid := f.UserID(x.user)
	switch op {
	case "rotate", "wrong":
		gen := max(1, x.gen-back)
		shown, next := x.secret(gen), x.secret(gen+1)
		if op == "wrong" {
			shown[0] ^= 1
		}
		g, rev, err := f.Sessions.Rotate(ctx, tokenstore.Rotation{SID: x.sid, UID: xuid, Gen: uint32(gen), Hash: sha256.Sum256(shown[:]), Next: sha256.Sum256(next[:])})
		return fmt.Sprintf("%v same=%v current=%v epoch=%d sub=%s seq=%d place=%d", sentinel(err), g.Same, g.Current, g.UserEpoch, g.Subject, rev.Mark.Seq, g.Place.N)
	case "verify":
		g := h.grants[s][i]
		jti := x.sid
		jti[15] ^= 0xff
		err := f.Revocations.Verify(ctx, tokenstore.AccessToken{JTI: jti, SID: x.sid, UID: xuid, UserEpoch: g.UserEpoch, LogEpoch: g.LogEpoch, Expires: g.Now.Add(15 * time.Minute)})
		return fmt.Sprint(err)
	case "revoke":
		e := tokenstore.SessionEnd{SID: x.sid, UID: xuid}
		if back > 0 {
			e.Owner = user
		}
		rev, err := f.Sessions.Revoke(ctx, e)
		return fmt.Sprint(err, rev.Shard, rev.Mark.Seq)
	case "revokeUser":
		e := tokenstore.UserEnd{UID: xuid}
		if back > 0 {
			e.Except = &x.sid
		}
		rev, err := f.Sessions.RevokeUser(ctx, e)
		return fmt.Sprint(err, rev.Shard, rev.Mark.Seq)
	case "age":
		key := fmt.Sprintf("lk:{%d}:rt:%s", x.sid.Shard(), x.sid)
		if f.exists(key) {
			f.rdb.HIncrBy(ctx, key, "rot", -4000)
		}
		return "older"
	}
	return "unknown operation"
}

// nextSID is the same for both stores, and no two sessions share it.
func (h *history) nextSID(uid tokenstore.ID) tokenstore.ID {
	sum := sha256.Sum256(fmt.Append(nil, "sid", len(h.sessions)))
	var sid tokenstore.ID
	copy(sid[:], sum[:])
	sid[0] = uid[0]
	return sid
}

// commit is what the clients take from an answer that both stores gave.
func (h *history) commit(op, user string, n, back int, answer string) {
	switch op {
	case "login":
		h.sessions = append(h.sessions, held{user: user, sid: h.nextSID(h.stores[0].UserID(user)), gen: 1})
	case "rotate":
		if i, ok := h.pick(n); ok && strings.HasPrefix(answer, "<nil> ") && !strings.Contains(answer, "current=true") {
			h.sessions[i].gen = max(h.sessions[i].gen, max(1, h.sessions[i].gen-back)+1)
		}
	}
}

func sentinel(err error) error {
	for _, s := range []error{tokenstore.ErrNoSession, tokenstore.ErrRevoked, tokenstore.ErrReuse, tokenstore.ErrRollback, tokenstore.ErrSuperseded} {
		if errors.Is(err, s) {
			return s
		}
	}
	return err
}
