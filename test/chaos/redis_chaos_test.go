//go:build linux && chaos

package chaos

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// maxOffset is by how much Redis's clock is set wrong, either way. Twice of it is
// less than what iat may lie ahead.
const maxOffset = 2 * time.Second

// store is the Redis that is run, and the links to its servers.
type store struct {
	t        *testing.T
	url      string
	wait     int // replicas that can be promoted
	alone    *redistest.Server
	sentinel *redistest.Sentinel
	cluster  *redistest.Cluster
	owners   *owners
	clock    string // the file that its servers' clocks are off by

	mu    sync.Mutex
	links []*Link
}

func startStore(t *testing.T, topology string, durable bool) *store {
	t.Helper()
	s := &store{t: t, owners: &owners{}, clock: filepath.Join(t.TempDir(), "clock")}
	s.setClock(0)
	o := redistest.Options{
		Args: []string{"--appendonly", "yes", "--appendfsync", "always"}, Front: s.front,
		Env: []string{"LD_PRELOAD=" + preload(t), "CHAOS_CLOCK=" + s.clock},
	}
	if topology != "standalone" { // as deploy/redis.conf has it
		o.Args = append(o.Args, "--min-replicas-to-write", "1", "--min-replicas-max-lag", "10")
	}
	switch topology {
	case "standalone":
		if durable {
			t.Fatal("CHAOS_DURABLE: one server has no replicas to wait for")
		}
		s.alone = redistest.StartWith(t, o)
		s.url = s.alone.URL()
	case "sentinel":
		s.sentinel, s.wait = redistest.StartSentinel(t, o), 2
		s.url = s.sentinel.URL()
	case "cluster":
		s.cluster, s.wait = redistest.StartCluster(t, 3, 1, o), 1
		s.url = s.cluster.URL()
	default:
		t.Fatalf("CHAOS_TOPOLOGY: %q is none of standalone, sentinel and cluster", topology)
	}
	return s
}

// front puts a link before a server.
func (s *store) front(addr func() string) int {
	l, err := NewLink(addr, s.owners.of)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(l.Close)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links = append(s.links, l)
	return l.Port()
}

// link is the one before a server.
func (s *store) link(server *redistest.Server) *Link {
	for _, l := range s.links {
		if l.target() == server.Addr() {
			return l
		}
	}
	s.t.Fatalf("no link leads to %s", server.Addr())
	return nil
}

func (s *store) heal() {
	for _, l := range s.links {
		l.Heal()
	}
}

// primaries are those that take writes now.
func (s *store) primaries() []*redistest.Server {
	switch {
	case s.alone != nil:
		return []*redistest.Server{s.alone}
	case s.sentinel != nil:
		return []*redistest.Server{s.sentinel.Primary(s.t)}
	}
	return s.cluster.Primaries(s.t)
}

// servers are all of them, those that watch last.
func (s *store) servers() []*redistest.Server {
	switch {
	case s.alone != nil:
		return []*redistest.Server{s.alone}
	case s.sentinel != nil:
		return slices.Concat(s.sentinel.Nodes, s.sentinel.Sentinels)
	}
	return s.cluster.Nodes
}

// settle returns when the topology is at rest.
func (s *store) settle() {
	switch {
	case s.sentinel != nil:
		s.sentinel.AwaitSettled(s.t)
	case s.cluster != nil:
		s.cluster.AwaitSettled(s.t)
	}
}

// failovers counts them.
func (s *store) failovers() int {
	switch {
	case s.sentinel != nil:
		return s.sentinel.Failovers(s.t)
	case s.cluster != nil:
		return s.cluster.Failovers(s.t)
	}
	return 0
}

// replaced returns when another has taken a primary's place.
func (s *store) replaced(old *redistest.Server, slot int) {
	if s.sentinel != nil {
		s.sentinel.AwaitPrimary(s.t, old)
		return
	}
	s.cluster.Owner(s.t, slot, old)
}

// slot is one of those that a primary owns and that hold a shard.
func (s *store) slot(of *redistest.Server) int {
	if s.cluster == nil {
		return 0
	}
	for shard := range shards {
		if slot := s.slotOf(shard); s.cluster.Owner(s.t, slot, nil) == of {
			return slot
		}
	}
	s.t.Fatalf("%s has no shard", of.Addr())
	return 0
}

func (s *store) slotOf(shard int) int {
	slot, err := s.cluster.Nodes[0].Client().ClusterKeySlot(s.t.Context(), "{"+strconv.Itoa(shard)+"}").Result()
	if err != nil {
		s.t.Fatal(err)
	}
	return int(slot)
}

// demoted waits until a server follows another.
func (s *store) demoted(server *redistest.Server) {
	c := server.Client()
	defer func() { _ = c.Close() }()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); wait(10 * time.Millisecond) {
		info, err := c.Info(s.t.Context(), "replication").Result()
		if err == nil && strings.Contains(info, "role:slave") {
			return
		}
	}
}

// configure sets an option on a server while it runs.
func (s *store) configure(server *redistest.Server, name, value string) {
	c := server.Client()
	defer func() { _ = c.Close() }()
	if err := c.ConfigSet(s.t.Context(), name, value).Err(); err != nil {
		s.t.Fatal(err)
	}
}

// flush loses all data but the accounts, of which there is a copy.
func (s *store) flush() {
	ctx := s.t.Context()
	for _, p := range s.primaries() {
		c := p.Client()
		names, err := c.Keys(ctx, "lk:*:acct:*").Result()
		if err != nil {
			s.t.Fatal(err)
		}
		accounts := map[string]string{}
		for _, name := range names {
			if accounts[name], err = c.Dump(ctx, name).Result(); err != nil {
				s.t.Fatal(err)
			}
		}
		if err := c.FlushAll(ctx).Err(); err != nil {
			s.t.Fatal(err)
		}
		for name, account := range accounts {
			if err := c.RestoreReplace(ctx, name, 0, account).Err(); err != nil {
				s.t.Fatal(err)
			}
		}
		_ = c.Close()
	}
}

// preload builds what lets Redis's clock be set wrong. Nothing in Latchkey knows of it.
func preload(t *testing.T) string {
	t.Helper()
	lib := filepath.Join(t.TempDir(), "clock.so")
	stacktest.Run(t, os.Environ(), "", stacktest.Installed(t, "gcc", "gcc libc6-dev"), "-O2", "-shared", "-fPIC", "-o", lib, "testdata/clock.c")
	return lib
}

// setClock sets the clocks of all servers off by that much, at once.
func (s *store) setClock(offset time.Duration) {
	s.t.Helper()
	f, err := os.OpenFile(s.clock, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(binary.Write(f, binary.NativeEndian, offset.Microseconds()), f.Close()); err != nil {
		s.t.Fatal(err)
	}
}
