package tokenstore_test

import (
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

func TestATailWaitsNoLongerThanItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := redis.NewClient(&redis.Options{
			Protocol: 2, DisableIdentity: true, ContextTimeoutEnabled: true,
			MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
			Dialer: func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				go func() {
					if _, err := server.Read(make([]byte, 1024)); err == nil { // HELLO
						_, _ = io.WriteString(server, "-ERR unknown command\r\n")
					}
					_, _ = io.Copy(io.Discard, server) // what comes next is never answered
				}()
				return client, nil
			},
		})
		defer func() { _ = rdb.Close() }()
		const block, timeout = 300 * time.Millisecond, 2 * time.Second
		s, err := tokenstore.New(rdb, tokenstore.Options{Shards: 16, Timeout: timeout})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, err = s.Revocations.Tail(t.Context(), map[int]uint64{0: 0}, block)
		is(t, "no answer", err, tokenstore.ErrUnavailable)
		if took := time.Since(began); took != block+timeout {
			t.Errorf("it was given up after %v, want %v", took, block+timeout)
		}
	})
}
