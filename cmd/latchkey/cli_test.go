package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// The tests of the operator's commands run the program's own command line in
// this process, on a redis-server of their own. They are not parallel: the
// commands read the process's environment.

// canary is a password that no output may hold.
const canary = "correct horse battery staple"

// console is a command line, and a look into the Redis behind it.
type console struct {
	t     *testing.T
	redis *redistest.Server // nil if it is a Cluster
	rdb   redis.UniversalClient
	store *tokenstore.Store
}

func newConsole(t *testing.T) *console {
	t.Helper()
	leavesNothing(t)
	server := redistest.Start(t)
	c := consoleOn(t, server.URL(), server.Client())
	c.redis = server
	return c
}

// consoleOn is a console on the Redis of a URL.
func consoleOn(t *testing.T, url string, rdb redis.UniversalClient) *console {
	t.Helper()
	t.Setenv("LATCHKEY_SECRET", strings.Repeat("0123456789abcdef", 3))
	t.Setenv("LATCHKEY_REDIS_URL", url)
	t.Setenv("LATCHKEY_REDIS_TIMEOUT", "5s") // a busy machine is no outage
	t.Setenv("LATCHKEY_PASSWORD_MEMORY", "7168")
	t.Setenv("LATCHKEY_PASSWORD_ITERATIONS", "1")
	c := &console{t: t, rdb: rdb}
	var err error
	c.store, err = tokenstore.New(c.rdb, tokenstore.Options{
		Shards: 16, StatusLists: true, Timeout: 15 * time.Second, Lifetimes: tokenstore.Lifetimes{
			Access: 15 * time.Minute, Refresh: 168 * time.Hour, Session: 720 * time.Hour, Grace: 10 * time.Second,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// leavesNothing fails the test if it leaves goroutines behind. It is patient:
// go-redis's probe of a Redis that is down outlives its client by up to a second.
func leavesNothing(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		var err error
		for range 10 { // each waits for some tenths of a second
			if err = goleak.Find(before); err == nil {
				return
			}
		}
		t.Error(err)
	})
}

// output is what a command left behind.
type output struct {
	stdout, stderr string
	err            error
}

// command runs one command line.
func command(t *testing.T, stdin io.Reader, args ...string) output {
	t.Helper()
	var stdout, stderr bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	err := root.ExecuteContext(t.Context())
	o := output{stdout.String(), stderr.String(), err}
	all := o.stdout + o.stderr
	if err != nil {
		all += err.Error()
	}
	if strings.Contains(all, canary) || regexp.MustCompile(`\$(2[aby]|argon2)`).MatchString(all) {
		t.Errorf("%q shows a password or a hash:\n%s", args, all)
	}
	return o
}

// fails runs a command line that must fail, and say so with each of texts.
func fails(t *testing.T, stdin string, args []string, texts ...string) output {
	t.Helper()
	o := command(t, strings.NewReader(stdin), args...)
	if o.err == nil {
		t.Fatalf("%q succeeds:\n%s", args, o.stdout)
	}
	for _, text := range texts {
		if !strings.Contains(o.err.Error(), text) {
			t.Errorf("%q fails with\n%v\nwhich does not say %q", args, o.err, text)
		}
	}
	return o
}

// works runs a command line that must succeed, and returns what it printed.
func (c *console) works(stdin string, args ...string) string {
	c.t.Helper()
	o := command(c.t, strings.NewReader(stdin), args...)
	if o.err != nil {
		c.t.Fatalf("%q: %v\n%s", args, o.err, o.stderr)
	}
	return o.stdout
}

// add adds a user with the canary for a password.
func (c *console) add(args ...string) {
	c.t.Helper()
	c.works(canary+"\n", append([]string{"user", "add"}, args...)...)
}

func (c *console) account(username string) tokenstore.Account {
	c.t.Helper()
	a, _, err := c.store.Accounts.Get(c.t.Context(), username)
	if err != nil {
		c.t.Fatalf("the account of %s: %v", username, err)
	}
	return a
}

// hasPassword tells whether an account's hash is that of the password.
func (c *console) hasPassword(username, password string) bool {
	c.t.Helper()
	h, err := credential.NewHasher(credential.Options{MemoryKiB: 7168, Iterations: 1})
	if err != nil {
		c.t.Fatal(err)
	}
	r, err := h.Verify(c.t.Context(), c.account(username).Hash, password)
	if err != nil {
		c.t.Fatal(err)
	}
	return r.Match
}

// opened is a session: what its refresh and access tokens say.
type opened struct {
	c      *console
	secret [32]byte
	uid    tokenstore.ID
	access tokenstore.AccessToken
}

// begin reads an account as a login does before it checks the password, and
// returns what it does afterwards.
func (c *console) begin(username string) (finish func() (*opened, error)) {
	c.t.Helper()
	ctx := c.t.Context()
	found, err := c.store.Attempts.Lookup(ctx, tokenstore.Attempt{Username: username})
	if err != nil || !found.Found {
		c.t.Fatalf("look %s up: %v, found: %t", username, err, found.Found)
	}
	return func() (*opened, error) {
		o := &opened{c: c, uid: c.store.UserID(found.Account.Subject)}
		_, _ = rand.Read(o.secret[:])
		sid, err := c.store.Sessions.NewID(o.uid)
		if err != nil {
			return nil, err
		}
		jti, err := c.store.Sessions.NewID(o.uid)
		if err != nil {
			return nil, err
		}
		g, err := c.store.Sessions.Login(ctx, tokenstore.NewSession{
			SID: sid, UID: o.uid, Hash: sha256.Sum256(o.secret[:]), Subject: found.Account.Subject, Username: username,
			ClientID: "latchkey", Device: "Firefox 128 on Linux", Address: "192.0.2.7", ReadAt: found.ReadAt,
		})
		if err != nil {
			return nil, err
		}
		o.access = tokenstore.AccessToken{
			JTI: jti, SID: sid, UID: o.uid, UserEpoch: g.UserEpoch, LogEpoch: g.LogEpoch, Expires: g.Now.Add(15 * time.Minute),
		}
		return o, nil
	}
}

// open logs a user in.
func (c *console) open(username string) *opened {
	c.t.Helper()
	o, err := c.begin(username)()
	if err != nil {
		c.t.Fatalf("log %s in: %v", username, err)
	}
	o.lives()
	return o
}

// lives fails the test unless the session's access token is accepted.
func (o *opened) lives() {
	o.c.t.Helper()
	if err := o.c.store.Revocations.Verify(o.c.t.Context(), o.access); err != nil {
		o.c.t.Errorf("the access token is refused: %v", err)
	}
}

// ended fails the test unless both of the session's tokens are refused.
func (o *opened) ended() {
	o.c.t.Helper()
	ctx := o.c.t.Context()
	if err := o.c.store.Revocations.Verify(ctx, o.access); !errors.Is(err, tokenstore.ErrRevoked) {
		o.c.t.Errorf("the access token: %v, want revoked", err)
	}
	_, _, err := o.c.store.Sessions.Rotate(ctx, tokenstore.Rotation{SID: o.access.SID, UID: o.uid, Gen: 1, Hash: sha256.Sum256(o.secret[:])})
	if !errors.Is(err, tokenstore.ErrSuperseded) && !errors.Is(err, tokenstore.ErrRevoked) && !errors.Is(err, tokenstore.ErrNoSession) {
		o.c.t.Errorf("the refresh token: %v, want it refused", err)
	}
}
