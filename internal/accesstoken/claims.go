package accesstoken

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

const (
	// maxDate is the last second of the year 9999.
	maxDate = 253402300799
	// maxCount is the largest integer that every JSON reader holds exactly
	// (RFC 7493 section 2.2), Redis' Lua among them.
	maxCount = 1<<53 - 1
)

// Claims is the content of an access token. Times are Unix seconds, from 1 to the
// end of the year 9999.
type Claims struct {
	Issuer    string   // iss, required
	Subject   string   // sub, required
	Audience  []string // aud, at least one and none empty
	ID        string   // jti, required
	SessionID string   // sid, required
	ClientID  string   // client_id, required
	Scope     string   // scope, space separated; "" is absent
	UserEpoch uint64   // ue, at most 2^53-1; absent is 0
	LogEpoch  string   // le, the epoch of the shard's log head; "" is absent
	IssuedAt  int64    // iat, required
	ExpiresAt int64    // exp, required; the token is dead from this second on
	AuthTime  int64    // auth_time, when the password was checked; 0 is absent
	NotBefore int64    // nbf; 0 is absent
	// JKT is cnf.jkt, the thumbprint of the key that whoever shows the token must
	// prove to hold (RFC 9449 section 6.1); "" is absent: a bearer token.
	JKT string
	// StatusURI and StatusIndex are status.status_list: the list that shows whether the
	// token was revoked, and where in it, at most 2^53-1
	// (draft-ietf-oauth-status-list-21 section 6.2). "" is absent.
	StatusURI   string
	StatusIndex uint64

	// KeyID is no claim but the kid of the key that signed the token. It is set by
	// reading one, and of no account for signing.
	KeyID string
	// Extra is the claims of the operator's own, none of them [Reserved]; nil if
	// there are none. Whoever is given it does not change it.
	Extra map[string]json.RawMessage
}

// wireClaims gives the order and the names of the claims in a token.
type wireClaims struct {
	Issuer    string `json:"iss"`
	Subject   string `json:"sub"`
	Audience  any    `json:"aud"`
	ExpiresAt int64  `json:"exp"`
	NotBefore int64  `json:"nbf,omitempty"`
	IssuedAt  int64  `json:"iat"`
	AuthTime  int64  `json:"auth_time,omitempty"`
	ID        string `json:"jti"`
	SessionID string `json:"sid"`
	ClientID  string `json:"client_id"`
	Scope     string `json:"scope,omitempty"`
	UserEpoch uint64 `json:"ue"`
	LogEpoch  string `json:"le,omitempty"`
	// Confirmation is left out of bearer tokens.
	Confirmation *confirmation `json:"cnf,omitempty"`
	// Status is left out of tokens that no list names.
	Status *status `json:"status,omitempty"`
}

// confirmation is the claim cnf (RFC 7800 section 3.1, RFC 9449 section 6.1).
type confirmation struct {
	JKT string `json:"jkt"`
}

// encode returns the JSON of c, or [ErrClaims] if c is not what parseClaims would
// read back.
func (c *Claims) encode() ([]byte, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	// The encoder would replace what is not UTF-8, and so sign another subject
	// than was meant.
	for _, text := range [...]struct{ name, value string }{
		{"iss", c.Issuer},
		{"sub", c.Subject},
		{"jti", c.ID},
		{"sid", c.SessionID},
		{"client_id", c.ClientID},
		{"scope", c.Scope},
		{"le", c.LogEpoch},
	} {
		if !utf8.ValidString(text.value) {
			return nil, fmt.Errorf("%w: %s is not UTF-8", ErrClaims, text.name)
		}
	}
	for _, audience := range c.Audience {
		if !utf8.ValidString(audience) {
			return nil, fmt.Errorf("%w: aud is not UTF-8", ErrClaims)
		}
	}
	for _, date := range [...]struct {
		name  string
		value int64
		least int64
	}{{"exp", c.ExpiresAt, c.IssuedAt + 1}, {"iat", c.IssuedAt, 1}, {"nbf", c.NotBefore, 0}, {"auth_time", c.AuthTime, 0}} {
		if date.value < date.least || date.value > maxDate {
			return nil, fmt.Errorf("%w: %s out of range", ErrClaims, date.name)
		}
	}
	if c.UserEpoch > maxCount {
		return nil, fmt.Errorf("%w: ue out of range", ErrClaims)
	}

	if c.StatusURI == "" && c.StatusIndex != 0 || c.StatusIndex > maxCount || !utf8.ValidString(c.StatusURI) {
		return nil, fmt.Errorf("%w: status out of range", ErrClaims)
	}
	if c.JKT != "" && !thumbprint(c.JKT) {
		return nil, fmt.Errorf("%w: cnf is no thumbprint", ErrClaims)
	}

	w := wireClaims{
		Issuer: c.Issuer, Subject: c.Subject, Audience: c.Audience,
		ExpiresAt: c.ExpiresAt, NotBefore: c.NotBefore, IssuedAt: c.IssuedAt, AuthTime: c.AuthTime,
		ID: c.ID, SessionID: c.SessionID, ClientID: c.ClientID,
		Scope: c.Scope, UserEpoch: c.UserEpoch, LogEpoch: c.LogEpoch,
	}
	if len(c.Audience) == 1 {
		// RFC 7519 section 4.1.3: one audience may be a plain string, which
		// every library reads.
		w.Audience = c.Audience[0]
	}
	if c.JKT != "" {
		w.Confirmation = &confirmation{JKT: c.JKT}
	}
	if c.StatusURI != "" {
		w.Status = &status{List: statusReference{Index: c.StatusIndex, URI: c.StatusURI}}
	}
	payload, err := marshal(w)
	if err != nil {
		return nil, fmt.Errorf("accesstoken: encode claims: %w", err)
	}
	return withExtra(payload, c.Extra)
}

// marshal is [json.Marshal] without the escapes for HTML, which would make six bytes
// of one.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// parseClaims reads a claims set. It returns [ErrMalformed] if payload is not an
// object of distinct names and [ErrClaims] if a known claim is missing or of
// the wrong type; claims it does not know are the operator's own, or ignored
// (RFC 7519 section 4).
func parseClaims(payload []byte) (Claims, error) {
	var c Claims
	err := members(payload, func(name, value string) error {
		ok := true
		switch name {
		case "iss":
			c.Issuer, ok = textValue(value)
		case "sub":
			c.Subject, ok = textValue(value)
		case "aud":
			if c.Audience, ok = textsValue(value); !ok {
				var one string
				one, ok = textValue(value)
				c.Audience = []string{one}
			}
		case "jti":
			c.ID, ok = textValue(value)
		case "sid":
			c.SessionID, ok = textValue(value)
		case "client_id":
			c.ClientID, ok = textValue(value)
		case "scope":
			c.Scope, ok = textValue(value)
		case "le":
			c.LogEpoch, ok = textValue(value)
		case "ue":
			c.UserEpoch, ok = integerValue(value, 0, maxCount)
		case "iat":
			c.IssuedAt, ok = dateValue(value)
		case "exp":
			c.ExpiresAt, ok = dateValue(value)
		case "nbf":
			c.NotBefore, ok = dateValue(value)
		case "auth_time":
			c.AuthTime, ok = dateValue(value)
		case "cnf":
			c.JKT, ok = confirmationValue(value)
		case "status":
			c.StatusURI, c.StatusIndex, ok = statusValue(value)
		default:
			if !Reserved(name) {
				if c.Extra == nil {
					c.Extra = make(map[string]json.RawMessage)
				}
				c.Extra[name] = json.RawMessage(value)
			}
		}
		if !ok {
			return fmt.Errorf("%w: %s", ErrClaims, name)
		}
		return nil
	})
	if err == nil {
		err = c.complete()
	}
	if err != nil {
		return Claims{}, err
	}
	return c, nil
}

// confirmationValue reads the claim cnf. What is bound in another way than to a
// thumbprint is refused: to pass it over would be to take the token for a bearer's.
func confirmationValue(value string) (string, bool) {
	jkt, ok := "", false
	err := members([]byte(value), func(name, value string) error {
		if name != "jkt" || ok {
			return ErrClaims
		}
		jkt, ok = textValue(value)
		return nil
	})
	return jkt, err == nil && ok && thumbprint(jkt)
}

// thumbprint reports whether text is as long as a SHA-256 in base64url, and has no
// other characters (RFC 7638).
func thumbprint(text string) bool {
	sum, err := base64.RawURLEncoding.Strict().DecodeString(text)
	return err == nil && len(sum) == sha256.Size && len(text) == base64.RawURLEncoding.EncodedLen(sha256.Size)
}

// dateValue reads a NumericDate. Zero is refused, for it stands for absence.
func dateValue(value string) (int64, bool) {
	n, ok := integerValue(value, 1, maxDate)
	return int64(n), ok //nolint:gosec // at most maxDate
}

// complete returns [ErrClaims] unless c has all that RFC 9068 section 2.2 requires,
// and a session.
func (c *Claims) complete() error {
	missing := ""
	switch {
	case c.Issuer == "":
		missing = "iss"
	case c.Subject == "":
		missing = "sub"
	case len(c.Audience) == 0:
		missing = "aud"
	case c.ExpiresAt == 0:
		missing = "exp"
	case c.IssuedAt == 0:
		missing = "iat"
	case c.ID == "":
		missing = "jti"
	case c.ClientID == "":
		missing = "client_id"
	case c.SessionID == "":
		missing = "sid"
	}
	for _, audience := range c.Audience {
		if audience == "" {
			missing = "aud"
		}
	}
	if missing != "" {
		return fmt.Errorf("%w: %s missing", ErrClaims, missing)
	}
	return nil
}
