package tokenstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Severity is what a finding means.
type Severity int

// The severities, the mildest first.
const (
	Fine      Severity = iota
	Unknown            // Redis does not tell: managed, or an ACL without the command
	Worrying           // it works, and something can be lost
	Forbidden          // a logout could be undone, or nothing works: do not start
)

func (s Severity) String() string {
	return [...]string{"ok", "unknown", "warning", "refused"}[s]
}

// Finding is what one check of [Store.Preflight] found on one server.
type Finding struct {
	Check    string // also the name of its section in docs/redis.md
	Server   string // host:port as the client knows it, "" for all
	Severity Severity
	Text     string // what was found and, unless it is fine, what to do
	Option   Option // of this package, that the text speaks of; "" for none
}

// The names of the checks.
const (
	checkKind        = "topology"
	checkVersion     = "version"
	checkWrite       = "write-permission"
	checkShards      = "shards"
	checkEviction    = "eviction"
	checkPersistence = "persistence"
	checkReplicas    = "replicas"
	checkWait        = "wait"
	checkClock       = "clock"
	checkPrimary     = "primary-id"
)

const (
	// worryingLag is how far a replica may be behind before it is told.
	worryingLag = 5 * time.Second
	// worryingSkew between Redis and this machine. Redis TIME decides what expires;
	// the leeway for tokens that others check by their own clocks is of this order.
	worryingSkew = 2 * time.Second
)

// Preflight looks at everything that Redis must be for a logout to hold, on every
// primary. It changes nothing but a key that expires within a second.
//
// What Redis forbids to look at is [Unknown], not an error. An error means that
// Redis did not answer: [ErrUnavailable].
func (s *Store) Preflight(ctx context.Context) ([]Finding, error) {
	p := preflight{store: s}
	if err := p.write(ctx); err != nil {
		return p.findings, err
	}
	if len(p.findings) > 0 && p.findings[0].Severity == Forbidden {
		return p.findings, nil // nothing else would be answered either
	}
	if err := s.Open(ctx); errors.Is(err, ErrShards) {
		p.addOption(OptionShards, checkShards, "", Forbidden, "%v", err)
	} else if err != nil {
		return p.findings, err
	} else {
		p.add(checkShards, "", Fine, "%d, as recorded", s.shards)
	}
	primaries, err := s.primaries(ctx)
	if err != nil {
		return p.findings, unavailable("preflight", err)
	}
	for _, c := range primaries {
		ctx, cancel := context.WithTimeout(ctx, s.timeout)
		err := p.server(ctx, c)
		cancel()
		if err != nil {
			return p.findings, unavailable("preflight", err)
		}
	}
	p.clusterState(len(primaries))
	slices.SortStableFunc(p.findings, func(a, b Finding) int {
		return strings.Compare(a.Check+a.Server, b.Check+b.Server)
	})
	return p.findings, nil
}

type preflight struct {
	store    *Store
	findings []Finding
}

func (p *preflight) add(check, server string, severity Severity, format string, args ...any) {
	p.addOption("", check, server, severity, format, args...)
}

// addOption adds a finding that speaks of an option.
func (p *preflight) addOption(o Option, check, server string, severity Severity, format string, args ...any) {
	p.findings = append(p.findings, Finding{check, server, severity, fmt.Sprintf(format, args...), o})
}

// write runs a script on every shard, and with that on every primary that has
// one, and compares the clocks.
func (p *preflight) write(ctx context.Context) error {
	s := p.store
	calls := make([]call, s.shards)
	for i := range calls {
		calls[i] = call{script: s.scripts.probe, keys: []string{s.prefix[i] + "probe"}}
	}
	var replies []*reply
	var err error
	var began time.Time
	var took time.Duration
	for range 2 { // the second time, nothing has to be loaded or dialed
		began = time.Now()
		replies, err = s.runAll(ctx, calls, 0)
		took = time.Since(began)
		if err != nil {
			break
		}
	}
	if err != nil {
		severity, option, text := refusal(err)
		if text == "" {
			return err
		}
		p.addOption(option, checkWrite, "", severity, "%s (%v)", text, err)
		return nil
	}
	p.add(checkWrite, "", Fine, "scripts may write lk:{0} to lk:{%d}", s.shards-1)

	unnamed := slices.ContainsFunc(replies, func(r *reply) bool { return r.string(1) == "" })
	times := make([]time.Time, len(replies))
	for i, r := range replies {
		times[i] = r.time(0)
		if err := r.err(); err != nil {
			return err
		}
	}
	if unnamed {
		p.add(checkPrimary, "", Unknown, "scripts cannot ask INFO replication for master_replid: a failover that loses a follower's last renewal is not noticed, and a logout just after it may be answered up to one lease too early. Allow +info")
	} else {
		p.add(checkPrimary, "", Fine, "INFO tells one primary from the next")
	}

	var worst time.Duration
	middle := began.Add(took / 2)
	for _, now := range times {
		if skew := now.Sub(middle); skew.Abs() > worst.Abs() {
			worst = skew
		}
	}
	worst = worst.Round(time.Millisecond)
	if worst.Abs() > worryingSkew+took/2 {
		p.add(checkClock, "", Worrying, "Redis's clock is off this machine's by %v: its time is what tokens are issued and expire by, and APIs that verify them go by their own clocks. Run NTP on both", worst)
	} else {
		p.add(checkClock, "", Fine, "within %v of this machine's", max(worst.Abs(), time.Millisecond))
	}
	return nil
}

// refusal says what to do about an error that will not pass by itself, and which option
// to change; the text is "" for an error that may pass. It is worrying where what is asked of Redis is right, and Redis
// cannot do it now: logouts may go on while logins do not.
func refusal(err error) (Severity, Option, string) {
	text := err.Error()
	for _, r := range []struct {
		in       string
		severity Severity
		option   Option
		remedy   string
	}{
		{"NOPERM", Forbidden, "", "the ACL user may not do what scripts do: give it ~lk:* &* +@all -@admin -@dangerous +info, as in deploy/redis.conf"},
		{"WRONGPASS", Forbidden, OptionURL, "Redis refuses the user or password of the Redis URL"},
		{"NOAUTH", Forbidden, OptionURL, "Redis wants a user or password: write them into the Redis URL"},
		{"cluster support disabled", Forbidden, OptionURL, "this Redis is no Cluster: leave addr out of the Redis URL, or name the Cluster's nodes"},
		{"MOVED", Forbidden, OptionURL, "this Redis is a node of a Cluster: add addr=host:port to the Redis URL"},
		{"CROSSSLOT", Forbidden, OptionURL, "this Redis is a node of a Cluster: add addr=host:port to the Redis URL"},
		{"unknown command 'evalsha", Forbidden, OptionURL, "this Redis has no scripts: is it a Sentinel? Then add master_name to the Redis URL"},
		{"unknown command 'sentinel", Forbidden, OptionURL, "the Redis URL names a Redis where it should name Sentinels: leave master_name out, or name the Sentinels"},
		{"sentinels specified in configuration are unreachable: redis: nil", Forbidden, OptionURL, "no Sentinel knows the primary by this name: see master_name in the Redis URL"},
		{"x509:", Forbidden, OptionTLS, "TLS: Redis's certificate is not trusted: see the file of trusted authorities"},
		{"OOM ", Worrying, "", "Redis is full: logins and refreshes are answered 503 until it has memory; raise maxmemory"},
		{"NOREPLICAS", Worrying, "", "Redis takes no writes for want of replicas (min-replicas-to-write): see to the replicas"},
		{"MISCONF", Worrying, "", "Redis takes no writes, since it cannot save to disk: see its log"},
	} {
		if strings.Contains(text, r.in) {
			return r.severity, r.option, r.remedy
		}
	}
	return Fine, "", ""
}

// server looks at one primary.
func (p *preflight) server(ctx context.Context, c *redis.Client) error {
	name := c.Options().Addr
	if name == "FailoverClient" { // go-redis's name for whomever the Sentinels name
		name = "primary"
	}
	info, err := readInfo(ctx, c)
	var redisErr redis.Error
	switch {
	case errors.As(err, &redisErr):
		info = map[string]string{} // INFO is forbidden, or not what it is elsewhere
	case err != nil:
		return err
	}
	p.version(name, info)
	p.eviction(ctx, c, name, info)
	p.persistence(ctx, c, name, info)
	p.replicas(name, info)
	return p.wait(ctx, c, name)
}

// readInfo is INFO: the server's own words, by name.
func readInfo(ctx context.Context, c *redis.Client) (map[string]string, error) {
	text, err := c.Info(ctx).Result()
	if err != nil {
		return nil, err
	}
	info := map[string]string{}
	for line := range strings.SplitSeq(text, "\r\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			info[name] = value
		}
	}
	return info, nil
}

func (p *preflight) version(server string, info map[string]string) {
	name, version := "Redis", info["redis_version"]
	if v := info["valkey_version"]; v != "" {
		name, version = "Valkey", v
	}
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, err := strconv.Atoi(major)
	b, _ := strconv.Atoi(minor)
	switch {
	case err != nil:
		p.add(checkVersion, server, Unknown, "INFO does not tell the version: it must be 6.2 or later")
	case a < 6 || a == 6 && b < 2:
		p.add(checkVersion, server, Forbidden, "%s %s lacks what the scripts need: use 6.2 or later, better 7.0", name, version)
	case a < 7:
		p.add(checkVersion, server, Worrying, "%s %s should do, and is not tested: 7.0 and later are", name, version)
	default:
		p.add(checkVersion, server, Fine, "%s %s", name, version)
	}
}

func (p *preflight) eviction(ctx context.Context, c *redis.Client, server string, info map[string]string) {
	policy := info["maxmemory_policy"]
	if policy == "" {
		policy = configured(ctx, c, "maxmemory-policy")
	}
	switch policy {
	case "noeviction":
		p.add(checkEviction, server, Fine, "noeviction")
	case "":
		p.add(checkEviction, server, Unknown, "neither INFO nor CONFIG tells the maxmemory-policy: make sure that it is noeviction")
	default:
		p.add(checkEviction, server, Forbidden, "maxmemory-policy is %s: an evicted denylist entry is a logout undone. Set it to noeviction", policy)
	}
}

func (p *preflight) persistence(ctx context.Context, c *redis.Client, server string, info map[string]string) {
	switch info["aof_enabled"] {
	case "1":
		if status := info["aof_last_write_status"]; status != "" && status != "ok" {
			p.add(checkPersistence, server, Worrying, "the append-only file cannot be written (%s): see the disk", status)
			return
		}
		p.add(checkPersistence, server, Fine, "append-only file")
	case "0":
		const loss = "a restart of Redis loses sessions, and logouts with them; tokens from before are then refused. Set appendonly yes"
		if save := configured(ctx, c, "save"); save != "" {
			p.add(checkPersistence, server, Worrying, "snapshots only (save %s): what came since the last one is lost with Redis, logouts too. Set appendonly yes", save)
			return
		}
		p.add(checkPersistence, server, Worrying, "the append-only file is off: %s", loss)
	default:
		p.add(checkPersistence, server, Unknown, "INFO does not tell whether the append-only file is on: make sure that it is")
	}
}

func (p *preflight) replicas(server string, info map[string]string) {
	if info["role"] == "" {
		p.add(checkReplicas, server, Unknown, "INFO does not tell the replicas")
		return
	}
	if info["role"] != "master" {
		p.add(checkReplicas, server, Worrying, "this server has just become a replica: a failover is under way")
		return
	}
	need := p.store.waitReplicas
	online := 0
	for i := 0; ; i++ {
		line, ok := info["slave"+strconv.Itoa(i)]
		if !ok {
			break
		}
		fields := map[string]string{}
		for pair := range strings.SplitSeq(line, ",") {
			name, value, _ := strings.Cut(pair, "=")
			fields[name] = value
		}
		seconds, err := strconv.Atoi(fields["lag"])
		lag := time.Duration(seconds) * time.Second
		replica := fields["ip"] + ":" + fields["port"]
		switch {
		case fields["state"] != "online":
			p.add(checkReplicas, server, Worrying, "the replica %s is %s: were it promoted now, logouts would be lost", replica, fields["state"])
		case err == nil && lag > worryingLag:
			p.add(checkReplicas, server, Worrying, "the replica %s was last heard %v ago: were it promoted now, logouts would be lost", replica, lag)
		default:
			online++
		}
	}
	switch {
	case online < need:
		p.addOption(OptionWaitReplicas, checkReplicas, server, Worrying, "%d replicas are in step, and a logout waits for %d: every logout is answered 503 until there are as many", online, need)
	case online == 0:
		p.add(checkReplicas, server, Fine, "none: a logout survives what the append-only file survives")
	case need == 0:
		p.addOption(OptionWaitReplicas, checkReplicas, server, Fine, "%d in step, and a logout waits for none: a failover may lose the last writes", online)
	default:
		p.add(checkReplicas, server, Fine, "%d in step, and a logout waits for %d", online, need)
	}
}

func (p *preflight) wait(ctx context.Context, c *redis.Client, server string) error {
	// For no replica: it answers at once, if it may be asked at all.
	err := c.Do(ctx, "WAIT", 0, 1).Err()
	var redisErr redis.Error
	switch {
	case err == nil:
		p.add(checkWait, server, Fine, "may be used")
	case !errors.As(err, &redisErr):
		return err
	case p.store.waitReplicas > 0:
		p.addOption(OptionWaitReplicas, checkWait, server, Forbidden, "WAIT is refused (%v), and a logout waits for %d replicas: allow WAIT, or wait for none", err, p.store.waitReplicas)
	default:
		p.addOption(OptionWaitReplicas, checkWait, server, Fine, "refused, and not used: a logout waits for no replica")
	}
	return nil
}

// clusterState tells what kind of topology was found.
func (p *preflight) clusterState(primaries int) {
	if _, ok := p.store.rdb.(*redis.ClusterClient); !ok {
		return
	}
	if shards := p.store.shards; primaries > shards {
		p.add(checkKind, "", Worrying, "%d primaries for %d shards: some hold nothing. The number of shards is fixed at first boot", primaries, shards)
		return
	}
	p.add(checkKind, "", Fine, "a Cluster of %d primaries for %d shards", primaries, p.store.shards)
}

// configured asks CONFIG GET; "" when that is empty or forbidden.
func configured(ctx context.Context, c *redis.Client, name string) string {
	got, err := c.ConfigGet(ctx, name).Result()
	if err != nil {
		return ""
	}
	return got[name]
}
