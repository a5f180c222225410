package accesstoken

import (
	"errors"
	"fmt"
)

// Reasons for which a token is refused. Each wraps [ErrInvalid]; a caller that
// answers a client needs that alone, the others are for metrics and logs. None
// carries any part of the token.
var (
	// ErrInvalid is wrapped by every refusal of a token.
	ErrInvalid = errors.New("accesstoken: invalid token")
	// ErrMalformed: too long, not three segments of strict base64url, or not
	// JSON objects of distinct member names.
	ErrMalformed = fmt.Errorf("%w: malformed", ErrInvalid)
	// ErrCritical: the header has a crit member (RFC 7515 section 4.1.11).
	ErrCritical = fmt.Errorf("%w: critical header extension", ErrInvalid)
	// ErrTokenType: the header's typ is not at+jwt (RFC 9068 section 4).
	ErrTokenType = fmt.Errorf("%w: not an access token", ErrInvalid)
	// ErrAlgorithm: the header's alg is unknown or not that of the key.
	ErrAlgorithm = fmt.Errorf("%w: algorithm not that of the key", ErrInvalid)
	// ErrUnknownKey: the header's kid is absent or not in the ring.
	ErrUnknownKey = fmt.Errorf("%w: unknown key", ErrInvalid)
	// ErrSignature: the signature is not the key's over this content.
	ErrSignature = fmt.Errorf("%w: signature", ErrInvalid)
	// ErrClaims: a required claim is absent or empty, or a claim is of the wrong
	// type or out of range. [Signer.Sign] returns it too.
	ErrClaims = fmt.Errorf("%w: claim missing or unusable", ErrInvalid)
	// ErrIssuer: iss is not the verifier's issuer.
	ErrIssuer = fmt.Errorf("%w: other issuer", ErrInvalid)
	// ErrAudience: aud does not contain the verifier's audience.
	ErrAudience = fmt.Errorf("%w: other audience", ErrInvalid)
	// ErrExpired: the time is at or past exp.
	ErrExpired = fmt.Errorf("%w: expired", ErrInvalid)
	// ErrNotYetValid: iat or nbf is further ahead than the leeway.
	ErrNotYetValid = fmt.Errorf("%w: not yet valid", ErrInvalid)
)

// Faults of key handling. They say nothing about a token and do not wrap [ErrInvalid].
var (
	// ErrNoKey: the ring has no active key, or not the one named.
	ErrNoKey = errors.New("accesstoken: no such signing key in the ring")
	// ErrKey: a key cannot be made: unknown algorithm or unsuitable material.
	ErrKey = errors.New("accesstoken: unusable signing key")
	// ErrSeal: a sealed key does not open: it was sealed under another secret or
	// for another kid, or was altered.
	ErrSeal = errors.New("accesstoken: sealed key does not open")
	// ErrSecret: a sealer was given no secret or a short one.
	ErrSecret = errors.New("accesstoken: sealing secret missing or shorter than 32 bytes")
)
