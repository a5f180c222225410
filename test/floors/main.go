// Command floors is the two ends of make bench-floors that are not Latchkey: the servers that it is compared with, and
// the clients of the requests that wrk cannot make, each in a process of its own.
//
//	floors serve KIND -addr HOST:PORT   a server to compare with, until it is ended
//	floors load KIND -addr HOST:PORT    a client: it prints "ready", waits for a line, loads the server, prints the result
//
// A floor does the least that a server of its kind can do.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// options are the flags of both commands.
type options struct {
	addr        string   // to listen at, or to load
	redis       string   // a URL
	jwks        string   // where Latchkey publishes its keys
	headers     []string // "Name: value", what Latchkey answers a check
	connections int
	duration    time.Duration
	rate        int    // requests/s of an open loop; 0: each connection sends as soon as it has its answer
	sessions    int    // to make before the load, at least one for each request
	tokens      string // a file of access tokens, one a line
}

var servers = map[string]func(context.Context, options) error{
	"gin":         bareGin,
	"gin-headers": ginWithHeaders,
	"textbook":    textbook,
	"parse":       parse,
	"script":      oneScript,
	"ext_authz":   doNothingExtAuthz,
}

var loads = map[string]func(context.Context, options) error{
	"login":     loadLogins,
	"refresh":   loadRefreshes,
	"logout":    loadLogouts,
	"ext_authz": loadExtAuthz,
	"tokens":    writeTokens,
}

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "floors:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	commands := map[string]map[string]func(context.Context, options) error{"serve": servers, "load": loads}
	if len(args) < 2 || commands[args[0]] == nil {
		return errors.New("the first argument is serve or load, the second which one")
	}
	kinds := commands[args[0]]
	do := kinds[args[1]]
	if do == nil {
		return fmt.Errorf("there is no %s %s: choose one of %s", args[0], args[1], strings.Join(slices.Sorted(maps.Keys(kinds)), ", "))
	}
	var o options
	f := flag.NewFlagSet(args[0]+" "+args[1], flag.ContinueOnError)
	f.StringVar(&o.addr, "addr", "", "where to listen, or whom to load: host:port")
	f.StringVar(&o.redis, "redis", "", "the URL of Redis")
	f.StringVar(&o.jwks, "jwks", "", "the URL of Latchkey's key set")
	f.Func("header", "a response header, Name: value; may be repeated", func(s string) error {
		if !strings.Contains(s, ": ") {
			return errors.New("write it as Name: value")
		}
		o.headers = append(o.headers, s)
		return nil
	})
	f.IntVar(&o.connections, "connections", 32, "how many connections, or calls, are under way at once")
	f.DurationVar(&o.duration, "for", time.Second, "how long to load")
	f.IntVar(&o.rate, "rate", 0, "requests a second of an open loop; 0: a closed loop")
	f.IntVar(&o.sessions, "sessions", 0, "how many sessions to make before the load")
	f.StringVar(&o.tokens, "tokens", "", "a file of access tokens, one a line")
	if err := f.Parse(args[2:]); err != nil {
		return err
	}
	if o.addr == "" || f.NArg() > 0 {
		return errors.New("-addr is required, and nothing but flags may follow")
	}
	return do(ctx, o)
}
