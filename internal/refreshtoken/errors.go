package refreshtoken

import (
	"errors"
	"fmt"
)

// Errors of this package. They carry nothing of the text that caused them.
var (
	// ErrInvalid is wrapped by every refusal of a presented token.
	ErrInvalid = errors.New("refreshtoken: invalid token")
	// ErrMalformed refuses a text that is not in the form of a refresh token.
	ErrMalformed = fmt.Errorf("%w: malformed", ErrInvalid)
	// ErrForged refuses a well-formed text whose authentication code was made
	// by none of the codec's secrets.
	ErrForged = fmt.Errorf("%w: not made here", ErrInvalid)
	// ErrExhausted means that a token of the last possible generation has no
	// successor. At one refresh a second that takes 136 years.
	ErrExhausted = errors.New("refreshtoken: no generation left")
	// ErrSecret refuses a codec without secrets or with a short one.
	ErrSecret = errors.New("refreshtoken: root secret missing or shorter than 32 bytes")
)
