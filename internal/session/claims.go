package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/claimhook"
	"github.com/latchkey-auth/latchkey/internal/jsontext"
)

// Claims of the operator's own come from four places; of one name, the later one
// counts: the scopes that were granted, the client, the account, the webhook.

// extraClaims are claims of the operator's own, by name.
type extraClaims map[string]json.RawMessage

// The occasions on which the webhook is asked.
const (
	hookLogin             = "login"
	hookRefresh           = "refresh"
	hookClientCredentials = "client_credentials"
)

// errClaimsAnswer says that the webhook answered what is not the operator's to say.
var errClaimsAnswer = errors.New("the webhook's claims cannot be used")

// staticClaims are those that need nobody to be asked.
func (s *Service) staticClaims(scope, client, account string) extraClaims {
	all := extraClaims{}
	for name := range strings.FieldsSeq(scope) {
		maps.Copy(all, s.ScopeClaims[name])
	}
	for _, text := range []string{client, account} {
		if text == "" {
			continue
		}
		var object extraClaims
		if json.Unmarshal([]byte(text), &object) != nil {
			continue // it was checked when it was stored; nothing else is to go into a token
		}
		maps.Copy(all, object)
	}
	maps.DeleteFunc(all, func(name string, _ json.RawMessage) bool { return name == "" || accesstoken.Reserved(name) })
	return all
}

// askClaims asks the webhook, if there is one, what it would add to a token. It comes
// before whatever cannot be undone: an answer that does not come, or that no token
// could hold, then costs a retry and no session. Errors: [claimhook.ErrFailed], unless
// the setting says to do without.
func (s *Service) askClaims(ctx context.Context, from Origin, event string, d draft) (extraClaims, error) {
	if s.Claims == nil {
		return nil, nil
	}
	start := time.Now()
	asked, err := s.Claims.Claims(ctx, claimhook.Request{
		Event: event, Subject: d.grant.Subject, Username: d.grant.Username, ClientID: d.grant.ClientID, Scope: d.grant.Scope,
	})
	if err == nil {
		err = s.usable(d, asked)
	}
	s.Observe.Asked(time.Since(start), err)
	if err == nil {
		return asked, nil
	}
	if !s.ClaimsOmit || errors.Is(err, context.Canceled) && errors.Is(ctx.Err(), context.Canceled) {
		return nil, fmt.Errorf("%w: %w", claimhook.ErrFailed, err)
	}
	s.warn(ctx, from, "a token is issued without the webhook's claims", slog.String("cause", err.Error()))
	return nil, nil
}

// usable refuses an answer that cannot go into the token. Which claim it is, is the
// operator's to know; what it holds is not for the log.
func (s *Service) usable(d draft, asked extraClaims) error {
	for name, value := range asked {
		if accesstoken.Reserved(name) {
			return fmt.Errorf("%w: %s is reserved", errClaimsAnswer, name)
		}
		if !jsontext.Whole(value) {
			return fmt.Errorf("%w: %s is not UTF-8, or has an unpaired surrogate escape, as of U+D800", errClaimsAnswer, name)
		}
	}
	if len(asked) == 0 {
		return nil
	}
	d.asked = asked
	return s.fits(d)
}

// extra is all claims of the operator's own in a token; nil for none.
func (s *Service) extra(d draft) extraClaims {
	all := s.staticClaims(d.grant.Scope, d.client.Claims, d.grant.Claims)
	maps.Copy(all, d.asked)
	if len(all) == 0 {
		return nil
	}
	return all
}
