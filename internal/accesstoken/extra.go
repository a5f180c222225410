package accesstoken

import (
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

const (
	// MaxExtra is how many claims of the operator's own a token may carry.
	MaxExtra = 3 * MaxExtraPart
	// MaxExtraPart is how many of them an account, a client and all scopes together
	// may have, each.
	MaxExtraPart = 16
)

// Reserved reports whether a claim is not the operator's to set: those that
// Latchkey sets itself, those of RFC 7519 section 4.1 and RFC 9068 section 2.2
// whose meaning others rely on, those that say whom a token is bound to or acts
// for (RFC 7800, RFC 8693) or whether it is alive, and the members that only an
// introspection says (RFC 7662 section 2.2).
func Reserved(name string) bool {
	switch name {
	case "iss", "sub", "aud", "exp", "nbf", "iat", "jti", // RFC 7519
		"client_id", "scope", "auth_time", "acr", "amr", // RFC 9068
		"sid", "ue", "le", // our own
		"cnf", "act", "may_act", "status", "active", "token_type":
		return true
	}
	return false
}

// ExtraSize returns how many bytes claims of the operator's own add to a token's JSON.
// Errors: [ErrClaims], as [Signer.Sign].
func ExtraSize(extra map[string]json.RawMessage) (int, error) {
	text, err := withExtra([]byte("{}"), extra)
	return len(text) - len("{}"), err
}

// withExtra adds the claims of the operator's own, sorted by name, to an encoded
// claims set.
func withExtra(payload []byte, extra map[string]json.RawMessage) ([]byte, error) {
	if len(extra) == 0 {
		return payload, nil
	}
	if len(extra) > MaxExtra {
		return nil, fmt.Errorf("%w: %d claims of the operator's own", ErrClaims, len(extra))
	}
	for name := range extra {
		if Reserved(name) || name == "" || !utf8.ValidString(name) {
			return nil, fmt.Errorf("%w: %q is not the operator's", ErrClaims, name)
		}
	}
	text, err := marshal(extra)
	if err != nil || !utf8.Valid(text) {
		return nil, fmt.Errorf("%w: a claim of the operator's own is not JSON", ErrClaims)
	}
	return append(append(payload[:len(payload)-1], ','), text[1:]...), nil
}
