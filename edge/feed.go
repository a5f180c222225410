package edge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// FeedOptions are what a Feed is made of.
type FeedOptions struct {
	Revocations *tokenstore.Revocations
	// Lease is that of the replicas: streams beat three times in each. 0 means
	// one second.
	Lease time.Duration
	// MaxStreams is how many there may be at once; 0 means 64.
	MaxStreams int
	// MaxAge is after how long a stream is ended, for its reader to resume: the
	// clocks of both ends are compared anew then. 0 means 10 minutes.
	MaxAge time.Duration
	// Failed, if set, is told why Redis could not be read. It must not block.
	Failed func(error)
}

const (
	defaultStreams   = 64
	defaultStreamAge = 10 * time.Minute
	// streamBuffer is how many rounds a stream may be behind before it is dropped.
	streamBuffer = 1024
	// streamWrite is how long one write may take.
	streamWrite = 5 * time.Second
	// feedPause is the shortest time between two rounds, so that a burst of
	// logouts is read in batches.
	feedPause = 5 * time.Millisecond
	// feedPoll is the time between two rounds where the log cannot be waited on.
	feedPoll = 50 * time.Millisecond
	// feedSnapshots is how many streams read a page of the log at once.
	feedSnapshots = 4
)

// ErrStreams says that there are as many streams as there may be.
var ErrStreams = fmt.Errorf("%w: too many streams", ErrUnavailable)

// errHistoryLost ends streams whose reader has to be told of another history.
var errHistoryLost = errors.New("the log is not the one that was followed")

// Feed sends the revocations of all shards to those who cannot reach Redis: it
// is the other end of a [RemoteFollower]. One reader of Redis serves all streams,
// and only while there are any.
type Feed struct {
	o         FeedOptions
	buffer    int           // streamBuffer
	write     time.Duration // streamWrite
	snapshots chan struct{}
	life      context.Context // ends with Close
	end       context.CancelFunc
	readers   sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	reading bool
	streams map[*stream]struct{}
	marks   []tokenstore.Mark // what all streams were sent; nil before the first round
	dropped int64
}

// stream is one reader's part.
type stream struct {
	news chan round // closed when the stream is to end
}

// round is what one look at Redis brought.
type round struct {
	entries []byte    // events; shared between streams
	id      string    // of the mark; "" if there is more to come before it
	at      time.Time // before the look
	now     time.Time // Redis TIME
}

// NewFeed returns a Feed. It does nothing until somebody reads from it.
func NewFeed(o FeedOptions) *Feed {
	if o.Lease <= 0 {
		o.Lease = defaultLease
	}
	if o.MaxStreams <= 0 {
		o.MaxStreams = defaultStreams
	}
	if o.MaxAge <= 0 {
		o.MaxAge = defaultStreamAge
	}
	if o.Failed == nil {
		o.Failed = func(error) {}
	}
	f := &Feed{
		o: o, buffer: streamBuffer, write: streamWrite, snapshots: make(chan struct{}, feedSnapshots), streams: map[*stream]struct{}{},
	}
	f.life, f.end = context.WithCancel(context.Background())
	return f
}

// Close ends all streams, and waits for the reader of Redis. No stream can be
// begun afterwards.
func (f *Feed) Close() {
	f.mu.Lock()
	f.closed = true
	f.endAll()
	f.mu.Unlock()
	f.end()
	f.readers.Wait()
}

// Streams returns how many streams there are, and how many were dropped because
// their reader was too slow.
func (f *Feed) Streams() (open int, dropped int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.streams), f.dropped
}

// enter begins a stream: from here on it gets every round.
func (f *Feed) enter() (*stream, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, fmt.Errorf("%w: shutting down", ErrUnavailable)
	}
	if len(f.streams) >= f.o.MaxStreams {
		return nil, fmt.Errorf("%w: there are %d already", ErrStreams, f.o.MaxStreams)
	}
	s := &stream{news: make(chan round, f.buffer)}
	f.streams[s] = struct{}{}
	if !f.reading {
		f.reading = true
		f.readers.Go(f.read)
	}
	return s, nil
}

// leave ends a stream; it may have been ended already.
func (f *Feed) leave(s *stream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remove(s)
}

func (f *Feed) remove(s *stream) {
	if _, ok := f.streams[s]; ok {
		delete(f.streams, s)
		close(s.news)
	}
}

func (f *Feed) endAll() {
	for s := range f.streams {
		f.remove(s)
	}
}

// send gives a round to all streams. One that is too far behind is dropped: its
// reader resumes when it can.
func (f *Feed) send(r round, marks []tokenstore.Mark) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.marks = marks
	for s := range f.streams {
		select {
		case s.news <- r:
		default:
			f.dropped++
			f.remove(s)
		}
	}
}

// idle ends the reading if nobody listens.
func (f *Feed) idle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.streams) > 0 && !f.closed {
		return false
	}
	f.reading, f.marks = false, nil
	return true
}

// read reads the logs for as long as there are streams.
func (f *Feed) read() {
	ctx := f.life
	for !f.idle() {
		err := f.look(ctx)
		if errors.Is(err, errHistoryLost) {
			f.mu.Lock()
			f.marks = nil
			f.endAll()
			f.mu.Unlock()
		}
		if err == nil {
			err = f.await(ctx)
		}
		if err != nil && ctx.Err() == nil {
			f.o.Failed(err)
			pause(ctx, f.o.Lease/10)
		}
	}
}

// await returns when there may be news, or it is time to beat.
func (f *Feed) await(ctx context.Context) error {
	if !f.o.Revocations.TailsTogether() {
		pause(ctx, feedPoll)
		return nil
	}
	pause(ctx, feedPause)
	after := make(map[int]uint64, len(f.marks))
	for shard, m := range f.marks { // written by this goroutine alone
		after[shard] = m.Seq
	}
	_, err := f.o.Revocations.Tail(ctx, after, f.o.Lease/3)
	return err
}

// look brings what is beyond the marks of all shards, in rounds; the last has a
// mark. Where there are no marks yet it begins at the heads.
func (f *Feed) look(ctx context.Context) error {
	marks := slices.Clone(f.marks)
	for {
		at := time.Now()
		asks := make([]tokenstore.Renewal, f.o.Revocations.Shards())
		for i := range asks {
			asks[i] = tokenstore.Renewal{Shard: i, After: tokenstore.NoEntries}
			if marks != nil {
				asks[i].After = marks[i].Seq
			}
		}
		views, err := f.renew(ctx, asks)
		if err != nil {
			return err
		}
		next := make([]tokenstore.Mark, len(views))
		var r round
		more := false
		for i, v := range views {
			next[i] = v.Head
			if marks == nil {
				continue
			}
			at, err := advance(marks[i], v)
			if err != nil {
				return err
			}
			more = more || at != v.Head
			next[i] = at
			r.entries = appendEntries(r.entries, i, v.Entries)
		}
		if !more {
			r.id, r.at, r.now = formatMarks(next), at, views[0].Now
		}
		f.send(r, next)
		if !more {
			return nil
		}
		marks = next
	}
}

// renew is a look at some shards that takes no part in the confirmations.
func (f *Feed) renew(ctx context.Context, asks []tokenstore.Renewal) ([]tokenstore.View, error) {
	ctx, cancel := context.WithTimeout(ctx, f.o.Lease)
	defer cancel()
	return f.o.Revocations.Renew(ctx, asks)
}

// advance walks from a mark to where a look leads: the head, or a part of the way.
// The error is errHistoryLost if the mark is not on that way.
func advance(from tokenstore.Mark, v tokenstore.View) (tokenstore.Mark, error) {
	at := from
	if v.Head.Epoch != at.Epoch {
		return at, errHistoryLost
	}
	for _, e := range v.Entries {
		if e.Seq != at.Seq+1 {
			return at, errHistoryLost
		}
		at = at.After(e)
	}
	if at != v.Head && (at.Seq >= v.Head.Seq || len(v.Entries) == 0) {
		return at, errHistoryLost
	}
	return at, nil
}

// Stream answers a request with a stream that begins where the request's
// Last-Event-ID left off, or with all that the logs hold. It returns when the
// reader has gone or was too slow, when the stream is old, and after Close. An
// error means that nothing was answered yet: [ErrUnavailable].
func (f *Feed) Stream(w http.ResponseWriter, r *http.Request) error {
	s, err := f.enter()
	if err != nil {
		return err
	}
	defer f.leave(s)
	out := &output{began: time.Now(), w: w, control: http.NewResponseController(w), limit: f.write}
	// The server's deadlines are for requests that end.
	if err := out.control.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	err = f.snapshot(r.Context(), out, r.Header.Get("Last-Event-ID"))
	if err == nil {
		err = f.relay(r.Context(), out, s)
	}
	if out.started {
		return nil
	}
	return err
}

// snapshot sends what the logs hold beyond the marks of an event id.
func (f *Feed) snapshot(ctx context.Context, out *output, lastID string) error {
	k := f.o.Revocations.Shards()
	resume := parseMarks(lastID, k)
	for shard := range k {
		mark := tokenstore.Mark{}
		if resume != nil {
			mark = resume[shard]
		}
		err := f.history(ctx, out, shard, mark, eventShard)
		if errors.Is(err, errHistoryLost) && resume != nil {
			err = f.history(ctx, out, shard, tokenstore.Mark{}, eventReset)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// history sends a shard's log from a mark on; all of it if there is no mark.
// Nothing is sent if the mark is not in the log.
func (f *Feed) history(ctx context.Context, out *output, shard int, at tokenstore.Mark, announce string) error {
	whole, first := at.Chain == "", true
	for {
		v, err := f.page(ctx, shard, at.Seq)
		if err != nil {
			return err
		}
		if first && whole && len(v.Entries) > 0 {
			at.Seq = v.Entries[0].Seq - 1 // what is older has been trimmed
		}
		next, err := f.turn(at, v, first, whole)
		if err != nil {
			return err
		}
		var b []byte
		if !out.started {
			b = appendEvent(b, eventHello, "", wireHello{Shards: f.o.Revocations.Shards(), KeepMS: v.Longest.Milliseconds()})
		}
		if first {
			w := wireShard{Shard: shard, Epoch: v.Head.Epoch}
			for _, id := range v.Dead {
				w.Dead = append(w.Dead, id.String())
			}
			b = appendEvent(b, announce, "", w)
		}
		if err := out.send(appendEntries(b, shard, v.Entries)); err != nil {
			return err
		}
		if next == v.Head {
			return nil
		}
		at, first = next, false
	}
}

// turn is advance for a page that a snapshot has read. Without a mark to start
// from, the seqs must lead to the head without a gap; no chain tells.
func (f *Feed) turn(at tokenstore.Mark, v tokenstore.View, first, whole bool) (tokenstore.Mark, error) {
	if first {
		at.Epoch = v.Head.Epoch // the chain implies it
	}
	if !whole {
		return advance(at, v)
	}
	if v.Head.Epoch != at.Epoch {
		return at, errHistoryLost
	}
	for _, e := range v.Entries {
		if e.Seq != at.Seq+1 {
			return at, errHistoryLost
		}
		at.Seq = e.Seq
	}
	// An empty log under a head that has counted is one whose entries have all
	// outlived the tokens they name.
	if at.Seq == v.Head.Seq || (first && len(v.Entries) == 0) {
		return v.Head, nil
	}
	if at.Seq > v.Head.Seq || len(v.Entries) == 0 {
		return at, errHistoryLost
	}
	return at, nil
}

// page reads one page of a shard's log; few at once, for a page is large.
func (f *Feed) page(ctx context.Context, shard int, after uint64) (tokenstore.View, error) {
	select {
	case f.snapshots <- struct{}{}:
	case <-ctx.Done():
		return tokenstore.View{}, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	case <-f.life.Done():
		return tokenstore.View{}, fmt.Errorf("%w: shutting down", ErrUnavailable)
	}
	defer func() { <-f.snapshots }()
	views, err := f.renew(ctx, []tokenstore.Renewal{{Shard: shard, After: after, Limit: lookPage}})
	if err != nil {
		return tokenstore.View{}, err
	}
	return views[0], nil
}

// relay sends the rounds as they come.
func (f *Feed) relay(ctx context.Context, out *output, s *stream) error {
	// Streams that began together do not end together.
	age := time.NewTimer(f.o.MaxAge - rand.N(f.o.MaxAge/5+1)) //nolint:gosec // nothing is at stake
	defer age.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-age.C:
			return nil
		case r, ok := <-s.news:
			if !ok {
				return nil
			}
			b := r.entries
			if r.id != "" {
				b = appendEvent(slices.Clip(b), eventMark, r.id, wireMark{AtMS: r.at.Sub(out.began).Milliseconds(), NowMS: r.now.UnixMilli()})
			}
			if err := out.send(b); err != nil {
				return err
			}
		}
	}
}

// output writes a stream.
type output struct {
	began   time.Time
	w       http.ResponseWriter
	control *http.ResponseController
	limit   time.Duration
	started bool
}

func (o *output) send(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if !o.started {
		o.started = true
		h := o.w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("X-Accel-Buffering", "no") // nginx would hold events back
		o.w.WriteHeader(http.StatusOK)
	}
	if err := o.control.SetWriteDeadline(time.Now().Add(o.limit)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := o.w.Write(b); err != nil {
		return err
	}
	return o.control.Flush()
}
