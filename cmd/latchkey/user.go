package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/internal/terminal"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

func newUser() *cobra.Command {
	return group("user", "Manage the accounts that log in with a password",
		newUserAdd(), newUserPasswd(), newUserDisable(), newUserEnable(), newUserDelete(), newUserList(), newUserImport())
}

func newUserAdd() *cobra.Command {
	var subject, scope, claims string
	var disabled bool
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a user",
		Long: `Add a user. The password is asked for on a terminal, twice, and otherwise read from
standard input:

    latchkey user add alice --scope "read write" < password.txt`,
		Args: oneUsername(errPasswordArgument),
		RunE: func(cmd *cobra.Command, args []string) error {
			account, err := newAccount(args[0], subject, strings.Fields(scope), []byte(claims))
			if err != nil {
				return err
			}
			account.Disabled = disabled
			return operate(cmd, func(ctx context.Context, op operator) error { return op.addUser(ctx, cmd, account) })
		},
	}
	cmd.Flags().StringVar(&subject, "sub", "", "the sub claim of the user's tokens (default: the username)")
	cmd.Flags().StringVar(&scope, "scope", "", "what the user may be granted, separated by spaces")
	cmd.Flags().StringVar(&claims, "claims", "", "further claims of the user, as a JSON object")
	cmd.Flags().BoolVar(&disabled, "disabled", false, "add the user, but let nobody log in yet")
	refusePasswordFlag(cmd)
	return cmd
}

func (op operator) addUser(ctx context.Context, cmd *cobra.Command, a tokenstore.Account) error {
	taken := fmt.Errorf("the user %s is there already, and stays as it was; give it another password with: latchkey user passwd %s",
		terminal.Printable(a.Username), shellWord(a.Username))
	// Asked first only to spare the typing: CreateAccount decides.
	_, _, err := op.Accounts.Get(ctx, a.Username)
	if err == nil {
		return taken
	}
	if !errors.Is(err, tokenstore.ErrNoAccount) {
		return err
	}
	if a.Hash, err = op.newPassword(ctx, cmd, a.Username); err != nil {
		return err
	}
	if err := op.Accounts.Create(ctx, a); errors.Is(err, tokenstore.ErrAccountExists) {
		return taken
	} else if err != nil {
		return err
	}
	return say(cmd, "added %s", terminal.Printable(a.Username))
}

func newUserPasswd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "passwd NAME",
		Short: "Give a user a new password; all the user's sessions end",
		Long: `Give a user a new password. The password is asked for on a terminal, twice, and
otherwise read from standard input. All sessions of the user end at once.`,
		Args: oneUsername(errPasswordArgument),
		RunE: func(cmd *cobra.Command, args []string) error {
			return operate(cmd, func(ctx context.Context, op operator) error {
				account, err := op.mustAccount(ctx, args[0])
				if err != nil {
					return err
				}
				hash, err := op.newPassword(ctx, cmd, args[0])
				if err != nil {
					return err
				}
				changed, err := op.Accounts.SetPassword(ctx, args[0], "", hash)
				if err != nil {
					return named(args[0], err)
				}
				if err := op.endSessions(ctx, account, changed); err != nil {
					return err
				}
				return say(cmd, "%s has a new password; all sessions have ended", terminal.Printable(args[0]))
			})
		},
	}
	refusePasswordFlag(cmd)
	return cmd
}

func newUserDisable() *cobra.Command {
	return &cobra.Command{
		Use:   "disable NAME",
		Short: "Let a user no longer log in; all the user's sessions end",
		Args:  oneUsername(nil),
		RunE: func(cmd *cobra.Command, args []string) error {
			return operate(cmd, func(ctx context.Context, op operator) error {
				if err := op.shutOut(ctx, args[0]); err != nil {
					return named(args[0], err)
				}
				return say(cmd, "disabled %s; all sessions have ended", terminal.Printable(args[0]))
			})
		},
	}
}

func newUserEnable() *cobra.Command {
	return &cobra.Command{
		Use:   "enable NAME",
		Short: "Let a disabled user log in again",
		Args:  oneUsername(nil),
		RunE: func(cmd *cobra.Command, args []string) error {
			return operate(cmd, func(ctx context.Context, op operator) error {
				if _, err := op.Accounts.SetDisabled(ctx, args[0], false); err != nil {
					return named(args[0], err)
				}
				return say(cmd, "enabled %s; sessions from before stay ended", terminal.Printable(args[0]))
			})
		},
	}
}

func newUserDelete() *cobra.Command {
	return &cobra.Command{
		Use:     "delete NAME",
		Aliases: []string{"rm"},
		Short:   "Delete a user; all the user's sessions end",
		Args:    oneUsername(nil),
		RunE: func(cmd *cobra.Command, args []string) error {
			return operate(cmd, func(ctx context.Context, op operator) error {
				err := op.deleteUser(ctx, args[0])
				if errors.Is(err, tokenstore.ErrNoAccount) {
					return fmt.Errorf("there is no user %s, so there is nothing to delete", terminal.Printable(args[0]))
				}
				if err != nil {
					return err
				}
				return say(cmd, "deleted %s; all sessions have ended", terminal.Printable(args[0]))
			})
		},
	}
}

// shutOut disables an account and ends its user's sessions. The account comes
// first: a login that reads it afterwards is refused, and one that read it before
// is refused by the time that endSessions is given. A second call does no harm,
// and does what the first left undone.
func (op operator) shutOut(ctx context.Context, username string) error {
	at, err := op.Accounts.SetDisabled(ctx, username, true)
	if err != nil {
		return err
	}
	account, _, err := op.Accounts.Get(ctx, username)
	if err != nil {
		return err
	}
	return op.endSessions(ctx, account, at)
}

// deleteUser deletes an account last: as long as it exists its subject is known,
// so a command that was cut off can be run again, and meanwhile the account is
// disabled.
func (op operator) deleteUser(ctx context.Context, username string) error {
	if err := op.shutOut(ctx, username); err != nil {
		return err
	}
	_, err := op.Accounts.Delete(ctx, username)
	return err
}

// endSessions ends every session of an account's user, and every login under way
// that read the account up to the time of its change. It returns nil once every
// replica knows.
func (op operator) endSessions(ctx context.Context, a tokenstore.Account, changed time.Time) error {
	revoked, err := op.Sessions.RevokeUser(ctx, tokenstore.UserEnd{UID: op.UserID(a.Subject), ChangedAt: changed})
	if err == nil {
		err = op.confirmer.Confirm(ctx, revoked)
	}
	if err != nil {
		return fmt.Errorf("end the sessions of %s: %w", terminal.Printable(a.Username), err)
	}
	return nil
}

// oneUsername checks the arguments of a command on one user; more is what it
// answers to more than one argument, nil for a plain complaint.
func oneUsername(more error) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return fmt.Errorf("which user? write: %s NAME", cmd.CommandPath())
		case len(args) > 1 && more != nil:
			return more
		case len(args) > 1:
			return fmt.Errorf("one user at a time; write: %s NAME", cmd.CommandPath())
		}
		return nil
	}
}
