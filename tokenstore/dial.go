package tokenstore

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// mode is how several Redis servers, or one, make up the store.
type mode string

const (
	standalone mode = "standalone"
	sentinel   mode = "sentinel" // the URL has master_name
	cluster    mode = "cluster"  // the URL has addr, and no master_name
)

// DialOptions are the settings of the connection to Redis.
type DialOptions struct {
	// URL as go-redis reads it:
	//
	//	redis://user:password@host:port/db                            standalone
	//	unix:///path?db=0                                             standalone
	//	redis://host:port/db?addr=host:port&master_name=name          Sentinels
	//	redis://user:password@host:port?addr=host:port                nodes of a Cluster
	//
	// and with rediss:// for TLS. User and password of Sentinels' URL are the
	// Sentinels' own; those of the servers are its options username and password.
	URL string
	// TLS is for rediss:// URLs only.
	TLS TLSOptions
	// Timeout bounds one attempt: to connect, to get a connection from the pool,
	// to write, to read. 0 means 250 ms.
	Timeout time.Duration
	// PoolSize is the most connections a replica opens to a server, for single
	// commands and for pipelines each; 0 means the pool_size of the URL, or ten a CPU.
	PoolSize int
	// OnConnect, if set, is told of every new connection, Sentinels' included. It
	// must not block.
	OnConnect func()
}

const (
	// retries, after the first attempt, of an operation on one server.
	retries = 2
	// redirects are a Cluster's attempts: each may end on a node that sends on, or
	// that asks to try again while a slot moves.
	redirects = 8
	// reload is how long a client goes by what it knows of a Cluster. A primary
	// that is dead cannot send on: only this finds its successor.
	reload = 500 * time.Millisecond

	minBackoff        = time.Millisecond
	maxBackoff        = 10 * time.Millisecond
	maxClusterBackoff = 50 * time.Millisecond
)

// Dial returns a client. It does not connect yet. A URL that cannot be read is
// an error that does not repeat it: it may hold a password. Error: [OptionError].
//
// An operation is tried three times at most, at once after a lost connection or
// an unanswered attempt: after Redis was restarted, the pool may hold more than
// one dead connection. Every script can be sent twice, and the caller's user is
// waiting. On a Cluster it is tried nine times, within the caller's deadline.
// What a server says that is no primary any more, or not yet, or does not own the
// slot any more, is tried again likewise, on the server that is.
func Dial(o DialOptions) (redis.UniversalClient, error) {
	o.Timeout = cmp.Or(o.Timeout, 250*time.Millisecond)
	t, err := o.topology()
	if err != nil {
		return nil, err
	}
	switch t.mode {
	case sentinel:
		opt, err := redis.ParseFailoverURL(o.URL)
		if err != nil {
			return nil, errURL(sentinelForm)
		}
		return o.dialSentinel(opt)
	case cluster:
		opt, err := redis.ParseClusterURL(o.URL)
		if err != nil {
			return nil, errURL(clusterForm)
		}
		return o.dialCluster(opt)
	default:
		opt, err := redis.ParseURL(o.URL)
		if err != nil {
			return nil, errURL(standaloneForm)
		}
		return o.dialStandalone(opt)
	}
}

func (o DialOptions) dialStandalone(opt *redis.Options) (redis.UniversalClient, error) {
	var err error
	if opt.TLSConfig, err = o.TLS.config(opt.TLSConfig, true); err != nil {
		return nil, err
	}
	opt.OnConnect = o.connected()
	opt.DialTimeout, opt.ReadTimeout, opt.WriteTimeout, opt.PoolTimeout = o.Timeout, o.Timeout, o.Timeout, o.Timeout
	opt.ContextTimeoutEnabled = true
	opt.MaxRetries, opt.MinRetryBackoff, opt.MaxRetryBackoff = retries, minBackoff, maxBackoff
	// A dial that fails is reported at once: go-redis would otherwise try five
	// times, 100 ms apart, inside one attempt.
	opt.DialerRetries = 1
	opt.PoolSize, opt.MinIdleConns = cmp.Or(o.PoolSize, opt.PoolSize), 2
	opt.Protocol, opt.DisableIdentity = 2, true
	opt.MaintNotificationsConfig = noNotifications()
	return redis.NewClient(opt), nil
}

// dialSentinel: the client asks the Sentinels for the primary whenever it
// connects, and drops its connections to the old one when they announce another.
func (o DialOptions) dialSentinel(opt *redis.FailoverOptions) (redis.UniversalClient, error) {
	if opt.ReplicaOnly || opt.RouteByLatency || opt.RouteRandomly {
		return nil, errReplicas
	}
	var err error
	if opt.TLSConfig, err = o.TLS.config(opt.TLSConfig, false); err != nil {
		return nil, err
	}
	opt.OnConnect = o.connected()
	opt.Dialer = o.sentinelDialer(slices.Clone(opt.SentinelAddrs), opt.TLSConfig)
	// The time to find the primary, Sentinels that do not answer included; to
	// connect to it is the dialer's, and one attempt's.
	opt.DialTimeout = sentinelShare * o.Timeout
	opt.ReadTimeout, opt.WriteTimeout, opt.PoolTimeout = o.Timeout, o.Timeout, o.Timeout
	opt.ContextTimeoutEnabled = true
	opt.MaxRetries, opt.MinRetryBackoff, opt.MaxRetryBackoff = retries, minBackoff, maxBackoff
	opt.DialerRetries = 1
	opt.PoolSize, opt.MinIdleConns = cmp.Or(o.PoolSize, opt.PoolSize), 2
	opt.Protocol, opt.DisableIdentity = 2, true
	return redis.NewFailoverClient(opt), nil
}

func (o DialOptions) dialCluster(opt *redis.ClusterOptions) (redis.UniversalClient, error) {
	if opt.ReadOnly || opt.RouteByLatency || opt.RouteRandomly {
		return nil, errReplicas
	}
	var err error
	if opt.TLSConfig, err = o.TLS.config(opt.TLSConfig, false); err != nil {
		return nil, err
	}
	opt.OnConnect = o.connected()
	opt.DialTimeout, opt.ReadTimeout, opt.WriteTimeout, opt.PoolTimeout = o.Timeout, o.Timeout, o.Timeout, o.Timeout
	opt.ContextTimeoutEnabled = true
	opt.MaxRedirects, opt.MinRetryBackoff, opt.MaxRetryBackoff = redirects, minBackoff, maxClusterBackoff
	opt.MaxRetries = -1 // of a single node's client: redirects count the attempts
	// go-redis would first read all that the Cluster says of its commands, 90 KB,
	// with every other operation waiting behind a lock; where that takes longer than an
	// attempt may, for ever. The scripts name their keys themselves.
	opt.DisableRoutingPolicies = true
	opt.ClusterStateReloadInterval = reload
	opt.DialerRetries = 1
	opt.PoolSize, opt.MinIdleConns = cmp.Or(o.PoolSize, opt.PoolSize), 1
	opt.Protocol, opt.DisableIdentity = 2, true
	opt.MaintNotificationsConfig = noNotifications()
	return redis.NewClusterClient(opt), nil
}

// noNotifications: go-redis would otherwise ask each server for them.
func noNotifications() *maintnotifications.Config {
	return &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
}

func (o DialOptions) connected() func(context.Context, *redis.Conn) error {
	if o.OnConnect == nil {
		return nil
	}
	return func(context.Context, *redis.Conn) error {
		o.OnConnect()
		return nil
	}
}

const (
	standaloneForm = "redis://[user:password@]host:port[/db], or rediss:// for TLS, or unix:///path"
	sentinelForm   = "redis://host:port[/db]?master_name=name[&addr=host:port], naming Sentinels, or rediss:// for TLS"
	clusterForm    = "redis://[user:password@]host:port[?addr=host:port], naming nodes of the Cluster, or rediss:// for TLS"
)

func errURL(form string) error {
	return badURL("the Redis URL cannot be read, or has an option that go-redis does not know: write %s", form)
}

func badURL(format string, args ...any) error {
	return &OptionError{OptionURL, fmt.Errorf(format, args...)}
}

var errReplicas = badURL("the Redis URL asks for reads from replicas, which may not have heard of a logout yet: leave the option out")

// topology is what a URL names.
type topology struct {
	mode    mode
	addrs   []string
	primary string // as Sentinels call it
	auth    bool
	tls     bool
}

// topology reads the URL as far as the mode needs, and refuses what does not go
// together.
func (o DialOptions) topology() (topology, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" && u.Scheme != "unix" {
		return topology{}, errURL(standaloneForm)
	}
	q := u.Query()
	t := topology{mode: standalone, primary: q.Get("master_name"), tls: u.Scheme == "rediss"}
	t.addrs = append([]string{cmp.Or(u.Host, u.Path)}, q["addr"]...)
	switch {
	case t.primary != "":
		t.mode = sentinel
	case q.Has("addr"):
		t.mode = cluster
	}
	_, password := u.User.Password()
	t.auth = password && t.mode != sentinel || q.Get("password") != ""
	if u.Scheme == "unix" && t.mode != standalone {
		return t, badURL("the Redis URL names a socket, and a socket is no %s", t.mode)
	}
	if db := strings.Trim(u.Path, "/"); t.mode == cluster && db != "" && db != "0" {
		return t, badURL("the Redis URL names a database, and a Cluster has only 0")
	}
	if !t.tls && o.TLS != (TLSOptions{}) {
		return t, badURL("files for TLS are given and the Redis URL is not rediss://, so nothing would be encrypted")
	}
	return t, nil
}

// Describe says in one line what Dial connects to, without secrets, such as
// "sentinel 10.0.0.1:26379,10.0.0.2:26379 primary=latchkey tls auth".
func (o DialOptions) Describe() string {
	t, err := o.topology()
	if err != nil {
		return "none: " + err.Error()
	}
	words := []string{string(t.mode), strings.Join(t.addrs, ",")}
	if t.primary != "" {
		words = append(words, "primary="+t.primary)
	}
	switch {
	case !t.tls:
		words = append(words, "plain")
	case o.TLS.CertFile != "":
		words = append(words, "tls with client certificate")
	default:
		words = append(words, "tls")
	}
	if t.auth {
		words = append(words, "password")
	} else {
		words = append(words, "no password")
	}
	return strings.Join(words, " ")
}

// Ping asks Redis whether it answers. Errors: [ErrUnavailable].
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	err := unavailable("ping", s.rdb.Ping(ctx).Err())
	s.observe("ping", time.Since(start), err)
	return err
}
