package session

import (
	"context"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Shown is an access token as a request shows it.
type Shown struct {
	Token    string
	ByCookie bool
	Bound    bool // as Authorization: DPoP
}

// Caller is who an accepted access token speaks for, with the ids that the store knows
// them by.
type Caller struct {
	edge.Claims
	SID, UID tokenstore.ID
}

// ScopeAccount is the scope with which a registered client may manage the account of its
// user: read it, list and end its sessions, change its password.
const ScopeAccount = "latchkey:account"

// AdmitOwner accepts an access token for an operation on its user's account: one that the
// service's own login issued, or one with ScopeAccount. proof is that of a bound token.
// Errors: those of [edge.Verifier.Verify] and AdmitBound, ErrNotUser and a [ScopeError].
func (s *Service) AdmitOwner(ctx context.Context, from Origin, shown Shown, proof Proof) (Caller, error) {
	var claims edge.Claims
	var err error
	if shown.Bound {
		claims, err = s.AdmitBound(ctx, from, shown.Token, proof)
	} else {
		claims, err = s.Verifier.Verify(ctx, shown.Token)
	}
	if err != nil {
		return Caller{}, err
	}
	if tokenstore.IsClient(claims.Subject) {
		return Caller{}, ErrNotUser
	}
	if tokenstore.IsClient(claims.ClientID) && !claims.HasScope(ScopeAccount) {
		return Caller{}, &ScopeError{[]string{ScopeAccount}}
	}
	sid, err := tokenstore.ParseID(claims.SessionID)
	if err != nil {
		return Caller{}, edge.ErrInvalid
	}
	return Caller{Claims: claims, SID: sid, UID: s.Store.UserID(claims.Subject)}, nil
}

// Authorize accepts an access token that grants every scope in required. Bound tokens go
// through AuthorizeBound. Errors: those of [edge.Verifier.Verify]; a [ScopeError].
func (s *Service) Authorize(ctx context.Context, token string, required []string) (*edge.Known, error) {
	known, err := s.Verifier.VerifyKnown(ctx, token)
	if err != nil {
		return nil, err
	}
	if !known.HasScope(required...) {
		return nil, &ScopeError{required}
	}
	return known, nil
}

// AuthorizeBound is Authorize for a token that is shown as Authorization: DPoP. Errors:
// those of AdmitBound; a [ScopeError].
func (s *Service) AuthorizeBound(ctx context.Context, from Origin, token string, proof Proof, required []string) (edge.Claims, error) {
	claims, err := s.AdmitBound(ctx, from, token, proof)
	if err != nil {
		return edge.Claims{}, err
	}
	if !claims.HasScope(required...) {
		return edge.Claims{}, &ScopeError{required}
	}
	return claims, nil
}
