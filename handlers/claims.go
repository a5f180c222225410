package handlers

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

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
func (a *api) staticClaims(scope, client, account string) extraClaims {
	all := extraClaims{}
	for name := range strings.FieldsSeq(scope) {
		maps.Copy(all, a.Settings.ScopeClaims[name])
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
func (a *api) askClaims(c *gin.Context, event string, m minted) (extraClaims, error) {
	if a.Claims == nil {
		return nil, nil
	}
	ctx, start := c.Request.Context(), time.Now()
	asked, err := a.Claims.Claims(ctx, claimhook.Request{
		Event: event, Subject: m.grant.Subject, Username: m.grant.Username, ClientID: m.grant.ClientID, Scope: m.grant.Scope,
	})
	if err == nil {
		err = a.usable(m, asked)
	}
	a.Metrics.asked(time.Since(start), err)
	if err == nil {
		return asked, nil
	}
	if !a.Settings.ClaimsOmit || clientGone(ctx, err) {
		return nil, fmt.Errorf("%w: %w", claimhook.ErrFailed, err)
	}
	a.logger(c).LogAttrs(ctx, slog.LevelWarn, "a token is issued without the webhook's claims", slog.String("cause", err.Error()))
	return nil, nil
}

// usable refuses an answer that cannot go into the token. Which claim it is, is the
// operator's to know; what it holds is not for the log.
func (a *api) usable(m minted, asked extraClaims) error {
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
	m.asked = asked
	return a.fits(m)
}

// extra is all claims of the operator's own in a token; nil for none.
func (a *api) extra(m minted) extraClaims {
	all := a.staticClaims(m.grant.Scope, m.client.Claims, m.grant.Claims)
	maps.Copy(all, m.asked)
	if len(all) == 0 {
		return nil
	}
	return all
}
