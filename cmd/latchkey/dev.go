package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/replica"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// The demo account of `latchkey dev`.
const (
	demoUser     = "johndoe"
	demoPassword = "secret"
	demoScopes   = "profile reports:read"
)

// maxDevReplicas is how many replicas `latchkey dev` can name by one letter and
// still print in one table.
const maxDevReplicas = 9

// devOptions are the flags of `latchkey dev`, and where it prints.
type devOptions struct {
	addr     string // of the first replica
	replicas int
	exit     bool // end after the tour
	verbose  bool // show what the replicas log during the tour
	out      io.Writer
	log      io.Writer
}

func newDev() *cobra.Command {
	var o devOptions
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run replicas on an embedded Redis and take a tour",
		Long: `Run replicas on an embedded Redis, with the user johndoe and the password secret,
and take a tour over HTTP: log in at one replica, refresh at another, log out at
a third, and see both tokens refused by all. Each step shows the curl command
that does the same.

It needs nothing, keeps nothing and reads no LATCHKEY_ setting. Its secret and its
password are published, so it listens on the loopback interface alone, and serve
refuses that secret.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.out, o.log = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return runDev(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.addr, "addr", "127.0.0.1:8080", "where the first replica listens; the others take the ports after it; port 0: any free ports")
	f.IntVar(&o.replicas, "replicas", 3, "how many replicas to run, 1 to "+strconv.Itoa(maxDevReplicas))
	f.BoolVar(&o.exit, "exit", false, "end after the tour, with status 1 if a step failed")
	f.BoolVar(&o.verbose, "verbose", false, "show what the replicas log during the tour")
	return cmd
}

// runDev is the command: it starts everything, takes the tour, and serves until
// ctx ends. A step that failed is an [exitError]: it has been shown.
func runDev(ctx context.Context, o devOptions) error {
	f, err := startFleet(ctx, o)
	if err != nil {
		return err
	}
	told := f.present(o)
	if err := f.close(); err != nil {
		return err
	}
	return told
}

// fleet is what `latchkey dev` runs: replicas on one embedded Redis.
type fleet struct {
	ctx      context.Context // ends with the caller's, or with the first replica that fails
	stop     context.CancelFunc
	running  *errgroup.Group
	redis    *miniredis.Miniredis
	replicas []*replica.Replica
	log      *heldLog
}

// startFleet starts the embedded Redis and the replicas, and makes the demo
// account. The fleet ends by close.
func startFleet(ctx context.Context, o devOptions) (*fleet, error) {
	addrs, err := devAddrs(o.addr, o.replicas)
	if err != nil {
		return nil, err
	}
	mini, err := startDevRedis()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	f := &fleet{stop: stop, redis: mini, log: &heldLog{to: o.log, through: o.verbose}}
	f.running, f.ctx = errgroup.WithContext(ctx)
	if err := f.open(addrs); err != nil {
		return nil, errors.Join(err, f.close())
	}
	for _, r := range f.replicas {
		f.running.Go(func() error { return r.Run(f.ctx) })
	}
	return f, nil
}

// open wires the replicas and makes the account; the replicas do not serve yet.
func (f *fleet) open(addrs []string) error {
	logger := replica.NewLogger(devConfig(addrs, 0, f.redis.Addr()), f.log)
	for i := range addrs {
		cfg := devConfig(addrs, i, f.redis.Addr())
		r, err := replica.New(f.ctx, replica.Options{Config: cfg, Log: logger.With(slog.String("replica", replicaName(i))), Version: buildVersion()})
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("%s is in use, and dev needs %s in a row from %s; choose others with --addr 127.0.0.1:18080, "+
				"or any free ones with --addr 127.0.0.1:0", cfg.Addr, plural(len(addrs), "port"), addrs[0])
		}
		if err != nil {
			return err
		}
		f.replicas = append(f.replicas, r)
	}
	return makeDemoAccount(f.ctx, f.replicas[0].Store())
}

// close ends the replicas in order, and then Redis. Replicas that never served
// are closed too.
func (f *fleet) close() error {
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
	if n < 1 || n > maxDevReplicas {
		return nil, fmt.Errorf("--replicas %d: from 1 to %d", n, maxDevReplicas)
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
func makeDemoAccount(ctx context.Context, store *tokenstore.Store) error {
	hasher, err := credential.NewHasher(credential.Options{})
	if err != nil {
		return err
	}
	hash, err := hasher.Hash(ctx, demoPassword)
	if err != nil {
		return fmt.Errorf("hash the demo password: %w", err)
	}
	return store.CreateAccount(ctx, tokenstore.Account{Username: demoUser, Hash: hash, Scopes: demoScopes})
}

// present greets, takes the tour, and then serves until the fleet's context
// ends, unless the options say to end with the tour.
func (f *fleet) present(o devOptions) error {
	p := &printer{w: o.out, colour: isTerminal(o.out)}
	t := newTour(f, p)
	t.greet()
	err := t.take(f.ctx)
	if f.ctx.Err() != nil {
		p.line("interrupted")
		return &exitError{}
	}
	if err != nil {
		f.log.release()
		p.line("")
		p.line(p.red("The tour failed: " + err.Error()))
		if o.exit {
			return &exitError{}
		}
	} else {
		t.conclude(o.exit)
		if o.exit {
			return nil
		}
	}
	p.line("")
	p.line("Serving until Ctrl-C. What the replicas log comes here:")
	f.log.pass()
	<-f.ctx.Done()
	if err != nil {
		return &exitError{}
	}
	return nil
}

// heldLog keeps what the replicas log out of the tour. It holds the lines back
// until it is told what to do with them.
type heldLog struct {
	mu      sync.Mutex
	to      io.Writer
	through bool // lines are passed on as they come
	held    bytes.Buffer
}

// Write takes one line of log.
func (l *heldLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.through {
		return l.to.Write(p)
	}
	return l.held.Write(p)
}

// release prints what was held back: it tells why the tour failed.
func (l *heldLog) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = l.held.WriteTo(l.to)
}

// pass drops what was held back and passes on what comes from now on.
func (l *heldLog) pass() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held.Reset()
	l.through = true
}

// isTerminal reports whether to print in colour: to a terminal that knows it,
// whose user does not object (no-color.org).
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
