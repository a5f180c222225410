// Package session is the life of a login without HTTP: log in, refresh, log out, change a
// password, list and end sessions, admit a token, issue a client's own token. Handlers and
// Envoy's service translate requests into its calls, and its errors into responses.
//
// Every operation that changes something has the same order:
//
//  1. Everything that can fail is checked: there is a key to sign with, the claims fit into a
//     token, the scope is allowed, the DPoP proof is good.
//  2. One script commits, on a context that does not end when the client goes away.
//  3. A revocation is confirmed: no replica accepts what it ended any more.
//  4. The security event is recorded, whatever became of the confirmation, and says so.
//  5. The answer is returned.
//
// So a request that fails has changed nothing, or its event says what it may have changed.
package session

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"time"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/claimhook"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/dpop"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Options are what a Service is made of. All are required but those that say otherwise.
type Options struct {
	Store         *tokenstore.Store
	Verifier      *edge.Verifier
	Confirmer     *edge.Confirmer
	Signer        *accesstoken.Signer
	RefreshTokens *refreshtoken.Codec
	Passwords     *credential.Hasher
	// Issued verifies tokens for whomever they are: with AnyAudience. Introspect and Revoke
	// judge by it what they are shown. It admits nobody.
	Issued *edge.Verifier
	// Claims adds claims to tokens that are about to be issued; nil adds none.
	Claims *claimhook.Webhook
	Rand   io.Reader
	Log    *slog.Logger
	// Audit takes the security events too, whatever the log's level; nil for none. It must
	// not block.
	Audit slog.Handler
	// Stalled tells whether a request read now may have waited for so long that its client
	// has sent it elsewhere. Nil: never.
	Stalled func() bool
	Observe Observer

	Issuer, Audience string
	ClientID         string // client_id of password logins
	Limits           tokenstore.AttemptLimits
	// DeviceKeys authenticate the tokens of known devices. The first makes them; the others
	// are of root secrets that are being replaced.
	DeviceKeys [][]byte
	// ScopeClaims are the claims that a scope brings when it is granted, by scope and name.
	ScopeClaims map[string]map[string]json.RawMessage
	// ClaimsOmit issues tokens without the webhook's claims when it fails; otherwise that is
	// an error.
	ClaimsOmit bool
	// MaxToken is the longest access token, in bytes.
	MaxToken int
	// SignatureSize is how long the longest signature is that the keys make, in bytes; 0
	// means [accesstoken.MaxSignature].
	SignatureSize int
	// Nonces, if not nil, must have made the nonce of each DPoP proof.
	Nonces *dpop.Nonces
	// StatusReference returns what an access token says of its place in a status list; nil
	// if there are no lists.
	StatusReference func(shard int, p tokenstore.Place) (uri string, index uint64)
}

// Observer is told what happens, for metrics. Its functions must not block.
type Observer struct {
	Event     func(e Event, reason string)
	Confirmed func(took time.Duration, err error) // a confirmation has ended
	Asked     func(took time.Duration, err error) // the claims webhook has answered
}

// Service is the operations on sessions. It is safe for concurrent use.
type Service struct {
	Options
	room tokenRoom
}

// New returns a Service. Error: [OptionError] if tokens could not hold what the options allow.
func New(o Options) (*Service, error) {
	s := &Service{Options: o}
	for scope, claims := range o.ScopeClaims {
		for name := range claims {
			if accesstoken.Reserved(name) {
				return nil, badOption(OptionScopeClaims, "the claims of the scope %q: Latchkey sets %s itself", scope, name)
			}
		}
	}
	frame := s.tokenClaims(draft{grant: longestGrant(tokenstore.Grant{JKT: longestJKT}, time.Now())}, tokenstore.ID{})
	var err error
	s.room, err = newTokenRoom(o, frame)
	return s, err
}

// Origin says which request an operation belongs to: its events and log lines name it.
type Origin struct {
	RequestID string
	Address   string // of the client
}

// warn logs something that went wrong and that the request does without.
func (s *Service) warn(ctx context.Context, from Origin, message string, attrs ...slog.Attr) {
	s.Log.LogAttrs(ctx, slog.LevelWarn, message, append([]slog.Attr{slog.String("request_id", from.RequestID)}, attrs...)...)
}
