package edge

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
)

// transport answers requests in this process, so that time can be virtual.
type transport func(*http.Request) (*http.Response, error)

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) { return t(r) }

// serving answers with whatever the handler writes.
func serving(h http.HandlerFunc) *http.Client {
	return &http.Client{Transport: transport(func(r *http.Request) (*http.Response, error) {
		w := httptest.NewRecorder()
		h(w, r)
		return w.Result(), nil
	})}
}

func setOf(t testing.TB, rings ...*accesstoken.Ring) []byte {
	t.Helper()
	var all accesstoken.Set
	for _, r := range rings {
		all.Keys = append(all.Keys, r.Public().Keys...)
	}
	text, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestKeysFromAURLFollowTheSet(t *testing.T) {
	a, b := newRing(t), newRing(t)
	synctest.Test(t, func(t *testing.T) {
		var text atomic.Value
		var fetches atomic.Int32
		status := http.StatusOK
		text.Store(setOf(t, a))
		k, err := KeysFromURL("https://auth.example/.well-known/jwks.json", KeysOptions{
			Client: serving(func(w http.ResponseWriter, _ *http.Request) {
				fetches.Add(1)
				w.WriteHeader(status)
				_, _ = w.Write(text.Load().([]byte))
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
		step := func(what string, next []byte, code int, want []string, fails bool) {
			t.Helper()
			time.Sleep(refetchEvery)
			text.Store(next)
			status = code
			err := k.fetch(t.Context())
			if fails != errors.Is(err, ErrUnavailable) || (err != nil) != fails {
				t.Errorf("%s: %v", what, err)
			}
			if diff := cmp.Diff(want, k.IDs()); diff != "" {
				t.Errorf("%s: keys (-want +got):\n%s", what, diff)
			}
		}
		both := setOf(t, a, b)
		step("first", setOf(t, a), 200, a.IDs(), false)
		step("the URL is down", nil, 503, a.IDs(), true)
		step("not a set", []byte("<html>"), 200, a.IDs(), true)
		step("an empty set", []byte(`{"keys":[]}`), 200, a.IDs(), true)
		step("too large", []byte(strings.Repeat(" ", maxKeySet)+string(both)), 200, a.IDs(), true)
		step("a redirect", both, 302, a.IDs(), true)
		step("withdrawn", setOf(t, b), 200, b.IDs(), false)

		fetches.Store(0)
		for range 100 {
			if err := k.fetch(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if n := fetches.Load(); n != 0 {
			t.Errorf("%d fetches within a second", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go k.Run(ctx)
		time.Sleep(time.Hour)
		cancel()
		synctest.Wait()
		if n := fetches.Load(); n < 12 || n > 15 {
			t.Errorf("%d fetches an hour", n)
		}
	})
}

func TestKeysAddresses(t *testing.T) {
	for _, address := range []string{"", "auth.example/jwks", "ftp://auth.example/", "https:///jwks", "https://user:canary@auth.example/", "://canary"} {
		_, err := KeysFromURL(address, KeysOptions{})
		if err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%q: %v", address, err)
		}
		if _, err := NewRemoteFollower(RemoteOptions{URL: address}); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// A key that is withdrawn takes its tokens with it, also those in the cache; a
// token of a key that cannot be fetched is no refusal.
func TestTokensLiveAndDieWithTheirKey(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	n := newNode(t, server.URL(), ring, nodeOptions{strict: true})
	s := n.login("alice")
	var text atomic.Value
	text.Store(setOf(t, newRing(t)))
	k, err := KeysFromURL("https://auth.example/jwks", KeysOptions{Client: serving(func(w http.ResponseWriter, _ *http.Request) {
		if text.Load().([]byte) == nil {
			w.WriteHeader(http.StatusBadGateway)
		}
		_, _ = w.Write(text.Load().([]byte))
	})})
	if err != nil {
		t.Fatal(err)
	}
	v, err := New(Options{Revocations: n.store.Revocations, Keys: k, Issuer: issuer, Audience: audience})
	if err != nil {
		t.Fatal(err)
	}
	again := func() { k.tried, v.fetched = time.Time{}, time.Time{} }
	expect := func(what string, want error) {
		t.Helper()
		if _, err := v.Verify(t.Context(), s.token); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	expect("a key that is not in the set", ErrInvalid)
	text.Store([]byte(nil))
	again()
	expect("a key that cannot be fetched", ErrUnavailable)
	text.Store(setOf(t, ring))
	again()
	expect("its key is there", nil)
	text.Store(setOf(t, newRing(t)))
	k.tried = time.Time{}
	if err := k.fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	again()
	expect("its key was withdrawn", ErrInvalid)

	given, err := KeysFromSet(setOf(t, ring))
	if err != nil {
		t.Fatal(err)
	}
	v, err = New(Options{Revocations: n.store.Revocations, Keys: given, Issuer: issuer, Audience: audience})
	if err != nil {
		t.Fatal(err)
	}
	expect("given keys", nil)
}

func TestOptionsThatDoNotFit(t *testing.T) {
	k, ring := &Keys{}, newRing(t)
	remote := &RemoteFollower{}
	for name, o := range map[string]Options{
		"no keys":             {Remote: remote, Issuer: issuer, Audience: audience},
		"keys twice":          {Remote: remote, Keys: k, Ring: ring, Issuer: issuer, Audience: audience},
		"nobody to ask":       {Keys: k, Issuer: issuer, Audience: audience},
		"follower of nothing": {Remote: remote, Follower: &Follower{}, Keys: k, Issuer: issuer, Audience: audience},
		"no issuer":           {Remote: remote, Keys: k, Audience: audience},
		"no audience":         {Remote: remote, Keys: k, Issuer: issuer},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
