package tokenstore_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Nodes of a Cluster know the scripts that they were sent, and after a restart none. A
// failed login that reaches one that knows them and one that does not counts once.
func TestAFailedAttemptCountsOnceOnACluster(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 3, 0, redistest.Options{})
	s := storeOn(t, tokenstore.DialOptions{URL: c.URL()})
	many := tokenstore.Limit{Burst: 1000, Period: time.Hour}
	failed := func(last int) tokenstore.Attempt {
		t.Helper()
		a := tokenstore.Attempt{
			Username: "alice", Address: netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", last)),
			Limits: tokenstore.AttemptLimits{Client: many, Account: many, Address: tokenstore.Limit{Burst: 2, Period: time.Hour}},
		}
		l, err := s.Attempts.Lookup(t.Context(), a)
		if err != nil || l.Wait > 0 {
			t.Errorf("an attempt: %v, %v", l.Wait, err)
		}
		return a
	}
	for last := range 20 {
		failed(100 + last) // every node learns the script
	}
	for i, node := range c.Nodes {
		for last := range 6 {
			if err := node.Client().ScriptFlush(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			a := failed(10*i + last)
			if l, err := s.Attempts.Lookup(t.Context(), a); err != nil || l.Wait > 0 {
				t.Errorf("one of two attempts was used, and the second has to wait %v: %v", l.Wait, err)
			}
		}
	}
}
