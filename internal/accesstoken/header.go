package accesstoken

import "strings"

// typeJWT is the header type of access tokens, RFC 9068 section 2.1.
const typeJWT = "at+jwt"

// header is what the verifier reads of a JOSE header. Everything else, jku, jwk,
// x5u and x5c above all, is ignored (RFC 8725 section 3.10).
type header struct {
	algorithm Algorithm
	keyID     string
}

// parseHeader reads a JOSE header. It returns [ErrMalformed], [ErrCritical],
// [ErrTokenType] or, for an algorithm this package does not have, [ErrAlgorithm].
// A name that differs in case is another name (RFC 7515 section 4).
func parseHeader(text []byte) (header, error) {
	var h header
	var tokenType string
	err := members(text, func(name, value string) error {
		ok := true
		switch name {
		case "alg":
			var alg string
			alg, ok = textValue(value)
			h.algorithm = Algorithm(alg)
		case "kid":
			h.keyID, ok = textValue(value)
		case "typ":
			tokenType, ok = textValue(value)
		case "crit":
			// RFC 7515 section 4.1.11: what is critical and not understood makes
			// the token invalid, and no extension is understood here.
			return ErrCritical
		}
		if !ok {
			return ErrMalformed
		}
		return nil
	})
	if err != nil {
		return header{}, err
	}
	// RFC 7515 section 4.1.9: media types ignore case, and "application/" may be left out.
	if tokenType = strings.ToLower(tokenType); strings.TrimPrefix(tokenType, "application/") != typeJWT {
		return header{}, ErrTokenType
	}
	if h.algorithm.method() == nil {
		return header{}, ErrAlgorithm
	}
	return h, nil
}
