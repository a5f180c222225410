package edge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// feedServer serves a feed as the API's server does, deadlines included; they are
// short here, so that a test would see a stream that they end.
func feedServer(t testing.TB, feed *Feed) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := feed.Stream(w, r); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	srv.Config.ReadTimeout, srv.Config.WriteTimeout = 300*time.Millisecond, 300*time.Millisecond
	srv.Start()
	t.Cleanup(func() {
		feed.Close()
		srv.Close()
	})
	return srv
}

// remote is an API without Redis.
type remote struct {
	*RemoteFollower
	verifier *Verifier
	offset   atomic.Int64 // of its clock
	failures chan error
	stop     func()
}

func newRemote(t testing.TB, url string, n *node, o RemoteOptions, stale time.Duration) *remote {
	t.Helper()
	r := &remote{failures: make(chan error, 1000)}
	o.URL = url
	o.Failed = func(err error) {
		select {
		case r.failures <- err:
		default:
		}
	}
	var err error
	if r.RemoteFollower, err = NewRemoteFollower(o); err != nil {
		t.Fatal(err)
	}
	machine := systemClock()
	r.clock = func() instant { return machine().add(time.Duration(r.offset.Load())) }
	keys, err := KeysFromSet(setOf(t, n.ring))
	if err != nil {
		t.Fatal(err)
	}
	if r.verifier, err = New(Options{Remote: r.RemoteFollower, Keys: keys, Issuer: issuer, Audience: audience, ServeStale: stale}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	r.stop = func() {
		cancel()
		<-done
		r.client.CloseIdleConnections()
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	}
	t.Cleanup(r.stop)
	return r
}

func (r *remote) wait(t testing.TB) *remote {
	t.Helper()
	select {
	case <-r.Ready():
	case <-time.After(2 * time.Minute):
		t.Fatal("the remote follower is never up to date")
	}
	return r
}

func (r *remote) verify(s session) error {
	_, err := r.verifier.Verify(context.Background(), s.token)
	return err
}

// becomes waits until a token is answered so, and returns how long it took.
func (r *remote) becomes(t testing.TB, s session, want error) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		err := r.verify(s)
		if errors.Is(err, want) {
			return time.Since(start)
		}
		if time.Since(start) > 15*time.Second {
			t.Fatalf("got %v, want %v; last failures %v", err, want, r.drain())
		}
		<-time.After(time.Millisecond)
	}
}

func (r *remote) drain() (list []error) {
	for {
		select {
		case err := <-r.failures:
			list = append(list, err)
		default:
			return list
		}
	}
}

func TestARemoteEdgeKnowsALogout(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	n := newNode(t, server.URL(), ring, nodeOptions{strict: true})
	before := n.login("before")
	if err := n.logout(before); err != nil {
		t.Fatal(err)
	}
	feed := NewFeed(FeedOptions{Revocations: n.store.Revocations})
	srv := feedServer(t, feed)
	r := newRemote(t, srv.URL, n, RemoteOptions{}, 0)
	s := n.login("alice")
	if err := r.verify(s); err != nil && !errors.Is(err, ErrUnavailable) {
		t.Errorf("before the first mark: %v", err)
	}
	r.wait(t)
	if err := r.verify(before); !errors.Is(err, ErrRevoked) {
		t.Errorf("a logout of before: %v", err)
	}
	var worst time.Duration
	for i := range 50 {
		s, other := n.login("user"+strconv.Itoa(i)), n.login("user"+strconv.Itoa(i))
		for range 2 {
			if err := r.verify(s); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.logout(s); err != nil {
			t.Fatal(err)
		}
		worst = max(worst, r.becomes(t, s, ErrRevoked))
		if err := r.verify(other); err != nil {
			t.Fatalf("the other session: %v", err)
		}
	}
	t.Logf("a logout was known after %v at most", worst)

	keep, end := n.login("bob"), n.login("bob")
	if _, err := n.store.Sessions.RevokeUser(t.Context(), tokenstore.UserEnd{UID: keep.uid, Except: &keep.sid}); err != nil {
		t.Fatal(err)
	}
	r.becomes(t, end, ErrRevoked)
	if err := r.verify(keep); err != nil {
		t.Errorf("the excepted session: %v", err)
	}
	// The server's deadlines for requests did not end the stream.
	<-time.After(time.Second)
	if st := r.Stats(); st.Streams != 1 || st.Denied != 52 || !st.Fresh || st.Resets != 0 {
		t.Errorf("stats: %+v, failures %v", st, r.drain())
	}
}

// gate is the way to a server, which can be cut, and then answers to nobody.
type gate struct {
	net.Listener
	frozen  atomic.Bool
	resumed chan struct{}
}

func (g *gate) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &gated{Conn: c, gate: g}, nil
}

type gated struct {
	net.Conn
	gate *gate
}

func (c *gated) Write(b []byte) (int, error) {
	if c.gate.frozen.Load() {
		<-c.gate.resumed
	}
	return c.Conn.Write(b)
}

// A replica that is frozen keeps its connections: the follower stops answering at
// its bound, and what comes late is not taken for new.
func TestAFrozenReplicaIsNotTrusted(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	n := newNode(t, server.URL(), ring, nodeOptions{strict: true})
	feed := NewFeed(FeedOptions{Revocations: n.store.Revocations})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _ = feed.Stream(w, r) }))
	g := &gate{Listener: srv.Listener, resumed: make(chan struct{})}
	srv.Listener = g
	srv.Start()
	t.Cleanup(func() {
		feed.Close()
		srv.Close()
	})
	const bound = 700 * time.Millisecond
	r := newRemote(t, srv.URL, n, RemoteOptions{Bound: bound}, 0).wait(t)
	stale := newRemote(t, srv.URL, n, RemoteOptions{Bound: bound}, time.Hour).wait(t)
	s, unaware := n.login("alice"), n.login("bob")
	r.becomes(t, unaware, nil)
	g.frozen.Store(true)
	if err := n.logout(unaware); err != nil {
		t.Fatal(err)
	}
	took := r.becomes(t, s, ErrUnavailable)
	if took > bound+200*time.Millisecond {
		t.Errorf("answered for %v without news, the bound is %v", took, bound)
	}
	for _, late := range []session{s, unaware} {
		if err := r.verify(late); !errors.Is(err, ErrUnavailable) {
			t.Errorf("after the bound: %v", err)
		}
		if err := stale.verify(late); err != nil {
			t.Errorf("serving stale: %v", err)
		}
	}
	g.frozen.Store(false)
	close(g.resumed)
	r.becomes(t, s, nil)
	r.becomes(t, unaware, ErrRevoked)
}

// Marks that were held up on the way, as after a suspension, are known to be old.
func TestAnOldMarkGrantsNothing(t *testing.T) {
	t.Parallel()
	f, err := NewRemoteFollower(RemoteOptions{URL: "http://localhost/revocations"})
	if err != nil {
		t.Fatal(err)
	}
	var now instant
	f.clock = func() instant { return now }
	now = now.add(time.Hour)
	r := &reading{f: f, began: now}
	take := func(name, data string) bool {
		t.Helper()
		fresh, err := r.take(event{name: name, data: data, id: "x"})
		if err != nil {
			t.Fatal(err)
		}
		return fresh
	}
	take("hello", `{"shards":1,"keep_ms":1000}`)
	take("shard", `{"shard":0,"epoch":"e"}`)
	mark := func(at time.Duration) bool {
		return take("mark", fmt.Sprintf(`{"at_ms":%d,"now_ms":1}`, at.Milliseconds()))
	}
	until := func() time.Duration { return f.until(0).mono - r.began.mono }
	if !mark(0) || until() != f.o.Bound {
		t.Errorf("the first mark grants until %v", until())
	}
	now = now.add(10 * time.Minute)
	if mark(time.Minute) || until() != f.o.Bound {
		t.Errorf("a mark of nine minutes ago grants until %v", until())
	}
	if !mark(10*time.Minute-time.Second) || until() != 10*time.Minute-time.Second+f.o.Bound-(10*time.Minute-time.Second)/rate {
		t.Errorf("a mark of a second ago grants until %v", until())
	}
	if !mark(time.Hour) || until() > 10*time.Minute+f.o.Bound {
		t.Errorf("a mark of the future grants until %v", until())
	}
	if took := f.now().UnixMilli(); took != 1 {
		t.Errorf("the time is %d", took)
	}
	now.wall += int64(time.Minute) // a suspension: the monotonic clock stood still
	if f.clock().before(f.until(0)) || f.now().UnixMilli() != 60_001 {
		t.Error("a suspension went unnoticed")
	}
}

func TestARemoteEdgeResumes(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	n := newNode(t, server.URL(), ring, nodeOptions{strict: true})
	var ids, sent atomic.Value
	ids.Store("")
	sent.Store(&bytes.Buffer{})
	serve := func(l net.Listener) (*httptest.Server, *Feed) {
		feed := NewFeed(FeedOptions{Revocations: n.store.Revocations})
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ids.Store(r.Header.Get("Last-Event-ID"))
			_ = feed.Stream(w, r)
		}))
		if l != nil {
			_ = srv.Listener.Close()
			srv.Listener = l
		}
		srv.Start()
		return srv, feed
	}
	srv, feed := serve(nil)
	addr := srv.Listener.Addr().String()
	r := newRemote(t, srv.URL, n, RemoteOptions{}, 0).wait(t)
	first, second, third := n.login("alice"), n.login("bob"), n.login("carol")
	if err := n.logout(first); err != nil {
		t.Fatal(err)
	}
	r.becomes(t, first, ErrRevoked)
	start := time.Now()
	feed.Close() // as a shutdown does
	srv.Close()
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the shutdown took %v", took)
	}
	if err := n.logout(second); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv, feed = serve(l)
	t.Cleanup(func() {
		feed.Close()
		srv.Close()
	})
	r.becomes(t, second, ErrRevoked)
	r.becomes(t, third, nil)
	if id := ids.Load().(string); parseMarks(id, 16) == nil || r.Stats().Resets != 0 {
		t.Errorf("resumed from %q, %+v", id, r.Stats())
	}

	// Redis loses its data: every earlier token is dead, denied or not, and new
	// ones are not refused for the client's ignorance.
	if err := n.rdb.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if err := n.store.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	fresh := n.login("dave")
	for {
		err := r.verify(fresh)
		if err == nil {
			break
		}
		if !errors.Is(err, ErrUnavailable) {
			t.Fatalf("a token of the new history: %v", err)
		}
	}
	r.becomes(t, third, ErrRevoked)
	for _, s := range []session{first, second} {
		if err := r.verify(s); !errors.Is(err, ErrRevoked) {
			t.Errorf("after the loss: %v", err)
		}
	}
	if r.Stats().Resets == 0 {
		t.Error("no reset was noticed")
	}
}

// What a stream says, byte by byte: all of the log, then what comes; and after a
// failover that lost entries, a reset of that shard alone.
func TestTheStream(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	n := newNode(t, server.URL(), ring, nodeOptions{strict: true})
	feed := NewFeed(FeedOptions{Revocations: n.store.Revocations})
	srv := feedServer(t, feed)
	s := n.login("alice")
	if err := n.logout(s); err != nil {
		t.Fatal(err)
	}
	// read returns the names of events up to the nth mark, and that one's id.
	read := func(lastID string, marks int) (names map[string]int, shards map[string]int, id string) {
		t.Helper()
		names, shards = map[string]int{}, map[string]int{}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Last-Event-ID", lastID)
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
			t.Errorf("Content-Type %q", ct)
		}
		err = readEvents(resp.Body, func() {}, func(e event) error {
			names[e.name]++
			if e.name == eventReset {
				shards[e.data]++
			}
			if e.name == eventMark && names[eventMark] == marks {
				id = e.id
				return io.ErrUnexpectedEOF
			}
			return nil
		})
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%v after %v", err, names)
		}
		return names, shards, id
	}
	names, _, id := read("", 3)
	if diff := cmp.Diff(map[string]int{"hello": 1, "shard": 16, "entries": 1, "mark": 3}, names); diff != "" {
		t.Errorf("a new reader (-want +got):\n%s", diff)
	}
	t.Logf("an id is %d characters", len(id))
	names, _, _ = read(id, 1)
	if diff := cmp.Diff(map[string]int{"hello": 1, "shard": 16, "mark": 1}, names); diff != "" {
		t.Errorf("resumed (-want +got):\n%s", diff)
	}
	names, _, _ = read("of another server", 1)
	if diff := cmp.Diff(map[string]int{"hello": 1, "shard": 16, "entries": 1, "mark": 1}, names); diff != "" {
		t.Errorf("a strange id (-want +got):\n%s", diff)
	}
	marks := parseMarks(id, 16)
	marks[s.sid.Shard()].Chain = "0123456789abcdef"
	names, shards, _ := read(formatMarks(marks), 1)
	if diff := cmp.Diff(map[string]int{"hello": 1, "shard": 15, "reset": 1, "entries": 1, "mark": 1}, names); diff != "" {
		t.Errorf("a mark of a lost history (-want +got):\n%s", diff)
	}
	for data := range shards {
		if !strings.Contains(data, fmt.Sprintf(`"shard":%d,`, s.sid.Shard())) {
			t.Errorf("reset of %s", data)
		}
	}
}

func TestMarksOfAllShardsFitAHeader(t *testing.T) {
	t.Parallel()
	for _, shards := range []int{1, 16, 256} {
		var marks []tokenstore.Mark
		for i := range shards {
			m := tokenstore.Mark{Chain: "AAECAwQFBgc"}
			if i%2 == 1 {
				m = tokenstore.Mark{Seq: uint64(i) << 20, Chain: "0123456789abcdef"}
			}
			marks = append(marks, m)
		}
		id := formatMarks(marks)
		if diff := cmp.Diff(marks, parseMarks(id, shards)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if len(id) > 4096 || parseMarks(id, shards+1) != nil || parseMarks(id+"AAAA", shards) != nil || parseMarks(id[:len(id)-4], shards) != nil {
			t.Errorf("%d shards: %d characters", shards, len(id))
		}
	}
}

// A reader that does not keep up is dropped, and holds up nobody; and there are no
// more streams than were allowed.
func TestSlowAndManyReaders(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	n := newNode(t, server.URL(), ring, nodeOptions{strict: true})
	feed := NewFeed(FeedOptions{Revocations: n.store.Revocations, MaxStreams: 2, Lease: 30 * time.Millisecond})
	feed.buffer = 4
	t.Cleanup(feed.Close)
	slow, err := feed.enter()
	if err != nil {
		t.Fatal(err)
	}
	quick, err := feed.enter()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := feed.enter(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a third stream: %v", err)
	}
	for range 20 {
		if _, ok := <-quick.news; !ok {
			t.Fatal("the quick reader was dropped")
		}
	}
	got := 0
	for range slow.news {
		got++
	}
	if open, dropped := feed.Streams(); got != 4 || open != 1 || dropped != 1 {
		t.Errorf("%d rounds; %d open, %d dropped", got, open, dropped)
	}
	feed.Close()
	for range quick.news { // closed
	}
	if _, err := feed.enter(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
}

// A reader that takes nothing holds its stream for one write at most.
func TestAReaderThatTakesNothing(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	n := newNode(t, server.URL(), ring, nodeOptions{strict: true})
	feed := NewFeed(FeedOptions{Revocations: n.store.Revocations})
	feed.write = 100 * time.Millisecond
	ended := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		out := &output{began: time.Now(), w: w, control: http.NewResponseController(w), limit: feed.write}
		s := &stream{news: make(chan round, 1000)}
		for range cap(s.news) { // more than the sockets' buffers hold
			s.news <- round{entries: bytes.Repeat([]byte(": much\n"), 1<<15)}
		}
		if err := feed.relay(r.Context(), out, s); err == nil {
			t.Error("the stream came to an orderly end")
		}
	}))
	t.Cleanup(func() {
		feed.Close()
		srv.Close()
	})
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(2 * time.Minute):
		t.Error("the stream is still held")
	}
}

func TestFullDenylistsForgetNothing(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	n := newNode(t, server.URL(), ring, nodeOptions{strict: true, storeTweak: func(o *tokenstore.Options) { o.Shards = 1 }})
	feed := NewFeed(FeedOptions{Revocations: n.store.Revocations})
	r := newRemote(t, feedServer(t, feed).URL, n, RemoteOptions{MaxDenied: 2}, 0).wait(t)
	alive := n.login("alice")
	r.becomes(t, alive, nil)
	for i := range 3 {
		if err := n.logout(n.login("user" + strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	r.becomes(t, alive, errFull)
}

func TestStreamsThatCannotBeUnderstood(t *testing.T) {
	t.Parallel()
	const hello, shard = "event: hello\ndata: {\"shards\":2,\"keep_ms\":1000}\n\n", "event: shard\ndata: {\"shard\":0,\"epoch\":\"e\"}\n\n"
	const id = "AAECAwQFBgcICQoLDA0ODw" // of shard 0
	for name, text := range map[string]string{
		"no hello":                "event: mark\ndata: {\"at_ms\":1,\"now_ms\":1}\n\n",
		"not JSON":                "event: hello\ndata: {\n\n",
		"no shards":               "event: hello\ndata: {}\n\n",
		"too many shards":         "event: hello\ndata: {\"shards\":100000000}\n\n",
		"two hellos":              hello + hello,
		"a shard twice":           hello + shard + shard,
		"a shard out of range":    hello + "event: shard\ndata: {\"shard\":2,\"epoch\":\"e\"}\n\n",
		"a mark before the end":   hello + shard + "event: mark\ndata: {\"at_ms\":1,\"now_ms\":1}\n\n",
		"entries before a shard":  hello + "event: entries\ndata: {\"shard\":0,\"entries\":[]}\n\n",
		"a kind of the future":    hello + shard + "event: entries\ndata: {\"shard\":0,\"entries\":[{\"k\":\"client\",\"u\":1,\"i\":\"" + id + "\"}]}\n\n",
		"an entry of another":     hello + shard + "event: entries\ndata: {\"shard\":0,\"entries\":[{\"k\":\"sid\",\"u\":1,\"i\":\"B" + id[1:] + "\"}]}\n\n",
		"an id that is none":      hello + shard + "event: entries\ndata: {\"shard\":0,\"entries\":[{\"k\":\"sid\",\"u\":1,\"i\":\"x\"}]}\n\n",
		"an entry without an end": hello + shard + "event: entries\ndata: {\"shard\":0,\"entries\":[{\"k\":\"sid\",\"i\":\"" + id + "\"}]}\n\n",
		"a negative shard number": hello + "event: reset\ndata: {\"shard\":-1,\"epoch\":\"e\"}\n\n",
		"too long":                "data: " + strings.Repeat("x", maxEvent) + "\n\n",
		"too many lines":          strings.Repeat("data: "+strings.Repeat("x", maxEvent/8)+"\n", 9) + "\n",
	} {
		f, err := NewRemoteFollower(RemoteOptions{URL: "http://localhost/"})
		if err != nil {
			t.Fatal(err)
		}
		err = f.readAll(strings.NewReader(text))
		if err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
		if f.clock().before(f.until(time.Hour)) {
			t.Errorf("%s: a grant", name)
		}
	}
}

// A revocation may be needed for longer than hello says: another replica may have issued
// tokens of a longer life, and the clock of Redis may have been set back. Redis time tells.
func TestARemoteDenialLastsAsLongAsItsEntrySays(t *testing.T) {
	t.Parallel()
	const id = "AAECAwQFBgcICQoLDA0ODw" // of shard 0
	sid, err := tokenstore.ParseID(id)
	if err != nil {
		t.Fatal(err)
	}
	clock := newHandClock()
	f, err := NewRemoteFollower(RemoteOptions{URL: "http://localhost/"})
	if err != nil {
		t.Fatal(err)
	}
	f.clock = clock.read
	text := "event: hello\ndata: {\"shards\":1,\"keep_ms\":1000}\n\n" +
		"event: shard\ndata: {\"shard\":0,\"epoch\":\"e\"}\n\n" +
		"event: entries\ndata: {\"shard\":0,\"entries\":[{\"k\":\"sid\",\"i\":\"" + id + "\",\"u\":60000}]}\n\n"
	r := &reading{f: f, began: clock.read()}
	take := func(e event) error { _, err := r.take(e); return err }
	if err := readEvents(strings.NewReader(text), func() {}, take); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	for _, now := range []int{2_000, 4_000, 1_000, 59_999} { // Redis TIME; each more than a keep_ms later here
		clock.move(5*time.Second, 5*time.Second)
		at := strconv.Itoa(int(clock.read().mono.Milliseconds() - r.began.mono.Milliseconds()))
		if err := take(event{name: "mark", data: `{"at_ms":` + at + `,"now_ms":` + strconv.Itoa(now) + `}`, id: "x"}); err != nil {
			t.Fatal(err)
		}
		if !r.state.shards[0].deny.names(sid) {
			t.Fatalf("forgotten at %d, and needed until 60000", now)
		}
	}
	for range 3 {
		clock.move(5*time.Second, 5*time.Second)
		at := strconv.Itoa(int(clock.read().mono.Milliseconds() - r.began.mono.Milliseconds()))
		if err := take(event{name: "mark", data: `{"at_ms":` + at + `,"now_ms":60000}`, id: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	if r.state.shards[0].deny.names(sid) {
		t.Error("remembered for ever")
	}
}

// readAll reads a stream from a text.
func (f *RemoteFollower) readAll(text io.Reader) error {
	r := &reading{f: f, began: f.clock()}
	return readEvents(text, func() {}, func(e event) error {
		_, err := r.take(e)
		return err
	})
}

func TestLinesMayEndInAnyWay(t *testing.T) {
	t.Parallel()
	want := []event{{"a", "1\n2", "x"}, {"", "3", "x"}}
	for _, end := range []string{"\n", "\r\n", "\r"} {
		text := strings.ReplaceAll(": hello\nid: x\nevent: a\ndata: 1\ndata:2\nretry: 9\n\nid: n\x00\ndata\ndata: \n\ndata: 3\n\ndata: unfinished\n", "\n", end)
		var got []event
		// One byte at a time: a CR may be the last of a read.
		err := readEvents(iotest{strings.NewReader(text)}, func() {}, func(e event) error {
			if e.data != "" && strings.TrimSpace(e.data) != "" {
				got = append(got, e)
			}
			return nil
		})
		if !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(event{})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", end, diff)
		}
	}
}

type iotest struct{ r io.Reader }

func (o iotest) Read(p []byte) (int, error) { return o.r.Read(p[:1]) }

// FuzzSSE: no stream makes a follower panic, and none without a well-formed mark
// makes it answer.
func FuzzSSE(f *testing.F) {
	b := appendEvent(nil, eventHello, "", wireHello{Shards: 1, KeepMS: 1000})
	b = appendEvent(b, eventShard, "", wireShard{Shard: 0, Epoch: "AAECAwQFBgc"})
	b = appendEntries(b, 0, []tokenstore.Entry{
		{Kind: tokenstore.KindSession, ID: tokenstore.ID{0, 1}},
		{Kind: tokenstore.KindUser, ID: tokenstore.ID{0, 2}, Epoch: 3, Except: tokenstore.ID{0, 4}},
	})
	b = appendEvent(b, eventMark, "AQA", wireMark{AtMS: 5, NowMS: 1_700_000_000_000})
	f.Add(b)
	f.Add(bytes.ReplaceAll(b, []byte("\n"), []byte("\r")))
	f.Add([]byte("event: hello\ndata: {\"shards\":256}\n\n:\n\nid\ndata\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := NewRemoteFollower(RemoteOptions{URL: "http://localhost/"})
		if err != nil {
			t.Fatal(err)
		}
		_ = r.readAll(bytes.NewReader(text))
		if r.granted.Load() != nil && !bytes.Contains(text, []byte("mark")) {
			t.Error("a grant without a mark")
		}
		if id := formatMarks(parseMarks(string(text), 3)); id != "" && id != "AQ" && id != string(text) {
			t.Errorf("%q reads as %q", text, id)
		}
		sessionOf := tokenstore.AccessToken{SID: tokenstore.ID{0, 1}}
		_ = r.judge(&Known{ids: sessionOf}, time.Hour)
		_ = r.Stats()
	})
}

func BenchmarkVerifyHotRemote(b *testing.B) {
	n := newNode(b, startRedis(b).URL(), newRing(b), nodeOptions{strict: true})
	feed := NewFeed(FeedOptions{Revocations: n.store.Revocations})
	r := newRemote(b, feedServer(b, feed).URL, n, RemoteOptions{}, 0).wait(b)
	s := n.login("alice")
	r.becomes(b, s, nil)
	b.ReportAllocs()
	for b.Loop() {
		if err := r.verify(s); err != nil {
			b.Fatal(err)
		}
	}
}
