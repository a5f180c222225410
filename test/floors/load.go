package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Result is what a load prints.
type Result struct {
	Requests int64
	Seconds  float64
	P50, P99 float64 // milliseconds
}

// loadRefreshes refreshes each session once: the refresh that gives it its second refresh token. Another within
// LATCHKEY_REFRESH_GRACE would write nothing.
func loadRefreshes(ctx context.Context, o options) error {
	return loadSessions(ctx, o, "/auth/refresh")
}

// loadLogouts logs each session out once, by its refresh cookie.
func loadLogouts(ctx context.Context, o options) error { return loadSessions(ctx, o, "/auth/logout") }

// loadSessions sends one POST with the refresh cookie for each session that it has made.
func loadSessions(ctx context.Context, o options, path string) error {
	cookies, err := makeSessions(ctx, o)
	if err != nil {
		return err
	}
	clients, err := dialAll(ctx, o)
	if err != nil {
		return err
	}
	return load(o, int64(len(cookies)), func(worker int, i int64) error {
		return clients[worker].post(path, "refresh_token="+cookies[i], "")
	})
}

// loadLogins logs one user in, whose name and password are in the environment, over two connections: more would only
// wait for a CPU to hash on.
func loadLogins(ctx context.Context, o options) error {
	o.connections = 2
	clients, err := dialAll(ctx, o)
	if err != nil {
		return err
	}
	form := url.Values{"username": {os.Getenv("LOGIN_USERNAME")}, "password": {os.Getenv("LOGIN_PASSWORD")}, "refresh_delivery": {"body"}}.Encode()
	return load(o, endless, func(worker int, _ int64) error { return clients[worker].post("/auth/token", "", form) })
}

// writeTokens makes sessions and writes an access token of each into a file.
func writeTokens(ctx context.Context, o options) error {
	cookies, err := makeSessions(ctx, o)
	if err != nil {
		return err
	}
	clients, err := dialAll(ctx, o)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	for _, cookie := range cookies {
		if err := clients[0].post("/auth/refresh", "refresh_token="+cookie, ""); err != nil {
			return err
		}
		_, after, _ := bytes.Cut(clients[0].body, []byte(`"access_token":"`))
		token, _, ok := bytes.Cut(after, []byte(`"`))
		if !ok {
			return errors.New("a refresh was answered without an access token")
		}
		text.Write(append(token, '\n'))
	}
	return os.WriteFile(o.tokens, text.Bytes(), 0o600)
}

// makeSessions opens sessions in Redis as logins would, without their password hashes, and returns their refresh
// tokens. The environment has LATCHKEY_SECRET.
func makeSessions(ctx context.Context, o options) ([]string, error) {
	codec, err := refreshtoken.New([]byte(os.Getenv("LATCHKEY_SECRET")))
	if err != nil {
		return nil, err
	}
	rdb, err := tokenstore.Dial(tokenstore.DialOptions{URL: o.redis, Timeout: 10 * time.Second, PoolSize: o.connections})
	if err != nil {
		return nil, err
	}
	defer func() { _ = rdb.Close() }() // all is written
	store, err := tokenstore.New(rdb, tokenstore.Options{Shards: 16, Timeout: 30 * time.Second, Lifetimes: tokenstore.Lifetimes{
		Access: 15 * time.Minute, Refresh: 168 * time.Hour, Session: 720 * time.Hour, Grace: 10 * time.Second,
	}})
	if err != nil {
		return nil, err
	}
	const perUser = 50
	cookies := make([]string, o.sessions)
	run := strconv.FormatInt(time.Now().UnixNano(), 36)
	err = each(o.connections, int64(o.sessions), func(_ int, i int64) error {
		user := fmt.Sprintf("user-%s-%d", run, i/perUser)
		uid := store.UserID(user)
		sid, err := store.Sessions.NewID(uid)
		if err != nil {
			return err
		}
		token, err := codec.First(sid, uid, nil)
		if err != nil {
			return err
		}
		cookies[i] = codec.Encode(token)
		_, err = store.Sessions.Login(ctx, tokenstore.NewSession{
			SID: sid, UID: uid, Hash: token.Hash(), Subject: user, Username: user, ClientID: "latchkey",
			Device: "Firefox on Linux", Address: "192.0.2.1", ReadAt: time.Now().Add(time.Hour),
		})
		return err
	})
	return cookies, err
}

// endless is more requests than are ever sent.
const endless = 1 << 62

// each calls do for 0 to n-1, on so many goroutines, until one fails.
func each(workers int, n int64, do func(worker int, i int64) error) error {
	var next atomic.Int64
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < n; i = next.Add(1) - 1 {
				if errs[w] = do(w, i); errs[w] != nil {
					next.Store(n)
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// load says that it is ready, waits for a line, has o.connections workers call do with 0 to n-1 until o.duration is
// over or n is reached, and prints the Result. The first error ends it.
//
// In an open loop requests are due at fixed times, and the time that one takes counts from when it was due.
func load(o options, n int64, do func(worker int, i int64) error) error {
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return fmt.Errorf("waiting for the line that begins the load: %w", err)
	}
	took := make([]*hdrhistogram.Histogram, o.connections)
	for w := range took {
		took[w] = hdrhistogram.New(1, int64(time.Minute/time.Microsecond), 3)
	}
	record := func(worker int, since time.Time) error {
		return took[worker].RecordValue(max(1, time.Since(since).Microseconds()))
	}
	var requests atomic.Int64
	began := time.Now()
	var err error
	if o.rate > 0 {
		err = openLoop(o, began, n, func(worker int, i int64, due time.Time) error {
			if err := do(worker, i); err != nil {
				return err
			}
			requests.Add(1)
			return record(worker, due)
		})
	} else {
		err = each(o.connections, n, func(worker int, i int64) error {
			sent := time.Now()
			if sent.Sub(began) >= o.duration {
				return errOver
			}
			if err := do(worker, i); err != nil {
				return err
			}
			requests.Add(1)
			return record(worker, sent)
		})
	}
	seconds := time.Since(began).Seconds()
	if err := withoutOver(err); err != nil {
		return err
	}
	all := took[0]
	for _, h := range took[1:] {
		all.Merge(h)
	}
	return json.NewEncoder(os.Stdout).Encode(Result{
		requests.Load(), seconds, float64(all.ValueAtQuantile(50)) / 1000, float64(all.ValueAtQuantile(99)) / 1000,
	})
}

// errOver ends a load whose time is over.
var errOver = errors.New("the time is over")

// withoutOver is err without the workers' errOver.
func withoutOver(err error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err
	}
	var rest []error
	for _, e := range joined.Unwrap() {
		if !errors.Is(e, errOver) {
			rest = append(rest, e)
		}
	}
	return errors.Join(rest...)
}

// openLoop has do called with 0 to n-1, o.rate times a second for o.duration, whether earlier requests were answered
// or not.
func openLoop(o options, began time.Time, n int64, do func(worker int, i int64, due time.Time) error) error {
	n = min(n, int64(o.duration.Seconds()*float64(o.rate)))
	at := func(i int64) time.Time { return began.Add(time.Duration(i) * time.Second / time.Duration(o.rate)) }
	due := make(chan int64, n)
	go func() {
		defer close(due)
		for i := range n {
			time.Sleep(time.Until(at(i))) // the rate of the load
			due <- i
		}
	}()
	return each(o.connections, int64(o.connections), func(worker int, _ int64) error {
		for i := range due {
			if err := do(worker, i, at(i)); err != nil {
				return err
			}
		}
		return nil
	})
}

// client is one connection, with as little of an HTTP client as the answers need.
type client struct {
	host string
	conn net.Conn
	r    *bufio.Reader
	body []byte // of the last answer
}

// dialAll opens the connections.
func dialAll(ctx context.Context, o options) ([]*client, error) {
	clients := make([]*client, o.connections)
	for i := range clients {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", o.addr)
		if err != nil {
			return nil, err
		}
		clients[i] = &client{host: o.addr, conn: conn, r: bufio.NewReader(conn)}
	}
	return clients, nil
}

// post sends a POST with that cookie and that form, and returns an error if the answer is no 200.
func (c *client) post(path, cookie, form string) error {
	request := "POST " + path + " HTTP/1.1\r\nHost: " + c.host + "\r\nContent-Length: " + strconv.Itoa(len(form)) + "\r\n"
	if cookie != "" {
		request += "Cookie: " + cookie + "\r\n"
	}
	if form != "" {
		request += "Content-Type: application/x-www-form-urlencoded\r\n"
	}
	request += "\r\n" + form
	if _, err := io.WriteString(c.conn, request); err != nil {
		return err
	}
	status, err := c.r.ReadString('\n')
	if err != nil {
		return fmt.Errorf("POST %s: %w", path, err)
	}
	length := -1
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("POST %s: %w", path, err)
		}
		if len(line) <= 2 {
			break
		}
		if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return fmt.Errorf("POST %s: %s: an answer without a Content-Length", path, strings.TrimSpace(status))
	}
	if cap(c.body) < length {
		c.body = make([]byte, length)
	}
	c.body = c.body[:length]
	if _, err := io.ReadFull(c.r, c.body); err != nil {
		return fmt.Errorf("POST %s: %w", path, err)
	}
	if !strings.HasPrefix(status, "HTTP/1.1 200 ") {
		return fmt.Errorf("POST %s: %s: %s", path, strings.TrimSpace(status), c.body)
	}
	return nil
}

// loadExtAuthz asks about a request with the first token of a file, as Envoy does: over one connection for each 64
// calls under way.
func loadExtAuthz(ctx context.Context, o options) error {
	tokens, err := os.ReadFile(o.tokens)
	if err != nil {
		return err
	}
	token, _, _ := strings.Cut(string(tokens), "\n")
	const each = 64
	clients := make([]authv3.AuthorizationClient, (o.connections+each-1)/each)
	for i := range clients {
		// It stays open until the process ends.
		conn, err := grpc.NewClient("passthrough:///"+o.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		clients[i] = authv3.NewAuthorizationClient(conn)
	}
	check := func(worker int, _ int64) error {
		a, err := clients[worker/each].Check(ctx, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			Source: &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
				SocketAddress: &corev3.SocketAddress{Address: "192.0.2.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 50000}},
			}}},
			Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
				Id: "1", Method: "GET", Scheme: "https", Host: "api.example.com", Path: "/orders/17", Protocol: "HTTP/1.1",
				Headers: map[string]string{
					":authority": "api.example.com", ":method": "GET", ":path": "/orders/17", ":scheme": "https",
					"accept": "*/*", "authorization": "Bearer " + token, "user-agent": "curl/8.14.1", "x-forwarded-proto": "https",
				},
			}},
		}})
		if err == nil && a.GetStatus().GetCode() != 0 {
			err = fmt.Errorf("ext_authz refuses: %s", a.GetStatus().GetMessage())
		}
		return err
	}
	for i := range clients { // which connects it
		if err := check(i*each, 0); err != nil {
			return err
		}
	}
	return load(o, endless, check)
}
