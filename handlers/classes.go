package handlers

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/gin-gonic/gin"
)

// errOverload says that as many requests of a class are under way as may be.
var errOverload = errors.New("too many requests of this kind are under way")

// class is requests that share a bound on how many of them are under way at once,
// so that one kind cannot take what another needs. One more is answered 503 before
// it costs a round trip or a hash. Checks of tokens over HTTP are in none: a check
// is done at once, and there are no more of them than connections.
type class struct {
	name  Shed
	limit int64
	busy  atomic.Int64
}

// enter reports whether one more may begin, which then leaves when it is done.
func (k *class) enter() bool {
	if k.busy.Add(1) > k.limit {
		k.busy.Add(-1)
		return false
	}
	return true
}

func (k *class) leave() { k.busy.Add(-1) }

// within admits a request to a class once its body is there: a client that sends
// slowly holds up its connection and nobody else.
func (a *api) within(k *class) gin.HandlerFunc {
	gauge := a.Metrics.inFlight.WithLabelValues(string(k.name))
	return func(c *gin.Context) {
		receive(c.Request)
		if !k.enter() {
			a.shed(k.name)
			a.fail(c, errOverload)
			return
		}
		gauge.Inc()
		defer func() {
			gauge.Dec()
			k.leave()
		}()
		c.Next()
	}
}

// receive reads the request's body, which is bounded already. What went wrong the
// endpoint is told when it reads.
func receive(r *http.Request) {
	if r.Body == nil || r.Body == http.NoBody {
		return
	}
	b, err := io.ReadAll(r.Body)
	r.Body = received{bytes.NewReader(b), err}
}

// received is a body that has been read, and how that ended.
type received struct {
	*bytes.Reader
	err error // nil for well
}

func (r received) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if errors.Is(err, io.EOF) && r.err != nil {
		err = r.err
	}
	return n, err
}

// Close does nothing: the server closes the body that this was read from.
func (received) Close() error { return nil }

// Shed is where a request was turned away: a label of latchkey_shed_total.
type Shed string

// All places that turn requests away.
const (
	ShedConnection Shed = "connection" // the listener's connections are taken
	ShedLogin      Shed = "login"      // logins and password changes under way
	ShedPassword   Shed = "password"   // the queue for a password worker
	ShedRefresh    Shed = "refresh"
	ShedSession    Shed = "session"     // logouts, and whatever else is about sessions
	ShedStatusList Shed = "status_list" // requests for a list that may be about to begin
	ShedStream     Shed = "stream"      // readers of GET /revocations
	ShedExtAuthz   Shed = "ext_authz"
)

// shedNotice is how often the log tells of an overload: a line for each request
// that is turned away would be work that grows with the load.
const shedNotice = int64(time.Second)

// outageLines is how many requests that met an outage have a line in the log in
// each second. What became of all of them is in latchkey_http_requests_total.
const outageLines = 20

// loud reports whether one more line about an outage may be written now.
func (a *api) loud() bool {
	now := time.Now().Unix()
	if a.outageSecond.Swap(now) != now {
		a.outageCount.Store(0)
	}
	return a.outageCount.Add(1) <= outageLines
}

// shed counts a request that was turned away.
func (a *api) shed(where Shed) {
	a.Metrics.Shed(where)
	now := time.Now().UnixNano()
	if last := a.shedTold.Load(); now-last >= shedNotice && a.shedTold.CompareAndSwap(last, now) {
		a.Log.Warn("overloaded: requests are answered 503", slog.String("class", string(where)))
	}
}
