package tokenstore

import (
	"context"
	"errors"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// leftLate is the context of a caller who leaves after the batch was answered.
type leftLate struct {
	context.Context
}

func (leftLate) Err() error { return context.Canceled }

// The handlers answer 499 where a client has left, and 503 where Redis is at fault. A Redis that
// does not know a script yet (NOSCRIPT) is at no fault.
func TestACallerWhoLeftIsNotToldOfAnUnknownScript(t *testing.T) {
	rdb := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	s, err := New(rdb, Options{Shards: 1})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.sendOnce(leftLate{t.Context()}, call{script: s.scripts.verify, keys: []string{"lk:{0}:rt:x"}}, 0)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want: canceled", err)
	}
}
