package session

import (
	"errors"
	"fmt"
	"time"

	"github.com/latchkey-auth/latchkey/internal/dpop"
)

// What is refused, and why. Besides these, operations return errors of edge
// (a token is not valid), tokenstore (ErrUnavailable above all), accesstoken (ErrNoKey),
// credential (ErrBusy) and claimhook (ErrFailed).
var (
	ErrCredentials  = errors.New("incorrect username or password")
	ErrPassword     = errors.New("incorrect password")
	ErrRefreshToken = errors.New("the refresh token is not valid")
	ErrAmbiguous    = errors.New("the refresh tokens of several sessions were sent")
	ErrStalled      = errors.New("the replica has not run for a while")
	ErrNoSession    = errors.New("the user has no such session")
	ErrNotUser      = errors.New("the access token is a client's own")
	// ErrUnchecked says that a token claims to be ours, and its key or root secret is not
	// known any more.
	ErrUnchecked = errors.New("the token cannot be checked")
	// ErrTooMany says that tokens of more than MaxShown sessions were sent. Nothing has ended.
	ErrTooMany = fmt.Errorf("tokens of more than %d sessions were sent", MaxShown)
	// ErrClient says that the client could not be authenticated: it is unknown, or its secret
	// is another, or it shows none.
	ErrClient = errors.New("the client could not be authenticated")
	// ErrClientMayNot says that the client is not allowed to ask about tokens.
	ErrClientMayNot = errors.New("the client may not introspect")
	// ErrForeign says that a token was issued to another client (RFC 7009 section 2.1).
	ErrForeign = &RequestError{Code: "invalid_grant", Description: "The token was issued to another client"}
)

// RequestError is a fault of the request that the client can mend. Code is that of RFC 6749
// section 5.2.
type RequestError struct{ Code, Description string }

func (e *RequestError) Error() string { return e.Description }

// BadRequest returns an invalid_request.
func BadRequest(format string, args ...any) error {
	return &RequestError{Code: "invalid_request", Description: fmt.Sprintf(format, args...)}
}

// Option names what to change in the Options.
type Option string

// The options that New may find fault with.
const (
	OptionScopeClaims Option = "ScopeClaims"
	// OptionTokenFrame is what every token contains, and how long a token may be.
	OptionTokenFrame Option = "Issuer, Audience, MaxToken"
)

// OptionError is an error of New that remains until an option is changed.
type OptionError struct {
	Option Option
	Err    error
}

func (e *OptionError) Error() string { return e.Err.Error() }

func (e *OptionError) Unwrap() error { return e.Err }

func badOption(o Option, format string, args ...any) error {
	return &OptionError{o, fmt.Errorf(format, args...)}
}

// ThrottledError asks the client to wait.
type ThrottledError struct{ Wait time.Duration }

func (e *ThrottledError) Error() string { return "too many failed attempts" }

// ScopeError says that a token is good but lacks a scope.
type ScopeError struct{ Required []string }

func (e *ScopeError) Error() string { return "the access token lacks a scope" }

// ProofError says that a DPoP proof was refused.
type ProofError struct {
	Cause error // of package dpop
	// WithToken says that it came with an access token (RFC 9449 section 7.1), and not with a
	// request for one (section 5).
	WithToken bool
}

func (e *ProofError) Error() string { return e.Cause.Error() }

func (e *ProofError) Unwrap() error { return e.Cause }

// proofReason is the reason of the event that a refused proof is: "" for another error, and
// for a proof that lacks nothing but the nonce.
func proofReason(err error) string {
	switch {
	case errors.Is(err, dpop.ErrReplayed):
		return "replayed"
	case errors.Is(err, dpop.ErrProof):
		return "invalid"
	}
	return ""
}

// RemainsError says that a logout has ended all that it may, and that something which was
// shown remains. Its cause says why: ErrUnchecked; or, for a token that is bound to a key,
// [edge.ErrInvalid] or a [ProofError].
type RemainsError struct{ Cause error }

func (e *RemainsError) Error() string { return e.Cause.Error() }

func (e *RemainsError) Unwrap() error { return e.Cause }
