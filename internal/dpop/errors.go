package dpop

import (
	"errors"
	"fmt"
)

// Reasons for which a proof is refused. All wrap [ErrProof]; none carries any part
// of the proof.
var (
	// ErrProof is wrapped by every refusal: invalid_dpop_proof, RFC 9449 section 5.
	ErrProof = errors.New("the DPoP proof is not valid")
	// ErrMissing says that there is no proof where one is needed.
	ErrMissing = fmt.Errorf("%w: there is none", ErrProof)
	// ErrTwice says that a request carries more than one.
	ErrTwice = fmt.Errorf("%w: there is more than one", ErrProof)
	// ErrMalformed says that it is too long, no JWS, or lacks a claim.
	ErrMalformed = fmt.Errorf("%w: malformed", ErrProof)
	// ErrKey says that its jwk is no public key of an algorithm that is accepted.
	ErrKey = fmt.Errorf("%w: the key cannot be used", ErrProof)
	// ErrSignature says that the signature is not that of its jwk.
	ErrSignature = fmt.Errorf("%w: the signature is wrong", ErrProof)
	// ErrRequest says that it was made for another method or URL.
	ErrRequest = fmt.Errorf("%w: it is for another request", ErrProof)
	// ErrTime says that it was made too long ago, or is from the future.
	ErrTime = fmt.Errorf("%w: iat is too far from now", ErrProof)
	// ErrToken says that it was made for another access token.
	ErrToken = fmt.Errorf("%w: it is for another access token", ErrProof)
	// ErrReplayed says that it was used before.
	ErrReplayed = fmt.Errorf("%w: it was used before", ErrProof)
	// ErrNonce says that it needs a nonce that the server gave out of late:
	// use_dpop_nonce, sections 8 and 9. It does not wrap [ErrProof].
	ErrNonce = errors.New("the DPoP proof needs the server's nonce")
)
