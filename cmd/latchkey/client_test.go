package main

import (
	"crypto/sha256"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// register adds a client and returns its secret.
func (c *console) register(args ...string) string {
	c.t.Helper()
	return secretOf(c.t, c.works("", append([]string{"client", "add"}, args...)...))
}

// secretOf reads a secret where it is shown.
func secretOf(t *testing.T, out string) string {
	t.Helper()
	m := regexp.MustCompile(`^client_id=lkc_[\w.-]+\nclient_secret=(lks_[\w-]{43})\n`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no secret is shown: %q", out)
	}
	return m[1]
}

// authenticate shows the secret of the client billing.
func (c *console) authenticate(secret string) (tokenstore.ClientGrant, error) {
	return c.store.Clients.Authenticate(c.t.Context(), "lkc_billing", sha256.Sum256([]byte(secret)))
}

func TestClientAdd(t *testing.T) {
	c := newConsole(t)
	secret := c.register("billing", "--grant", "refresh_token,client_credentials", "--grant", "client_credentials", "--scope", "read  write read",
		"--audience", "https://a.example", "--audience", "https://b.example", "--claims", `{"tier": 1}`, "--introspect")
	got, err := c.authenticate(secret)
	want := tokenstore.Client{
		ID: "lkc_billing", Grants: "client_credentials refresh_token", Scopes: "read write",
		Audiences: "https://a.example https://b.example", Claims: `{"tier":1}`, Introspect: true,
	}
	if diff := cmp.Diff(want, got.Client); err != nil || diff != "" {
		t.Errorf("%v -want +got\n%s", err, diff)
	}
	// Redis holds no secret.
	for _, field := range c.rdb.HGetAll(t.Context(), c.rdb.Keys(t.Context(), "lk:*:client:*").Val()[0]).Val() {
		if strings.Contains(field, secret) || strings.Contains(field, strings.TrimPrefix(secret, "lks_")) {
			t.Error("Redis holds the secret")
		}
	}
	if other := c.register("lkc_other"); other == secret {
		t.Error("two clients of one secret")
	}
	out := c.works("", "client", "list")
	if want := "CLIENT       GRANTS                            SCOPES      AUDIENCES                            INTROSPECTS\n" +
		"lkc_billing  client_credentials refresh_token  read write  https://a.example https://b.example  yes\n" +
		"lkc_other    -                                 -           -                                    -\n"; out != want {
		t.Errorf("list:\n%s\nwant\n%s", out, want)
	}
	json := regexp.MustCompile(`"created_at": "[^"]+"`).ReplaceAllString(c.works("", "client", "list", "--json"), `"created_at": "TIME"`)
	if !strings.Contains(json, `"client_id": "lkc_billing"`) || !strings.Contains(json, `"tier": 1`) || strings.Contains(json, secret) {
		t.Errorf("list --json:\n%s", json)
	}
}

func TestClientAddRefuses(t *testing.T) {
	c := newConsole(t)
	secret := c.register("billing", "--scope", "read")
	for _, tt := range []struct {
		name string
		args []string
		text string
	}{
		{"a name that is taken", []string{"billing"}, "there already, and stays as it was"},
		{"its id", []string{"lkc_billing"}, "there already, and stays as it was"},
		{"no name", nil, "which client? write: latchkey client add NAME"},
		{"two names", []string{"a", "b"}, "which client?"},
		{"an empty name", []string{""}, "the client's name is not usable"},
		{"the prefix alone", []string{"lkc_"}, "the client's name is not usable"},
		{"a colon", []string{"a:b"}, "the client's name is not usable"},
		{"a name that is too long", []string{strings.Repeat("a", 65)}, "at most 64"},
		{"another grant", []string{"a", "--grant", "password"}, "password is no grant that a client can have"},
		{"a quote in a scope", []string{"a", "--scope", `"`}, "a scope is not usable"},
		{"a space in an audience", []string{"a", "--audience", "a b"}, "an audience is not usable"},
		{"a fragment in an audience", []string{"a", "--audience", "https://a.example#b"}, "an audience is not usable"},
		{"a claim that is Latchkey's", []string{"a", "--claims", `{"sub":"root"}`}, "Latchkey sets sub itself"},
		{"a backslash in an audience", []string{"a", "--audience", `a\b`}, "an audience is not usable"},
		{"too much of a token", []string{"a", "--audience", "https://a.example/" + strings.Repeat("x", 200), "--claims", `{"a":"` + strings.Repeat("x", 200) + `"}`}, "would not fit into a token"},
		{"too many scopes", []string{"a", "--scope", strings.Repeat("s", 1020)}, "bytes too long for a token"},
		{"too many claims", []string{"a", "--claims", manyClaims(17)}, "there are 17 claims; give at most 16"},
		{"a claim that binds", []string{"a", "--claims", `{"cnf":{}}`}, "Latchkey sets cnf itself"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fails(t, "", append([]string{"client", "add"}, tt.args...), tt.text)
		})
	}
	if got, err := c.authenticate(secret); err != nil || got.Scopes != "read" {
		t.Errorf("the first one changed: %+v, %v", got, err)
	}
}

func TestClientRotateSecret(t *testing.T) {
	c := newConsole(t)
	first := c.register("billing")
	second := secretOf(t, c.works("", "client", "rotate-secret", "billing", "--keep", "24h"))
	for _, secret := range []string{first, second} {
		if _, err := c.authenticate(secret); err != nil {
			t.Errorf("while both are good: %v", err)
		}
	}
	third := secretOf(t, c.works("", "client", "rotate-secret", "lkc_billing"))
	for _, secret := range []string{first, second} {
		if _, err := c.authenticate(secret); !errors.Is(err, tokenstore.ErrClientSecret) {
			t.Errorf("a replaced secret: %v", err)
		}
	}
	if _, err := c.authenticate(third); err != nil {
		t.Error(err)
	}
	fails(t, "", []string{"client", "rotate-secret", "nobody"}, "there is no client lkc_nobody; list them with: latchkey client list")
	fails(t, "", []string{"client", "rotate-secret", "billing", "--keep", "24h", "--revoke"}, "does not go with --keep")
	fails(t, "", []string{"client", "rotate-secret", "billing", "--keep", "-1s"}, "--keep is from 0")
}

// What ends a client's tokens ends those that it got for itself and the sessions of
// the users that it logged in, and no others.
func TestWhatEndsTheTokensOfAClient(t *testing.T) {
	for _, tt := range []struct {
		args []string
		ends bool
	}{
		{[]string{"client", "delete", "billing"}, true},
		{[]string{"client", "rotate-secret", "billing", "--revoke"}, true},
		{[]string{"client", "rotate-secret", "billing"}, false},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			c := newConsole(t)
			secret := c.register("billing", "--grant", "client_credentials")
			c.register("other")
			c.add("alice")
			own := func() tokenstore.AccessToken {
				g, err := c.store.Clients.IssueToken(t.Context(), "lkc_billing", sha256.Sum256([]byte(secret)))
				if err != nil {
					t.Fatal(err)
				}
				uid := c.store.UserID("lkc_billing")
				sid, _ := c.store.Sessions.NewID(uid)
				return tokenstore.AccessToken{JTI: sid, SID: sid, UID: uid, UserEpoch: g.UserEpoch, LogEpoch: g.LogEpoch, Expires: g.Now.Add(time.Minute)}
			}()
			by := func(client string) tokenstore.AccessToken {
				uid := c.store.UserID("alice")
				sid, _ := c.store.Sessions.NewID(uid)
				g, err := c.store.Sessions.Login(t.Context(), tokenstore.NewSession{SID: sid, UID: uid, Subject: "alice", ClientID: client, ReadAt: time.Now().Add(time.Hour)})
				if err != nil {
					t.Fatal(err)
				}
				return tokenstore.AccessToken{JTI: sid, SID: sid, UID: uid, UserEpoch: g.UserEpoch, LogEpoch: g.LogEpoch, Expires: g.Now.Add(time.Minute)}
			}
			users := []tokenstore.AccessToken{own, by("lkc_billing"), by("lkc_billing")}
			stay := []tokenstore.AccessToken{by("lkc_other"), by("latchkey")}
			c.works("", tt.args...)
			for i, token := range users {
				if err := c.store.Revocations.Verify(t.Context(), token); errors.Is(err, tokenstore.ErrRevoked) != tt.ends {
					t.Errorf("token %d: %v", i, err)
				}
			}
			for i, token := range stay {
				if err := c.store.Revocations.Verify(t.Context(), token); err != nil {
					t.Errorf("another's token %d: %v", i, err)
				}
			}
		})
	}
}

func TestClientDelete(t *testing.T) {
	c := newConsole(t)
	secret := c.register("billing")
	if got, want := c.works("", "client", "delete", "billing"), "deleted lkc_billing; every token that was issued to it has ended\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	if _, err := c.authenticate(secret); !errors.Is(err, tokenstore.ErrNoClient) {
		t.Error(err)
	}
	fails(t, "", []string{"client", "delete", "billing"}, "there is no client lkc_billing, so there is nothing to delete")
	// The id may be used again, and what was issued to the first stays dead.
	c.register("billing")
}
