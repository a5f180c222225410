package tokenstore

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	// ErrNoAccount says that there is no account of that username.
	ErrNoAccount = errors.New("no such account")
	// ErrAccountExists says that the username is taken.
	ErrAccountExists = errors.New("the username is taken")
	// ErrConflict says that the password was changed by somebody else meanwhile.
	ErrConflict = errors.New("the account was changed meanwhile")
	// ErrExpired says that an access token has expired by Redis time.
	ErrExpired = errors.New("the token has expired")
)

// Account is a user who can log in with a password.
type Account struct {
	Username string
	Subject  string // the username unless set otherwise
	Hash     string // of the password: PHC string or bcrypt
	Disabled bool
	Scopes   string // allowed, space separated
	Claims   string // JSON object of the operator's own, or empty
}

// Size returns how much of a token the account takes, in bytes: the subject counts
// twice, since JSON may escape each of its characters. rotate.lua counts the same.
func (a Account) Size() int { return 2*len(a.Subject) + len(a.Scopes) + len(a.Claims) }

// Limit lets Burst attempts happen at once and Burst more in each Period. A
// Burst of 0 is no limit.
type Limit struct {
	Burst  int
	Period time.Duration
}

// Attempt is one try at an account's password, as the throttle sees it.
type Attempt struct {
	Username string
	Address  netip.Addr // an IPv4 address or the first of an IPv6 /64; invalid: unknown, not counted
	// Device, if set, proves that whoever tries has logged in to this account before, or
	// is logged in. It is then counted by itself, and no stranger can use up its budget.
	Device string
	// Client, if set, is the registered client that logs the user in. Its address says
	// nothing of the user's.
	Client string
	Limits AttemptLimits
}

// AttemptLimits are the budgets of attempts that fail.
type AttemptLimits struct {
	Client Limit // one account from one address or known device
	// Account limits one account from all unknown devices together. Attempts through one
	// registered client have a budget of this size of their own. One network (an IPv4 /24
	// or an IPv6 /48) may spend a quarter of the budget, so one network alone cannot use
	// it up.
	Account Limit
	// Address limits one address over all accounts; attempts from known devices do not
	// count. An IPv6 /56 may spend four times as much, and a /48 sixteen times.
	Address Limit
}

// Lookup is what a login needs before it checks the password.
type Lookup struct {
	Account Account
	Found   bool
	// Cost, if not found, is what the check of a password is to cost: a cost that accounts
	// have, always the same for one name, and each as often as accounts have it. It is what
	// their hashes have in front of the salt, such as "$2b$12"; "" if there are no accounts.
	Cost   string
	ReadAt time.Time     // for [NewSession.ReadAt]
	Wait   time.Duration // until the throttle lets the attempt in; 0 is now
	Charge Charge        // of the attempt, if it was let in
}

// Charge is what one attempt was charged. The zero value is nothing.
type Charge struct{ refunds []call }

// receiptAge is how long a charge can be refunded. It is longer than a password waits to be
// checked plus a login waits for the claims webhook.
const receiptAge = 2 * time.Minute

// Lookup reads an account and charges one attempt at its password to the login limits, in
// one round trip. Because the charge comes first, no more attempts are under way than the
// limits allow. If a limit is reached, Lookup charges nothing and sets Wait. After any
// attempt but a wrong guess the caller takes the charge back, with [Attempts.Refund] or
// [NewSession.Charge].
// An unknown username is not an error, and costs the same work. Errors: [ErrUnavailable].
func (s *Attempts) Lookup(ctx context.Context, a Attempt) (Lookup, error) {
	nonce, err := s.freshEpoch()
	if err != nil {
		return Lookup{}, err
	}
	user, address := s.throttles(a, nonce)
	calls := []call{{script: s.scripts.lookup, keys: append([]string{s.accountKey(a.Username), s.costsKey(a.Username)}, user.keys...), args: user.args}}
	if len(address.keys) > 0 {
		calls = append(calls, call{script: s.scripts.throttleCharge, keys: address.keys, args: address.args})
	}
	replies, err := s.runAll(ctx, calls, 0)
	if err != nil {
		return Lookup{}, err
	}
	r := replies[0]
	l := Lookup{
		ReadAt: r.time(0),
		Wait:   r.milliseconds(1),
		Account: Account{
			Username: a.Username, Subject: r.string(2), Hash: r.string(3),
			Disabled: r.string(4) == "1", Scopes: r.string(5), Claims: r.string(6),
		},
	}
	l.Found = l.Account.Hash != ""
	if cost := r.string(7); !l.Found {
		l.Cost = cost
	}
	for _, t := range []throttle{user, address} {
		if len(t.keys) > 0 {
			l.Charge.refunds = append(l.Charge.refunds, call{script: s.scripts.throttleRefund, keys: t.keys, args: t.args, courtesy: true})
		}
	}
	if len(replies) > 1 {
		charged := replies[1]
		s.observeTime(charged.time(0))
		wait := charged.milliseconds(1)
		if err := charged.err(); err != nil {
			return Lookup{}, err
		}
		half := (l.Wait > 0) != (wait > 0)
		l.Wait = max(l.Wait, wait)
		if half {
			// One half of the charge was made. If it cannot be taken back, a little
			// less of that budget is left: no reason to answer anything else.
			_ = s.Refund(ctx, l.Charge)
		}
	}
	if l.Wait > 0 {
		l.Charge = Charge{}
	}
	if err := r.err(); err != nil {
		return Lookup{}, err
	}
	s.observeTime(l.ReadAt)
	return l, nil
}

// Refund takes back what an attempt was charged that was no wrong guess. It counts
// once however often it is called, and up to two minutes after the charge. Errors:
// [ErrUnavailable].
func (s *Attempts) Refund(ctx context.Context, c Charge) error {
	if len(c.refunds) == 0 {
		return nil
	}
	calls := slices.Clone(c.refunds)
	for i := range calls {
		calls[i].courtesy = false
	}
	replies, err := s.runAll(ctx, calls, 0)
	if err != nil {
		return err
	}
	for _, r := range replies {
		s.observeTime(r.time(0))
		if err := r.err(); err != nil {
			return err
		}
	}
	return nil
}

// throttle is a receipt and a set of budgets that live in one slot, as the throttle's
// scripts want them; empty for no budgets.
type throttle struct {
	keys []string
	args []any
}

// add adds a budget; the first one brings the receipt along.
func (t *throttle) add(receipt, key string, l Limit) {
	if l.Burst <= 0 || l.Period <= 0 {
		return
	}
	if len(t.keys) == 0 {
		t.keys, t.args = []string{receipt}, []any{milliseconds(receiptAge)}
	}
	t.keys = append(t.keys, key)
	t.args = append(t.args, l.Burst, milliseconds(l.Period))
}

// throttles returns the budgets that an attempt touches: those in the
// username's slot and those in the address's.
func (s *core) throttles(a Attempt, nonce string) (user, address throttle) {
	receipt := s.receiptKey(s.UserID(a.Username)[0], "u"+nonce)
	if a.Device != "" {
		user.add(receipt, s.throttleKey(a.Username, "d:"+a.Device), a.Limits.Client)
		return user, address
	}
	if a.Client == "" {
		user.add(receipt, s.throttleKey(a.Username, "a:"+a.Address.String()), a.Limits.Client)
		if n := network(a.Address, 24, 48); n.IsValid() {
			user.add(receipt, s.throttleKey(a.Username, "n:"+n.String()), a.Limits.Account.times(1, 4))
		}
	}
	user.add(receipt, s.anyoneKey(a.Username, a.Client), a.Limits.Account)
	if !a.Address.IsValid() {
		return user, address
	}
	// What is in one /48 is in one slot.
	shard := s.UserID(digest(network(a.Address, 32, 48).String()))[0]
	receipt = s.receiptKey(shard, "a"+nonce)
	for _, wide := range []struct{ bits, times int }{{64, 1}, {56, 4}, {48, 16}} {
		address.add(receipt, s.prefix[shard]+"thr:ip:"+digest(network(a.Address, 32, wide.bits).String()), a.Limits.Address.times(wide.times, 1))
		if a.Address.Is4() {
			break
		}
	}
	return user, address
}

// times is a limit of more, or fewer, attempts in the same time.
func (l Limit) times(n, of int) Limit {
	if l.Burst > 0 {
		l.Burst = max(1, l.Burst*n/of)
	}
	return l
}

// network is the network of an address that has v4 or v6 leading bits; invalid if the
// address is.
func network(a netip.Addr, v4, v6 int) netip.Prefix {
	bits := v6
	if a.Is4() {
		bits = v4
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// Get reads one account. Errors: [ErrNoAccount], [ErrUnavailable].
func (s *Accounts) Get(ctx context.Context, username string) (Account, time.Time, error) {
	l, err := (*Attempts)(s).Lookup(ctx, Attempt{Username: username})
	if err != nil {
		return Account{}, time.Time{}, err
	}
	if !l.Found {
		return Account{}, time.Time{}, ErrNoAccount
	}
	return l.Account, l.ReadAt, nil
}

// Create makes an account. Errors: [ErrAccountExists], [ErrUnavailable].
func (s *Accounts) Create(ctx context.Context, a Account) error {
	if a.Subject == "" {
		a.Subject = a.Username
	}
	salt, err := s.freshEpoch()
	if err != nil {
		return err
	}
	r, err := s.run(ctx, s.scripts.accountCreate, []string{s.accountKey(a.Username), s.costsKey(a.Username)},
		a.Subject, a.Hash, flag(a.Disabled), a.Scopes, a.Claims, salt)
	if err != nil {
		return err
	}
	s.observeTime(r.time(1))
	if r.code() == 1 {
		return r.verdict(fmt.Errorf("%w: %q", ErrAccountExists, a.Username))
	}
	return r.oneOf(0)
}

// SetPassword stores a new password hash. If old is set, it must be the hash in
// force, or [ErrConflict] is returned. It returns when the change took effect,
// for [UserEnd.ChangedAt]. Errors: also [ErrNoAccount], [ErrUnavailable].
func (s *Accounts) SetPassword(ctx context.Context, username, old, hash string) (time.Time, error) {
	return s.updateAccount(ctx, username, old, 0, "hash", hash)
}

// replacedAge is for how long a password that its user replaced is remembered.
const replacedAge = 5 * time.Minute

// ReplacePassword is [Accounts.SetPassword] for a change that its user may send again:
// [Accounts.ReplacedPassword] then returns the hash old for five minutes.
func (s *Accounts) ReplacePassword(ctx context.Context, username, old, hash string) (time.Time, error) {
	return s.updateAccount(ctx, username, old, replacedAge, "hash", hash)
}

// ReplacedPassword returns the hash that the user's last ReplacePassword replaced, or ""
// if there was none lately. Errors: [ErrUnavailable].
func (s *Accounts) ReplacedPassword(ctx context.Context, username string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	hash, err := s.rdb.Get(ctx, s.replacedKey(username)).Result()
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	err = unavailable("replaced_password", err)
	s.observe("replaced_password", time.Since(start), err)
	return hash, err
}

// SetDisabled lets an account log in or not. It returns when the change took
// effect, for [UserEnd.ChangedAt]. Errors: [ErrNoAccount], [ErrUnavailable].
func (s *Accounts) SetDisabled(ctx context.Context, username string, disabled bool) (time.Time, error) {
	return s.updateAccount(ctx, username, "", 0, "off", flag(disabled))
}

func (s *core) updateAccount(ctx context.Context, username, old string, keep time.Duration, field, value string) (time.Time, error) {
	r, err := s.run(ctx, s.scripts.accountUpdate, []string{s.accountKey(username), s.replacedKey(username), s.costsKey(username)}, old, milliseconds(keep), field, value)
	if err != nil {
		return time.Time{}, err
	}
	at := r.time(1)
	s.observeTime(at)
	switch r.code() {
	case 0:
		return at, r.err()
	case 1:
		return time.Time{}, r.verdict(ErrNoAccount)
	case 2:
		return time.Time{}, r.verdict(ErrConflict)
	default:
		return time.Time{}, r.unknown()
	}
}

// Delete removes an account, if there is one, and returns when, for
// [UserEnd.ChangedAt]. Errors: [ErrUnavailable].
func (s *Accounts) Delete(ctx context.Context, username string) (time.Time, error) {
	r, err := s.run(ctx, s.scripts.accountDelete, []string{s.accountKey(username), s.costsKey(username)})
	if err != nil {
		return time.Time{}, err
	}
	at := r.time(0)
	return at, r.err()
}

// Usernames returns every account's username, sorted. It walks all keys: for an
// operator's command, not for a request. Errors: [ErrUnavailable].
func (s *Accounts) Usernames(ctx context.Context) ([]string, error) {
	return s.names(ctx, "acct")
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return ""
}
