package handlers_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

func (f *fleet) usKey() string {
	uid := f.replicas[0].store.UserID(alice)
	return fmt.Sprintf("lk:{%d}:us:%s", uid.Shard(), uid)
}

// older makes a session the one that expires first.
func (f *fleet) older(s tokens) {
	f.Helper()
	f.check(f.rdb.ZIncrBy(f.Context(), f.usKey(), -60_000, f.claim(s.access, "sid")).Err())
}

func TestALoginTooManyIsAnEvent(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 2, sessions: 2})
	first, second := f.login(0), f.login(1)
	f.older(first)
	lines, series := len(f.lines()), f.series()
	third := f.login(0)
	f.dead(first)
	f.alive(second.access)
	f.alive(third.access)
	if n := len(f.sessions(third.access)); n != 2 {
		t.Errorf("%d sessions, want 2", n)
	}
	var ended []map[string]any
	for _, l := range f.lines()[lines:] {
		if l["event"] == "session_ended" {
			ended = append(ended, l)
		}
	}
	if len(ended) != 1 || ended[0]["sid"] != f.claim(first.access, "sid") || ended[0]["sub"] != alice || ended[0]["reason"] != "limit" {
		t.Errorf("events: %v", ended)
	}
	const kind = `latchkey_logouts_total{kind="limit"}`
	if n := f.series()[kind] - series[kind]; n != 1 {
		t.Errorf("%s counted %v, want 1", kind, n)
	}
}

// The surplus ends, and the answer of Redis is lost: that they may have ended is an event.
func TestALoginTooManyWithoutAnAnswerIsAnEvent(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, sessions: 1})
	first := f.login(0)
	again := f.loses(0, func(arg string) bool { return strings.HasSuffix(arg, ":deny:"+f.claim(first.access, "sid")) })
	f.login(0)
	again()
	if e := f.recorded("session_ended"); e["sid"] != f.claim(first.access, "sid") || e["reason"] != "limit" || e["confirmed"] != any(false) {
		t.Errorf("event: %v", e)
	}
}

func TestSessionsByPages(t *testing.T) {
	onBoth(t, func(t *testing.T, f *fleet) {
		var s tokens
		want := map[string]bool{}
		for i := range 5 {
			s = f.login(i % 3)
			want[f.claim(s.access, "sid")] = true
		}
		page := func(query string) (ids []string, next string) {
			t.Helper()
			var body struct {
				Sessions []sessionEntry `json:"sessions"`
				Next     string         `json:"next"`
			}
			f.check(json.Unmarshal([]byte(f.get(1, "/auth/sessions"+query, bearer(s.access)).is(http.StatusOK).text), &body))
			for _, e := range body.Sessions {
				ids = append(ids, e.ID)
			}
			return ids, body.Next
		}
		whole, next := page("")
		if len(whole) != 5 || next != "" {
			t.Fatalf("without a limit: %q, next %q", whole, next)
		}
		for _, id := range whole {
			if !want[id] {
				t.Errorf("%s is none of the sessions", id)
			}
		}
		first, next := page("?limit=2")
		second, next2 := page("?limit=2&after=" + url.QueryEscape(next))
		third, next3 := page("?limit=2&after=" + url.QueryEscape(next2))
		if got := slices.Concat(first, second, third); !slices.Equal(got, whole) || len(first) != 2 || len(third) != 1 || next3 != "" {
			t.Errorf("by two: %q, %q, %q and next %q; want %q", first, second, third, next3, whole)
		}
		for query, why := range map[string]string{
			"?limit=0": "limit is a number from 1 to 100", "?limit=101": "limit is a number from 1 to 100",
			"?limit=two": "limit is a number from 1 to 100", "?limit=1&limit=2": "A parameter was sent twice",
			"?after=x": "after must be the value of next in an earlier answer", "?after=1.AAAAAAAAAAAAAAAAAAAAAA": "after must be the value of next in an earlier answer",
			"?after=a&after=b": "A parameter was sent twice",
		} {
			f.get(0, "/auth/sessions"+query, bearer(s.access)).fails(http.StatusBadRequest, "invalid_request", why)
		}
	})
}
