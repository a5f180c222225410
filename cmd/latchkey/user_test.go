package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

func TestUserAdd(t *testing.T) {
	c := newConsole(t)
	if got, want := c.works(canary+"\n", "user", "add", "alice"), "added alice\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	c.works(canary, "user", "add", "bob", "--sub", "u-1", "--scope", " write  read write", "--claims", ` {"team" : "a", "n":1} `, "--disabled")
	for name, want := range map[string]tokenstore.Account{
		"alice": {Username: "alice", Subject: "alice"},
		"bob":   {Username: "bob", Subject: "u-1", Scopes: "write read", Claims: `{"n":1,"team":"a"}`, Disabled: true},
	} {
		if !c.hasPassword(name, canary) {
			t.Errorf("%s has another password than the one given", name)
		}
		got := c.account(name)
		got.Hash = ""
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestPasswordFromStandardInput(t *testing.T) {
	c := newConsole(t)
	for _, want := range []string{canary, "\tspaces stay ", "pässword", strings.Repeat("x", 1024)} {
		for _, end := range []string{"", "\n", "\r\n"} {
			stdin := want + end
			c.works("something else", "user", "add", "alice")
			c.works(stdin, "user", "passwd", "alice")
			if !c.hasPassword("alice", want) {
				t.Errorf("from %q: not the password %q", stdin, want)
			}
			c.works("", "user", "delete", "alice")
		}
	}
	for stdin, text := range map[string]string{
		"": "empty", "\n": "empty", "\r\n": "empty", "twice\ntwice\n": "more than one line", "\n\n": "more than one line",
		strings.Repeat("x", 1025): "longer than 1024", strings.Repeat("x", 1<<20) + "\n": "longer than 1024",
	} {
		fails(t, stdin, []string{"user", "add", "alice"}, text)
	}
	if _, _, err := c.store.Accounts.Get(t.Context(), "alice"); !errors.Is(err, tokenstore.ErrNoAccount) {
		t.Errorf("a refused password left an account: %v", err)
	}
}

func TestAPasswordIsNeverAnArgument(t *testing.T) {
	// No Redis and no settings: refused before anything else.
	for _, args := range [][]string{
		{"user", "add", "alice", canary},
		{"user", "passwd", "alice", canary},
		{"user", "add", "alice", "--password", canary},
		{"user", "add", "alice", "--password=" + canary},
		{"user", "passwd", "alice", "-p", canary},
		{"user", "passwd", "alice", "-p" + canary},
	} {
		fails(t, canary, args, "a password is never an argument")
	}
}

func TestUserAddRefuses(t *testing.T) {
	c := newConsole(t)
	c.add("alice", "--scope", "read")
	before := c.account("alice")
	for _, tt := range []struct {
		name string
		args []string
		text string
	}{
		{"a name that is taken", []string{"alice", "--scope", "write"}, "there already, and stays as it was"},
		{"no name", nil, "which user? write: latchkey user add NAME"},
		{"an empty name", []string{""}, "unacceptable username"},
		{"a name with a control character", []string{"al\x1b[2Jice"}, "control character"},
		{"a subject with a line break", []string{"bob", "--sub", "a\nb"}, "the subject is not usable"},
		{"a subject that is too long", []string{"bob", "--sub", strings.Repeat("s", 256)}, "at most 255 bytes"},
		{"a subject of a client", []string{"bob", "--sub", "lkc_billing"}, "begins with lkc_ is a client's"},
		{"a username of a client", []string{"lkc_billing"}, "begins with lkc_ is a client's"},
		{"a quote in a scope", []string{"bob", "--scope", `read "write"`}, "a scope is not usable"},
		{"too many scopes", []string{"bob", "--scope", strings.Repeat("s", 1025)}, "would not fit into a token"},
		{"claims that are no object", []string{"bob", "--claims", "[1]"}, "not one JSON object"},
		{"claims with something behind", []string{"bob", "--claims", "{} {}"}, "not one JSON object"},
		{"a claim given twice", []string{"bob", "--claims", `{"a":1,"a":2}`}, `"a" twice`},
		{"a claim that is Latchkey's", []string{"bob", "--claims", `{"exp":1}`}, "Latchkey sets exp itself"},
		{"claims that are too long", []string{"bob", "--claims", `{"a":"` + strings.Repeat("x", 1024) + `"}`}, "would not fit into a token"},
		{"all together too long", []string{"bob", "--sub", strings.Repeat("s", 200), "--scope", strings.Repeat("s", 400), "--claims", `{"a":"` + strings.Repeat("x", 400) + `"}`}, "184 bytes more than 1024"},
		{"too many claims", []string{"bob", "--claims", manyClaims(17)}, "there are 17 claims; give at most 16"},
		{"a claim without a name", []string{"bob", "--claims", `{"":1}`}, "one has no name"},
		{"an unknown flag", []string{"bob", "--admin"}, "unknown flag"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fails(t, canary, append([]string{"user", "add"}, tt.args...), tt.text)
		})
	}
	if diff := cmp.Diff(before, c.account("alice")); diff != "" {
		t.Errorf("alice was changed (-before +after):\n%s", diff)
	}
	if out := c.works("", "user", "list"); strings.Count(out, "\n") != 2 {
		t.Errorf("there is more than alice:\n%s", out)
	}
}

func TestGroupsShowTheirCommands(t *testing.T) {
	for group, commands := range map[string][]string{
		"user":    {"add", "passwd", "disable", "enable", "delete", "list", "import"},
		"client":  {"add", "list", "rotate-secret", "delete"},
		"session": {"list", "revoke"},
	} {
		o := command(t, strings.NewReader(""), group)
		for _, name := range commands {
			if !strings.Contains(o.stdout, "\n  "+name+" ") {
				t.Errorf("latchkey %s does not show %s: %v\n%s", group, name, o.err, o.stdout)
			}
		}
	}
}

func TestMistypedSubcommandsFail(t *testing.T) {
	for _, args := range [][]string{{"user", "remove", "alice"}, {"session", "end", "alice"}, {"usr"}} {
		fails(t, "", args, "unknown command")
	}
}

// What ends a user's sessions ends all of them at once, those of logins under way
// too, and nobody else's.
func TestWhatEndsTheSessionsOfAUser(t *testing.T) {
	for _, tt := range []struct {
		args  []string
		says  string
		login bool // whether a login works afterwards
	}{
		{[]string{"user", "disable", "alice"}, "disabled alice; all sessions have ended\n", false},
		{[]string{"user", "delete", "alice"}, "deleted alice; all sessions have ended\n", false},
		{[]string{"user", "passwd", "alice"}, "alice has a new password; all sessions have ended\n", true},
		{[]string{"session", "revoke", "alice"}, "all sessions of alice have ended\n", true},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			c := newConsole(t)
			c.add("alice", "--sub", "u-1")
			c.add("bob")
			first, second, other := c.open("alice"), c.open("alice"), c.open("bob")
			underWay := c.begin("alice")
			if got := c.works("another password\n", tt.args...); got != tt.says {
				t.Errorf("printed %q, want %q", got, tt.says)
			}
			first.ended()
			second.ended()
			other.lives()
			if tt.args[0] == "user" {
				if _, err := underWay(); !errors.Is(err, tokenstore.ErrSuperseded) {
					t.Errorf("the login under way: %v, want superseded", err)
				}
			}
			if tt.login {
				c.open("alice").lives()
			}
		})
	}
}

func TestUserPasswd(t *testing.T) {
	c := newConsole(t)
	c.add("alice", "--scope", "read", "--disabled")
	c.works("another password\n", "user", "passwd", "alice")
	if !c.hasPassword("alice", "another password") || c.hasPassword("alice", canary) {
		t.Error("the password is not the new one")
	}
	got := c.account("alice")
	got.Hash = ""
	if diff := cmp.Diff(tokenstore.Account{Username: "alice", Subject: "alice", Scopes: "read", Disabled: true}, got); diff != "" {
		t.Errorf("more than the password was changed (-want +got):\n%s", diff)
	}
}

func TestUserEnable(t *testing.T) {
	c := newConsole(t)
	c.add("alice")
	old := c.open("alice")
	for range 2 {
		c.works("", "user", "disable", "alice")
		if !c.account("alice").Disabled {
			t.Error("not disabled")
		}
	}
	for range 2 {
		if got, want := c.works("", "user", "enable", "alice"), "enabled alice; sessions from before stay ended\n"; got != want {
			t.Errorf("printed %q, want %q", got, want)
		}
		if c.account("alice").Disabled {
			t.Error("still disabled")
		}
	}
	old.ended()
	c.open("alice").lives()
}

func TestAUserAddedAgainIsAnotherUser(t *testing.T) {
	c := newConsole(t)
	c.add("alice")
	old, underWay := c.open("alice"), c.begin("alice")
	c.works("", "user", "delete", "alice")
	c.add("alice")
	old.ended()
	if _, err := underWay(); !errors.Is(err, tokenstore.ErrSuperseded) {
		t.Errorf("a login that read the deleted account: %v, want superseded", err)
	}
	c.open("alice").lives()
	old.ended()
}

func TestUnknownUsers(t *testing.T) {
	_ = newConsole(t)
	for _, args := range [][]string{
		{"user", "passwd"},
		{"user", "disable"},
		{"user", "enable"},
		{"session", "list"},
		{"session", "revoke"},
		{"session", "revoke", "--session", "AAAAAAAAAAAAAAAAAAAAAA"},
	} {
		fails(t, canary, append(args, "alice"), "there is no user alice; list them with: latchkey user list")
	}
	fails(t, "", []string{"user", "delete", "alice"}, "there is no user alice, so there is nothing to delete")
	fails(t, "", []string{"user", "disable", "alice", "bob"}, "one user at a time")
	fails(t, "", []string{"user", "disable", "\x1b[31malice"}, `there is no user "\x1b[31malice"`)
}

func TestUserList(t *testing.T) {
	c := newConsole(t)
	if got, want := c.works("", "user", "list", "--json"), "[]\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	c.add("zoë", "--sub", "u-2", "--scope", "read write", "--claims", `{"team":"a"}`)
	c.add("bob", "--disabled")
	c.add("alice:acct:x")
	want := strings.Join([]string{
		"USERNAME      SUBJECT       STATE     SCOPES",
		"alice:acct:x  alice:acct:x  enabled   -",
		"bob           bob           disabled  -",
		"zoë           u-2           enabled   read write",
		"",
	}, "\n")
	if diff := cmp.Diff(want, c.works("", "user", "list")); diff != "" {
		t.Errorf("the table (-want +got):\n%s", diff)
	}
	var got []userView
	if err := json.Unmarshal([]byte(c.works("", "user", "list", "--json")), &got); err != nil {
		t.Fatal(err)
	}
	for i, v := range got {
		got[i].Claims = nil
		if v.Username == "zoë" {
			var claims map[string]string
			if err := json.Unmarshal(v.Claims, &claims); err != nil || claims["team"] != "a" {
				t.Errorf("claims %s, %v", v.Claims, err)
			}
		}
	}
	if diff := cmp.Diff([]userView{
		{Username: "alice:acct:x", Subject: "alice:acct:x", Scopes: []string{}},
		{Username: "bob", Subject: "bob", Scopes: []string{}, Disabled: true},
		{Username: "zoë", Subject: "u-2", Scopes: []string{"read", "write"}},
	}, got); diff != "" {
		t.Errorf("the list (-want +got):\n%s", diff)
	}
}

// What Redis holds cannot drive the operator's terminal, whoever wrote it.
func TestListsEscapeWhatIsNotText(t *testing.T) {
	c := newConsole(t)
	hostile := "eve\x1b]0;owned\x07\u009b2J\u202etxt\U000e0041\xff\t\n"
	if err := c.store.Accounts.Create(t.Context(), tokenstore.Account{Username: hostile, Subject: "\x1b[2J", Hash: "h", Scopes: "\rread", Claims: "no JSON"}); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"user", "list"}, {"user", "list", "--json"}, {"session", "list", hostile}, {"user", "disable", hostile}, {"user", "delete", hostile}} {
		out := c.works("", args...)
		if i := strings.IndexFunc(out, func(r rune) bool {
			return r < ' ' && r != '\n' || r > '~' && r != '\ufffd'
		}); i >= 0 {
			t.Errorf("%q prints %q", args[:2], out)
		}
		if args[1] == "list" && args[0] == "user" && !strings.Contains(out, "eve") {
			t.Errorf("%q does not show the account:\n%s", args, out)
		}
		if len(args) == 3 && args[2] == "--json" && !json.Valid([]byte(out)) {
			t.Errorf("not JSON: %s", out)
		}
	}
}

func TestWhenRedisIsDown(t *testing.T) {
	c := newConsole(t)
	c.add("alice")
	t.Setenv("LATCHKEY_REDIS_URL", strings.Replace(c.redis.URL(), "redis://", "redis://someone:"+strings.ReplaceAll(canary, " ", "%20")+"@", 1))
	t.Setenv("LATCHKEY_REDIS_TIMEOUT", "100ms")
	outage := func(t *testing.T) {
		for _, args := range [][]string{
			{"user", "add", "bob"},
			{"user", "passwd", "alice"},
			{"user", "disable", "alice"},
			{"user", "enable", "alice"},
			{"user", "delete", "alice"},
			{"user", "list"},
			{"user", "import"},
			{"session", "list", "alice"},
			{"session", "revoke", "alice"},
		} {
			o := fails(t, canary, args, "no answer from Redis, so nothing was done", "run the same command again", "[redacted]@127.0.0.1")
			if o.stdout != "" || o.stderr != "" {
				t.Errorf("%q also prints %q", args, o.stdout+o.stderr)
			}
		}
	}
	// The password in the URL is not Redis's, which has none: that is no answer either.
	t.Run("no access", outage)
	t.Run("paused", func(t *testing.T) {
		c.redis.Pause(t)
		outage(t)
		c.redis.Resume(t)
	})
	c.redis.Kill(t)
	t.Run("killed", outage)
}

// denyEpochs makes the end of sessions fail as an outage in the middle of a
// command would, by a Redis user who may not touch what it writes.
func (c *console) denyEpochs() {
	c.t.Helper()
	err := c.rdb.Do(c.t.Context(), "ACL", "SETUSER", "limited", "on", ">pw", "+@all", "~lk:meta", "~lk:*:acct:*", "~lk:*:costs", "~lk:*:old:*", "~lk:*:once:*").Err()
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Setenv("LATCHKEY_REDIS_URL", "redis://limited:pw@"+c.redis.Addr()+"/0")
}

// A command that was cut off between its steps leaves no user half alive, says
// that nothing is known, and does the rest when it is run again.
func TestACommandThatWasCutOffIsRunAgain(t *testing.T) {
	for _, args := range [][]string{{"user", "disable", "alice"}, {"user", "delete", "alice"}, {"user", "passwd", "alice"}} {
		t.Run(args[1], func(t *testing.T) {
			c := newConsole(t)
			c.add("alice")
			session := c.open("alice")
			t.Run("cut off", func(t *testing.T) {
				c := &console{t: t, redis: c.redis, rdb: c.rdb, store: c.store}
				c.denyEpochs()
				fails(t, "another password", args, "nothing is known about whether it happened; run the same command again", "end the sessions of alice")
			})
			if args[1] != "passwd" && !c.account("alice").Disabled {
				t.Error("the account was left enabled")
			}
			session.lives() // else this test tests nothing
			c.works("another password", args...)
			session.ended()
		})
	}
}

// A Redis out of memory refuses what is new, and lets through what ends a session, a user,
// a key or a client.
func TestWhatEndsTokensWorksOnAFullRedis(t *testing.T) {
	c := newConsole(t)
	users := []string{"alice", "bob", "carol"}
	sessions := make([]*opened, len(users))
	for i, name := range users {
		c.works(canary, "user", "add", name)
		sessions[i] = c.open(name)
	}
	c.register("billing")
	c.works("", "key", "rotate", "--now")
	keys := c.works("", "key", "list", "--json")
	var views []keyView
	if err := json.Unmarshal([]byte(keys), &views); err != nil || len(views) != 1 {
		t.Fatalf("%v in %s", err, keys)
	}
	kid := views[0].ID
	if err := c.rdb.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}

	fails(t, canary, []string{"user", "add", "dave"}, "OOM")
	c.works("", "user", "disable", "alice")
	c.works("", "user", "delete", "bob")
	c.works("", "session", "revoke", "carol")
	c.works("", "key", "revoke", "--now", "--", kid)
	c.works("", "client", "delete", "lkc_billing")

	if err := c.rdb.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	for _, s := range sessions {
		s.ended()
	}
	if !c.account("alice").Disabled {
		t.Error("the account is enabled")
	}
	left, err := c.store.Keys.Ring(t.Context())
	if _, there := left.Keys[kid]; there || err != nil {
		t.Errorf("the key is there: %t, %v", there, err)
	}
}

// Sessions have ended only when every replica knows: a follower that is behind and
// lives holds the command up, and its success back.
func TestTheEndOfSessionsIsConfirmed(t *testing.T) {
	c := newConsole(t)
	t.Setenv("LATCHKEY_EDGE_LEASE", "500ms") // longer than this test's follower may be held up
	c.add("alice")
	one := c.open("alice").access.SID
	for _, args := range [][]string{
		{"session", "revoke", "alice", "--session", one.String()},
		{"session", "revoke", "alice"},
		{"user", "passwd", "alice"},
		{"user", "disable", "alice"},
		{"user", "delete", "alice"},
	} {
		stop := c.fallBehind(one.Shard())
		fails(t, "another password", args, "nothing is known about whether it happened; run the same command again", "a follower neither applies it nor falls silent")
		stop()
		c.works("another password", args...)
	}
}

// fallBehind makes a follower of a shard that beats and applies nothing.
func (c *console) fallBehind(shard int) (stop func()) {
	ctx, cancel := context.WithCancel(c.t.Context())
	started, done := make(chan struct{}), make(chan struct{})
	name := rand.Text() // each its own: a beat that falls back is not taken
	go func() {
		defer close(done)
		for beat := uint64(1); ctx.Err() == nil; beat++ {
			_, err := c.store.Revocations.Renew(ctx, []tokenstore.Renewal{{Shard: shard, Member: name, Beat: beat}})
			if err != nil && ctx.Err() == nil {
				c.t.Errorf("renew: %v", err)
			}
			if beat == 1 {
				close(started)
			}
		}
	}()
	<-started
	return func() {
		cancel()
		<-done
	}
}

func TestOperatorsAreHeldToTheNumberOfShards(t *testing.T) {
	c := newConsole(t)
	c.add("alice")
	t.Setenv("LATCHKEY_SHARDS", "4")
	fails(t, "", []string{"user", "disable", "alice"}, "this Redis has 16, and 4 are asked for; set it to 16", "LATCHKEY_SHARDS")
	t.Setenv("LATCHKEY_SHARDS", "0")
	t.Setenv("LATCHKEY_SECRET", "short")
	fails(t, "", []string{"user", "list"}, "2 settings are wrong", "LATCHKEY_SHARDS", "LATCHKEY_SECRET")
}

func TestShellWord(t *testing.T) {
	for in, want := range map[string]string{"alice": "alice", "a b": "'a b'", "o'neil": `'o'\''neil'`, "-x": "'-x'", "zoë": "'zoë'", "$(id)": "'$(id)'"} {
		if got := shellWord(in); got != want {
			t.Errorf("shellWord(%q) = %s, want %s", in, got, want)
		}
	}
}

// manyClaims is an object of n claims.
func manyClaims(n int) string {
	var members []string
	for i := range n {
		members = append(members, fmt.Sprintf(`"c%d":1`, i))
	}
	return "{" + strings.Join(members, ",") + "}"
}
