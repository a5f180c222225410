package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// On a Cluster each primary holds a part of the users, clients and sessions. A list shows
// all of them, each once, in the same order as on one server.
func TestListsOnAClusterAreWhole(t *testing.T) {
	leavesNothing(t)
	cluster := redistest.StartCluster(t, 3, 0, redistest.Options{})
	c := consoleOn(t, cluster.URL(), cluster.Client())
	const many = 200 // so that every primary has some of each
	var users, clients []string
	for i := range many {
		user := fmt.Sprintf("user-%03d", i)
		client := tokenstore.Client{ID: fmt.Sprintf("lkc_%03d", i)}
		err := errors.Join(
			c.store.Accounts.Create(t.Context(), tokenstore.Account{Username: user, Hash: "h"}),
			c.store.Clients.Create(t.Context(), client, sha256.Sum256([]byte("secret"))),
		)
		if err != nil {
			t.Fatal(err)
		}
		users, clients = append(users, user), append(clients, client.ID)
	}
	var sessions []string
	for range 150 { // more than one page of them
		sessions = append(sessions, c.open("user-000").access.SID.String())
	}
	c.works("", "key", "rotate", "--now")
	c.works("", "key", "rotate", "--now")

	lists := []struct {
		args   []string
		member string
		want   []string
	}{
		{[]string{"user", "list"}, "username", users},
		{[]string{"client", "list"}, "client_id", clients},
		{[]string{"session", "list", "user-000"}, "id", sessions},
		{[]string{"key", "list"}, "state", []string{"active", "retiring"}},
	}
	for _, l := range lists {
		var rows []map[string]any
		if err := json.Unmarshal([]byte(c.works("", append(l.args, "--json")...)), &rows); err != nil {
			t.Fatalf("%q: %v", l.args, err)
		}
		var got []string
		for _, row := range rows {
			got = append(got, fmt.Sprint(row[l.member]))
		}
		if l.args[0] == "session" { // ordered by expiry, which many share
			slices.Sort(got)
			slices.Sort(l.want)
		}
		if diff := cmp.Diff(l.want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", l.args, diff)
		}
	}
}

// The sessions of users that a client logged in are on all primaries.
func TestClientDeleteOnAClusterEndsEverySession(t *testing.T) {
	leavesNothing(t)
	cluster := redistest.StartCluster(t, 3, 0, redistest.Options{})
	c := consoleOn(t, cluster.URL(), cluster.Client())
	c.register("billing")
	var tokens []tokenstore.AccessToken
	for i := range 60 {
		subject := fmt.Sprintf("user-%03d", i)
		uid := c.store.UserID(subject)
		sid, err := c.store.Sessions.NewID(uid)
		if err != nil {
			t.Fatal(err)
		}
		g, err := c.store.Sessions.Login(t.Context(), tokenstore.NewSession{
			SID: sid, UID: uid, Subject: subject, ClientID: "lkc_billing", ReadAt: time.Now().Add(time.Hour),
		})
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, tokenstore.AccessToken{
			JTI: sid, SID: sid, UID: uid, UserEpoch: g.UserEpoch, LogEpoch: g.LogEpoch, Expires: g.Now.Add(time.Minute),
		})
	}
	c.works("", "client", "delete", "billing")
	for _, token := range tokens {
		if err := c.store.Revocations.Verify(t.Context(), token); !errors.Is(err, tokenstore.ErrRevoked) {
			t.Errorf("a token of the client: %v, want %v", err, tokenstore.ErrRevoked)
		}
	}
}
