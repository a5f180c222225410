package edge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// RemoteOptions are what a RemoteFollower is made of.
type RemoteOptions struct {
	// URL is GET /revocations of a replica, or of the balancer in front.
	URL string
	// Token is the bearer token that lets an API follow the revocations.
	Token string
	// Bound is for how long the follower answers without having heard that it is
	// up to date; 0 means 5 seconds. It is how late a logout can be at most.
	Bound time.Duration
	// MaxDenied is how many revocations are remembered at most. Beyond, the shards
	// concerned answer [ErrUnavailable]: nothing is forgotten. 0 means 4,000,000.
	MaxDenied int
	// Client makes the requests; nil means one of its own. Its Timeout is not
	// used, and redirects are not followed.
	Client *http.Client
	// Failed, if set, is told why a stream ended or could not be had. It must not block.
	Failed func(error)
}

// RemoteFollower keeps a copy of the denylist in a process that cannot reach
// Redis, by the stream that Latchkey serves at GET /revocations.
//
// Its guarantee is the bounded one. It takes no part in the confirmation of
// logouts: when a logout has been answered, this process usually knows within
// milliseconds, and after Bound at the latest it refuses the session's tokens, or
// answers [ErrUnavailable] if it has not heard that it is up to date. Only
// Options.ServeStale prolongs that.
//
// Bound is counted from before Redis was read for the news that came last: the
// server says how long after the beginning of the stream that was, and the stream
// began after the request for it was written. What was held up on the way is
// therefore known to be old. The assumption is that the clocks of both ends run at
// the same rate within one in a thousand; no two clocks are compared.
type RemoteFollower struct {
	o       RemoteOptions
	client  *http.Client
	clock   func() instant
	state   atomic.Pointer[remoteState] // nil before the first hello
	granted atomic.Pointer[instant]     // when the follower stops answering; nil is now
	last    atomic.Pointer[instant]     // the latest of those ever granted
	told    atomic.Pointer[redisTime]   // nil before the first mark
	ready   chan struct{}
	once    sync.Once
	resets  atomic.Int64
	starts  atomic.Int64

	lastID string // Run's alone
}

// remoteState is what is followed.
type remoteState struct {
	store  *tokenstore.Revocations // without a client: it knows which user an id is of
	shards []*remoteShard
}

// remoteShard is one shard as a RemoteFollower knows it.
type remoteShard struct {
	version atomic.Uint64          // counts the changes of deny
	history atomic.Pointer[string] // changes under mu, together with deny
	full    atomic.Bool            // deny lacks some

	mu   sync.RWMutex
	deny *denylist
}

// redisTime is a reading of Redis TIME, and when it was had.
type redisTime struct {
	ms int64
	at instant
}

const (
	defaultBound = 5 * time.Second
	// rate is by how much the clocks of both ends of a stream may differ in rate:
	// one in so many.
	rate = 1000
	// firstRetry and lastRetry bound the time between two attempts.
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
	// maxStreamAge is the oldest stream that is believed.
	maxStreamAge = 24 * time.Hour
)

var (
	errSilent = errors.New("the stream brought nothing new in time")
	errNews   = fmt.Errorf("%w: the stream of revocations is not up to date", ErrUnavailable)
	errFull   = fmt.Errorf("%w: more revocations than MaxDenied", ErrUnavailable)
)

// NewRemoteFollower returns a follower; Run makes it follow.
func NewRemoteFollower(o RemoteOptions) (*RemoteFollower, error) {
	if err := webAddress(o.URL); err != nil {
		return nil, fmt.Errorf("the stream of revocations: %w", err)
	}
	if o.Bound <= 0 {
		o.Bound = defaultBound
	}
	if o.MaxDenied <= 0 {
		o.MaxDenied = defaultMaxDenied
	}
	if o.Failed == nil {
		o.Failed = func(error) {}
	}
	client := straight(o.Client)
	client.Timeout = 0 // it would end the stream
	return &RemoteFollower{o: o, client: client, clock: systemClock(), ready: make(chan struct{})}, nil
}

// Ready is closed once the follower has been up to date: before, it answers
// [ErrUnavailable].
func (f *RemoteFollower) Ready() <-chan struct{} { return f.ready }

// Run follows until ctx ends.
func (f *RemoteFollower) Run(ctx context.Context) {
	wait := firstRetry
	for ctx.Err() == nil {
		marked, err := f.follow(ctx)
		if ctx.Err() != nil {
			break
		}
		f.o.Failed(err)
		if marked {
			wait = firstRetry
		}
		if errors.Is(err, errWire) {
			f.lastID = "" // all over again
		}
		pause(ctx, wait/2+rand.N(wait)) //nolint:gosec // nothing is at stake
		wait = min(2*wait, lastRetry)
	}
	f.granted.Store(nil)
	f.last.Store(nil)
}

// follow reads one stream to its end, and reports whether it ever was up to date.
// The end is always an error.
func (f *RemoteFollower) follow(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(f.o.Bound, func() { cancel(errSilent) })
	defer watchdog.Stop()

	// The stream begins after this moment: the request is not written before.
	var asked atomic.Pointer[instant]
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) {
		now := f.clock()
		asked.Store(&now)
	}})
	began := f.clock()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.o.URL, http.NoBody)
	if err != nil {
		return false, err
	}
	req.Header.Set("Authorization", "Bearer "+f.o.Token)
	req.Header.Set("Accept", "text/event-stream")
	if f.lastID != "" {
		req.Header.Set("Last-Event-ID", f.lastID)
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return false, because(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("GET /revocations: status %d", resp.StatusCode)
	}
	f.starts.Add(1)
	if a := asked.Load(); a != nil {
		began = *a
	}
	r := &reading{f: f, began: began}
	err = readEvents(resp.Body, func() {
		// Any line will do until the first mark; then only marks that are fresh.
		if !r.marked {
			watchdog.Reset(f.o.Bound)
		}
	}, func(e event) error {
		fresh, err := r.take(e)
		if fresh {
			watchdog.Reset(f.o.Bound)
		}
		return err
	})
	return r.marked, because(ctx, err)
}

// because prefers what ended a context to what came of it.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// reading is one stream as far as it was read.
type reading struct {
	f      *RemoteFollower
	began  instant // before the server began it
	state  *remoteState
	named  []bool // the shards that were announced
	left   int    // those that were not
	marked bool
}

// take takes one event; fresh reports that it made the follower up to date. An
// event with a name of the future is passed over: what revokes has a known one.
func (r *reading) take(e event) (fresh bool, err error) {
	decode := func(v any) error {
		if json.Unmarshal([]byte(e.data), v) != nil {
			return fmt.Errorf("%w: event %.20q", errWire, e.name)
		}
		if r.state == nil && e.name != eventHello {
			return fmt.Errorf("%w: event %.20q before hello", errWire, e.name)
		}
		return nil
	}
	switch e.name {
	case eventHello:
		var w wireHello
		if err := decode(&w); err != nil {
			return false, err
		}
		return false, r.hello(w)
	case eventShard, eventReset:
		var w wireShard
		if err := decode(&w); err != nil {
			return false, err
		}
		return false, r.shard(w, e.name == eventReset)
	case eventEntries:
		var w wireEntries
		if err := decode(&w); err != nil {
			return false, err
		}
		return false, r.entries(w)
	case eventMark:
		var w wireMark
		if err := decode(&w); err != nil {
			return false, err
		}
		return r.mark(w, e.id)
	}
	return false, nil
}

// hello takes up what was followed before, if it is of the same form.
func (r *reading) hello(w wireHello) error {
	keep := time.Duration(w.KeepMS) * time.Millisecond
	if r.state != nil || w.KeepMS < 0 || keep < 0 || keep > 10*365*24*time.Hour {
		return fmt.Errorf("%w: hello", errWire)
	}
	f := r.f
	st := f.state.Load()
	if st == nil || len(st.shards) != w.Shards {
		store, err := tokenstore.New(nil, tokenstore.Options{Shards: w.Shards})
		if err != nil {
			return fmt.Errorf("%w: %w", errWire, err)
		}
		st = &remoteState{store: store.Revocations}
		for range w.Shards {
			st.shards = append(st.shards, &remoteShard{deny: newDenylist(max(1, f.o.MaxDenied/w.Shards), keep)})
		}
		f.granted.Store(nil)
		f.last.Store(nil)
		f.lastID = ""
		f.state.Store(st)
	}
	for _, s := range st.shards {
		s.mu.Lock()
		s.deny.widen(keep)
		s.mu.Unlock()
	}
	r.state, r.named, r.left = st, make([]bool, w.Shards), w.Shards
	return nil
}

// shard takes the name of a shard's history. Under another one than before the
// follower has to hear all of it first; sessions that are denied stay denied.
func (r *reading) shard(w wireShard, reset bool) error {
	if w.Shard < 0 || w.Shard >= len(r.named) || r.named[w.Shard] || w.Epoch == "" {
		return fmt.Errorf("%w: a shard", errWire)
	}
	r.named[w.Shard] = true
	r.left--
	s := r.state.shards[w.Shard]
	old := s.history.Load()
	if other := old == nil || *old != w.Epoch; other || reset {
		r.f.granted.Store(nil)
		if old != nil {
			r.f.resets.Add(1)
		}
		if other {
			s.mu.Lock()
			s.history.Store(&w.Epoch)
			s.deny.forgetUsers() // their epochs count from the start again
			s.version.Add(1)
			s.mu.Unlock()
		}
	}
	for _, text := range w.Dead {
		id, err := tokenstore.ParseID(text)
		if err != nil || id.Shard() != w.Shard {
			return fmt.Errorf("%w: a key's id", errWire)
		}
		s.mu.Lock()
		s.deny.addKey(id)
		s.version.Add(1)
		s.mu.Unlock()
	}
	return nil
}

func (r *reading) entries(w wireEntries) error {
	if w.Shard < 0 || w.Shard >= len(r.named) || !r.named[w.Shard] {
		return fmt.Errorf("%w: entries of a shard without a name", errWire)
	}
	s := r.state.shards[w.Shard]
	now := r.f.clock().mono
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, we := range w.Entries {
		e, err := we.entry(w.Shard)
		if err != nil {
			return err
		}
		s.deny.add(e, now)
		// After the entry is in: who sees the old version began before.
		s.version.Add(1)
	}
	return nil
}

// mark lets the follower answer for Bound from the moment at which the server
// began to look.
func (r *reading) mark(w wireMark, id string) (fresh bool, err error) {
	at := time.Duration(w.AtMS) * time.Millisecond
	if r.left > 0 || w.NowMS <= 0 || at > maxStreamAge || at < -maxStreamAge || at/time.Millisecond != time.Duration(w.AtMS) {
		return false, fmt.Errorf("%w: mark", errWire)
	}
	f, now := r.f, r.f.clock()
	read := earlier(r.began.add(at), now)
	f.told.Store(&redisTime{ms: w.NowMS, at: read})
	for _, s := range r.state.shards {
		s.mu.Lock()
		s.deny.redis = w.NowMS
		s.deny.turn(now.mono)
		s.full.Store(!s.deny.complete(now.mono))
		s.mu.Unlock()
	}
	f.lastID, r.marked = id, true
	end := read.add(f.o.Bound - max(at, 0)/rate)
	if !now.before(end) {
		return false, nil // it was held up for too long
	}
	if old := f.granted.Load(); old == nil || old.mono < end.mono {
		f.granted.Store(&end)
		f.last.Store(&end)
	}
	f.once.Do(func() { close(f.ready) })
	return true, nil
}

// earlier takes from each clock the earlier reading.
func earlier(a, b instant) instant {
	return instant{mono: min(a.mono, b.mono), wall: min(a.wall, b.wall)}
}

// now estimates Redis TIME; before the first mark it is the local clock.
func (f *RemoteFollower) now() time.Time {
	told := f.told.Load()
	if told == nil {
		return time.Now()
	}
	// A machine that was suspended knows by its wall clock alone.
	now := f.clock()
	passed := max(now.mono-told.at.mono, time.Duration(now.wall-told.at.wall))
	return time.UnixMilli(told.ms).Add(passed)
}

// userID returns the id of a subject. Error: [ErrUnavailable] before the first
// stream.
func (f *RemoteFollower) userID(sub string) (tokenstore.ID, error) {
	st := f.state.Load()
	if st == nil {
		return tokenstore.ID{}, errNews
	}
	return st.store.UserID(sub), nil
}

// keyID returns the id of a signing key; userID comes before it.
func (f *RemoteFollower) keyID(kid string, shard int) tokenstore.ID {
	return f.state.Load().store.KeyID(kid, shard)
}

// judge says whether a token is to be accepted, as [Verifier.Verify] does.
func (f *RemoteFollower) judge(t *Known, stale time.Duration) error {
	st := f.state.Load()
	if st == nil {
		return errNews
	}
	number := t.ids.SID.Shard()
	if number >= len(st.shards) || t.ids.UID.Shard() != number {
		return ErrRevoked // issued when there were other shards
	}
	s := st.shards[number]
	// In this order: what a grant stands for was applied before it was given, and
	// so is seen by who looks after having read it; a new history is named only
	// once the grant for the old one is gone, and all of this must be of one history.
	history := s.history.Load()
	if history == nil {
		return errNews
	}
	end := f.until(stale)
	if version := s.version.Load() + 1; version != t.good.Load() { // 0 is "never"
		s.mu.RLock()
		denied := s.deny.denies(&t.ids, *history)
		s.mu.RUnlock()
		if denied {
			return ErrRevoked
		}
		t.good.Store(version)
	}
	switch {
	case !f.clock().before(end) || s.history.Load() != history:
		return errNews
	case s.full.Load():
		return errFull
	case *history != t.ids.LogEpoch:
		return f.foreign(t)
	}
	return nil
}

// until returns the instant until which what is known here may be relied on; the
// zero instant if it may not.
func (f *RemoteFollower) until(stale time.Duration) instant {
	var end instant
	if g := f.granted.Load(); g != nil {
		end = *g
	}
	if stale > 0 {
		if last := f.last.Load(); last != nil {
			end = last.add(stale)
		}
	}
	return end
}

// foreign judges a token of another history than the one that is followed. It is
// dead if that was given up before. But Redis may have lost its data since the
// last mark, and the token may be of the history that followed: this follower does
// not know of it yet, and a client must not be made to log in again for that.
func (f *RemoteFollower) foreign(t *Known) error {
	if told := f.told.Load(); told != nil && (t.IssuedAt+1)*1000 < told.ms {
		return ErrRevoked
	}
	return fmt.Errorf("%w: the token's history of the log is not known yet", ErrUnavailable)
}

// RemoteStats is how a RemoteFollower is doing.
type RemoteStats struct {
	Fresh   bool  // it answers by itself now
	Denied  int   // revocations remembered
	Streams int64 // that were begun
	Resets  int64 // of shards whose history was another than before
}

// Stats returns how the follower is doing.
func (f *RemoteFollower) Stats() RemoteStats {
	out := RemoteStats{Fresh: f.clock().before(f.until(0)), Streams: f.starts.Load(), Resets: f.resets.Load()}
	st := f.state.Load()
	if st == nil {
		return out
	}
	for _, s := range st.shards {
		s.mu.RLock()
		out.Denied += s.deny.len()
		s.mu.RUnlock()
	}
	return out
}
