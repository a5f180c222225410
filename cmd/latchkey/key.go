package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/latchkey-auth/latchkey/internal/replica"
	"github.com/latchkey-auth/latchkey/internal/terminal"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

func newKey() *cobra.Command {
	return group("key", "See, rotate and revoke the signing keys", newKeyList(), newKeyRotate(), newKeyRevoke())
}

var errFolder = errors.New("the signing keys come from LATCHKEY_KEYS_DIR: put a key there, and name it in the file active once every replica has it")

func newKeyRotate() *cobra.Command {
	var now bool
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Have a new key sign",
		Long: `Make a new signing key, unless there is a next one already. It is published at once and
signs once nobody keeps an older set of keys: after twice LATCHKEY_JWKS_MAX_AGE. The key
that signs now verifies until its last token has expired. Nobody is logged out.

With --now it signs at once: whoever keeps an older set of keys refuses its tokens until
the set is fetched again. Latchkey's replicas fetch it when they meet the new key.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return operate(cmd, func(ctx context.Context, op operator) error {
				if op.cfg.KeysDir != "" {
					return errFolder
				}
				fresh, err := replica.NewSigningKey(op.cfg)
				if err != nil {
					return err
				}
				why := tokenstore.OfferAsked
				if now {
					why = tokenstore.OfferNow
				}
				have, err := op.Keys.Offer(ctx, replica.KeySettings(op.cfg), fresh, why)
				if err != nil {
					return err
				}
				if have.Next == "" {
					return say(cmd, "the key %s signs", have.Active)
				}
				return say(cmd, "the key %s is published, and signs from %s", have.Next, have.Keys[have.Next].Signs.UTC().Format(time.RFC3339))
			})
		},
	}
	cmd.Flags().BoolVar(&now, "now", false, "sign with it at once")
	return cmd
}

func newKeyRevoke() *cobra.Command {
	var now bool
	cmd := &cobra.Command{
		Use:   "revoke KID",
		Short: "End a signing key, and every token it has signed",
		Long: `End a signing key: when this has succeeded, no replica accepts a token that it has signed,
or that somebody else signs with it later. Sessions go on: their next refresh yields a
token under another key.

The key that signs is revoked with --now only: the next one signs from then on, or a new
one if there is none. Who verifies by the published keys alone refuses its tokens until
the keys are fetched again; without haste, rotate first and revoke the old key later.

Who verifies by the published keys alone also accepts the revoked key until the keys are
fetched again; who follows GET /revocations refuses it within 5 seconds.

A KID that begins with - goes behind --:  latchkey key revoke --now -- -KID`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kid := args[0]
			if raw, err := base64.RawURLEncoding.Strict().DecodeString(kid); err != nil || len(raw) != 32 {
				return fmt.Errorf("%s is not a key's id; list them with: latchkey key list", terminal.Printable(kid))
			}
			return operate(cmd, func(ctx context.Context, op operator) error {
				if err := op.revokeKey(ctx, kid, now); err != nil {
					return err
				}
				return say(cmd, "the key %s is revoked, and its tokens are refused on every replica", kid)
			})
		},
	}
	cmd.Flags().BoolVar(&now, "now", false, "also if it is the key that signs")
	return cmd
}

// revokeKey takes the key from all replicas, denies its tokens and returns once no
// replica accepts them. Asked again it completes what was cut off.
func (op operator) revokeKey(ctx context.Context, kid string, now bool) error {
	have, err := op.Keys.Ring(ctx)
	if err != nil {
		return err
	}
	active := have.Active
	if op.cfg.KeysDir != "" {
		set, err := replica.ReadKeysDir(op.cfg)
		if err != nil {
			return err
		}
		active = set.Active
	} else {
		_, there := have.Keys[kid]
		_, gone := have.Gone[kid]
		if !there && !gone {
			return fmt.Errorf("there is no key %s; list them with: latchkey key list", kid)
		}
	}
	var instead tokenstore.SealedKey
	switch {
	case kid == active && !now:
		return fmt.Errorf("the key %s signs now; run latchkey key rotate and revoke it once the next key signs, or, if it was stolen, add --now", kid)
	case kid == active && op.cfg.KeysDir == "":
		if instead, err = replica.NewSigningKey(op.cfg); err != nil {
			return err
		}
	}
	_, err = op.Keys.Revoke(ctx, replica.KeySettings(op.cfg), kid, instead)
	if errors.Is(err, tokenstore.ErrKeyActive) {
		return fmt.Errorf("the key %s has just begun to sign; run the same command again", kid)
	}
	if err != nil {
		return err
	}
	revoked, err := op.Keys.Deny(ctx, kid)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, r := range revoked {
		g.Go(func() error { return op.confirmer.Confirm(ctx, r) })
	}
	return g.Wait()
}
