package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/replica"
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
	_, _, err := op.Account(ctx, a.Username)
	if err == nil {
		return taken
	}
	if !errors.Is(err, tokenstore.ErrNoAccount) {
		return err
	}
	if a.Hash, err = op.newPassword(ctx, cmd, a.Username); err != nil {
		return err
	}
	if err := op.CreateAccount(ctx, a); errors.Is(err, tokenstore.ErrAccountExists) {
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
				changed, err := op.SetPassword(ctx, args[0], "", hash)
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
				if _, err := op.SetDisabled(ctx, args[0], false); err != nil {
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
	at, err := op.SetDisabled(ctx, username, true)
	if err != nil {
		return err
	}
	account, _, err := op.Account(ctx, username)
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
	_, err := op.DeleteAccount(ctx, username)
	return err
}

// endSessions ends every session of an account's user, and every login under way
// that read the account up to the time of its change. It returns nil once every
// replica knows.
func (op operator) endSessions(ctx context.Context, a tokenstore.Account, changed time.Time) error {
	revoked, err := op.RevokeUser(ctx, tokenstore.UserEnd{UID: op.UserID(a.Subject), ChangedAt: changed})
	if err == nil {
		err = op.confirmer.Confirm(ctx, revoked)
	}
	if err != nil {
		return fmt.Errorf("end the sessions of %s: %w", terminal.Printable(a.Username), err)
	}
	return nil
}

func newUserList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the users, sorted by name",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return operate(cmd, func(ctx context.Context, op operator) error {
				accounts, err := op.accounts(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), views(accounts))
				}
				return printUsers(cmd.OutOrStdout(), accounts)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write a JSON array")
	return cmd
}

// accounts reads every account, sorted by username.
func (op operator) accounts(ctx context.Context) ([]tokenstore.Account, error) {
	names, err := op.Usernames(ctx)
	if err != nil {
		return nil, err
	}
	accounts := make([]tokenstore.Account, len(names))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(op.parallel)
	for i, name := range names {
		g.Go(func() error {
			var err error
			accounts[i], _, err = op.Account(ctx, name)
			if errors.Is(err, tokenstore.ErrNoAccount) {
				return nil // deleted since
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(accounts, func(a tokenstore.Account) bool { return a.Username == "" }), nil
}

// userView is an account as lists show it, and but for the hash as an import
// reads it.
type userView struct {
	Username string          `json:"username"`
	Subject  string          `json:"sub"`
	Scopes   []string        `json:"scopes"`
	Claims   json.RawMessage `json:"claims,omitempty"`
	Disabled bool            `json:"disabled"`
}

func views(accounts []tokenstore.Account) []userView {
	list := make([]userView, len(accounts))
	for i, a := range accounts {
		list[i] = userView{Username: a.Username, Subject: a.Subject, Scopes: append([]string{}, strings.Fields(a.Scopes)...), Disabled: a.Disabled}
		if json.Valid([]byte(a.Claims)) {
			list[i].Claims = json.RawMessage(a.Claims)
		}
	}
	return list
}

func printUsers(w io.Writer, accounts []tokenstore.Account) error {
	t := table(w, "USERNAME", "SUBJECT", "STATE", "SCOPES")
	for _, a := range accounts {
		state := "enabled"
		if a.Disabled {
			state = "disabled"
		}
		t.row(a.Username, a.Subject, state, a.Scopes)
	}
	return t.Flush()
}

// maxSubject is the longest subject, in bytes; OpenID Connect Core section 2
// allows no more than 255 characters.
const maxSubject = 255

// newAccount checks and normalises what an operator says of an account.
func newAccount(username, subject string, scopes []string, claims []byte) (tokenstore.Account, error) {
	a := tokenstore.Account{Username: username, Subject: subject}
	if err := credential.ValidateUsername(username); err != nil {
		return a, err
	}
	if a.Subject == "" {
		a.Subject = username
	}
	if len(a.Subject) > maxSubject || !utf8.ValidString(a.Subject) || strings.TrimSpace(a.Subject) != a.Subject ||
		strings.ContainsFunc(a.Subject, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return a, fmt.Errorf("the subject is not usable; write at most %d bytes of printable characters, without spaces at the ends", maxSubject)
	}
	if tokenstore.IsClient(a.Subject) {
		return a, fmt.Errorf("a subject that begins with %s is a client's; give another with --sub", tokenstore.ClientPrefix)
	}
	var err error
	if a.Scopes, err = joinScopes(scopes); err != nil {
		return a, err
	}
	if a.Claims, err = compactClaims(claims); err != nil {
		return a, err
	}
	if over := a.Size() - accesstoken.MaxAccount; over > 0 {
		return a, fmt.Errorf("the user would not fit into a token: the subject counted twice, the scopes and the claims are %d bytes more than %d; give fewer, or shorter ones", over, accesstoken.MaxAccount)
	}
	return a, nil
}

// joinScopes returns the scopes, each once, as RFC 6749 section 3.3 writes them.
func joinScopes(scopes []string) (string, error) {
	var once []string
	for _, s := range scopes {
		if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			return "", errors.New(`a scope is not usable; write printable ASCII without spaces, " and \`)
		}
		if !slices.Contains(once, s) {
			once = append(once, s)
		}
	}
	return strings.Join(once, " "), nil
}

// compactClaims returns the claims as one line of JSON, or "" for none.
func compactClaims(claims []byte) (string, error) {
	if len(bytes.TrimSpace(claims)) == 0 {
		return "", nil
	}
	object, err := members(claims)
	if err != nil {
		return "", fmt.Errorf("the claims: %w", err)
	}
	if len(object) > accesstoken.MaxExtraPart {
		return "", fmt.Errorf("there are %d claims; give at most %d", len(object), accesstoken.MaxExtraPart)
	}
	for name := range object {
		if name == "" {
			return "", errors.New("the claims: one has no name; give it one")
		}
		if accesstoken.Reserved(name) {
			return "", fmt.Errorf("the claims: Latchkey sets %s itself; leave it out", name)
		}
	}
	if len(object) == 0 {
		return "", nil
	}
	compact, err := json.Marshal(object)
	if err != nil {
		return "", fmt.Errorf("the claims: %w", err)
	}
	return string(compact), nil
}

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
	if cfg.RedisPoolSize > 0 {
		op.parallel = min(op.parallel, cfg.RedisPoolSize)
	} else {
		cfg.RedisPoolSize = maxParallel
	}
	rdb, store, err := replica.OpenStore(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rdb.Close()) }()
	op.Store, op.confirmer = store, edge.NewConfirmer(store, cfg.EdgeLease)
	ctx := cmd.Context()
	if err := store.Open(ctx); errors.Is(err, tokenstore.ErrUnavailable) {
		return fmt.Errorf("%w (%s: %w)", errNothingDone, cfg.RedisURL, err)
	} else if err != nil {
		return err
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
	a, _, err := op.Account(ctx, username)
	return a, named(username, err)
}

// newPassword reads a new password and hashes it.
func (op operator) newPassword(ctx context.Context, cmd *cobra.Command, username string) (string, error) {
	password, err := readPassword(cmd, username)
	if err != nil {
		return "", err
	}
	hasher, err := credential.NewHasher(credential.Options{
		MemoryKiB: op.cfg.PasswordMemory, Iterations: op.cfg.PasswordIterations, Parallelism: op.cfg.PasswordParallelism, Workers: 1,
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

// group is a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		// Without these two, a mistyped subcommand would print the help and succeed.
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(commands...)
	return cmd
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

// say writes one line of result.
func say(cmd *cobra.Command, format string, args ...any) error {
	_, err := fmt.Fprintf(cmd.OutOrStdout(), format+"\n", args...)
	return err
}

// columns is a table that escapes what it is given.
type columns struct{ *tabwriter.Writer }

func table(w io.Writer, head ...string) columns {
	t := columns{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.row(head...)
	return t
}

func (t columns) row(cells ...string) {
	for i, c := range cells {
		if c == "" {
			c = "-"
		}
		cells[i] = terminal.Printable(c)
	}
	fmt.Fprintln(t, strings.Join(cells, "\t"))
}

// shellWord returns a username as a POSIX shell reads it back.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r)) || strings.ContainsRune("._@-", r)
	}
	if s != "" && s[0] != '-' && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// printJSON writes indented JSON in which what a terminal would not show as it
// is, is escaped.
func printJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return err
	}
	var out strings.Builder
	for _, r := range b.String() {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			out.WriteRune(r)
		case r > 0xffff:
			high, low := (r-0x10000)>>10+0xd800, (r-0x10000)&0x3ff+0xdc00
			fmt.Fprintf(&out, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	_, err := io.WriteString(w, out.String())
	return err
}
