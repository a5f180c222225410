package handlers

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gin-gonic/gin"
	"golang.org/x/sync/singleflight"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/statuslist"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

const (
	statusListPath = "/status-lists/"
	statusListType = "application/statuslist+jwt"

	// statusListAge is for how long a replica answers from what it last read of a
	// shard. It reads no shard more often, whatever it is asked.
	statusListAge = time.Second
	// statusListSlack is how much longer a list may be relied upon than it may be
	// kept: what it may have aged here, and the fraction of a second that iat lacks.
	statusListSlack = statusListAge + time.Second
)

// errHistory says that a list of another time was asked for.
var errHistory = errors.New("lists of the past are not kept")

// statusLists are the lists that show what was revoked to those who have no other way to
// know (draft-ietf-oauth-status-list-21).
type statusLists struct {
	views  *tokenstore.Revocations
	signer *accesstoken.Signer
	base   string // of the lists' URIs
	ttl    time.Duration
	now    func() time.Time
	reads  singleflight.Group
	shards []atomic.Pointer[statusShard]
	late   class // requests that wait for the next look at Redis
}

// statusShard is a shard as it was read once.
type statusShard struct {
	tokenstore.StatusView
	asked time.Time // before Redis was
	lists sync.Map  // signed, by block; made for the first who asks
}

func newStatusLists(d Dependencies, inFlight int64) *statusLists {
	s := &statusLists{
		views: d.Store.Revocations, signer: d.Signer, ttl: d.Settings.StatusListTTL, now: d.Now,
		base:   strings.TrimSuffix(d.Settings.Issuer, "/") + statusListPath,
		shards: make([]atomic.Pointer[statusShard], d.Store.Shards()),
		late:   class{name: ShedStatusList, limit: inFlight},
	}
	if s.now == nil {
		s.now = time.Now
	}
	return s
}

// reference is what an access token says of its place in a shard.
func (s *statusLists) reference(shard int, p tokenstore.Place) (uri string, index uint64) {
	block, idx := statuslist.Locate(p.N)
	return s.base + statuslist.ID{Shard: shard, History: p.History, Block: block}.String(), uint64(idx) //nolint:gosec // not negative
}

// statusList is GET /status-lists/{id}: a list as it was at most a second ago, or a 503.
func (a *api) statusList(c *gin.Context) error {
	if c.Request.URL.Query().Has("time") {
		return errHistory // section 8.4
	}
	id, err := statuslist.ParseID(c.Param("id"))
	if err != nil {
		return errNotFound
	}
	text, err := a.lists.get(c.Request.Context(), id)
	if errors.Is(err, errOverload) {
		a.shed(ShedStatusList)
	}
	if err != nil {
		return err
	}
	h := c.Writer.Header()
	h.Set("Content-Type", statusListType)
	if h.Get("Access-Control-Allow-Origin") == "" {
		h.Set("Access-Control-Allow-Origin", "*") // section 8.1: for verifiers in browsers
		if len(a.Settings.AllowedOrigins) > 0 {
			h.Set("Vary", "Origin") // as with those that get headers of their own
		}
	}
	publish(c, text, fmt.Sprintf("public, max-age=%d", int(a.lists.ttl.Seconds())))
	return nil
}

// get returns a list, signed. Errors: errNotFound for one in which no living token has a
// place, those of a history that Redis has lost among them: nothing can be said of
// their tokens any more, so they must be refused (section 8.3); errOverload if as many as
// may wait to hear of a new list already; [tokenstore.ErrUnavailable]; those of the signer.
func (s *statusLists) get(ctx context.Context, id statuslist.ID) ([]byte, error) {
	if id.Shard >= len(s.shards) {
		return nil, errNotFound
	}
	arrived := s.now()
	shard, err := s.read(ctx, id.Shard, arrived.Add(-statusListAge))
	if err == nil && !shard.has(id) && shard.asked.Before(arrived) {
		// Its first token may have been issued since.
		if err = s.wait(ctx, shard.asked.Add(statusListAge)); err == nil {
			shard, err = s.read(ctx, id.Shard, arrived)
		}
	}
	if err != nil {
		return nil, err
	}
	if !shard.has(id) {
		return nil, errNotFound
	}
	made, _ := shard.lists.LoadOrStore(id.Block, sync.OnceValues(func() ([]byte, error) { return s.sign(id, &shard.StatusView) }))
	list, _ := made.(func() ([]byte, error))
	return list()
}

// wait returns at a time, or when nobody waits any more. Only so many may wait:
// strangers who make up ids could hold all connections.
func (s *statusLists) wait(ctx context.Context, until time.Time) error {
	if !s.late.enter() {
		return errOverload
	}
	defer s.late.leave()
	timer := time.NewTimer(until.Sub(s.now()))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", tokenstore.ErrUnavailable, ctx.Err())
	case <-timer.C:
		return nil
	}
}

// read returns a shard as it was read at a time or later. All who want it share one
// read. Errors: [tokenstore.ErrUnavailable].
func (s *statusLists) read(ctx context.Context, shard int, from time.Time) (*statusShard, error) {
	for {
		if v := s.shards[shard].Load(); v != nil && !v.asked.Before(from) {
			return v, nil
		}
		reading := s.reads.DoChan(strconv.Itoa(shard), func() (any, error) {
			v := &statusShard{asked: s.now()}
			var err error
			if v.StatusView, err = s.views.StatusView(context.WithoutCancel(ctx), shard); err == nil {
				s.shards[shard].Store(v)
			}
			return nil, err
		})
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", tokenstore.ErrUnavailable, ctx.Err())
		case r := <-reading:
			if r.Err != nil {
				return nil, r.Err
			}
		}
	}
}

// has reports whether a token may name a list.
func (v *statusShard) has(id statuslist.ID) bool {
	last, _ := statuslist.Locate(v.Last)
	return v.Last > 0 && id.History == v.History && id.Block <= last
}

// sign makes the list of a block.
func (s *statusLists) sign(id statuslist.ID, v *tokenstore.StatusView) ([]byte, error) {
	var list statuslist.List
	for _, p := range v.Revoked {
		list.RevokePlaces(id.Block, p.First, p.Count)
	}
	lst, err := list.Encode()
	if err != nil {
		return nil, err
	}
	iat := v.Now.Unix()
	token, err := s.signer.SignStatusList(accesstoken.StatusList{
		URI: s.base + id.String(), IssuedAt: iat, ExpiresAt: iat + int64((s.ttl+statusListSlack)/time.Second),
		TTL: int64(s.ttl / time.Second), List: lst,
	})
	return []byte(token), err
}
