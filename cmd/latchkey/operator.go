package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/replica"
	"github.com/latchkey-auth/latchkey/internal/terminal"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// operator is what a command that works on the store is given.
type operator struct {
	*tokenstore.Store
	cfg       *config.Config
	confirmer *edge.Confirmer
	parallel  int // how many operations may be under way at once
}

// maxParallel is the most operations that one command has under way.
const maxParallel = 32

var (
	errNothingDone = errors.New("no answer from Redis, so nothing was done; see that LATCHKEY_REDIS_URL is right and Redis is up, and run the same command again")
	errNotKnown    = errors.New("no answer from Redis, so nothing is known about whether it happened; run the same command again once Redis is back, it does no harm")
)

// operate runs one command on the store that the settings name.
func operate(cmd *cobra.Command, do func(context.Context, operator) error) (err error) {
	cfg, err := config.Load(os.Environ())
	if err != nil {
		return err
	}
	replica.NewLogger(cfg, cmd.ErrOrStderr()) // which also takes the Redis client's messages
	op := operator{cfg: cfg, parallel: maxParallel}
	if n := cfg.RedisURL.PoolSize(); n > 0 {
		op.parallel = min(op.parallel, n)
	}
	rdb, store, err := replica.OpenStore(cfg, maxParallel)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rdb.Close()) }()
	op.Store, op.confirmer = store, edge.NewConfirmer(store.Revocations, cfg.EdgeLease)
	ctx := cmd.Context()
	if err := store.Open(ctx); errors.Is(err, tokenstore.ErrUnavailable) {
		return fmt.Errorf("%w (%s: %w)", errNothingDone, cfg.RedisURL, err)
	} else if err != nil {
		return replica.NameSetting(err)
	}
	if err := do(ctx, op); errors.Is(err, tokenstore.ErrUnavailable) {
		return fmt.Errorf("%w (%w)", errNotKnown, err)
	} else if err != nil {
		return err
	}
	return nil
}

// mustAccount reads an account, or tells the operator that there is none.
func (op operator) mustAccount(ctx context.Context, username string) (tokenstore.Account, error) {
	a, _, err := op.Accounts.Get(ctx, username)
	return a, named(username, err)
}

// newPassword reads a new password and hashes it.
func (op operator) newPassword(ctx context.Context, cmd *cobra.Command, username string) (string, error) {
	password, err := readPassword(cmd, username)
	if err != nil {
		return "", err
	}
	hasher, err := credential.NewHasher(credential.Options{
		MemoryKiB: op.cfg.PasswordMemory, Iterations: op.cfg.PasswordIterations, Workers: 1,
	})
	if err != nil {
		return "", err
	}
	return hasher.Hash(ctx, password)
}

// named tells which user it is that is not there, and what to do.
func named(username string, err error) error {
	if errors.Is(err, tokenstore.ErrNoAccount) {
		return fmt.Errorf("there is no user %s; list them with: latchkey user list", terminal.Printable(username))
	}
	return err
}

// confirmed returns what waits until every replica knows a revocation.
func (op operator) confirmed(ctx context.Context) func(tokenstore.Revocation, error) error {
	return func(r tokenstore.Revocation, err error) error {
		if err != nil {
			return err
		}
		return op.confirmer.Confirm(ctx, r)
	}
}
