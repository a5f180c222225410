package tokenstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// On a Cluster of three primaries every one holds shards; moving all of their slots while sessions come and go loses
// nothing that was answered, and no script ever spans slots. The same with WAIT, which go-redis does not redirect.
func TestSlotsMoveUnderLoad(t *testing.T) {
	t.Parallel()
	for name, replicas := range map[string]int{"plain": 0, "durable": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			moveSlotsUnderLoad(t, redistest.StartCluster(t, 3, replicas, redistest.Options{}), replicas)
		})
	}
}

func moveSlotsUnderLoad(t *testing.T, cluster *redistest.Cluster, wait int) {
	t.Helper()
	var errs sync.Map // what Redis said, by its first word
	s, err := tokenstore.New(dial(t, cluster.URL()), tokenstore.Options{
		Shards: 16, Lifetimes: lifetimes(), WaitReplicas: wait,
		Observe: func(_ string, _ time.Duration, err error) {
			if err != nil {
				text := strings.TrimPrefix(err.Error(), tokenstore.ErrUnavailable.Error()+": ")
				_, text, _ = strings.Cut(text, ": ")
				word, _, _ := strings.Cut(text, " ")
				n, _ := errs.LoadOrStore(word, new(atomic.Int64))
				n.(*atomic.Int64).Add(1)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{Store: s, t: t, rdb: cluster.Client()}
	eventually(t, func() error { return s.Open(t.Context()) })

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	type visit struct {
		*family
		gen int
		out bool
	}
	const workers = 4
	visits := make([][]*visit, workers)
	var wg sync.WaitGroup
	var unanswered atomic.Int64
	// insist asks again what was not answered, as clients do, and returns the first answer.
	insist := func(op func() error) error {
		for deadline := time.Now().Add(2 * time.Minute); ; {
			err := op()
			if !errors.Is(err, tokenstore.ErrUnavailable) || time.Now().After(deadline) {
				return err
			}
			unanswered.Add(1)
		}
	}
	for w := range workers {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				v := &visit{}
				sub := fmt.Sprintf("user %d of %d", i%40, w)
				if err := insist(func() (err error) {
					v.family, err = f.tryLogin(sub, f.Now().Add(time.Hour))
					return err
				}); err != nil {
					t.Errorf("login: %v", err)
					return
				}
				visits[w] = append(visits[w], v)
				v.gen = 1
				for range 2 { // rotates, then meets the current token within the grace
					if err := insist(func() error {
						g, err := v.show(v.gen)
						if err == nil && !g.Current {
							v.gen++
						}
						return err
					}); err != nil {
						t.Errorf("show %d: %v", v.gen, err)
						return
					}
				}
				if i%2 == 0 {
					if err := insist(func() error {
						_, err := f.Sessions.Revoke(context.Background(), tokenstore.SessionEnd{SID: v.sid, UID: v.uid})
						return err
					}); err != nil {
						t.Errorf("revoke: %v", err)
						return
					}
					v.out = true
				}
			}
		})
	}
	moved := 0
	for shard := range 16 {
		slot := int(f.rdb.ClusterKeySlot(ctx, fmt.Sprintf("lk:{%d}:", shard)).Val())
		primaries := cluster.Primaries(t)
		owner := cluster.Owner(t, slot, nil)
		for i, p := range primaries {
			if p == owner {
				moved += cluster.MoveSlot(t, slot, primaries[(i+1)%len(primaries)])
				break
			}
		}
	}
	stop()
	wg.Wait()
	total := 0
	for _, list := range visits {
		for _, v := range list {
			total++
			err := insist(func() error { return f.Revocations.Verify(t.Context(), v.access(len(v.grants)-1)) })
			switch {
			case v.out:
				is(t, "a session that was ended", err, tokenstore.ErrRevoked)
			default:
				is(t, "a session that was not", err, nil)
				is(t, "its refresh token", insist(func() error { _, err := v.show(v.gen); return err }), nil)
			}
		}
	}
	for _, p := range cluster.Primaries(t) {
		n, err := p.Client().DBSize(t.Context()).Result()
		if err != nil || n == 0 {
			t.Errorf("%s holds %d keys, %v", p.Addr(), n, err)
		}
		t.Logf("%s holds %d keys", p.Addr(), n)
	}
	said := map[string]int64{}
	errs.Range(func(word, n any) bool {
		said[word.(string)] = n.(*atomic.Int64).Load()
		return true
	})
	t.Logf("%d sessions, %d keys moved, %d attempts not answered: %v", total, moved, unanswered.Load(), said)
	if moved == 0 || total < 100 {
		t.Error("too little happened: the test does not test it")
	}
	if said["CROSSSLOT"] != 0 {
		t.Errorf("a script spans slots: %d times", said["CROSSSLOT"])
	}
}
