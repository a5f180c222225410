package main

import (
	"cmp"
	"context"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/internal/replica"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// keyView is a signing key as a list shows it. A time that is not known is left out.
type keyView struct {
	ID        string     `json:"kid"`
	Algorithm string     `json:"alg"`
	State     string     `json:"state"`
	Published *time.Time `json:"published_at,omitempty"`
	Signs     *time.Time `json:"signs_at,omitempty"` // since when, or from when on
	Retired   *time.Time `json:"retired_at,omitempty"`
	Gone      *time.Time `json:"gone_at,omitempty"` // when a retiring or recognised key will be removed
}

func newKeyList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the signing keys and their states",
		Long: `List the signing keys. Times are UTC. A key is next (published, and will sign at the
time shown), active (signs), retiring (verifies until its last token has expired),
recognised (verifies no more; a logout still knows its tokens as ours), or revoked.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return operate(cmd, func(ctx context.Context, op operator) error {
				have, err := op.Keys.Ring(ctx)
				if err != nil {
					return err
				}
				views := keyViews(have, replica.KeySettings(op.cfg))
				if op.cfg.KeysDir != "" {
					if views, err = folderViews(op.cfg, have); err != nil {
						return err
					}
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), views)
				}
				return printKeys(cmd.OutOrStdout(), views)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write a JSON array")
	return cmd
}

// keyViews lists the newest first.
func keyViews(have tokenstore.KeyRing, o tokenstore.KeySettings) []keyView {
	views := []keyView{}
	stamp := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.UTC()
		return &t
	}
	keys := slices.SortedFunc(maps.Values(have.Keys), func(a, b tokenstore.SealedKey) int {
		return cmp.Or(b.Published.Compare(a.Published), cmp.Compare(a.ID, b.ID))
	})
	for _, k := range keys {
		v := keyView{ID: k.ID, Algorithm: k.Algorithm, State: string(have.State(k.ID)), Published: stamp(k.Published), Retired: stamp(k.Retired)}
		v.Signs = stamp(k.Activated)
		if v.Signs == nil {
			v.Signs = stamp(k.Signs)
		}
		if v.Retired != nil {
			v.Gone = stamp(have.Until(k, o))
		}
		views = append(views, v)
	}
	for _, kid := range slices.Sorted(maps.Keys(have.Retired)) {
		views = append(views, keyView{ID: kid, State: stateRecognised, Gone: stamp(have.Retired[kid].Until)})
	}
	for _, kid := range slices.Sorted(maps.Keys(have.Gone)) {
		if have.Gone[kid] {
			views = append(views, keyView{ID: kid, State: stateRevoked})
		}
	}
	return views
}

const (
	stateRecognised = "recognised"
	stateRevoked    = "revoked"
)

// folderViews lists what is in LATCHKEY_KEYS_DIR, as this machine sees it.
func folderViews(cfg *config.Config, have tokenstore.KeyRing) ([]keyView, error) {
	set, err := replica.ReadKeysDir(cfg)
	if err != nil {
		return nil, err
	}
	views := make([]keyView, len(set.Keys))
	for i, k := range set.Keys {
		views[i] = keyView{ID: k.ID(), Algorithm: string(k.Algorithm()), State: "verifies"}
		switch {
		case have.Gone[k.ID()]:
			views[i].State = stateRevoked
		case k.ID() == set.Active:
			views[i].State = string(tokenstore.KeyActive)
		}
	}
	for _, k := range set.Retired {
		views = append(views, keyView{ID: k.ID(), Algorithm: string(k.Algorithm()), State: stateRecognised})
	}
	return views, nil
}

func printKeys(w io.Writer, views []keyView) error {
	stamp := func(at *time.Time) string {
		if at == nil {
			return ""
		}
		return at.Format(time.RFC3339)
	}
	t := table(w, "KID", "ALG", "STATE", "PUBLISHED", "SIGNS", "RETIRED", "GONE")
	for _, v := range views {
		t.row(v.ID, v.Algorithm, v.State, stamp(v.Published), stamp(v.Signs), stamp(v.Retired), stamp(v.Gone))
	}
	return t.Flush()
}
