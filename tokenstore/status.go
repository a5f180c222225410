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

// place reads a place whose n and history are at two indexes of a reply. Where the store
// gives places it must be there, or a token would be in no list.
func (s *core) place(r *reply, n, history int) Place {
	if !s.statusLists {
		return Place{}
	}
	p := Place{History: r.string(history), N: r.count(n)}
	if p.N == 0 {
		r.failed(n, "a place")
	}
	return p
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
func (s *Revocations) StatusView(ctx context.Context, shard int) (StatusView, error) {
	i := byte(shard) //nolint:gosec // at most 255
	r, err := s.runDurably(ctx, s.scripts.statusView, []string{s.headKey(i), s.invalidKey(i)})
	if err != nil {
		return StatusView{}, err
	}
	v := StatusView{Now: r.time(0), History: r.string(1), Last: r.count(2)}
	s.observeTime(v.Now)
	members := r.list(3)
	v.Revoked = make([]Places, 0, len(members.values))
	for j := range members.values {
		member := members.string(j)
		history, rest, _ := strings.Cut(member, ":")
		if history != v.History {
			continue // of a history that Redis has lost: its lists are gone
		}
		places, err := parsePlaces(rest)
		if err != nil {
			return StatusView{}, unavailable("status_view", fmt.Errorf("%w: %q: %w", errReply, member, err))
		}
		v.Revoked = append(v.Revoked, places)
	}
	if err := r.err(); err != nil {
		return StatusView{}, err
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
