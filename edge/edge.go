// Package edge decides, inside the process that serves a request, whether an
// access token is to be accepted. Latchkey's own replicas use it.
//
// Most callers need [New] and [Verifier.Verify].
//
// # What an answer means
//
// Verify checks the signature and the claims in memory and then asks the token
// store, in one round trip, whether the token, its session or its user's epoch
// was revoked ("strict" mode). The answer is linearizable: once a logout has
// been answered, no call of Verify that begins afterwards accepts a token of
// that session, whichever replica it is made on.
//
// What the store cannot tell is [ErrUnavailable], never an acceptance and never
// a refusal: a caller answers 503.
package edge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

var (
	// ErrInvalid says that the token is not one of ours: malformed, not signed
	// by a key of ours, or for another issuer or audience.
	ErrInvalid = errors.New("the access token is invalid")
	// ErrExpired says that the token has expired. A refresh helps.
	ErrExpired = errors.New("the access token has expired")
	// ErrRevoked says that the token was revoked. Only a login helps.
	ErrRevoked = errors.New("the access token was revoked")
	// ErrUnavailable says that nobody could tell. The same token may be shown again.
	ErrUnavailable = tokenstore.ErrUnavailable
)

// Claims are what an accepted token says (RFC 9068 section 2.2).
type Claims struct {
	Issuer    string
	Subject   string
	Audience  []string
	ID        string // jti
	SessionID string // sid
	ClientID  string
	Scope     string // space separated; may be empty
	UserEpoch uint64
	LogEpoch  string
	IssuedAt  int64 // Unix seconds, as the other times
	ExpiresAt int64
	AuthTime  int64
	NotBefore int64 // 0 if absent
}

// Options are what a Verifier is made of.
type Options struct {
	Store    *tokenstore.Store
	Ring     *accesstoken.Ring
	Issuer   string
	Audience string
	// Refetch brings the ring up to date. It is called, at most once a second,
	// when a token names a key that the ring does not have.
	Refetch func(context.Context) error
}

// Verifier verifies access tokens. It is safe for concurrent use.
type Verifier struct {
	store   *tokenstore.Store
	ring    *accesstoken.Ring
	tokens  *accesstoken.Verifier
	refetch func(context.Context) error

	mu      sync.Mutex // held while the ring is refetched
	fetched time.Time  // when it last was
}

const (
	// leeway is how far ahead of Redis time iat and nbf may be. Tokens are
	// issued by Redis time, so it covers no more than one clock's drift.
	leeway = 5 * time.Second
	// refetchEvery bounds what made-up key ids can cost.
	refetchEvery = time.Second
)

// New returns a Verifier in strict mode.
func New(o Options) *Verifier {
	return &Verifier{
		store: o.Store, ring: o.Ring, refetch: o.Refetch,
		tokens: accesstoken.NewVerifier(o.Ring, accesstoken.VerifierOptions{
			Issuer: o.Issuer, Audience: o.Audience, Leeway: leeway,
		}),
	}
}

// Verify returns the claims of a token that is to be accepted. Errors:
// [ErrInvalid], [ErrExpired], [ErrRevoked], [ErrUnavailable].
func (v *Verifier) Verify(ctx context.Context, token string) (Claims, error) {
	claims, err := v.withKeys(ctx, func() (accesstoken.Claims, error) {
		return v.tokens.Verify(token, v.store.Now())
	})
	if err != nil {
		return Claims{}, err
	}
	ids, err := v.ids(claims)
	if err != nil {
		return Claims{}, err
	}
	switch err := v.store.Verify(ctx, ids); {
	case err == nil:
		return Claims(claims), nil
	case errors.Is(err, tokenstore.ErrRevoked):
		return Claims{}, fmt.Errorf("%w: %w", ErrRevoked, err)
	case errors.Is(err, tokenstore.ErrExpired):
		return Claims{}, ErrExpired
	default:
		return Claims{}, err
	}
}

// Authentic returns the claims of a token that was issued here, even if it has
// expired or was revoked: what a logout needs to know. Errors: [ErrInvalid],
// [ErrUnavailable].
func (v *Verifier) Authentic(ctx context.Context, token string) (Claims, error) {
	claims, err := v.withKeys(ctx, func() (accesstoken.Claims, error) { return v.tokens.Authentic(token) })
	if err == nil {
		_, err = v.ids(claims)
	}
	if err != nil {
		return Claims{}, err
	}
	return Claims(claims), nil
}

// withKeys checks a token, and once more with fresh keys if it names one that
// the ring lacks. A key that cannot be fetched is an outage, not a refusal.
func (v *Verifier) withKeys(ctx context.Context, check func() (accesstoken.Claims, error)) (accesstoken.Claims, error) {
	claims, err := check()
	if errors.Is(err, accesstoken.ErrUnknownKey) {
		if err := v.freshKeys(ctx); err != nil {
			return accesstoken.Claims{}, err
		}
		claims, err = check()
	}
	switch {
	case err == nil:
		return claims, nil
	case errors.Is(err, accesstoken.ErrExpired):
		return accesstoken.Claims{}, ErrExpired
	default:
		return accesstoken.Claims{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
}

// freshKeys refetches the ring unless that was just done. Those who come
// meanwhile wait for the one who does it.
func (v *Verifier) freshKeys(ctx context.Context) error {
	asked := time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.refetch == nil || asked.Sub(v.fetched) < refetchEvery {
		return nil
	}
	if err := v.refetch(ctx); err != nil {
		if errors.Is(err, ErrUnavailable) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	v.fetched = time.Now()
	return nil
}

// ids reads the ids that a token of ours carries.
func (v *Verifier) ids(c accesstoken.Claims) (tokenstore.AccessToken, error) {
	jti, err := tokenstore.ParseID(c.ID)
	if err != nil {
		return tokenstore.AccessToken{}, fmt.Errorf("%w: jti", ErrInvalid)
	}
	sid, err := tokenstore.ParseID(c.SessionID)
	if err != nil {
		return tokenstore.AccessToken{}, fmt.Errorf("%w: sid", ErrInvalid)
	}
	return tokenstore.AccessToken{
		JTI: jti, SID: sid, UID: v.store.UserID(c.Subject),
		UserEpoch: c.UserEpoch, LogEpoch: c.LogEpoch, Expires: time.Unix(c.ExpiresAt, 0),
	}, nil
}
