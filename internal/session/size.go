package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/jsontext"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Whether a token can be signed is known before anything is committed: a login that
// failed afterwards would leave a session behind, and a refresh would spend the refresh
// token. What is stored keeps to the bounds of accesstoken.MaxAccount and its kin, and
// newTokenRoom checks at the start that the settings leave that much. So only what
// another version stored, or a key that has become longer, can still fail.

// errTokenRoom says that what belongs into a token does not fit.
var errTokenRoom = errors.New("the access token would be too long")

// longestJKT is as long as the thumbprint of any key.
const longestJKT = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// tokenRoom is what the settings say about how long tokens may be.
type tokenRoom struct {
	limit  int // of a token, in bytes; with its name it fits into a cookie
	frame  int // bytes of JSON that do not depend on whom the token is for
	scopes int // bytes that the claims of all scopes take
	names  int // how many names these have
}

// newTokenRoom returns an [OptionError] if tokens could not hold what the options allow.
func newTokenRoom(o Options, frame accesstoken.Claims) (tokenRoom, error) {
	r := tokenRoom{limit: o.MaxToken}
	var err error
	if r.scopes, r.names, err = scopeClaimsSize(o.ScopeClaims); err != nil {
		return r, err
	}
	if r.scopes > accesstoken.MaxScopes || r.names > accesstoken.MaxExtraPart {
		return r, badOption(OptionScopeClaims, "the scopes bring %d claims that may take %d bytes together; give fewer: %d claims and %d bytes are allowed",
			r.names, r.scopes, accesstoken.MaxExtraPart, accesstoken.MaxScopes)
	}
	frame.Subject, frame.ClientID, frame.Scope = "x", "x", "x" // required, or left out when empty
	size, err := frame.Size()
	if err != nil {
		return r, err
	}
	r.frame = size - 3
	signature := o.SignatureSize
	if signature == 0 {
		signature = accesstoken.MaxSignature
	}
	own := len(o.ClientID)
	need := r.frame + own + accesstoken.MaxAccount + accesstoken.MaxClient + accesstoken.MaxScopes
	if over := need - accesstoken.Room(r.limit, signature); over > 0 {
		return r, badOption(OptionTokenFrame, "the issuer, the audience and the name of the access cookie are together %d bytes too long: "+
			"access tokens of %d bytes would leave too little for accounts and clients; shorten them (with status lists the issuer counts twice), or choose an algorithm with shorter signatures",
			over, r.limit)
	}
	return r, nil
}

// scopeClaimsSize returns how many bytes and names the claims of scopes can bring into
// a token: of a name that several scopes have, one value counts.
func scopeClaimsSize(all map[string]map[string]json.RawMessage) (size, names int, err error) {
	longest := map[string]int{}
	for scope, claims := range all {
		for name, value := range claims {
			n, err := accesstoken.ExtraSize(map[string]json.RawMessage{name: value})
			if err != nil || !jsontext.Whole(value) || !utf8.ValidString(scope) {
				return 0, 0, badOption(OptionScopeClaims, "the claim %q of the scope %q cannot be in a token: it must be UTF-8, and its name none that Latchkey sets itself", name, scope)
			}
			longest[name] = max(longest[name], n)
		}
	}
	for _, n := range longest {
		size += n
	}
	return size, len(longest), nil
}

// sessionRoom returns how many bytes, and how many claims, the stored session may add to an
// access token that client asks for: [tokenstore.Rotation.Room] and Members. Errors:
// [accesstoken.ErrNoKey].
func (s *Service) sessionRoom(client tokenstore.Client) (room, members int, err error) {
	room, err = s.Signer.Room(s.room.limit)
	if err != nil {
		return 0, 0, err
	}
	// The client's id is in the session's share (rotate.lua counts it), not in the client's.
	room -= s.room.frame + s.room.scopes + client.Size() - len(client.ID)
	return max(1, room), max(0, accesstoken.MaxExtra-s.room.names-strings.Count(client.Claims, `":`)), nil
}

// fits returns an error unless a token of d can be signed, whatever the store adds to
// the grant. Errors: errTokenRoom, [accesstoken.ErrNoKey].
func (s *Service) fits(d draft) error {
	room, err := s.Signer.Room(s.room.limit)
	if err != nil {
		return err
	}
	d.grant = longestGrant(d.grant, s.Store.Now())
	claims := s.tokenClaims(d, tokenstore.ID{})
	size, err := claims.Size()
	if err != nil {
		return fmt.Errorf("%w: %w", errTokenRoom, err)
	}
	if size > room {
		return fmt.Errorf("%w: the claims of %s take %d bytes, and %d are allowed; shorten those of the account, the client or the scopes",
			errTokenRoom, d.grant.Subject, size, room)
	}
	return nil
}

// longestGrant is g with what the store adds to it, as long as that can be.
func longestGrant(g tokenstore.Grant, now time.Time) tokenstore.Grant {
	g.Now, g.AuthTime = now, now
	g.LogEpoch, g.UserEpoch = strings.Repeat("x", 16), 1<<53-1
	g.Place = tokenstore.Place{History: g.LogEpoch, N: 1<<53 - 1}
	return g
}
