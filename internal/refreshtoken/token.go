package refreshtoken

import (
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted refresh token]"

// Token is a refresh token taken apart. It holds a live secret: every way of
// printing it (fmt, slog, JSON and other text encodings) shows a fixed text. Do
// not keep one in an unexported field of something that is printed: there fmt calls
// no methods.
//
// A Token that was not obtained from [Codec.Parse], [Codec.First] or
// [Codec.Next] belongs to the codec's first secret.
type Token struct {
	// SID is the session's id.
	SID [16]byte
	// UID is the id of the session's user, carried so that the keys of every
	// store operation are known before the store is asked.
	UID [16]byte
	// Gen counts the tokens of the session, from 1.
	Gen uint32
	// Secret is what the holder of the token proves to know.
	Secret [32]byte

	// root is the secret under which the token was authenticated; nil means the
	// codec's first, so that tokens compare equal with == however they arose.
	root *root
}

// Hash returns the SHA-256 of the token's secret, all that a store may keep of it.
// The secret is 32 bytes of full entropy, so a fast hash without salt suffices.
func (t Token) Hash() [32]byte { return sha256.Sum256(t.Secret[:]) }

// String returns a fixed text that shows nothing of the token.
func (Token) String() string { return redacted }

// GoString returns the same as [Token.String], for %#v.
func (Token) GoString() string { return redacted }

// Format writes the same as [Token.String] whatever the verb: without it, verbs
// that do not apply to strings, such as %d, would print the fields.
func (Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue returns the same as [Token.String], for log/slog.
func (Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns the same as [Token.String], for JSON and other encodings.
// Use [Codec.Encode] for the text that goes to the client.
func (Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }
