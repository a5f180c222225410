package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
)

// serving is how soon after a new primary's promotion every replica must serve refreshes again,
// on a machine ten times slower than one that is at rest. There it takes one or two seconds.
const serving = 20 * time.Second

// visitor refreshes one session at one replica, over and over, and keeps what it was answered.
type visitor struct {
	api     string
	refresh string
	access  string

	mu       sync.Mutex
	statuses map[int]int
	oddities []string
	last     time.Time // of the last refresh that succeeded
	first    time.Time // of the first refresh that succeeded after since
	since    time.Time
}

// visit refreshes until ctx ends. What was not answered is asked again with the same token: it converges.
func (v *visitor) visit(ctx context.Context) {
	for ctx.Err() == nil {
		a, err := try(ctx, "POST", v.api+"/auth/refresh", url.Values{}, "", v.refresh)
		if ctx.Err() != nil {
			return
		}
		v.mu.Lock()
		switch {
		case err != nil:
			v.oddities = append(v.oddities, err.Error())
		case a.status == 200:
			v.refresh, v.access, v.last = a.refresh(), a.access(), time.Now()
			if v.first.IsZero() && !v.since.IsZero() {
				v.first = v.last
			}
		case a.status == 503 && a.header.Get("Retry-After") != "":
		default:
			v.oddities = append(v.oddities, fmt.Sprint(a.status, a.body))
		}
		if err == nil {
			v.statuses[a.status]++
		}
		v.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(10 * time.Millisecond): // a browser that tries again
		}
	}
}

// firstAfter waits for the first success after t.
func (v *visitor) firstAfter(ctx context.Context, t time.Time) (time.Time, bool) {
	for ctx.Err() == nil {
		v.mu.Lock()
		if v.last.After(t) && v.first.IsZero() {
			v.first = v.last
		}
		first := v.first
		v.mu.Unlock()
		if !first.IsZero() {
			return first, true
		}
		time.Sleep(2 * time.Millisecond) // a poll of another goroutine's state, not a timing
	}
	return time.Time{}, false
}

// awaitRole returns when a node first says that it is a primary.
func awaitRole(ctx context.Context, nodes []*redistest.Server) (time.Time, error) {
	found := make(chan time.Time, len(nodes))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, n := range nodes {
		c := n.Client()
		go func() {
			for ctx.Err() == nil {
				role, err := c.Do(ctx, "ROLE").Slice()
				if err == nil && len(role) > 0 && role[0] == "master" {
					found <- time.Now()
					return
				}
				time.Sleep(2 * time.Millisecond) // a poll of another process's state, not a timing
			}
		}()
	}
	select {
	case t := <-found:
		return t, nil
	case <-ctx.Done():
		return time.Time{}, ctx.Err()
	}
}

// A primary dies, Sentinels promote a replica, and nobody restarts anything: every replica of the service refreshes
// again soon after the promotion, on the sessions from before, and in between clients are told to come back.
func TestASentinelFailoverNeedsNoRestart(t *testing.T) {
	t.Parallel()
	for name, frozen := range map[string]bool{"primary killed": false, "primary's machine frozen, a Sentinel's too": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bin, redis := program(t), redistest.StartSentinel(t, redistest.Options{Args: []string{"--appendonly", "yes"}})
			visitors := failoverFleet(t, bin, redis.URL())
			primary := redis.Primary(t)
			if n, err := primary.Client().Wait(t.Context(), 2, 10*time.Second).Result(); err != nil || n < 2 {
				t.Fatalf("%d replicas have the sessions: %v", n, err)
			}
			var others []*redistest.Server
			for _, n := range redis.Nodes {
				if n != primary {
					others = append(others, n)
				}
			}
			fail := func() { primary.Kill(t) }
			if frozen {
				fail = func() {
					primary.Pause(t)
					redis.Consulted(t).Pause(t)
				}
			}
			failOver(t, visitors, fail, others)
		})
	}
}

// The same on a Cluster, where a dead node's slots are taken over by its replica.
func TestAClusterFailoverNeedsNoRestart(t *testing.T) {
	t.Parallel()
	bin, cluster := program(t), redistest.StartCluster(t, 3, 1, redistest.Options{Args: []string{"--appendonly", "yes"}})
	visitors := failoverFleet(t, bin, cluster.URL())
	failOver(t, visitors, func() { cluster.Nodes[0].Kill(t) }, cluster.Nodes[3:])
}

// failoverFleet starts three replicas with three sessions each.
func failoverFleet(t *testing.T, bin, redisURL string) []*visitor {
	t.Helper()
	var replicas []*process
	for range 3 {
		replicas = append(replicas, launch(t, bin, redisURL,
			"LATCHKEY_PASSWORD_MEMORY=7168", "LATCHKEY_PASSWORD_ITERATIONS=1", "LATCHKEY_REDIS_TIMEOUT=250ms"))
	}
	account(t, redisURL)
	var visitors []*visitor
	for _, p := range replicas {
		p.becomes(200)
		if !strings.Contains(p.logged(), `"redis":"`) {
			t.Error("what Redis it is was not reported at start")
		}
		for range 3 {
			in := ask(t, "POST", p.api+"/auth/token", login(), "", "")
			want(t, "login", in, 200)
			visitors = append(visitors, &visitor{api: p.api, refresh: in.refresh(), access: in.access(), statuses: map[int]int{}})
		}
	}
	return visitors
}

// failOver lets visitors go on through a failover that fail causes and that ends when one of others is a primary, and
// holds what they were answered to the contract.
func failOver(t *testing.T, visitors []*visitor, fail func(), others []*redistest.Server) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
	defer stop()
	fail()
	began := time.Now()
	var wg sync.WaitGroup
	for _, v := range visitors {
		wg.Go(func() { v.visit(ctx) })
	}
	promoted, err := awaitRole(ctx, others)
	if err != nil {
		t.Fatalf("no replica was promoted: %v", err)
	}
	var worst time.Duration
	for _, v := range visitors {
		first, ok := v.firstAfter(ctx, promoted)
		if !ok {
			t.Fatalf("%s never served again: %v %v", v.api, v.statuses, v.oddities)
		}
		worst = max(worst, first.Sub(promoted))
	}
	t.Logf("promoted %v after the failure; every replica served %v after that", promoted.Sub(began).Round(time.Millisecond), worst.Round(time.Millisecond))
	if worst > serving {
		t.Errorf("the last replica served %v after the promotion, not within %v", worst, serving)
	}
	// A moment longer, on what is there now: nothing that was refused may have been a session's end.
	settled := time.Now()
	for _, v := range visitors {
		v.mu.Lock()
		v.first = time.Time{}
		v.mu.Unlock()
		if _, ok := v.firstAfter(ctx, settled); !ok {
			t.Errorf("%s does not go on", v.api)
		}
	}
	stop()
	wg.Wait()
	total := map[int]int{}
	for _, v := range visitors {
		for status, n := range v.statuses {
			total[status] += n
		}
		if len(v.oddities) > 0 {
			t.Errorf("%s answered %q", v.api, v.oddities)
		}
		answers(t, v.api+"/auth/verify", v.access, 204)
	}
	t.Logf("answers: %v", total)
	if total[503] == 0 {
		t.Error("no request fell into the failover: the test does not test it")
	}
}
