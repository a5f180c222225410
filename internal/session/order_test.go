package session_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/claimhook"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/internal/session"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

const (
	issuer   = "https://auth.example.com"
	audience = "api"
	password = "correct horse battery staple"
)

// service is a Service on a miniredis, and the events that it recorded.
type service struct {
	*session.Service
	t     *testing.T
	redis *miniredis.Miniredis
	store *tokenstore.Store
	ring  *accesstoken.Ring

	mu     sync.Mutex
	events []map[string]any
}

// Write takes one event.
func (s *service) Write(line []byte) (int, error) {
	var e map[string]any
	if err := json.Unmarshal(line, &e); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
	return len(line), nil
}

// recorded returns the events of a name.
func (s *service) recorded(e session.Event) (list []map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.events {
		if r["event"] == string(e) {
			list = append(list, r)
		}
	}
	return list
}

// confirmed reads the member of an event. An event without it fails the conversion.
func confirmed(e map[string]any) bool { return e["confirmed"].(bool) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start returns a Service with the account alice. change may change its options.
func start(t *testing.T, change func(*session.Options)) *service {
	t.Helper()
	s := &service{t: t, redis: miniredis.RunT(t), ring: accesstoken.NewRing()}
	rdb := redis.NewClient(&redis.Options{Addr: s.redis.Addr(), MaxRetries: -1, DialTimeout: time.Second, ReadTimeout: time.Second})
	t.Cleanup(func() { _ = rdb.Close() })
	var err error
	s.store, err = tokenstore.New(rdb, tokenstore.Options{
		Shards: 4, Timeout: 3 * time.Second,
		Lifetimes: tokenstore.Lifetimes{Access: time.Minute, Refresh: time.Hour, Session: time.Hour, Grace: 10 * time.Second},
	})
	check(t, err)
	check(t, s.store.Open(t.Context()))
	key, err := accesstoken.Generate(accesstoken.EdDSA, nil)
	check(t, err)
	s.ring.Add(key)
	check(t, s.ring.Activate(key.ID()))
	verifier, err := edge.New(edge.Options{Revocations: s.store.Revocations, Ring: s.ring, Issuer: issuer, Audience: audience})
	check(t, err)
	codec, err := refreshtoken.New([]byte("a root secret of at least 32 bytes"))
	check(t, err)
	hasher, err := credential.NewHasher(credential.Options{MemoryKiB: 64, Iterations: 1, Workers: 2})
	check(t, err)
	hash, err := hasher.Hash(t.Context(), password)
	check(t, err)
	check(t, s.store.Accounts.Create(t.Context(), tokenstore.Account{Username: "alice", Hash: hash, Scopes: "read write"}))
	limit := tokenstore.Limit{Burst: 5, Period: time.Hour}
	o := session.Options{
		Store: s.store, Verifier: verifier, Issued: verifier, Confirmer: edge.NewConfirmer(s.store.Revocations, time.Second),
		Signer: accesstoken.NewSigner(s.ring), RefreshTokens: codec, Passwords: hasher, Rand: rand.Reader,
		Log: slog.New(slog.NewJSONHandler(s, nil)), Issuer: issuer, Audience: audience, ClientID: "web",
		Limits: tokenstore.AttemptLimits{Client: limit, Account: limit, Address: limit}, DeviceKeys: [][]byte{[]byte("device key")},
		MaxToken: accesstoken.MaxLength,
		Observe: session.Observer{
			Event: func(session.Event, string) {}, Confirmed: func(time.Duration, error) {}, Asked: func(time.Duration, error) {},
		},
	}
	if change != nil {
		change(&o)
	}
	s.Service, err = session.New(o)
	check(t, err)
	return s
}

var origin = session.Origin{RequestID: "request", Address: "192.0.2.1"}

func (s *service) login(ctx context.Context) (session.Tokens, error) {
	return s.Login(ctx, origin, session.LoginRequest{Username: "alice", Password: password})
}

// sessions counts the refresh keys in Redis.
func (s *service) sessions() int {
	return len(slices.DeleteFunc(s.redis.Keys(), func(k string) bool { return !strings.Contains(k, ":rt:") }))
}

// Whatever keeps a login from giving its tokens, it leaves no session, and a right password
// stays free of charge.
func TestALoginThatFailsLeavesNothing(t *testing.T) {
	down := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(down.Close)
	for name, c := range map[string]struct {
		change func(*session.Options)
		want   error
	}{
		"no key to sign with": {func(o *session.Options) { o.Signer = accesstoken.NewSigner(accesstoken.NewRing()) }, accesstoken.ErrNoKey},
		"no claims": {func(o *session.Options) {
			o.Claims = claimhook.New(claimhook.Options{URL: down.URL, Key: []byte("key"), Timeout: 5 * time.Second})
		}, claimhook.ErrFailed},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, c.change)
			for range 20 { // four times what the login limits allow
				if _, err := s.login(t.Context()); !errors.Is(err, c.want) {
					t.Fatalf("%v, want %v", err, c.want)
				}
			}
			if n := s.sessions(); n != 0 {
				t.Errorf("%d sessions are there", n)
			}
			if e := s.recorded(session.EventLogin); len(e) != 0 {
				t.Errorf("recorded: %v", e)
			}
		})
	}
}

// A refresh that cannot be signed does not use the refresh token up.
func TestARefreshWithoutAKeyChangesNothing(t *testing.T) {
	s := start(t, nil)
	tokens, err := s.login(t.Context())
	check(t, err)
	before := s.redis.Dump()
	s.Signer = accesstoken.NewSigner(accesstoken.NewRing())
	if _, err := s.Refresh(t.Context(), origin, session.RefreshRequest{Shown: []string{tokens.Refresh}}); !errors.Is(err, accesstoken.ErrNoKey) {
		t.Fatal(err)
	}
	if after := s.redis.Dump(); after != before {
		t.Errorf("Redis had\n%s\nand has\n%s", before, after)
	}
}

// A logout whose client has gone is done, and recorded as not confirmed.
func TestALogoutIsRecordedThoughTheClientHasGone(t *testing.T) {
	s := start(t, nil)
	tokens, err := s.login(t.Context())
	check(t, err)
	gone, leave := context.WithCancel(t.Context())
	leave()
	err = s.Logout(gone, origin, session.LogoutRequest{Refresh: []string{tokens.Refresh}})
	if err == nil {
		t.Error("the logout of a client that has gone is answered")
	}
	if n := s.sessions(); n != 0 {
		t.Errorf("%d sessions are there", n)
	}
	e := s.recorded(session.EventLogout)
	if len(e) != 1 || confirmed(e[0]) || e[0]["sid"] != tokens.SID.String() {
		t.Errorf("recorded: %v", e)
	}
}

// A login, a refresh and a logout: what each hands out, and that a confirmed end is recorded
// as such.
func TestALife(t *testing.T) {
	s := start(t, nil)
	tokens, err := s.login(t.Context())
	check(t, err)
	if tokens.Type != "bearer" || tokens.Scope != "read write" || tokens.ExpiresIn != 60 || tokens.RefreshLeft != time.Hour || tokens.Device == "" {
		t.Errorf("a login got %+v", tokens)
	}
	next, err := s.Refresh(t.Context(), origin, session.RefreshRequest{Shown: []string{tokens.Refresh}})
	check(t, err)
	if next.SID != tokens.SID || next.Refresh == tokens.Refresh || next.Device != "" {
		t.Errorf("a refresh got %+v", next)
	}
	if _, err := s.Authorize(t.Context(), next.Access, []string{"read"}); err != nil {
		t.Errorf("authorize: %v", err)
	}
	var lacking *session.ScopeError
	if _, err := s.Authorize(t.Context(), next.Access, []string{"admin"}); !errors.As(err, &lacking) {
		t.Errorf("authorize without the scope: %v", err)
	}
	check(t, s.Logout(t.Context(), origin, session.LogoutRequest{Access: []session.Shown{{Token: next.Access}}}))
	for _, access := range []string{tokens.Access, next.Access} {
		if _, err := s.Authorize(t.Context(), access, nil); !errors.Is(err, edge.ErrRevoked) {
			t.Errorf("authorize after the logout: %v", err)
		}
	}
	if _, err := s.Refresh(t.Context(), origin, session.RefreshRequest{Shown: []string{next.Refresh}}); !errors.Is(err, session.ErrRefreshToken) {
		t.Errorf("refresh after the logout: %v", err)
	}
	if e := s.recorded(session.EventLogout); len(e) != 1 || !confirmed(e[0]) {
		t.Errorf("recorded: %v", e)
	}
}
