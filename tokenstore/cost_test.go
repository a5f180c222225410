package tokenstore_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

const (
	bcrypt12   = "$2b$12"
	bcrypt10   = "$2a$10"
	argonOld   = "$argon2i$v=19$m=4096,t=3,p=1"
	argonToday = "$argon2id$v=19$m=19456,t=2,p=1"
)

// hashOf is a password hash of a cost.
func hashOf(cost string, n uint64) string { return fmt.Sprintf("%s$salt$key%d", cost, n) }

// costs reads what a shard's accounts cost, by how many accounts.
func (f *fixture) costs() map[string]string {
	f.t.Helper()
	all := map[string]string{}
	for _, key := range f.allKeys() {
		if strings.HasSuffix(key, ":costs") {
			maps.Copy(all, f.rdb.HGetAll(f.t.Context(), key).Val())
		}
	}
	delete(all, "salt")
	return all
}

// sameShardNames returns so many usernames of one shard.
func (f *fixture) sameShardNames(prefix string, n int) []string {
	var names []string
	for i := 0; len(names) < n; i++ {
		if name := fmt.Sprint(prefix, i); f.UserID(name)[0] == f.UserID("alice")[0] {
			names = append(names, name)
		}
	}
	return names
}

func (f *fixture) costOf(name string) string {
	f.t.Helper()
	l, err := f.Attempts.Lookup(f.t.Context(), tokenstore.Attempt{Username: name})
	if err != nil {
		f.t.Fatal(err)
	}
	if l.Found != (l.Account.Hash != "") || (l.Found && l.Cost != "") {
		f.t.Errorf("%s: found %t, cost %q", name, l.Found, l.Cost)
	}
	return l.Cost
}

func TestANameWithoutAnAccountCostsWhatAccountsCost(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		strangers := f.sameShardNames("stranger", 400)
		tally := func() (by map[string]string, counts map[string]int) {
			by, counts = map[string]string{}, map[string]int{}
			for _, name := range strangers {
				by[name] = f.costOf(name)
				counts[by[name]]++
			}
			return by, counts
		}
		if got := f.costOf(strangers[0]); got != "" {
			t.Errorf("without accounts: %q", got)
		}
		users := f.sameShardNames("user", 10)
		costs := []string{bcrypt12, argonOld, argonToday}
		for i, name := range users {
			cost := costs[min(i, 2)] // eight of today's
			a := tokenstore.Account{Username: name, Hash: hashOf(cost, uint64(i))}
			if err := f.Accounts.Create(t.Context(), a); err != nil {
				t.Fatal(err)
			}
			if got := f.costOf(name); got != "" {
				t.Errorf("an account that is there: %q", got)
			}
		}
		before, counts := tally()
		// 40, 40 and 320 are expected; five standard deviations are 30 and 40.
		if len(counts) != 3 || counts[bcrypt12] < 10 || counts[argonOld] < 10 || counts[argonToday] < 280 {
			t.Errorf("400 names: %v", counts)
		}
		if again, _ := tally(); !maps.Equal(before, again) {
			t.Error("names do not always cost the same")
		}
		// The user with bcrypt logs in: that moves names the way that it moves the user.
		if _, err := f.Accounts.SetPassword(t.Context(), users[0], "", hashOf(argonToday, 0)); err != nil {
			t.Fatal(err)
		}
		after, counts := tally()
		if len(counts) != 2 {
			t.Errorf("bcrypt is gone: %v", counts)
		}
		back := 0
		for name, cost := range before {
			if cost == argonToday && after[name] != argonToday {
				back++
			}
		}
		if back > 0 {
			t.Errorf("%d names moved from today's cost to an older one", back)
		}
	})
}

func TestCostsAreCountedOnce(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		wants := func(what string, want map[string]string) {
			t.Helper()
			if diff := cmp.Diff(want, f.costs()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", what, diff)
			}
		}
		names := f.sameShardNames("user", 3)
		a := tokenstore.Account{Username: names[0], Hash: hashOf(bcrypt12, 1)}
		for range 2 { // sent again
			is(t, "create", f.Accounts.Create(ctx, a), nil)
		}
		taken := tokenstore.Account{Username: a.Username, Hash: hashOf(argonOld, 1)}
		is(t, "taken", f.Accounts.Create(ctx, taken), tokenstore.ErrAccountExists)
		wants("one account", map[string]string{bcrypt12: "1"})
		is(t, "create", f.Accounts.Create(ctx, tokenstore.Account{Username: names[1], Hash: hashOf(bcrypt12, 2)}), nil)
		wants("two accounts", map[string]string{bcrypt12: "2"})
		is(t, "create", f.Accounts.Create(ctx, tokenstore.Account{Username: names[2], Hash: hashOf(bcrypt10, 3)}), nil)
		for range 2 {
			_, err := f.Accounts.SetPassword(ctx, names[0], "", hashOf(argonToday, 1))
			is(t, "another hash", err, nil)
			_, err = f.Accounts.SetDisabled(ctx, names[1], true)
			is(t, "disable", err, nil)
		}
		_, err := f.Accounts.SetPassword(ctx, names[1], "another", hashOf(argonToday, 1))
		is(t, "conflict", err, tokenstore.ErrConflict)
		wants("after changes", map[string]string{bcrypt12: "1", bcrypt10: "1", argonToday: "1"})
		f.register(tokenstore.Client{ID: "lkc_a"})
		is(t, "delete a client", f.Clients.Delete(ctx, "lkc_a"), nil)
		for range 2 {
			for _, name := range names[:2] {
				_, err := f.Accounts.Delete(ctx, name)
				is(t, "delete", err, nil)
			}
		}
		wants("after deletions", map[string]string{bcrypt10: "1"})
	})
}
