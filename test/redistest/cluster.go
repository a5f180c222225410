//go:build unix

package redistest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Slots is how many slots a Cluster has.
const Slots = 16384

// nodeTimeout is how long a node may be silent, in milliseconds, before others call it failed.
const nodeTimeout = 2000

// Cluster is a Redis Cluster.
type Cluster struct {
	Nodes     []*Server // those that began as primaries come first, each owning an equal range of slots
	primaries int
	t         testing.TB
}

// StartCluster starts a Cluster of primaries and, for each of them, replicas, and returns when all nodes agree on it
// and the replicas are in step.
func StartCluster(t testing.TB, primaries, replicas int, o Options) *Cluster {
	t.Helper()
	c := &Cluster{primaries: primaries, t: t}
	args := []string{
		"--cluster-node-timeout", strconv.Itoa(nodeTimeout), "--repl-diskless-sync-delay", "0",
		"--repl-ping-replica-period", "1", "--cluster-migration-barrier", "100",
	}
	if o.TLS != nil {
		args = append(args, "--tls-cluster", "yes")
	}
	o.Args = append(args, o.Args...)
	for range primaries * (1 + replicas) {
		n := newServer(t, o)
		n.cluster = true
		c.Nodes = append(c.Nodes, n)
	}
	startAll(t, c.Nodes...)

	ctx := t.Context()
	for i, n := range c.Nodes {
		// Distinct from the start: nodes that meet with the same epoch would have to settle it first.
		n.must(ctx, t, "CLUSTER", "SET-CONFIG-EPOCH", i+1)
		if i < primaries {
			n.must(ctx, t, "CLUSTER", "ADDSLOTSRANGE", i*Slots/primaries, (i+1)*Slots/primaries-1)
		}
	}
	for i, n := range c.Nodes {
		for _, other := range c.Nodes[i+1:] { // everybody meets everybody: gossip alone takes seconds
			n.must(ctx, t, "CLUSTER", "MEET", "127.0.0.1", other.public(), other.bus)
		}
	}
	await(t, "the nodes to know each other", func(ctx context.Context) error {
		for _, n := range c.Nodes {
			if known, err := n.nodes(ctx); err != nil {
				return err
			} else if len(known) != len(c.Nodes) || slices.ContainsFunc(known, clusterNode.unknown) {
				return fmt.Errorf("%s does not know all %d others yet", n.Addr(), len(c.Nodes)-1)
			}
		}
		return nil
	})
	for i, n := range c.Nodes[primaries:] {
		id, err := c.Nodes[i%primaries].command(ctx, "CLUSTER", "MYID").Text()
		if err != nil {
			t.Fatalf("redistest: CLUSTER MYID: %v", err)
		}
		n.must(ctx, t, "CLUSTER", "REPLICATE", id)
	}
	c.AwaitSettled(t)
	return c
}

// URL names all nodes, as redis.ParseClusterURL reads it.
func (c *Cluster) URL() string {
	first := c.Nodes[0]
	q := url.Values{}
	for _, n := range c.Nodes[1:] {
		q.Add("addr", n.publicAddr())
	}
	return (&url.URL{Scheme: first.scheme(), Host: first.publicAddr(), User: first.userinfo(), RawQuery: q.Encode()}).String()
}

// Client returns a client of the whole Cluster, closed with the test.
func (c *Cluster) Client() *redis.ClusterClient {
	node := c.Nodes[0].options()
	o := &redis.ClusterOptions{
		Username: node.Username, Password: node.Password, TLSConfig: node.TLSConfig,
		Protocol: 2, DisableIdentity: true, ContextTimeoutEnabled: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	for _, n := range c.Nodes {
		o.Addrs = append(o.Addrs, n.Addr())
	}
	client := redis.NewClusterClient(o)
	c.t.Cleanup(func() { _ = client.Close() }) // a test may have closed it already
	return client
}

// Primaries returns the live nodes that own slots, in the order of Nodes.
func (c *Cluster) Primaries(t testing.TB) []*Server {
	t.Helper()
	var list []*Server
	await(t, "the primaries", func(ctx context.Context) error {
		list = nil
		for _, n := range c.Nodes {
			if me, err := n.myself(ctx); err == nil && me.primary && len(me.slots) > 0 {
				list = append(list, n)
			}
		}
		if len(list) == 0 {
			return errors.New("no live node owns slots")
		}
		return nil
	})
	return list
}

// Owner returns the live primary that owns a slot, which is not old.
func (c *Cluster) Owner(t testing.TB, slot int, old *Server) *Server {
	t.Helper()
	var owner *Server
	await(t, "the owner of slot "+strconv.Itoa(slot), func(ctx context.Context) error {
		for _, n := range c.Nodes {
			me, err := n.myself(ctx)
			if err == nil && n != old && me.primary && me.owns(slot) {
				owner = n
				return nil
			}
		}
		return errors.New("nobody has it")
	})
	return owner
}

// Failover promotes a replica of the primary that owns a slot while that one lives, without losing writes, and returns
// the new primary.
func (c *Cluster) Failover(t testing.TB, slot int) *Server {
	t.Helper()
	old := c.Owner(t, slot, nil)
	c.replicaOf(t, old).must(t.Context(), t, "CLUSTER", "FAILOVER")
	return c.Owner(t, slot, old)
}

// replicaOf returns a live replica of a primary that is in step with it.
func (c *Cluster) replicaOf(t testing.TB, primary *Server) *Server {
	t.Helper()
	var found *Server
	await(t, "a replica of "+primary.Addr(), func(ctx context.Context) error {
		for _, n := range c.Nodes {
			info := n.replication(ctx)
			if info["role"] == "slave" && info["master_port"] == strconv.Itoa(primary.public()) && info["master_link_status"] == "up" {
				found = n
				return nil
			}
		}
		return errors.New("none")
	})
	return found
}

// MoveSlot moves a slot and its keys to another primary, key by key, as resharding tools do, and returns how many
// keys it moved.
func (c *Cluster) MoveSlot(t testing.TB, slot int, to *Server) int {
	t.Helper()
	ctx := t.Context()
	from := c.Owner(t, slot, nil)
	if from == to {
		return 0
	}
	source, target := from.id(ctx, t), to.id(ctx, t)
	to.must(ctx, t, "CLUSTER", "SETSLOT", slot, "IMPORTING", source)
	from.must(ctx, t, "CLUSTER", "SETSLOT", slot, "MIGRATING", target)
	moved := 0
	for {
		keys, err := from.command(ctx, "CLUSTER", "GETKEYSINSLOT", slot, 100).StringSlice()
		if err != nil {
			t.Fatalf("redistest: keys of slot %d: %v", slot, err)
		}
		if len(keys) == 0 {
			break
		}
		args := []any{"MIGRATE", "127.0.0.1", to.port, "", 0, 5000}
		if to.acl {
			args = append(args, "AUTH2", admin, adminPassword)
		}
		args = append(args, "KEYS")
		for _, k := range keys {
			args = append(args, k)
		}
		from.must(ctx, t, args...)
		moved += len(keys)
	}
	// The target first: between the two, the source would send clients to a node that sends them back.
	to.must(ctx, t, "CLUSTER", "SETSLOT", slot, "NODE", target)
	from.must(ctx, t, "CLUSTER", "SETSLOT", slot, "NODE", target)
	for _, n := range c.Primaries(t) {
		n.must(ctx, t, "CLUSTER", "SETSLOT", slot, "NODE", target)
	}
	return moved
}

// AwaitSettled returns when every live node sees every live node as it is, all slots are served, and the replicas that
// live are in step.
func (c *Cluster) AwaitSettled(t testing.TB) {
	t.Helper()
	await(t, "the Cluster to settle", func(ctx context.Context) error {
		var first string
		for _, n := range c.Nodes {
			if !n.answers() {
				continue
			}
			info, err := n.command(ctx, "CLUSTER", "INFO").Text()
			if err != nil {
				return err
			}
			if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_slots_ok:"+strconv.Itoa(Slots)) {
				return fmt.Errorf("%s: the state is not ok", n.Addr())
			}
			known, err := n.nodes(ctx)
			if err != nil {
				return err
			}
			var roles []string
			for _, k := range known {
				if k.unknown() || strings.Contains(k.flags, "fail?") {
					return fmt.Errorf("%s sees %s as %s", n.Addr(), k.id, k.flags)
				}
				roles = append(roles, fmt.Sprintf("%s %t %s", k.id, k.primary, k.of))
			}
			slices.Sort(roles)
			if view := strings.Join(roles, "\n"); first == "" {
				first = view
			} else if view != first {
				return fmt.Errorf("%s sees other roles than the first node", n.Addr())
			}
			if r := n.replication(ctx); r["role"] == "slave" && r["master_link_status"] != "up" {
				return fmt.Errorf("the replica %s is not in step", n.Addr())
			}
		}
		return nil
	})
}

// Failovers counts what the nodes have decided: it goes up with every failover and every slot that is moved.
func (c *Cluster) Failovers(t testing.TB) int {
	t.Helper()
	most := 0
	await(t, "the nodes to tell their epoch", func(ctx context.Context) error {
		for _, n := range c.Nodes {
			if info, err := n.command(ctx, "CLUSTER", "INFO").Text(); err == nil {
				_, rest, _ := strings.Cut(info, "cluster_current_epoch:")
				epoch, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(rest, "\r\n", 2)[0]))
				if err != nil {
					return err
				}
				most = max(most, epoch)
			}
		}
		return nil
	})
	return most
}

// must runs a command that has to succeed.
func (s *Server) must(ctx context.Context, t testing.TB, args ...any) {
	t.Helper()
	if err := s.command(ctx, args...).Err(); err != nil {
		t.Fatalf("redistest: %v on %s: %v", args, s.Addr(), err)
	}
}

func (s *Server) id(ctx context.Context, t testing.TB) string {
	t.Helper()
	id, err := s.command(ctx, "CLUSTER", "MYID").Text()
	if err != nil {
		t.Fatalf("redistest: CLUSTER MYID on %s: %v", s.Addr(), err)
	}
	return id
}

// clusterNode is one line of CLUSTER NODES.
type clusterNode struct {
	id, flags, of string // of: the id of its primary, "-" for none
	primary       bool
	slots         []string
}

// unknown tells whether the nodes have not introduced themselves yet: until then, the id is made up.
func (n clusterNode) unknown() bool { return strings.Contains(n.flags, "handshake") }

func (n clusterNode) owns(slot int) bool {
	return slices.ContainsFunc(n.slots, func(r string) bool {
		low, high, found := strings.Cut(r, "-")
		if !found {
			high = low
		}
		a, err := strconv.Atoi(low)
		b, err2 := strconv.Atoi(high)
		return err == nil && err2 == nil && a <= slot && slot <= b // others are slots on the move: [93-<-id]
	})
}

// nodes is CLUSTER NODES, the node itself included.
func (s *Server) nodes(ctx context.Context) ([]clusterNode, error) {
	text, err := s.command(ctx, "CLUSTER", "NODES").Text()
	if err != nil {
		return nil, err
	}
	var list []clusterNode
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 8 {
			list = append(list, clusterNode{id: f[0], flags: f[2], of: f[3], primary: strings.Contains(f[2], "master"), slots: f[8:]})
		}
	}
	return list, nil
}

func (s *Server) myself(ctx context.Context) (clusterNode, error) {
	known, err := s.nodes(ctx)
	if err != nil {
		return clusterNode{}, err
	}
	i := slices.IndexFunc(known, func(n clusterNode) bool { return strings.Contains(n.flags, "myself") })
	if i < 0 {
		return clusterNode{}, errors.New("CLUSTER NODES does not name the node itself")
	}
	return known[i], nil
}
