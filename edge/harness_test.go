package edge

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const (
	issuer   = "https://issuer.example"
	audience = "https://api.example"
)

// node is one replica: a store, a follower and a verifier on one Redis.
type node struct {
	t        testing.TB
	rdb      *redis.Client
	store    *tokenstore.Store
	ring     *accesstoken.Ring
	signer   *accesstoken.Signer
	follower *Follower
	verifier *Verifier
	confirm  *Confirmer
	door     *door // between this node and Redis
	stop     context.CancelFunc
	ended    chan struct{}
}

type nodeOptions struct {
	lease      time.Duration
	life       tokenstore.Lifetimes
	maxDenied  int
	stale      time.Duration
	wait       int
	strict     bool
	timeout    time.Duration
	storeTweak func(*tokenstore.Options)
	observe    FollowerObserver
	clock      func() instant                                          // of the follower
	dial       func(context.Context, string, string) (net.Conn, error) // to Redis
}

func defaultLife() tokenstore.Lifetimes {
	return tokenstore.Lifetimes{Access: 15 * time.Minute, Refresh: time.Hour, Session: 2 * time.Hour, Grace: 10 * time.Second}
}

// door is the way from a node to Redis. While it is shut, Redis cannot be reached: the
// connections of before are closed and new ones refused, so nobody waits for a timeout.
type door struct {
	dial   func(context.Context, string, string) (net.Conn, error)
	mu     sync.Mutex
	isShut bool
	conns  []net.Conn
}

func (d *door) enter(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := d.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isShut {
		_ = c.Close()
		return nil, errors.New("the door is shut")
	}
	d.conns = append(d.conns, c)
	return c, nil
}

func (d *door) shut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.isShut = true
	for _, c := range d.conns {
		_ = c.Close()
	}
	d.conns = nil
}

func (d *door) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.isShut = false
}

// newNode starts a replica; it stops with the test.
func newNode(t testing.TB, url string, ring *accesstoken.Ring, o nodeOptions) *node {
	t.Helper()
	if o.life == (tokenstore.Lifetimes{}) {
		o.life = defaultLife()
	}
	if o.timeout == 0 {
		o.timeout = 5 * time.Second // a busy machine is no outage; an outage is refused at once, see door
	}
	opt, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	opt.ReadTimeout, opt.DialTimeout, opt.MaxRetries, opt.ContextTimeoutEnabled = o.timeout, o.timeout, 1, true
	opt.DialerRetries, opt.Protocol, opt.DisableIdentity = 1, 2, true
	opt.PoolSize = 64
	d := &door{dial: o.dial}
	if d.dial == nil {
		d.dial = (&net.Dialer{Timeout: o.timeout}).DialContext
	}
	opt.Dialer = d.enter
	n := &node{t: t, door: d, rdb: redis.NewClient(opt), ring: ring, ended: make(chan struct{})}
	so := tokenstore.Options{Shards: 16, Lifetimes: o.life, Timeout: 3 * o.timeout, WaitReplicas: o.wait}
	if o.storeTweak != nil {
		o.storeTweak(&so)
	}
	n.store, err = tokenstore.New(n.rdb, so)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.store.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.signer = accesstoken.NewSigner(ring)
	if !o.strict {
		n.follower = NewFollower(FollowerOptions{Revocations: n.store.Revocations, Lease: o.lease, MaxDenied: o.maxDenied, Observe: o.observe})
		if o.clock != nil {
			n.follower.clock = o.clock
		}
	}
	n.verifier, err = New(Options{
		Revocations: n.store.Revocations, Ring: ring, Issuer: issuer, Audience: audience, Follower: n.follower, ServeStale: o.stale,
	})
	if err != nil {
		t.Fatal(err)
	}
	lease := o.lease
	if lease == 0 {
		lease = defaultLease
	}
	n.confirm = NewConfirmer(n.store.Revocations, lease).Beside(n.follower)
	if o.clock != nil && !o.strict {
		// One clock: a follower that the machine holds up is waited for, and not taken for dead
		// while its own clock, and so its lease, stands still.
		n.confirm.clock = o.clock
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	go func() {
		defer close(n.ended)
		if n.follower != nil {
			n.follower.Run(ctx)
		}
	}()
	t.Cleanup(func() {
		n.kill()
		_ = n.rdb.Close()
	})
	return n
}

// kill ends the follower without a word to anybody.
func (n *node) kill() {
	n.stop()
	<-n.ended
}

// ready waits for the boot.
func (n *node) ready() *node {
	n.t.Helper()
	select {
	case <-n.follower.Ready():
	case <-time.After(2 * time.Minute):
		n.t.Fatal("the follower does not boot")
	}
	return n
}

func newRing(t testing.TB) *accesstoken.Ring {
	t.Helper()
	key, err := accesstoken.Generate(accesstoken.EdDSA, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ring := accesstoken.NewRing()
	ring.Add(key)
	if err := ring.Activate(key.ID()); err != nil {
		t.Fatal(err)
	}
	return ring
}

// session is one login with an access token.
type session struct {
	sid, uid tokenstore.ID
	jti      tokenstore.ID
	exp      time.Time
	token    string
}

// login makes a session and signs an access token for it.
func (n *node) login(sub string) session {
	n.t.Helper()
	uid := n.store.UserID(sub)
	sid, err := n.store.Sessions.NewID(uid)
	if err != nil {
		n.t.Fatal(err)
	}
	jti, err := n.store.Sessions.NewID(uid)
	if err != nil {
		n.t.Fatal(err)
	}
	g, err := n.store.Sessions.Login(context.Background(), tokenstore.NewSession{
		SID: sid, UID: uid, Hash: sha256.Sum256(sid[:]), Subject: sub, Username: sub, ClientID: "latchkey", ReadAt: time.Now().Add(time.Hour),
	})
	if err != nil {
		n.t.Fatal(err)
	}
	exp := g.Now.Unix() + int64(n.store.Lifetimes().Access/time.Second)
	token, err := n.signer.Sign(accesstoken.Claims{
		Issuer: issuer, Subject: sub, Audience: []string{audience}, ID: jti.String(), SessionID: sid.String(),
		ClientID: "latchkey", UserEpoch: g.UserEpoch, LogEpoch: g.LogEpoch, IssuedAt: g.Now.Unix(), ExpiresAt: exp, AuthTime: g.Now.Unix(),
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return session{sid: sid, uid: uid, jti: jti, exp: time.Unix(exp, 0), token: token}
}

// logout revokes and confirms.
func (n *node) logout(s session) error {
	r, err := n.store.Sessions.Revoke(context.Background(), tokenstore.SessionEnd{SID: s.sid, UID: s.uid, JTI: s.jti, Expires: s.exp})
	if err != nil {
		return err
	}
	return n.confirm.Confirm(context.Background(), r)
}

func (n *node) verify(s session) error {
	_, err := n.verifier.Verify(context.Background(), s.token)
	return err
}

func startRedis(t testing.TB) *redistest.Server {
	t.Helper()
	return redistest.Start(t)
}
