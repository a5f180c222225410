package replica

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// While Redis is down, the client's pool sleeps up to a second after Close.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}
