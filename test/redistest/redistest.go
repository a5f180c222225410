//go:build unix

// Package redistest runs real redis-server processes for tests, alone ([Start], [StartWith]), watched by Sentinels
// ([StartSentinel]) or as a Cluster ([StartCluster]), each on a port and in a folder of its own, gone with the test. A
// server can be paused, killed and restarted, which is how the tests learn what an outage looks like; a topology can be
// failed over, and waited for until it has come to rest.
//
// REDIS_SERVER names another program than redis-server, such as valkey-server.
//
// A test never skips because the program is missing: it fails, and says how to install it. The package never uses a
// Redis that it did not start, and never ends a process that it did not start.
package redistest

import (
	"testing"

	"github.com/alicebob/miniredis/v2"
)

// Mini starts miniredis, the fake in this process, and closes it with the test. Suites that hold for both run their
// cases against Mini and against [Start].
func Mini(t testing.TB) *miniredis.Miniredis {
	t.Helper()
	return miniredis.RunT(t)
}
