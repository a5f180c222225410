package replica

import (
	"context"
	"errors"
	"fmt"

	"github.com/latchkey-auth/latchkey/internal/session"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// settingOf names the settings that an option of the store or of the sessions is made of.
var settingOf = map[any]string{
	tokenstore.OptionURL:          "LATCHKEY_REDIS_URL",
	tokenstore.OptionTLS:          "LATCHKEY_REDIS_TLS_CA_FILE, LATCHKEY_REDIS_TLS_CERT_FILE and LATCHKEY_REDIS_TLS_KEY_FILE",
	tokenstore.OptionShards:       "LATCHKEY_SHARDS",
	tokenstore.OptionWaitReplicas: "LATCHKEY_REVOKE_WAIT_REPLICAS",
	session.OptionScopeClaims:     "LATCHKEY_SCOPE_CLAIMS",
	session.OptionTokenFrame:      "LATCHKEY_ISSUER, LATCHKEY_AUDIENCE and LATCHKEY_ACCESS_COOKIE",
}

// NameSetting adds to an error of the store or of the sessions the name of the setting to change, if there is one.
func NameSetting(err error) error {
	var ofStore *tokenstore.OptionError
	var ofSessions *session.OptionError
	switch {
	case errors.As(err, &ofStore):
		return fmt.Errorf("%w (setting: %s)", err, settingOf[ofStore.Option])
	case errors.As(err, &ofSessions):
		return fmt.Errorf("%w (setting: %s)", err, settingOf[ofSessions.Option])
	}
	return err
}

// Preflight is [tokenstore.Store.Preflight] with the names of the settings to change in the texts.
func Preflight(ctx context.Context, store *tokenstore.Store) ([]tokenstore.Finding, error) {
	findings, err := store.Preflight(ctx)
	for i, f := range findings {
		if f.Option != "" {
			findings[i].Text += fmt.Sprintf(" (setting: %s)", settingOf[f.Option])
		}
	}
	return findings, err
}
