package tokenstore

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Place is where the status lists of a shard show whether access tokens were revoked:
// those of one session, or one that a client got for itself. The zero Place is none.
type Place struct {
	History string // the epoch of the shard's head, as in [Grant.LogEpoch]
	N       uint64 // counts up from 1
}

// String returns what scripts take, "" for none.
func (p Place) String() string {
	if p.N == 0 {
		return ""
	}
	return p.History + ":" + strconv.FormatUint(p.N, 10)
}

// place reads a place whose n and history are at two indexes of a reply.
func (r reply) place(n, history int) Place {
	if i := r.int(n); i > 0 {
		return Place{History: r.string(history), N: uint64(i)}
	}
	return Place{}
}

// StatusView is one atomic look at the places of a shard.
type StatusView struct {
	Now     time.Time
	History string // "": no place was ever given out here
	Last    uint64 // the highest N given out in this history
	Revoked []Places
}

// Places is Count places in a row.
type Places struct{ First, Count uint64 }

// StatusView returns what of a shard's places is revoked, each for as long as an
// unexpired token may name it. With [Options.WaitReplicas] it is what the replicas have,
// too. Errors: [ErrUnavailable].
func (s *Store) StatusView(ctx context.Context, shard int) (StatusView, error) {
	i := byte(shard) //nolint:gosec // at most 255
	r, err := s.runDurably(ctx, s.scripts.statusView, []string{s.headKey(i), s.invalidKey(i)})
	if err != nil {
		return StatusView{}, err
	}
	v := StatusView{Now: r.time(0), History: r.string(1), Last: uint64(r.int(2))} //nolint:gosec // counts up from 0
	s.observeTime(v.Now)
	members, _ := r[3].([]any)
	v.Revoked = make([]Places, 0, len(members))
	for j := range members {
		member := reply(members).string(j)
		history, rest, _ := strings.Cut(member, ":")
		if history != v.History {
			continue // of a history that Redis has lost: its lists are gone
		}
		places, err := parsePlaces(rest)
		if err != nil {
			return StatusView{}, fmt.Errorf("status_view: %q: %w", member, err)
		}
		v.Revoked = append(v.Revoked, places)
	}
	return v, nil
}

// parsePlaces reads "n", or "n+count".
func parsePlaces(text string) (Places, error) {
	first, count, several := strings.Cut(text, "+")
	p := Places{Count: 1}
	var err error
	if p.First, err = strconv.ParseUint(first, 10, 64); err == nil && several {
		p.Count, err = strconv.ParseUint(count, 10, 16)
	}
	return p, err
}
