package tokenstore_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

func BenchmarkVerify(b *testing.B) {
	f := newFixture(b, redistest.Start(b).Client(), lifetimes())
	token := f.login("alice").access(0)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := f.Revocations.Verify(context.Background(), token); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkRotate(b *testing.B) {
	f := newFixture(b, redistest.Start(b).Client(), withoutGrace())
	c := chain{uid: f.UserID("alice")}
	if err := c.login(f); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := c.rotate(f); err != nil {
			b.Fatal(err)
		}
	}
}

// withoutGrace are lifetimes with which every refresh rotates.
func withoutGrace() tokenstore.Lifetimes {
	life := lifetimes()
	life.Grace = -time.Millisecond
	return life
}

// chain is a session reduced to what rotating needs.
type chain struct {
	sid, uid tokenstore.ID
	gen      uint32
}

func (c *chain) hash(gen uint32) [32]byte {
	return sha256.Sum256(binary.BigEndian.AppendUint32(c.sid[:], gen))
}

// login begins a session with this chain's derivation.
func (c *chain) login(f *fixture) (err error) {
	if c.sid, err = f.Sessions.NewID(c.uid); err != nil {
		return err
	}
	c.gen = 1
	_, err = f.Sessions.Login(context.Background(), tokenstore.NewSession{
		SID: c.sid, UID: c.uid, Hash: c.hash(1), Subject: "alice", Username: "alice", ReadAt: time.Now().Add(time.Hour),
	})
	return err
}

func (c *chain) rotate(f *fixture) error {
	_, _, err := f.Sessions.Rotate(context.Background(), tokenstore.Rotation{SID: c.sid, UID: c.uid, Gen: c.gen, Hash: c.hash(c.gen), Next: c.hash(c.gen + 1)})
	c.gen++
	return err
}

// BenchmarkMillionSessions fills a real Redis with a million users of one
// session each, with a device string of 64 bytes, and reports what one costs,
// and how much slower a refresh is than among a thousand. Run it once:
// make bench-memory.
func BenchmarkMillionSessions(b *testing.B) {
	if b.N > 1 {
		b.Skip("run it with -benchtime 1x: it measures a state, not a loop")
	}
	const few, many, limit = 1_000, 1_000_000, 700.0
	server := redistest.Start(b)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), PoolSize: 64, ReadTimeout: 30 * time.Second})
	defer func() { _ = rdb.Close() }()
	f := newFixture(b, rdb, withoutGrace())
	f.login("warm") // loads the script, makes a head
	empty := usedMemory(b, rdb)

	var chains []chain
	// each calls do for every number from..to-1, 64 at a time.
	each := func(from, to int, do func(i int) error) {
		var wg sync.WaitGroup
		jobs := make(chan int, 256)
		for range 64 {
			wg.Go(func() {
				for i := range jobs {
					if err := do(i); err != nil {
						b.Error(err)
					}
				}
			})
		}
		for i := from; i < to; i++ {
			jobs <- i
		}
		close(jobs)
		wg.Wait()
	}
	fill := func(from, to int) {
		made := make([]chain, to-from)
		each(from, to, func(i int) error {
			sub := fmt.Sprintf("user-%09d", i)
			c := chain{uid: f.UserID(sub), gen: 1}
			c.sid, _ = f.Sessions.NewID(c.uid)
			_, err := f.Sessions.Login(context.Background(), tokenstore.NewSession{
				SID: c.sid, UID: c.uid, Hash: c.hash(1), Subject: sub, Username: sub, ClientID: "latchkey",
				Device: strings.Repeat("d", 64), Address: "2001:db8::" + strconv.FormatInt(int64(i%65536), 16),
				ReadAt: time.Now().Add(time.Hour),
			})
			made[i-from] = c
			return err
		})
		chains = append(chains, made...)
	}
	median := func() time.Duration {
		took := make([]time.Duration, 5000)
		for i := range took {
			var at [4]byte
			_, _ = rand.Read(at[:])
			c := &chains[int(binary.BigEndian.Uint32(at[:]))%len(chains)]
			start := time.Now()
			if err := c.rotate(f); err != nil {
				b.Fatal(err)
			}
			took[i] = time.Since(start)
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	for b.Loop() {
		fill(0, few)
		thousand := median()
		fill(few, many)
		b.StopTimer()
		if b.Failed() {
			return
		}
		million := median()
		fresh := float64(usedMemory(b, rdb)-empty) / many
		each(0, many, func(i int) error { return chains[i].rotate(f) }) // now all store prev too
		size := float64(usedMemory(b, rdb)-empty) / many
		b.ReportMetric(fresh, "bytes/fresh-session")
		b.ReportMetric(size, "bytes/session")
		b.ReportMetric(float64(thousand.Microseconds()), "µs/refresh-at-1k")
		b.ReportMetric(float64(million.Microseconds()), "µs/refresh-at-1M")
		b.ReportMetric(float64(million)/float64(thousand), "ratio-1M/1k")
		b.ReportMetric(0, "ns/op")
		if size > limit {
			b.Errorf("a session costs %.0f bytes, more than %.0f", size, limit)
		}
		b.StartTimer()
	}
}

func usedMemory(b *testing.B, rdb *redis.Client) int64 {
	b.Helper()
	info, err := rdb.Info(context.Background(), "memory").Result()
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "used_memory:"); ok {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatal("INFO does not tell used_memory")
	return 0
}
