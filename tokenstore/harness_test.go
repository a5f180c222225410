package tokenstore_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
	"github.com/redis/go-redis/v9"
)

// lifetimes are the defaults of the product.
func lifetimes() tokenstore.Lifetimes {
	return tokenstore.Lifetimes{
		Access: 15 * time.Minute, Refresh: 168 * time.Hour, Session: 720 * time.Hour, Grace: 10 * time.Second,
	}
}

// fixture is a store on one backend.
type fixture struct {
	*tokenstore.Store
	t     testing.TB
	rdb   redis.UniversalClient // the test's
	store redis.UniversalClient // the store's; often the same
}

// backend is the clients of a server: the store's, and the test's, which may do everything.
type backend struct{ store, test redis.UniversalClient }

// backends are the servers on which the contract must hold.
func backends() map[string]func(testing.TB) backend {
	one := func(c redis.UniversalClient) backend { return backend{store: c, test: c} }
	all := map[string]func(testing.TB) backend{
		"miniredis": func(t testing.TB) backend {
			c := redis.NewClient(&redis.Options{Addr: redistest.Mini(t).Addr()})
			t.Cleanup(func() { _ = c.Close() })
			return one(c)
		},
		"redis": func(t testing.TB) backend { return one(redistest.Start(t).Client()) },
	}
	for name, p := range topologies {
		all[name] = p.take
	}
	return all
}

// onEach runs a contract test on every backend.
func onEach(t *testing.T, test func(t *testing.T, f *fixture)) {
	t.Helper()
	t.Parallel()
	for name, open := range backends() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newFixtureOn(t, open(t), lifetimes()))
		})
	}
}

// newFixture is a store whose client is the test's too.
func newFixture(t testing.TB, rdb redis.UniversalClient, life tokenstore.Lifetimes) *fixture {
	t.Helper()
	return newFixtureOn(t, backend{store: rdb, test: rdb}, life)
}

func newFixtureOn(t testing.TB, b backend, life tokenstore.Lifetimes) *fixture {
	t.Helper()
	return newFixtureWith(t, b, tokenstore.Options{Lifetimes: life})
}

func newFixtureWith(t testing.TB, b backend, o tokenstore.Options) *fixture {
	t.Helper()
	// The timeout is generous: a busy machine is not an outage.
	o.Shards, o.Timeout = 16, 10*time.Second
	s, err := tokenstore.New(b.store, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &fixture{Store: s, t: t, rdb: b.test, store: b.store}
}

// family is a session as its client holds it: the chain of refresh secrets.
type family struct {
	f       *fixture
	sid     tokenstore.ID
	uid     tokenstore.ID
	sub     string
	secrets [][32]byte // secrets[n] is of generation n+1
	grants  []tokenstore.Grant
	jtis    []tokenstore.ID
}

// login makes a session for a subject.
func (f *fixture) login(sub string) *family {
	f.t.Helper()
	fam, err := f.tryLogin(sub, f.Now().Add(time.Hour))
	if err != nil {
		f.t.Fatalf("login: %v", err)
	}
	return fam
}

// loginBy makes a session that a client was issued.
func (f *fixture) loginBy(sub, client, scope string) *family {
	f.t.Helper()
	fam, err := f.loginWith(tokenstore.NewSession{Subject: sub, ClientID: client, Scope: scope, Claims: `{"a":1}`, ReadAt: f.Now().Add(time.Hour)})
	if err != nil {
		f.t.Fatalf("login: %v", err)
	}
	return fam
}

func (f *fixture) tryLogin(sub string, readAt time.Time) (*family, error) {
	f.t.Helper()
	return f.loginWith(tokenstore.NewSession{Subject: sub, ClientID: "latchkey", ReadAt: readAt})
}

// loginWith makes a session, with ids and a secret of its own.
func (f *fixture) loginWith(n tokenstore.NewSession) (*family, error) {
	f.t.Helper()
	sub := n.Subject
	uid := f.UserID(sub)
	sid, err := f.Sessions.NewID(uid)
	if err != nil {
		f.t.Fatal(err)
	}
	fam := &family{f: f, sid: sid, uid: uid, sub: sub, secrets: [][32]byte{random32(f.t)}}
	n.SID, n.UID, n.Hash, n.Username = sid, uid, sha256.Sum256(fam.secrets[0][:]), sub
	n.Device, n.Address = "curl/8.5.0", "192.0.2.1"
	g, err := f.Sessions.Login(f.t.Context(), n)
	if err != nil {
		return nil, err
	}
	fam.took(g)
	return fam, nil
}

func (fam *family) took(g tokenstore.Grant) {
	jti, err := fam.f.Sessions.NewID(fam.uid)
	if err != nil {
		fam.f.t.Fatal(err)
	}
	fam.grants = append(fam.grants, g)
	fam.jtis = append(fam.jtis, jti)
}

// show presents the refresh token of a generation, counted from 1.
func (fam *family) show(gen int) (tokenstore.Grant, error) {
	fam.f.t.Helper()
	g, _, err := fam.f.Sessions.Rotate(context.Background(), fam.rotation(gen))
	if err == nil {
		fam.took(g)
	}
	return g, err
}

// rotate lets the grace pass and shows the current token, of generation gen.
func (fam *family) rotate(gen int) (tokenstore.Grant, error) {
	fam.f.t.Helper()
	fam.age(fam.f.Lifetimes().Grace + time.Second)
	return fam.show(gen)
}

func (fam *family) rotation(gen int) tokenstore.Rotation {
	for len(fam.secrets) <= gen {
		fam.secrets = append(fam.secrets, random32(fam.f.t))
	}
	return tokenstore.Rotation{
		SID: fam.sid, UID: fam.uid, Gen: uint32(gen),
		Hash: sha256.Sum256(fam.secrets[gen-1][:]), Next: sha256.Sum256(fam.secrets[gen][:]),
	}
}

// access is the n-th access token minted for the session.
func (fam *family) access(n int) tokenstore.AccessToken {
	g := fam.grants[n]
	return tokenstore.AccessToken{
		JTI: fam.jtis[n], SID: fam.sid, UID: fam.uid, UserEpoch: g.UserEpoch, LogEpoch: g.LogEpoch,
		Expires: g.Now.Truncate(time.Second).Add(fam.f.Lifetimes().Access),
	}
}

func (fam *family) verify(n int) error {
	return fam.f.Revocations.Verify(fam.f.t.Context(), fam.access(n))
}

// logout revokes the session, with its last access token if bearer.
func (fam *family) logout(bearer bool) tokenstore.Revocation {
	fam.f.t.Helper()
	e := tokenstore.SessionEnd{SID: fam.sid, UID: fam.uid}
	if bearer {
		last := fam.access(len(fam.grants) - 1)
		e.JTI, e.Expires = last.JTI, last.Expires
	}
	r, err := fam.f.Sessions.Revoke(fam.f.t.Context(), e)
	if err != nil {
		fam.f.t.Fatalf("revoke: %v", err)
	}
	return r
}

// key returns the name of a key of this family's shard.
func (fam *family) key(kind string, id fmt.Stringer) string {
	return fmt.Sprintf("lk:{%d}:%s:%s", fam.sid.Shard(), kind, id)
}

// age makes a session look as if its last rotation were d ago.
func (fam *family) age(d time.Duration) {
	fam.f.t.Helper()
	key := fam.key("rt", fam.sid)
	if err := fam.f.rdb.HIncrBy(fam.f.t.Context(), key, "rot", -d.Milliseconds()).Err(); err != nil {
		fam.f.t.Fatal(err)
	}
}

func (f *fixture) exists(key string) bool {
	f.t.Helper()
	n, err := f.rdb.Exists(f.t.Context(), key).Result()
	if err != nil {
		f.t.Fatal(err)
	}
	return n == 1
}

// ttl returns how long a key will live, -1 ns for ever, -2 ns if there is none.
func (f *fixture) ttl(key string) time.Duration {
	f.t.Helper()
	d, err := f.rdb.PTTL(f.t.Context(), key).Result()
	if err != nil {
		f.t.Fatal(err)
	}
	return d
}

// allKeys lists every key of the backend.
func (f *fixture) allKeys() []string {
	f.t.Helper()
	var mu sync.Mutex
	var keys []string
	list := func(ctx context.Context, c *redis.Client) error {
		some, err := c.Keys(ctx, "*").Result()
		mu.Lock()
		defer mu.Unlock()
		keys = append(keys, some...)
		return err
	}
	var err error
	if cluster, ok := f.rdb.(*redis.ClusterClient); ok {
		err = cluster.ForEachMaster(f.t.Context(), list)
	} else {
		keys, err = f.rdb.Keys(f.t.Context(), "*").Result()
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return keys
}

func random32(t testing.TB) (b [32]byte) {
	t.Helper()
	if _, err := rand.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	return b
}

// near fails unless two durations are alike within slack.
func near(t testing.TB, what string, got, want, slack time.Duration) {
	t.Helper()
	if got < want-slack || got > want+slack {
		t.Errorf("%s: got %v, want %v within %v", what, got, want, slack)
	}
}

// is fails unless err is target (nil is nil).
func is(t testing.TB, what string, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("%s: got error %v, want %v", what, err, target)
	}
}

// trips counts round trips: commands, and pipelines as one.
type trips struct{ n atomic.Int64 }

func (c *trips) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *trips) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmd)
	}
}

func (c *trips) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmds)
	}
}

// keysOf sees the keys that each script declares.
type keysOf struct {
	see func(script string, keys []string)
}

func (k keysOf) DialHook(next redis.DialHook) redis.DialHook { return next }

func (k keysOf) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		k.look(cmd)
		return next(ctx, cmd)
	}
}

func (k keysOf) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			k.look(cmd)
		}
		return next(ctx, cmds)
	}
}

func (k keysOf) look(cmd redis.Cmder) {
	if name := cmd.Name(); name != "evalsha" && name != "eval" {
		return
	}
	a := cmd.Args()
	n, _ := a[2].(int)
	keys := make([]string, 0, n)
	for _, key := range a[3 : 3+n] {
		text, _ := key.(string)
		keys = append(keys, text)
	}
	k.see(fmt.Sprint(a[1]), keys)
}

// deafAddr returns an address at which nothing listens.
func deafAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}
