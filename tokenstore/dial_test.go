package tokenstore_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

func TestDialRefusesWhatDoesNotGoTogether(t *testing.T) {
	t.Parallel()
	certs := redistest.NewCertificates(t)
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		o    tokenstore.DialOptions
		want string
	}{
		"no URL":                  {tokenstore.DialOptions{URL: "redis//user:hunter2@host"}, "cannot be read"},
		"unknown option":          {tokenstore.DialOptions{URL: "redis://:hunter2@r?spark=plug"}, "an option that go-redis does not know"},
		"Sentinels, bad address":  {tokenstore.DialOptions{URL: "redis://r?master_name=m&addr=hunter2"}, "cannot be read"},
		"Cluster, database":       {tokenstore.DialOptions{URL: "redis://r/1?addr=s:1"}, "has only 0"},
		"Cluster, replicas":       {tokenstore.DialOptions{URL: "redis://r?addr=s:1&read_only=true"}, "reads from replicas"},
		"Sentinels, replicas":     {tokenstore.DialOptions{URL: "redis://r?master_name=m&replica_only=true"}, "reads from replicas"},
		"socket of a Cluster":     {tokenstore.DialOptions{URL: "unix:///s?addr=s:1"}, "a socket is no cluster"},
		"TLS files without TLS":   {tokenstore.DialOptions{URL: "redis://r", TLS: tokenstore.TLSOptions{CAFile: certs.CAFile}}, "not rediss://"},
		"CA missing":              {tokenstore.DialOptions{URL: "rediss://r", TLS: tokenstore.TLSOptions{CAFile: "/nowhere"}}, "no such file"},
		"CA empty":                {tokenstore.DialOptions{URL: "rediss://r", TLS: tokenstore.TLSOptions{CAFile: empty}}, "no certificate in"},
		"certificate without key": {tokenstore.DialOptions{URL: "rediss://r", TLS: tokenstore.TLSOptions{CertFile: certs.ClientCertFile}}, "needs both"},
		"key of another":          {tokenstore.DialOptions{URL: "rediss://r", TLS: tokenstore.TLSOptions{CertFile: certs.ClientCertFile, KeyFile: certs.ServerKeyFile}}, "the client certificate for Redis"},
	} {
		c, err := tokenstore.Dial(tt.o)
		if err == nil {
			_ = c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}

func TestDescribeNamesNoSecret(t *testing.T) {
	t.Parallel()
	for want, o := range map[string]tokenstore.DialOptions{
		"standalone 127.0.0.1:6379 plain no password":           {URL: "redis://127.0.0.1:6379/0"},
		"standalone /run/redis.sock plain no password":          {URL: "unix:///run/redis.sock"},
		"standalone r:1 tls password":                           {URL: "rediss://user:hunter2@r:1"},
		"sentinel a:1,b:2 primary=m plain no password":          {URL: "redis://s:hunter2@a:1?addr=b:2&master_name=m"},
		"sentinel a:1 primary=m plain password":                 {URL: "redis://a:1?master_name=m&password=hunter2"},
		"cluster a:1,b:2 tls with client certificate password":  {URL: "rediss://:hunter2@a:1?addr=b:2", TLS: tokenstore.TLSOptions{CertFile: "c", KeyFile: "k"}},
		"cluster endpoint:6379,endpoint:6379 plain no password": {URL: "redis://endpoint:6379?addr=endpoint:6379"},
	} {
		if got := o.Describe(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A renewed certificate is shown without a restart; a server that is not who it should be gets nothing.
func TestTLSIsMutual(t *testing.T) {
	t.Parallel()
	certs, others := redistest.NewCertificates(t), redistest.NewCertificates(t)
	server := redistest.StartWith(t, redistest.Options{TLS: certs})
	open := func(host string, o tokenstore.TLSOptions) error {
		c, err := tokenstore.Dial(tokenstore.DialOptions{URL: strings.Replace(server.URL(), "127.0.0.1", host, 1), TLS: o, Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		s, err := tokenstore.New(c, tokenstore.Options{Shards: 16, Timeout: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		return s.Open(t.Context())
	}
	right := tokenstore.TLSOptions{CAFile: certs.CAFile, CertFile: certs.ClientCertFile, KeyFile: certs.ClientKeyFile}
	is(t, "by address", open("127.0.0.1", right), nil)
	is(t, "another name", open("localhost", right), tokenstore.ErrUnavailable)
	for name, change := range map[string]func(*tokenstore.TLSOptions){
		"another authority": func(o *tokenstore.TLSOptions) { o.CAFile = others.CAFile },
		"no certificate":    func(o *tokenstore.TLSOptions) { o.CertFile, o.KeyFile = "", "" },
		"a stranger's":      func(o *tokenstore.TLSOptions) { o.CertFile, o.KeyFile = others.ClientCertFile, others.ClientKeyFile },
	} {
		o := right
		change(&o)
		is(t, name, open("127.0.0.1", o), tokenstore.ErrUnavailable)
	}
}

// What a Cluster says of all its commands is 90 KB, and every operation of a new
// client would wait for it, in line: on a slow day for ever.
func TestAClusterIsNotAskedForItsCommands(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3, 0, redistest.Options{})
	s, err := tokenstore.New(dial(t, cluster.URL()), tokenstore.Options{Shards: 16, Lifetimes: lifetimes(), Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	is(t, "open", s.Open(t.Context()), nil)
	for i := range 16 {
		_, err := s.Sessions.Get(t.Context(), tokenstore.ID{byte(i)})
		is(t, "a session", err, tokenstore.ErrNoSession)
	}
	_, err = s.Revocations.Tail(t.Context(), map[int]uint64{3: 0}, time.Millisecond)
	is(t, "tail", err, nil)
	is(t, "leave", s.Revocations.Leave(t.Context(), "member"), nil)
	for _, n := range cluster.Nodes {
		stats, err := n.Client().Info(t.Context(), "commandstats").Result()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(stats, "cmdstat_command:") {
			t.Errorf("%s was asked: %s", n.Addr(), stats)
		}
	}
}
