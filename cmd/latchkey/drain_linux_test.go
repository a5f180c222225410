package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// errRefused is a connection that was not made: the listener is closed.
var errRefused = errors.New("refused")

// dialReplica returns a connection on which everything must be answered.
func dialReplica(addr string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: 2 * time.Minute}).Dial("tcp", addr)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, errRefused
	}
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(2 * time.Minute))
}

// getOnce sends a request on a connection of its own.
func getOnce(addr, path string, status int) error {
	c, err := dialReplica(addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
		return err
	}
	a, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, a.Body)
	if err == nil && a.StatusCode != status {
		err = errors.New(a.Status)
	}
	return errors.Join(err, a.Body.Close())
}

// callOnce calls a gRPC service on a connection of its own.
func callOnce(addr string) error {
	var made atomic.Bool
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(_ context.Context, addr string) (net.Conn, error) {
			c, err := dialReplica(addr)
			if err == nil {
				made.Store(true)
			}
			return c, err
		}))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	_, err = healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	if err != nil && !made.Load() {
		err = errRefused
	}
	return errors.Join(err, conn.Close())
}

// Clients that open a connection for each request are answered or refused while a
// replica ends, however late before the end it accepted their connection.
func TestSIGTERMLosesNoConnection(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	for round := range 8 {
		envoy := net.JoinHostPort("127.0.0.1", stacktest.FreePort(t))
		p := launch(t, bin, server.URL(), "LATCHKEY_EXTAUTHZ_ADDR="+envoy)
		api, admin := strings.TrimPrefix(p.api, "http://"), strings.TrimPrefix(p.admin, "http://")
		var wg sync.WaitGroup
		var waiting []<-chan struct{} // until each client has been answered some times
		clients := func(n int, listener string, once func() error) {
			for range n {
				warm := make(chan struct{})
				waiting = append(waiting, warm)
				wg.Go(func() {
					for i := 0; ; i++ {
						if i == 5 {
							close(warm)
						}
						err := once()
						if errors.Is(err, errRefused) && i >= 5 {
							return
						}
						if err != nil {
							t.Errorf("round %d, %s: %v", round, listener, err)
							if i < 5 {
								close(warm)
							}
							return
						}
					}
				})
			}
		}
		clients(24, "API", func() error { return getOnce(api, "/auth/verify", 401) })
		clients(4, "admin listener", func() error { return getOnce(admin, "/healthz", 200) })
		clients(8, "ext_authz", func() error { return callOnce(envoy) })
		for _, warm := range waiting {
			<-warm
		}
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := <-p.done; err != nil {
			t.Errorf("round %d: exit: %v", round, err)
		}
		wg.Wait()
		if t.Failed() {
			return
		}
	}
}
