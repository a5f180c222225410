//go:build unix

package redistest

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// PrimaryName is what the Sentinels call the primary.
const PrimaryName = "latchkey"

const (
	quorum = 2
	// downAfter is how long a primary may be silent: less, and a busy machine makes Sentinels see failures.
	downAfter = time.Second
	// failoverTimeout bounds one failover; the next of the same primary may begin twice as long after it.
	failoverTimeout = 2 * time.Second
	// settleTimeout bounds every wait for a topology to come to rest, elections that are repeated included.
	settleTimeout = 90 * time.Second
)

// Sentinel is a primary with two replicas, watched by three Sentinels.
type Sentinel struct {
	Nodes     []*Server // the first began as the primary
	Sentinels []*Server
	options   Options
	t         testing.TB
}

// StartSentinel starts six processes and returns when the replicas are in step and the Sentinels know each other.
// Options.TLS and Options.ACL hold for the Sentinels' connections to the nodes; to the Sentinels themselves TLS only.
func StartSentinel(t testing.TB, o Options) *Sentinel {
	t.Helper()
	s := &Sentinel{options: o, t: t}
	quick := o
	quick.Args = append([]string{"--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"}, o.Args...)
	primary := newServer(t, quick)
	startAll(t, primary)
	s.Nodes = []*Server{primary}
	for range 2 {
		replica := newServer(t, quick)
		replica.args = append(replica.args, "--replicaof", "127.0.0.1", strconv.Itoa(primary.public()))
		s.Nodes = append(s.Nodes, replica)
	}
	var conf strings.Builder
	fmt.Fprintf(&conf, "sentinel monitor %s 127.0.0.1 %d %d\n", PrimaryName, primary.public(), quorum)
	fmt.Fprintf(&conf, "sentinel down-after-milliseconds %s %d\n", PrimaryName, downAfter.Milliseconds())
	fmt.Fprintf(&conf, "sentinel failover-timeout %s %d\n", PrimaryName, failoverTimeout.Milliseconds())
	fmt.Fprintf(&conf, "sentinel parallel-syncs %s 2\n", PrimaryName)
	if o.ACL != "" {
		fmt.Fprintf(&conf, "sentinel auth-user %s %s\nsentinel auth-pass %s %s\n", PrimaryName, admin, PrimaryName, adminPassword)
	}
	for range 3 {
		watcher := newServer(t, Options{TLS: o.TLS, Front: o.Front})
		watcher.sentinel = conf.String()
		s.Sentinels = append(s.Sentinels, watcher)
	}
	startAll(t, append(s.Nodes[1:], s.Sentinels...)...)
	for _, w := range s.Sentinels {
		// Sentinels learn of replicas and of each other every 10 s and 2 s; here, sooner. When they see a failure, and
		// what they then do, is as ever.
		w.must(t.Context(), t, "SENTINEL", "DEBUG", "INFO-PERIOD", 1000, "PUBLISH-PERIOD", 500)
	}
	s.AwaitSettled(t)
	return s
}

// URL names the Sentinels, as redis.ParseFailoverURL reads it.
func (s *Sentinel) URL() string {
	first := s.Sentinels[0]
	q := url.Values{"master_name": {PrimaryName}}
	for _, other := range s.Sentinels[1:] {
		q.Add("addr", other.publicAddr())
	}
	node := s.Nodes[0]
	if u := node.userinfo(); u != nil {
		password, _ := u.Password()
		q.Set("username", u.Username())
		q.Set("password", password)
	}
	return (&url.URL{Scheme: first.scheme(), Host: first.publicAddr(), Path: "/0", RawQuery: q.Encode()}).String()
}

// Client returns a client that the Sentinels lead to the primary, closed with the test.
func (s *Sentinel) Client() *redis.Client {
	node := s.Nodes[0].options()
	o := &redis.FailoverOptions{
		MasterName: PrimaryName, Username: node.Username, Password: node.Password, TLSConfig: node.TLSConfig,
		Protocol: 2, DisableIdentity: true, ContextTimeoutEnabled: true,
	}
	for _, w := range s.Sentinels {
		o.SentinelAddrs = append(o.SentinelAddrs, w.Addr())
	}
	c := redis.NewFailoverClient(o)
	s.t.Cleanup(func() { _ = c.Close() }) // a test may have closed it already
	return c
}

// Primary returns the node that most Sentinels name and that itself says it is a primary; the test fails if none
// becomes that in 90 s.
func (s *Sentinel) Primary(t testing.TB) *Server {
	t.Helper()
	return s.AwaitPrimary(t, nil)
}

// AwaitPrimary is [Sentinel.Primary], but waits for another than old.
func (s *Sentinel) AwaitPrimary(t testing.TB, old *Server) *Server {
	t.Helper()
	var found *Server
	await(t, "a primary", func(ctx context.Context) error {
		var err error
		found, err = s.named(ctx, old)
		return err
	})
	return found
}

// named returns the node that most Sentinels name, that itself says it is a primary, and that is not old.
func (s *Sentinel) named(ctx context.Context, old *Server) (*Server, error) {
	votes := s.votes(ctx)
	for _, n := range s.Nodes {
		if n != old && votes[strconv.Itoa(n.public())] >= quorum && n.replication(ctx)["role"] == "master" {
			return n, nil
		}
	}
	return nil, fmt.Errorf("the Sentinels name %v", votes)
}

// votes counts, for each port, the Sentinels that name it as the primary's.
func (s *Sentinel) votes(ctx context.Context) map[string]int {
	votes := map[string]int{}
	for _, w := range s.Sentinels {
		if addr, err := w.command(ctx, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", PrimaryName).StringSlice(); err == nil && len(addr) == 2 {
			votes[addr[1]]++
		}
	}
	return votes
}

// Failover asks a Sentinel to promote a replica while the primary lives, and returns the new primary.
func (s *Sentinel) Failover(t testing.TB) *Server {
	t.Helper()
	old := s.Primary(t)
	var found *Server
	// It is asked for until it has happened: a Sentinel refuses while a failover has just ended, or while it has yet to
	// learn of the replicas, and gives up one that another Sentinel, which did not know of it yet, has undone.
	await(t, "another primary", func(ctx context.Context) error {
		var err error
		if found, err = s.named(ctx, old); err == nil {
			return nil
		}
		if votes := s.votes(ctx); votes[strconv.Itoa(old.public())] < len(s.Sentinels) {
			return err // under way
		}
		for _, w := range s.Sentinels {
			refused := w.command(ctx, "SENTINEL", "FAILOVER", PrimaryName).Err()
			if refused == nil || strings.HasPrefix(refused.Error(), "INPROG") {
				return err
			}
			err = fmt.Errorf("%w; %s refuses: %w", err, w.Addr(), refused)
		}
		return err
	})
	return found
}

// Consulted returns the Sentinel that most clients have subscribed to: whose word they go by.
func (s *Sentinel) Consulted(t testing.TB) *Server {
	t.Helper()
	var most *Server
	clients := 0
	for _, w := range s.Sentinels {
		list, err := w.command(t.Context(), "CLIENT", "LIST").Text()
		if err != nil {
			t.Fatalf("redistest: the clients of the Sentinel %s: %v", w.Addr(), err)
		}
		if n := strings.Count(list, " sub=2 "); n >= clients {
			most, clients = w, n
		}
	}
	return most
}

// AwaitSettled returns when there is one primary, every live node follows it, and every live Sentinel names it, is not
// failing it over, knows the others and sees every live replica as one.
func (s *Sentinel) AwaitSettled(t testing.TB) {
	t.Helper()
	await(t, "the topology to settle", func(ctx context.Context) error {
		primary, err := s.named(ctx, nil) // on a busy machine one failover may follow another
		if err != nil {
			return err
		}
		replicas := 0
		for _, n := range s.Nodes {
			if n == primary || !n.answers() {
				continue
			}
			replicas++
			info := n.replication(ctx)
			if info["master_port"] != strconv.Itoa(primary.public()) || info["master_link_status"] != "up" {
				return fmt.Errorf("%s does not follow %s: %s", n.Addr(), primary.Addr(), info["master_link_status"])
			}
		}
		for _, w := range s.Sentinels {
			if !w.answers() {
				continue
			}
			known, err := w.command(ctx, "SENTINEL", "MASTER", PrimaryName).StringSlice()
			if err != nil {
				return err
			}
			fields := pairs(known)
			if fields["port"] != strconv.Itoa(primary.public()) || fields["flags"] != "master" {
				return fmt.Errorf("the Sentinel %s sees the primary %s as %s", w.Addr(), fields["port"], fields["flags"])
			}
			if got := w.knownReplicas(ctx); got < replicas {
				return fmt.Errorf("the Sentinel %s knows %d replicas of %d", w.Addr(), got, replicas)
			}
			if got, _ := strconv.Atoi(fields["num-other-sentinels"]); got < len(s.Sentinels)-1 {
				return fmt.Errorf("the Sentinel %s knows %d others", w.Addr(), got)
			}
		}
		return nil
	})
}

// knownReplicas counts the replicas that this Sentinel takes for such. One that it last saw as a primary it would soon
// order to follow, even if a failover has promoted it meanwhile.
func (s *Server) knownReplicas(ctx context.Context) int {
	list, err := s.command(ctx, "SENTINEL", "REPLICAS", PrimaryName).Slice()
	if err != nil {
		return 0
	}
	known := 0
	for _, one := range list {
		flat, _ := one.([]any)
		if fields := pairs(flat); fields["role-reported"] == "slave" && fields["flags"] == "slave" {
			known++
		}
	}
	return known
}

// Failovers counts what the Sentinels have decided: it goes up with every failover, and now and then by more.
func (s *Sentinel) Failovers(t testing.TB) int {
	t.Helper()
	most := 0
	await(t, "the Sentinels to tell their epoch", func(ctx context.Context) error {
		known, err := s.Sentinels[0].command(ctx, "SENTINEL", "MASTER", PrimaryName).StringSlice()
		if err == nil {
			most, err = strconv.Atoi(pairs(known)["config-epoch"])
		}
		return err
	})
	return most
}

// command asks a Sentinel or a node over a connection of its own, since either may be killed or paused meanwhile.
func (s *Server) command(ctx context.Context, args ...any) *redis.Cmd {
	cmd := redis.NewCmd(ctx, args...)
	if !s.answers() {
		cmd.SetErr(errNotRunning)
		return cmd
	}
	o := s.options()
	o.MaxRetries, o.DialerRetries, o.PoolSize, o.ReadTimeout = -1, 1, 1, time.Second
	c := redis.NewClient(o)
	defer func() { _ = c.Close() }()
	_ = c.Process(ctx, cmd)
	return cmd
}

// replication is that section of INFO, empty if the server does not answer.
func (s *Server) replication(ctx context.Context) map[string]string {
	text, _ := s.command(ctx, "INFO", "replication").Text()
	fields := map[string]string{}
	for line := range strings.SplitSeq(text, "\r\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			fields[name] = value
		}
	}
	return fields
}

// answers tells whether the process runs and is not paused.
func (s *Server) answers() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc != nil && !s.paused
}

// pairs makes a map of a flat list of names and values.
func pairs[T comparable](list []T) map[T]T {
	m := make(map[T]T, len(list)/2)
	for i := 0; i+1 < len(list); i += 2 {
		m[list[i]] = list[i+1]
	}
	return m
}
