package main

import (
	"fmt"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/internal/replica"
	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// TestAFrozenReplicaEndsNoSession: refreshes reach a replica that is frozen; their
// clients give up and refresh elsewhere; the replica wakes up when the grace is over.
func TestAFrozenReplicaEndsNoSession(t *testing.T) {
	t.Parallel()
	const grace, sessions = 2 * time.Second, 30
	server := redistest.Start(t)
	account(t, server.URL())
	fleet := stacktest.NewFleet(t, program(t), 2, server.URL(), "LATCHKEY_REFRESH_GRACE="+grace.String(),
		"LATCHKEY_PASSWORD_MEMORY=7168", "LATCHKEY_PASSWORD_ITERATIONS=1")
	frozen, other := fleet.Replicas[0], "http://"+fleet.Replicas[1].Addr

	tokens := make([]string, sessions)
	for i := range tokens {
		a := ask(t, "POST", other+"/auth/token", login(), "", "")
		want(t, "login", a, 200)
		tokens[i] = a.refresh()
	}
	frozen.Freeze(t)
	for _, token := range tokens {
		c, err := net.Dial("tcp", frozen.Addr)
		if err != nil {
			t.Fatal(err)
		}
		body := url.Values{"refresh_token": {token}}.Encode()
		if _, err := fmt.Fprintf(c, "POST /auth/refresh HTTP/1.1\r\nHost: frozen.example\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() }) // its end may take its time to arrive
	}
	for i, token := range tokens {
		a := ask(t, "POST", other+"/auth/refresh", nil, "", token)
		want(t, "refresh elsewhere", a, 200)
		tokens[i] = a.refresh()
	}
	<-time.After(grace + grace/4) // the grace is Redis's time
	frozen.Thaw(t)
	frozen.AwaitReady(t)
	<-time.After(2 * replica.StallAftermath) // what waited has been read
	ended := 0
	for _, token := range tokens {
		if a := ask(t, "POST", other+"/auth/refresh", nil, "", token); a.status != 200 {
			ended++
		}
	}
	if ended > 0 {
		t.Errorf("%d of %d sessions ended", ended, sessions)
	}
	a := ask(t, "POST", "http://"+frozen.Addr+"/auth/token", login(), "", "")
	want(t, "refresh at the replica that was frozen", ask(t, "POST", "http://"+frozen.Addr+"/auth/refresh", nil, "", a.refresh()), 200)
}
