package accesstoken

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/latchkey-auth/latchkey/internal/jsontext"
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

	return withExtra(c.appendJSON(make([]byte, 0, 512)), c.Extra)
}

// appendJSON appends the JSON of all claims but Extra, in the order in which tokens have
// them. It is written by hand because it is in the path of every refresh, where
// encoding/json takes three times as long; a test holds it to what encoding/json writes.
func (c *Claims) appendJSON(b []byte) []byte {
	text := func(name, value string) {
		b = jsontext.AppendString(append(b, name...), value)
	}
	number := func(name string, value int64) {
		b = strconv.AppendInt(append(b, name...), value, 10)
	}
	text(`{"iss":`, c.Issuer)
	text(`,"sub":`, c.Subject)
	if len(c.Audience) == 1 {
		// RFC 7519 section 4.1.3: one audience may be a plain string, which
		// every library reads.
		text(`,"aud":`, c.Audience[0])
	} else {
		name := `,"aud":[`
		for _, audience := range c.Audience {
			text(name, audience)
			name = ","
		}
		b = append(b, ']')
	}
	number(`,"exp":`, c.ExpiresAt)
	if c.NotBefore != 0 {
		number(`,"nbf":`, c.NotBefore)
	}
	number(`,"iat":`, c.IssuedAt)
	if c.AuthTime != 0 {
		number(`,"auth_time":`, c.AuthTime)
	}
	text(`,"jti":`, c.ID)
	text(`,"sid":`, c.SessionID)
	text(`,"client_id":`, c.ClientID)
	if c.Scope != "" {
		text(`,"scope":`, c.Scope)
	}
	b = strconv.AppendUint(append(b, `,"ue":`...), c.UserEpoch, 10)
	if c.LogEpoch != "" {
		text(`,"le":`, c.LogEpoch)
	}
	if c.JKT != "" { // RFC 7800 section 3.1, RFC 9449 section 6.1
		text(`,"cnf":{"jkt":`, c.JKT)
		b = append(b, '}')
	}
	if c.StatusURI != "" { // draft-ietf-oauth-status-list-21 section 6.2
		b = strconv.AppendUint(append(b, `,"status":{"status_list":{"idx":`...), c.StatusIndex, 10)
		text(`,"uri":`, c.StatusURI)
		b = append(b, "}}"...)
	}
	return append(b, '}')
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
