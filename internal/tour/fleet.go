// Package tour runs what `latchkey dev` shows: a [Fleet] of replicas on an embedded Redis, and a walk through the life
// of a session on them, step by step, over HTTP. Each step is checked and shown with the curl command that does the
// same.
package tour

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"golang.org/x/sync/errgroup"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/replica"
	"github.com/latchkey-auth/latchkey/internal/terminal"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// The demo account.
const (
	DemoUser     = "johndoe"
	DemoPassword = "secret"
	demoScopes   = "profile reports:read"
)

// MaxReplicas is how many replicas can be named by one letter and still be printed in one table.
const MaxReplicas = 9

// ErrFailed says that a step of the tour failed, or that the tour was interrupted. It has been shown.
var ErrFailed = errors.New("the tour failed")

// Options of a fleet and its tour.
type Options struct {
	Addr     string // of the first replica; the others take the ports after it; port 0: any free ports
	Replicas int    // 1 to MaxReplicas
	Exit     bool   // end after the tour
	Verbose  bool   // show what the replicas log during the tour
	Out      io.Writer
	Log      io.Writer
	Version  string // of the program
}

// Run starts a fleet, takes the tour, and serves until ctx ends, or until the end of the tour with o.Exit.
func Run(ctx context.Context, o Options) error {
	f, err := Start(ctx, o)
	if err != nil {
		return err
	}
	shown := f.present(o)
	if err := f.Close(); err != nil {
		return err
	}
	return shown
}

// Fleet is what `latchkey dev` runs: replicas on one embedded Redis.
type Fleet struct {
	ctx      context.Context // ends with the caller's, or with the first replica that fails
	stop     context.CancelFunc
	running  *errgroup.Group
	redis    *miniredis.Miniredis
	replicas []*replica.Replica
	log      *heldLog
	version  string // of the program
}

// Start starts the embedded Redis and the replicas, and makes the demo
// account. The fleet ends by Close.
func Start(ctx context.Context, o Options) (*Fleet, error) {
	addrs, err := devAddrs(o.Addr, o.Replicas)
	if err != nil {
		return nil, err
	}
	mini, err := startRedis()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	f := &Fleet{version: o.Version, stop: stop, redis: mini, log: &heldLog{to: o.Log, through: o.Verbose}}
	f.running, f.ctx = errgroup.WithContext(ctx)
	if err := f.open(addrs); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	for _, r := range f.replicas {
		f.running.Go(func() error { return r.Run(f.ctx) })
	}
	return f, nil
}

// open wires the replicas and makes the account; the replicas do not serve yet.
func (f *Fleet) open(addrs []string) error {
	logger := replica.NewLogger(devConfig(addrs, 0, f.redis.Addr()), f.log)
	for i := range addrs {
		cfg := devConfig(addrs, i, f.redis.Addr())
		r, err := replica.New(f.ctx, replica.Options{Config: cfg, Log: logger.With(slog.String("replica", replicaName(i))), Version: f.version})
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("%s is in use, and dev needs %s in a row from %s; choose others with --addr 127.0.0.1:18080, "+
				"or any free ones with --addr 127.0.0.1:0", cfg.Addr, terminal.Plural(len(addrs), "port"), addrs[0])
		}
		if err != nil {
			return err
		}
		f.replicas = append(f.replicas, r)
	}
	return makeDemoAccount(f.ctx, f.replicas[0].Store().Accounts)
}

// Close ends the replicas in order, and then Redis. Replicas that never served
// are closed too.
func (f *Fleet) Close() error {
	f.stop()
	err := f.running.Wait()
	for _, r := range f.replicas {
		r.Close()
	}
	f.redis.Close()
	return err
}

// devConfig is the settings of one replica of several. The first has an admin
// listener, on any free port.
func devConfig(addrs []string, i int, redis string) *config.Config {
	cfg := config.Dev()
	cfg.Addr = addrs[i]
	cfg.AdminAddr = ""
	if i == 0 {
		cfg.AdminAddr = "127.0.0.1:0"
	}
	if _, port, _ := net.SplitHostPort(addrs[0]); port != "0" {
		cfg.Issuer = "http://" + addrs[0]
		cfg.Audience = cfg.Issuer
	}
	cfg.RedisURL = config.RedisURL("redis://" + redis)
	// This Redis shares the process and its CPUs: when it is late that is no outage.
	cfg.RedisTimeout = 2 * time.Second
	cfg.ShutdownTimeout = 2 * time.Second
	return cfg
}

// devAddrs are n addresses on consecutive ports; with port 0, n times any.
func devAddrs(first string, n int) ([]string, error) {
	if n < 1 || n > MaxReplicas {
		return nil, fmt.Errorf("--replicas %d: from 1 to %d", n, MaxReplicas)
	}
	host, portText, err := net.SplitHostPort(first)
	if err != nil {
		return nil, fmt.Errorf("--addr %q: write host:port, as in 127.0.0.1:8080", first)
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("--addr %q: the secret and the password of dev are published, so it listens on the loopback interface alone; "+
			"write 127.0.0.1:%s", first, portText)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || int(port)+n-1 > 65535 {
		return nil, fmt.Errorf("--addr %q: %d ports from %s on are not ports between 0 and 65535", first, n, portText)
	}
	addrs := make([]string, n)
	for i := range addrs {
		p := int(port)
		if p != 0 {
			p += i
		}
		addrs[i] = net.JoinHostPort(host, strconv.Itoa(p))
	}
	return addrs, nil
}

// replicaName is A for the first replica, B for the second.
func replicaName(i int) string { return "ABCDEFGHI"[i : i+1] }

// makeDemoAccount makes the account that the tour logs in to, with a real hash.
func makeDemoAccount(ctx context.Context, accounts *tokenstore.Accounts) error {
	hasher, err := credential.NewHasher(credential.Options{})
	if err != nil {
		return err
	}
	hash, err := hasher.Hash(ctx, DemoPassword)
	if err != nil {
		return fmt.Errorf("hash the demo password: %w", err)
	}
	return accounts.Create(ctx, tokenstore.Account{Username: DemoUser, Hash: hash, Scopes: demoScopes})
}

// present greets, takes the tour, and then serves until the fleet's context
// ends, unless the options say to end with the tour.
func (f *Fleet) present(o Options) error {
	p := terminal.NewPrinter(o.Out)
	t := newTour(f, p)
	t.greet()
	err := t.run(f.ctx)
	if f.ctx.Err() != nil {
		p.Line("interrupted")
		return ErrFailed
	}
	if err != nil {
		f.log.release()
		p.Line("")
		p.Line(p.Red("The tour failed: " + err.Error()))
		if o.Exit {
			return ErrFailed
		}
	} else {
		t.conclude(o.Exit)
		if o.Exit {
			return nil
		}
	}
	p.Line("")
	p.Line("Serving until Ctrl-C. What the replicas log comes here:")
	f.log.pass()
	<-f.ctx.Done()
	if err != nil {
		return ErrFailed
	}
	return nil
}

// URLs are the base URLs of the replicas' APIs.
func (f *Fleet) URLs() []string {
	list := make([]string, len(f.replicas))
	for i, r := range f.replicas {
		list[i] = "http://" + r.Addr()
	}
	return list
}

// Store is the token store of the replicas.
func (f *Fleet) Store() *tokenstore.Store { return f.replicas[0].Store() }
