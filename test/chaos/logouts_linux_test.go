package chaos

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

const (
	wantedFaults = 5
	wantedChecks = 20_000 // of sessions that were logged out
	warm         = 500    // sessions that wait for their logout, known to every replica
	clients      = 32
	repeats      = 16 // times that a replica is asked for one session the instant its logout is answered
	others       = 8  // sessions that were logged out earlier, asked for along with it
	keepAlive    = 64
)

// TestLogouts is the promise that everything else serves: once a logout has answered,
// no replica accepts a token of that login again. Clients log thousands of sessions out
// through whichever replica, and ask all replicas the instant the answer is there, while
// Redis and replicas are paused, replicas are killed and others are added.
//
// Without LOGOUTS_FOR it ends after a few faults. LOGOUTS_SEED says which faults it makes,
// and in which order.
func TestLogouts(t *testing.T) {
	t.Parallel()
	seed, err := strconv.ParseUint(setting("LOGOUTS_SEED", strconv.FormatUint(rand.Uint64(), 10)), 10, 64) //nolint:gosec // a seed to be printed and given again
	if err != nil {
		t.Fatalf("LOGOUTS_SEED: %v", err)
	}
	length, err := time.ParseDuration(setting("LOGOUTS_FOR", "0s"))
	if err != nil {
		t.Fatalf("LOGOUTS_FOR: %v", err)
	}
	t.Logf("LOGOUTS_SEED=%d", seed)

	server := redistest.Start(t)
	z := &stampede{t: t, history: NewHistory(), fleet: newFleet(t, server.URL()), ready: make(chan *session, warm)}
	for range 3 {
		z.fleet.add()
	}
	z.fleet.ready()
	z.open(server.URL())

	ctx, cancel := context.WithCancel(t.Context())
	var makers, workers sync.WaitGroup
	for i := range 4 {
		makers.Go(func() { z.login(ctx, i) })
	}
	for len(z.ready) < warm && !t.Failed() {
		<-time.After(10 * time.Millisecond) // a look at other goroutines
	}
	// A few stay logged in until the end.
	for range keepAlive {
		z.kept = append(z.kept, <-z.ready)
	}
	begun := time.Now()
	for i := range clients {
		workers.Go(func() { z.client(ctx, seeded(seed, uint64(i)+1)) })
	}
	faults := &pauses{t: t, rng: seeded(seed, 0), server: server, fleet: z.fleet, counts: map[string]int{}}
	for n := 0; n < wantedFaults || z.checks.Load() < wantedChecks || time.Since(begun) < length; n++ {
		faults.next()
	}
	took := time.Since(begun)
	cancel()
	makers.Wait()
	workers.Wait()
	z.asking.Wait()

	// All is well again, and all that was said still holds.
	z.fleet.ready()
	z.last()
	v := z.history.Judge()
	t.Logf("\n%s%s", faults, v)
	t.Logf("%v under load, %.0f checks a second, %.0f logouts a second; LOGOUTS_SEED=%d",
		took.Round(time.Millisecond), float64(v.Checks)/took.Seconds(), float64(v.Confirmed)/took.Seconds(), seed)
	if v.Violated() {
		t.Errorf("a promise was broken; LOGOUTS_SEED=%d", seed)
	}
	if n := z.strange.Load(); n > 0 {
		t.Errorf("%d answers were neither 2xx, 401 nor 503", n)
	}
}

// session is one login, its number in the history and the requests for it.
type session struct {
	number         int
	verify, logout string
}

// stampede is clients who log out, and ask everybody at once.
type stampede struct {
	t       *testing.T
	history *History
	fleet   *fleet
	ready   chan *session // warm
	kept    []*session    // never logged out
	asking  sync.WaitGroup
	checks  atomic.Int64 // answered after a logout
	strange atomic.Int64

	store  *tokenstore.Store
	signer *accesstoken.Signer

	mu   sync.Mutex
	dead []*session
}

// open connects this process to Redis as a replica would: with the secret it
// can read the signing key.
func (z *stampede) open(redisURL string) {
	z.t.Helper()
	rdb, err := tokenstore.Dial(tokenstore.DialOptions{URL: redisURL})
	if err != nil {
		z.t.Fatal(err)
	}
	z.t.Cleanup(func() { _ = rdb.Close() })
	z.store, err = tokenstore.New(rdb, tokenstore.Options{Shards: 16, Lifetimes: tokenstore.Lifetimes{
		Access: 15 * time.Minute, Refresh: 168 * time.Hour, Session: 720 * time.Hour, Grace: 10 * time.Second,
	}})
	if err != nil {
		z.t.Fatal(err)
	}
	keys, err := z.store.Keys.Ring(z.t.Context())
	if err != nil {
		z.t.Fatal(err)
	}
	sealer, err := accesstoken.NewSealer([]byte(secret))
	if err != nil {
		z.t.Fatal(err)
	}
	key, err := sealer.Open(keys.Active, keys.Keys[keys.Active].Sealed)
	if err != nil {
		z.t.Fatal(err)
	}
	ring := accesstoken.NewRing()
	ring.Add(key)
	if err := ring.Activate(key.ID()); err != nil {
		z.t.Fatal(err)
	}
	z.signer = accesstoken.NewSigner(ring)
}

// login makes sessions, shows each to every replica, and lays them out.
func (z *stampede) login(ctx context.Context, maker int) {
	for i := 0; ctx.Err() == nil; i++ {
		s, err := z.newSession(ctx, fmt.Sprintf("user-%d-%d", maker, i%500))
		if err != nil {
			select { // Redis is paused
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		for _, r := range z.fleet.all() {
			z.ask(r, []*session{s}, nil)
		}
		select {
		case z.ready <- s:
		case <-ctx.Done():
		}
	}
}

func (z *stampede) newSession(ctx context.Context, sub string) (*session, error) {
	uid := z.store.UserID(sub)
	sid, err := z.store.Sessions.NewID(uid)
	if err != nil {
		return nil, err
	}
	jti, err := z.store.Sessions.NewID(uid)
	if err != nil {
		return nil, err
	}
	g, err := z.store.Sessions.Login(ctx, tokenstore.NewSession{
		SID: sid, UID: uid, Hash: sha256.Sum256(sid[:]), Subject: sub, Username: sub, ClientID: "latchkey", ReadAt: time.Now().Add(time.Hour),
	})
	if err != nil {
		return nil, err
	}
	token, err := z.signer.Sign(accesstoken.Claims{
		Issuer: issuer, Subject: sub, Audience: []string{audience}, ID: jti.String(), SessionID: sid.String(), ClientID: "latchkey",
		UserEpoch: g.UserEpoch, LogEpoch: g.LogEpoch, IssuedAt: g.Now.Unix(), ExpiresAt: g.Now.Unix() + 900, AuthTime: g.Now.Unix(),
	})
	if err != nil {
		return nil, err
	}
	return &session{number: z.history.Session(), verify: verifyRequest(token), logout: logoutRequest(token)}, nil
}

// client logs one session out after another.
func (z *stampede) client(ctx context.Context, rng *rand.Rand) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-z.ready:
			if z.end(ctx, s, rng) {
				z.after(s, rng)
			}
		}
	}
}

// end logs a session out, asking again until the answer is 200.
func (z *stampede) end(ctx context.Context, s *session, rng *rand.Rand) bool {
	if rng.IntN(4) == 0 { // questions that are under way during the logout
		for _, r := range z.fleet.all() {
			z.asking.Go(func() { z.ask(r, []*session{s, s}, nil) })
		}
	}
	for ctx.Err() == nil {
		all := z.fleet.all()
		r := all[rng.IntN(len(all))]
		l := Logout{Session: s.number}
		_ = r.ask([]string{s.logout}, func() { l.Asked = z.history.Now() }, func(_, status int) {
			l.AnsweredAt, l.Confirmed = z.history.Now(), status == 200
			if status != 200 && status != 503 {
				z.strange.Add(1)
			}
		})
		z.history.LoggedOut(l)
		if l.Confirmed {
			return true
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(rng.IntN(20)) * time.Millisecond):
		}
	}
	return false
}

// after asks every replica, at once, whether it accepts a session that was just
// logged out, or some of those that were earlier. A replica that does not answer
// now is paused: nobody waits for it here.
func (z *stampede) after(s *session, rng *rand.Rand) {
	list := make([]*session, 0, repeats+others)
	for range repeats {
		list = append(list, s)
	}
	z.mu.Lock()
	z.dead = append(z.dead, s)
	for range others {
		list = append(list, z.dead[rng.IntN(len(z.dead))])
	}
	z.mu.Unlock()
	alive := z.kept[rng.IntN(len(z.kept))]
	all := slices.Clone(z.fleet.all())
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	var answered sync.WaitGroup
	quick := make(chan struct{})
	for _, r := range all {
		answered.Add(1)
		z.asking.Go(func() {
			defer answered.Done()
			z.ask(r, append(list, alive), &z.checks)
		})
	}
	go func() {
		answered.Wait()
		close(quick)
	}()
	select {
	case <-quick:
	case <-time.After(100 * time.Millisecond):
	}
}

// ask asks a replica for sessions and records what it says.
func (z *stampede) ask(r *asked, list []*session, count *atomic.Int64) {
	requests := make([]string, len(list))
	checks := make([]Check, len(list))
	for i, s := range list {
		requests[i] = s.verify
		checks[i] = Check{Session: s.number, Replica: r.number}
	}
	_ = r.ask(requests, func() {
		now := z.history.Now()
		for i := range checks {
			checks[i].Asked = now
		}
	}, func(i, status int) {
		checks[i].AnsweredAt = z.history.Now()
		switch status {
		case 204:
			checks[i].Answer = Accepted
		case 401:
			checks[i].Answer = Refused
		case 503:
		default:
			z.strange.Add(1)
		}
		if count != nil && checks[i].Answer != Silent {
			count.Add(1)
		}
	})
	z.history.Checked(checks...)
}

// last asks every replica for every session once more.
func (z *stampede) last() {
	list := slices.Concat(z.dead, z.kept)
	for len(z.ready) > 0 {
		list = append(list, <-z.ready)
	}
	for _, r := range z.fleet.all() {
		for part := range slices.Chunk(list, 200) {
			z.ask(r, part, nil)
		}
	}
}

// pauses makes the faults: pauses and ends of processes.
type pauses struct {
	t      *testing.T
	rng    *rand.Rand
	server *redistest.Server
	fleet  *fleet
	counts map[string]int
}

// next makes one fault, and a pause after it.
func (f *pauses) next() {
	f.t.Helper()
	all := slices.Clone(f.fleet.all())
	f.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	one, other := all[0], all[1]
	kind := f.rng.IntN(12)
	switch {
	case kind < 3:
		f.counts["Redis paused"]++
		f.server.Pause(f.t)
		wait(f.some())
		f.server.Resume(f.t)
	case kind < 6:
		f.counts["replica paused"]++
		one.Freeze(f.t)
		wait(f.some())
		one.Thaw(f.t)
	case kind < 7:
		f.counts["two replicas paused"]++
		one.Freeze(f.t)
		wait(f.some() / 4)
		other.Freeze(f.t)
		wait(f.some())
		one.Thaw(f.t)
		wait(f.some() / 4)
		other.Thaw(f.t)
	case kind < 9:
		// What the replica had asked is answered while it cannot read.
		f.counts["replica paused in a pause of Redis"]++
		f.server.Pause(f.t)
		wait(f.some() / 4)
		one.Freeze(f.t)
		wait(f.some() / 4)
		f.server.Resume(f.t)
		wait(f.some())
		one.Thaw(f.t)
	case kind < 10:
		f.counts["replica killed in a pause of Redis, another added"]++
		f.server.Pause(f.t)
		f.fleet.leave(one)
		one.Kill()
		wait(f.some() / 4)
		f.server.Resume(f.t)
		f.fleet.add()
	case kind < 11:
		f.counts["replica killed, another added"]++
		f.fleet.leave(one)
		one.Kill()
		wait(f.some() / 4)
		f.fleet.add()
	default:
		f.counts["replica added, another told to end"]++
		f.fleet.add()
		wait(f.some() / 4)
		f.fleet.leave(one)
		one.Terminate(f.t)
	}
	wait(time.Duration(200+f.rng.IntN(500)) * time.Millisecond)
}

// some is from 0.1 s to 3 s, short ones as likely as long ones.
func (f *pauses) some() time.Duration {
	const least, most = 100 * time.Millisecond, 3 * time.Second
	return time.Duration(float64(least) * math.Exp(f.rng.Float64()*math.Log(float64(most)/float64(least))))
}

func (f *pauses) String() string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(f.counts)) {
		fmt.Fprintf(&b, "%-52.52s %4d\n", k, f.counts[k])
	}
	return b.String()
}
