package tokenstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// A primary that was restarted after another had taken its place takes itself for
// one until Sentinel or the Cluster tells it. It has never heard of the sessions
// that have begun since, and that must not end them.
func TestAPrimaryWithoutItsReplicasEndsNoSession(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		config []string
		wait   int
		want   error
	}{
		"alone by its configuration": {nil, 0, tokenstore.ErrNoSession},
		"min-replicas-to-write":      {[]string{"min-replicas-to-write", "1"}, 0, tokenstore.ErrUnavailable},
		"WAIT":                       {nil, 1, tokenstore.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			s, err := tokenstore.New(dial(t, server.URL()), tokenstore.Options{
				Shards: 16, Lifetimes: lifetimes(), Timeout: 2 * time.Second, WaitReplicas: tt.wait,
			})
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, func() error { return s.Open(t.Context()) })
			f := &fixture{Store: s, t: t, rdb: server.Client()}
			alice := f.login("alice") // or the shard would be new, and that is written down
			if len(tt.config) > 0 {
				if err := f.rdb.ConfigSet(t.Context(), tt.config[0], tt.config[1]).Err(); err != nil {
					t.Fatal(err)
				}
			}
			_, _, err = s.Sessions.Rotate(t.Context(), tokenstore.Rotation{SID: tokenstore.ID{alice.sid[0], 1}, UID: alice.uid, Gen: 1})
			is(t, "a session that this Redis does not know", err, tt.want)
		})
	}
}

// A theft that is on too few replicas has ended the session all the same: the error says
// both, so that the theft is recorded.
func TestATheftThatTooFewReplicasHave(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s, err := tokenstore.New(dial(t, server.URL()), tokenstore.Options{Shards: 16, Lifetimes: lifetimes(), Timeout: 2 * time.Second, WaitReplicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return s.Open(t.Context()) })
	f := &fixture{Store: s, t: t, rdb: server.Client()}
	fam := f.login("alice")
	for gen := 1; gen <= 2; gen++ {
		if _, err := fam.show(gen); err != nil {
			t.Fatal(err)
		}
		fam.age(time.Minute)
	}
	_, err = fam.show(1)
	is(t, "a theft", err, tokenstore.ErrUnavailable)
	if !errors.Is(err, tokenstore.ErrReuse) {
		t.Errorf("the error does not say what it was: %v", err)
	}
	_, err = fam.show(1)
	is(t, "shown again", err, tokenstore.ErrUnavailable)
	if errors.Is(err, tokenstore.ErrReuse) || errors.Is(err, tokenstore.ErrRevoked) {
		t.Errorf("nothing was ended now: %v", err)
	}
}

// Neither may a replica say so, such as a primary that has just been made one.
func TestAReplicaEndsNoSession(t *testing.T) {
	t.Parallel()
	topology := redistest.StartSentinel(t, redistest.Options{})
	primary := topology.Primary(t)
	var replica *redistest.Server
	for _, n := range topology.Nodes {
		if n != primary {
			replica = n
		}
	}
	s, err := tokenstore.New(dial(t, topology.URL()), tokenstore.Options{Shards: 16, Lifetimes: lifetimes(), Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return s.Open(t.Context()) })
	f := &fixture{Store: s, t: t, rdb: primary.Client()}
	alice := f.login("alice")
	if n, err := primary.Client().Wait(t.Context(), 2, 10*time.Second).Result(); err != nil || n < 2 {
		t.Fatalf("%d replicas have it: %v", n, err)
	}
	stale, err := tokenstore.New(dial(t, replica.URL()), tokenstore.Options{Shards: 16, Lifetimes: lifetimes(), Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = stale.Sessions.Rotate(t.Context(), tokenstore.Rotation{SID: tokenstore.ID{alice.sid[0], 1}, UID: alice.uid, Gen: 1})
	is(t, "a session that this replica does not know", err, tokenstore.ErrUnavailable)
}

// In durable mode a status list is what the replicas have, too: a primary that they do
// not follow any more may lack what was revoked since.
func TestAStatusListIsWhatTheReplicasHave(t *testing.T) {
	t.Parallel()
	topology := redistest.StartSentinel(t, redistest.Options{})
	primary := topology.Primary(t)
	s, err := tokenstore.New(dial(t, topology.URL()), tokenstore.Options{
		Shards: 16, Lifetimes: lifetimes(), Timeout: 2 * time.Second, WaitReplicas: 2, StatusLists: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return s.Open(t.Context()) })
	alice := (&fixture{Store: s, t: t, rdb: primary.Client()}).login("alice")
	eventually(t, func() error { _, err := s.Revocations.StatusView(t.Context(), alice.sid.Shard()); return err })
	for _, n := range topology.Nodes {
		if n != primary {
			n.Pause(t)
			t.Cleanup(func() { n.Resume(t) })
		}
	}
	_, err = s.Revocations.StatusView(t.Context(), alice.sid.Shard())
	is(t, "a list that no replica has", err, tokenstore.ErrUnavailable)
}
