package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSessionList(t *testing.T) {
	c := newConsole(t)
	c.add("alice", "--sub", "u-1")
	c.add("bob")
	if got, want := c.works("", "session", "list", "alice"), "SESSION  CREATED  LAST USED  EXPIRES  DEVICE  ADDRESS\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	if got, want := c.works("", "session", "list", "alice", "--json"), "[]\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	first, second := c.open("alice"), c.open("alice")
	c.open("bob")
	var list []sessionView
	if err := json.Unmarshal([]byte(c.works("", "session", "list", "alice", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 {
		t.Fatalf("%d sessions, want 2: %+v", len(list), list)
	}
	ids := map[string]bool{first.access.SID.String(): true, second.access.SID.String(): true}
	table := c.works("", "session", "list", "alice")
	for _, s := range list {
		if !ids[s.ID] {
			t.Errorf("%s is no session of alice", s.ID)
		}
		if age := c.store.Now().Sub(s.CreatedAt); age < 0 || age > time.Minute || !s.LastUsed.Equal(s.CreatedAt) {
			t.Errorf("created %v, last used %v", s.CreatedAt, s.LastUsed)
		}
		if left := s.ExpiresAt.Sub(s.CreatedAt); left < 167*time.Hour || left > 169*time.Hour {
			t.Errorf("expires %v after it was created, want 168h", left)
		}
		row := strings.Join([]string{s.ID, s.CreatedAt.Format(time.RFC3339), s.LastUsed.Format(time.RFC3339)}, "  ")
		if !strings.Contains(table, row) || !strings.Contains(table, "  Firefox 128 on Linux  192.0.2.7\n") {
			t.Errorf("the table has no row %s:\n%s", row, table)
		}
		s.ID, s.CreatedAt, s.LastUsed, s.ExpiresAt = "", time.Time{}, time.Time{}, time.Time{}
		if diff := cmp.Diff(sessionView{Device: "Firefox 128 on Linux", Address: "192.0.2.7", ClientID: "latchkey"}, s); diff != "" {
			t.Errorf("the session (-want +got):\n%s", diff)
		}
	}
}

// A list that takes more than one request is shown whole.
func TestSessionListOfManyPages(t *testing.T) {
	c := newConsole(t)
	c.add("alice")
	want := map[string]bool{}
	for range 205 {
		o, err := c.begin("alice")()
		if err != nil {
			t.Fatal(err)
		}
		want[o.access.SID.String()] = true
	}
	var list []sessionView
	if err := json.Unmarshal([]byte(c.works("", "session", "list", "alice", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, s := range list {
		got[s.ID] = true
	}
	if diff := cmp.Diff(want, got); diff != "" || len(list) != 205 {
		t.Errorf("%d sessions are listed, want 205 (-want +got):\n%s", len(list), diff)
	}
}

func TestSessionRevokeOne(t *testing.T) {
	c := newConsole(t)
	c.add("alice", "--sub", "u-1")
	c.add("bob")
	first, second, other := c.open("alice"), c.open("alice"), c.open("bob")
	sid := first.access.SID.String()
	if got, want := c.works("", "session", "revoke", "alice", "--session", sid), "the session "+sid+" of alice has ended\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	first.ended()
	second.lives()
	if out := c.works("", "session", "list", "alice"); strings.Contains(out, sid) || !strings.Contains(out, second.access.SID.String()) {
		t.Errorf("listed afterwards:\n%s", out)
	}
	if got, want := c.works("", "session", "revoke", "alice", "--session", sid), "the session "+sid+" of alice has ended\n"; got != want {
		t.Errorf("again it printed %q, want %q", got, want)
	}
	fails(t, "", []string{"session", "revoke", "alice", "--session", other.access.SID.String()}, "alice has no session")
	other.lives()
	mistyped := sid[:5] + strings.Map(func(r rune) rune { return map[bool]rune{true: 'B', false: 'A'}[r == 'A'] }, sid[5:6]) + sid[6:]
	fails(t, "", []string{"session", "revoke", "alice", "--session", mistyped}, "alice has no session "+mistyped+", so there is nothing to end")
	for _, bad := range []string{"", "x", sid + "x", "\x1b[2J"} {
		fails(t, "", []string{"session", "revoke", "alice", "--session", bad}, "--session is not a session's id; list them with: latchkey session list alice")
	}
	second.lives() // an empty id is no word for all
}
