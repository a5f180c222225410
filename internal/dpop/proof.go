package dpop

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
)

const (
	// Header carries a proof (RFC 9449 section 4.1). The name is in its canonical form.
	Header = "Dpop"
	// NonceHeader carries the server's nonce (section 8.1), likewise.
	NonceHeader = "Dpop-Nonce"

	// MaxLength is the length in bytes above which a proof is refused unread. The
	// longest that a key of 8192 bits makes is below it.
	MaxLength = 6144
	// Window is how far iat may be from now, to either side (section 11.1).
	Window = time.Minute

	minRSABits  = 2048 // go-jose reads none of more than 8192
	maxExponent = 1<<31 - 1
)

// algorithms are those that a proof may be signed with: asymmetric ones alone
// (RFC 9449 section 4.3 item 5).
func algorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.ES512, jose.EdDSA, jose.PS256, jose.RS256}
}

// Algorithms are the names of the algorithms that a proof may be signed with.
func Algorithms() []string {
	list := algorithms()
	names := make([]string, len(list))
	for i, a := range list {
		names[i] = string(a)
	}
	return names
}

// Challenge is the algs parameter of WWW-Authenticate: DPoP (section 7.1).
func Challenge() string { return `algs="` + strings.Join(Algorithms(), " ") + `"` }

// Proof is a proof whose signature is that of the key it names.
type Proof struct {
	jkt    string
	claims claims
}

// JKT is the thumbprint of the proof's key (RFC 7638) in base64url; "" of no proof.
func (p *Proof) JKT() string {
	if p == nil {
		return ""
	}
	return p.jkt
}

// claims are those of RFC 9449 section 4.2. Others are ignored.
type claims struct {
	ID        string `json:"jti"`
	Method    string `json:"htm"`
	URL       string `json:"htu"`
	IssuedAt  int64  `json:"iat"`
	TokenHash string `json:"ath"`
	Nonce     string `json:"nonce"`
}

// Find returns the proof that a request carries. Errors: [ErrMissing]; [ErrTwice]
// (section 4.3 item 1).
func Find(h http.Header) (string, error) {
	switch values := h[Header]; len(values) {
	case 0:
		return "", ErrMissing
	case 1:
		return values[0], nil
	}
	return "", ErrTwice
}

// Parse reads a proof and checks items 2 to 7 of RFC 9449 section 4.3. Errors wrap
// [ErrProof].
func Parse(text string) (*Proof, error) {
	if len(text) > MaxLength {
		return nil, ErrMalformed
	}
	// go-jose refuses other algorithms, names that are there twice, and private or
	// symmetric keys in jwk.
	jws, err := jose.ParseSignedCompact(text, algorithms())
	if err != nil {
		return nil, ErrMalformed
	}
	h := jws.Signatures[0].Protected
	// RFC 7515 section 4.1.9: media types ignore case, and "application/" may be left out.
	if typ, _ := h.ExtraHeaders[jose.HeaderType].(string); strings.TrimPrefix(strings.ToLower(typ), "application/") != "dpop+jwt" {
		return nil, ErrMalformed
	}
	// RFC 7515 section 4.1.11: what is critical must be understood, and no extension is.
	if _, critical := h.ExtraHeaders["crit"]; critical {
		return nil, ErrMalformed
	}
	if h.JSONWebKey == nil || !usable(h.JSONWebKey) {
		return nil, ErrKey
	}
	payload, err := jws.Verify(h.JSONWebKey.Key)
	if err != nil {
		return nil, ErrSignature
	}
	sum, err := h.JSONWebKey.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, ErrKey
	}
	p := &Proof{jkt: base64.RawURLEncoding.EncodeToString(sum)}
	if err := json.Unmarshal(payload, &p.claims); err != nil {
		return nil, ErrMalformed
	}
	if c := p.claims; c.ID == "" || c.Method == "" || c.URL == "" || c.IssuedAt <= 0 {
		return nil, ErrMalformed
	}
	return p, nil
}

// usable refuses keys that are too weak, or not for signatures.
func usable(k *jose.JSONWebKey) bool {
	if !k.IsPublic() || (k.Use != "" && k.Use != "sig") {
		return false
	}
	if p, ok := k.Key.(*rsa.PublicKey); ok {
		return p.N.BitLen() >= minRSABits && p.E >= 3 && p.E <= maxExponent
	}
	return true
}

// Request is what a proof must have been made for.
type Request struct {
	Method string
	URL    string // with or without query and fragment
	Now    time.Time
	// Token is the access token that the request shows; "" where it asks for one.
	Token string
	// Nonces, if not nil, must have made the proof's nonce.
	Nonces *Nonces
}

// Check checks items 8 to 12 of RFC 9449 section 4.3: all but that the token is
// bound to the key of the proof, which the token tells. Errors: [ErrNonce]; those
// that wrap [ErrProof].
func (p *Proof) Check(r Request) error {
	made, ok := normal(p.claims.URL)
	if !ok {
		return ErrMalformed
	}
	wanted, ok := normal(r.URL)
	if !ok || made != wanted || p.claims.Method != r.Method {
		return ErrRequest
	}
	age := r.Now.Sub(time.Unix(p.claims.IssuedAt, 0))
	if age > Window || age < -Window {
		return ErrTime
	}
	if r.Token != "" {
		sum := sha256.Sum256([]byte(r.Token))
		if p.claims.TokenHash != base64.RawURLEncoding.EncodeToString(sum[:]) {
			return ErrToken
		}
	}
	if r.Nonces != nil && !r.Nonces.Check(p.claims.Nonce, r.Now) {
		return ErrNonce
	}
	return nil
}

// Use names this use of the proof, and says until when it is to be remembered: as
// long as Check could accept it again. Two proofs of one key with one jti are one
// (section 11.1).
func (p *Proof) Use() (id [sha256.Size]byte, until time.Time) {
	// A thumbprint has a fixed length, so nothing else hashes alike.
	return sha256.Sum256([]byte(p.jkt + p.claims.ID)), time.Unix(p.claims.IssuedAt, 0).Add(Window)
}
