package handlers_test

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// listed is a fleet that publishes status lists, under a clock that a test moves.
type listed struct {
	*fleet
	ahead  atomic.Int64              // nanoseconds
	stands atomic.Pointer[time.Time] // when the clock was stopped; nil while it goes
}

func startListed(t testing.TB, s setup) *listed {
	t.Helper()
	l := &listed{}
	s.statusLists = true
	s.dependencies = func(d *handlers.Dependencies) {
		d.Now = func() time.Time {
			now := time.Now()
			if at := l.stands.Load(); at != nil {
				now = *at
			}
			return now.Add(time.Duration(l.ahead.Load()))
		}
	}
	l.fleet = start(t, s)
	return l
}

// later moves the clock by the time for which a replica keeps its copy of the lists, and on.
func (l *listed) later() { l.ahead.Add(int64(time.Second + 1)) }

// stopClock stops the clock, which only later moves from then on.
func (l *listed) stopClock() {
	now := time.Now()
	l.stands.Store(&now)
}

// reference is where an access token says that its status is.
type reference struct {
	Index *uint64 `json:"idx"`
	URI   string  `json:"uri"`
}

// statusList is the payload of a status list token.
type statusList struct {
	Subject   string `json:"sub"`
	IssuedAt  int64  `json:"iat"`
	ExpiresAt int64  `json:"exp"`
	TTL       int64  `json:"ttl"`
	List      struct {
		Bits int    `json:"bits"`
		List string `json:"lst"`
	} `json:"status_list"`
}

// stranger verifies tokens as draft-ietf-oauth-status-list-21 section 8.3 says, by the
// keys published and nothing of Latchkey's.
type stranger struct {
	*listed
	keys jose.JSONWebKeySet
}

func (l *listed) stranger() *stranger {
	l.Helper()
	s := &stranger{listed: l}
	a, err := l.try(0, http.MethodGet, "/.well-known/jwks.json")
	l.check(err)
	l.check(json.Unmarshal([]byte(a.is(http.StatusOK).text), &s.keys))
	return s
}

// open verifies a JWS under the published keys and reads its payload.
func (s *stranger) open(text, typ string, payload any) {
	s.Helper()
	token, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.EdDSA})
	s.check(err)
	if got := token.Signatures[0].Header.ExtraHeaders[jose.HeaderType]; got != typ {
		s.Fatalf("typ is %v, want %s", got, typ)
	}
	read, err := token.Verify(s.keys)
	s.check(err)
	s.check(json.Unmarshal(read, payload))
}

// reference reads where an access token's status is (steps 1 and 2).
func (s *stranger) reference(access string) reference {
	s.Helper()
	var c struct {
		Status struct {
			List reference `json:"status_list"`
		}
	}
	s.open(access, "at+jwt", &c)
	if c.Status.List.Index == nil || !strings.HasPrefix(c.Status.List.URI, issuer+"/status-lists/") {
		s.Fatalf("the token refers to %+v", c.Status.List)
	}
	return c.Status.List
}

// fetch gets what is at the address in a token.
func (s *stranger) fetch(replica int, uri string, options ...option) answer {
	s.Helper()
	a, err := s.try(replica, http.MethodGet, strings.TrimPrefix(uri, issuer), append(options, header("Accept", "application/statuslist+jwt"))...)
	s.check(err)
	return a
}

// revoked tells what the status of an access token is now (steps 2 to 7).
func (s *stranger) revoked(replica int, access string) bool {
	s.Helper()
	s.later()
	r := s.reference(access)
	a := s.fetch(replica, r.URI).is(http.StatusOK)
	a.hasHeader("Content-Type", "application/statuslist+jwt")
	var l statusList
	s.open(a.text, "statuslist+jwt", &l)
	if l.Subject != r.URI || l.ExpiresAt <= time.Now().Unix() || l.IssuedAt > time.Now().Unix()+1 || l.List.Bits != 1 {
		s.Fatalf("the list at %s is %+v", r.URI, l)
	}
	bits := s.inflate(l.List.List)
	if *r.Index >= uint64(8*len(bits)) {
		s.Fatalf("index %d of a list of %d bytes", *r.Index, len(bits))
	}
	return bits[*r.Index>>3]>>(*r.Index&7)&1 == 1
}

func (s *stranger) inflate(lst string) []byte {
	s.Helper()
	compressed, err := base64.RawURLEncoding.Strict().DecodeString(lst)
	s.check(err)
	r, err := zlib.NewReader(bytes.NewReader(compressed))
	s.check(err)
	bits, err := io.ReadAll(r)
	s.check(err)
	return bits
}

// Whatever ends an access token shows in its list, at every replica and nowhere but there.
func TestAStrangerSeesEveryRevocation(t *testing.T) {
	t.Parallel()
	l := startListed(t, setup{})
	s := l.stranger()
	client := l.service("client")
	l.account(tokenstore.Account{Username: "carol", Scopes: scopes}, password)
	user := func() tokens { return l.loginAs(0, "carol", password) }
	const ok = http.StatusOK
	for name, c := range map[string]struct {
		begin func() tokens // nil is user
		end   func(tokens)
	}{
		"POST /auth/logout, cookie":  {nil, func(t tokens) { l.post(1, "/auth/logout", cookie(t.refresh)).is(ok) }},
		"POST /auth/logout, bearer":  {nil, func(t tokens) { l.post(1, "/auth/logout", bearer(t.access)).is(ok) }},
		"POST /auth/logout, both":    {nil, func(t tokens) { l.post(1, "/auth/logout", bearer(t.access), cookie(t.refresh)).is(ok) }},
		"POST /auth/logout, in body": {nil, func(t tokens) { l.post(1, "/auth/logout", form("refresh_token", t.refresh)).is(ok) }},
		"POST /auth/logout-all":      {nil, func(t tokens) { l.post(1, "/auth/logout-all", bearer(t.access)).is(ok) }},
		"POST /auth/logout-all, but for this one": {nil, func(tokens) {
			kept := user()
			l.post(1, "/auth/logout-all", bearer(kept.access), form("except_current", "true")).is(ok)
			if s.revoked(0, kept.access) {
				t.Error("the session that was excepted is shown as revoked")
			}
		}},
		"POST /users/me/password": {nil, func(tokens) {
			kept := user()
			l.post(1, "/users/me/password", bearer(kept.access), form("current_password", password, "new_password", password)).is(http.StatusOK)
			if s.revoked(0, kept.access) {
				t.Error("the session that changed the password is shown as revoked")
			}
		}},
		"DELETE /auth/sessions/{sid}": {nil, func(t tokens) {
			l.do(1, http.MethodDelete, "/auth/sessions/"+l.claim(t.access, "sid"), bearer(user().access)).is(http.StatusNoContent)
		}},
		"a stolen refresh token": {nil, func(t tokens) {
			l.rotate(2, l.rotate(1, t))
			l.post(0, "/auth/refresh", cookie(t.refresh)).is(http.StatusUnauthorized)
		}},
		"POST /oauth2/revoke, refresh token": {
			func() tokens { return l.logs(client) },
			func(t tokens) { l.post(1, "/oauth2/revoke", client.post("token", t.refresh)).is(ok) },
		},
		"POST /oauth2/revoke, access token": {
			func() tokens { return l.logs(client) },
			func(t tokens) { l.post(1, "/oauth2/revoke", client.post("token", t.access)).is(ok) },
		},
		"POST /oauth2/revoke, a client's own token": {
			func() tokens { return tokens{access: l.own(client)} },
			func(t tokens) { l.post(1, "/oauth2/revoke", client.post("token", t.access)).is(ok) },
		},
		"POST /auth/logout, a client's own token": {
			func() tokens { return tokens{access: l.own(client)} },
			func(t tokens) { l.post(1, "/auth/logout", bearer(t.access)).is(ok) },
		},
		// What latchkey user disable, delete and passwd do, and client delete and rotate-secret.
		"the user's epoch": {nil, func(tokens) {
			_, err := l.replicas[1].store.Sessions.RevokeUser(l.Context(), tokenstore.UserEnd{UID: l.replicas[1].store.UserID("carol")})
			l.check(err)
		}},
		"the client's epoch": {
			func() tokens { return tokens{access: l.own(client)} },
			func(tokens) {
				_, err := l.replicas[1].store.Sessions.RevokeUser(l.Context(), tokenstore.UserEnd{UID: l.replicas[1].store.UserID(client.id)})
				l.check(err)
			},
		},
	} {
		begin := c.begin
		if begin == nil {
			begin = user
		}
		bystander := l.login(0)
		held := begin()
		later := held
		if c.begin == nil {
			later = l.refresh(2, held)
		}
		if s.revoked(0, held.access) {
			t.Errorf("%s: shown as revoked before", name)
		}
		c.end(later)
		for i := range l.replicas {
			for _, access := range []string{held.access, later.access} {
				if !s.revoked(i, access) {
					t.Errorf("%s: replica %d does not show it as revoked", name, i)
				}
			}
			if s.revoked(i, bystander.access) {
				t.Errorf("%s: replica %d shows another session as revoked", name, i)
			}
		}
	}
}

// draft-ietf-oauth-status-list-21 section 6.2.
func TestAccessTokensNameTheirStatusList(t *testing.T) {
	t.Parallel()
	l := startListed(t, setup{replicas: 2})
	s := l.stranger()
	first := l.login(0)
	next := l.refresh(1, first)
	if diff := cmp.Diff(s.reference(first.access), s.reference(next.access)); diff != "" {
		t.Errorf("the tokens of one session differ:\n%s", diff)
	}
	claim, ok := l.claims(first.access)["status"].(map[string]any)
	if list, _ := claim["status_list"].(map[string]any); !ok || len(claim) != 1 || len(list) != 2 {
		t.Errorf("the claim: %v", claim)
	}
	client := l.service("client")
	seen := map[string]bool{}
	for _, access := range []string{first.access, l.login(0).access, l.own(client), l.own(client), l.logs(client).access} {
		r := s.reference(access)
		at := fmt.Sprint(*r.Index, r.URI)
		if seen[at] {
			t.Errorf("two tokens at %s", at)
		}
		seen[at] = true
	}
	// Our own checks take no notice of it.
	l.get(0, "/auth/verify", bearer(next.access)).is(http.StatusNoContent)
}

// draft-ietf-oauth-status-list-21 sections 4.2, 5.1, 8.1 and 8.2.
func TestAStatusListToken(t *testing.T) {
	t.Parallel()
	l := startListed(t, setup{})
	s := l.stranger()
	held := l.login(0)
	r := s.reference(held.access)
	a := s.fetch(0, r.URI).is(http.StatusOK)
	parts := strings.Split(a.text, ".")
	var head, payload map[string]any
	for i, v := range []*map[string]any{&head, &payload} {
		text, err := base64.RawURLEncoding.DecodeString(parts[i])
		l.check(err)
		l.check(json.Unmarshal(text, v))
	}
	if diff := cmp.Diff(map[string]any{"alg": "EdDSA", "kid": l.kid, "typ": "statuslist+jwt"}, head); diff != "" {
		t.Errorf("the header:\n%s", diff)
	}
	list, _ := payload["status_list"].(map[string]any)
	lst, _ := list["lst"].(string)
	iat, _ := payload["iat"].(float64)
	want := map[string]any{
		"sub": r.URI, "iat": iat, "exp": iat + 32, "ttl": 30.0, "status_list": map[string]any{"bits": 1.0, "lst": lst},
	}
	if diff := cmp.Diff(want, payload); diff != "" {
		t.Errorf("the claims:\n%s", diff)
	}
	l.near(t, "iat", time.Since(time.Unix(int64(iat), 0)), 0, 5*time.Second)
	if bits := s.inflate(lst); len(bits) != 1<<17/8 || len(bytes.Trim(bits, "\x00")) != 0 {
		t.Errorf("a list of nothing revoked has %d bytes, and not all are 0", len(bits))
	}

	a.hasHeader("Content-Type", "application/statuslist+jwt")
	a.hasHeader("Cache-Control", "public, max-age=30")
	a.hasHeader("Access-Control-Allow-Origin", "*")
	etag := a.header.Get("ETag")
	path := strings.TrimPrefix(r.URI, issuer)
	again, err := l.try(0, http.MethodGet, path, header("If-None-Match", etag))
	l.check(err)
	if again.status != http.StatusNotModified || again.text != "" || etag == "" {
		t.Errorf("with its ETag %q: %d %q", etag, again.status, again.text)
	}
	head2, err := l.try(0, http.MethodHead, path)
	l.check(err)
	head2.is(http.StatusOK).hasHeader("ETag", etag)
	if head2.text != "" {
		t.Error("HEAD has a body")
	}
	l.post(0, path).fails(http.StatusMethodNotAllowed, "method_not_allowed", "")
	l.get(0, path+"?time=1686925000").fails(http.StatusNotImplemented, "not_implemented", "") // section 8.4

	// What was revoked changes the list, and so its ETag.
	l.post(0, "/auth/logout", bearer(held.access)).is(http.StatusOK)
	l.later()
	if changed := s.fetch(0, r.URI, header("If-None-Match", etag)).is(http.StatusOK); changed.header.Get("ETag") == etag {
		t.Error("another list has the same ETag")
	}
	// It is signed like an access token, and is none (RFC 8725 section 3.11).
	l.get(0, "/auth/verify", bearer(a.text)).is(http.StatusUnauthorized)
}

// A page of an allowed origin gets the CORS headers of its own, which come with credentials.
func TestStatusListsAndOrigins(t *testing.T) {
	t.Parallel()
	const page = "https://app.example.com"
	l := startListed(t, setup{replicas: 1, settings: func(s *handlers.Settings) { s.AllowedOrigins = []string{page} }})
	s := l.stranger()
	r := s.reference(l.login(0).access)
	for origin, want := range map[string]string{page: page, "https://other.example.com": "*"} {
		a := s.fetch(0, r.URI, header("Origin", origin)).is(http.StatusOK)
		a.hasHeader("Access-Control-Allow-Origin", want)
		a.hasHeader("Vary", "Origin") // or a cache would give one what is for the other
	}
}

func TestStatusListsThatThereAreNot(t *testing.T) {
	t.Parallel()
	l := startListed(t, setup{replicas: 1})
	s := l.stranger()
	access := l.login(0).access
	uri := s.reference(access).URI
	s.fetch(0, uri).is(http.StatusOK)
	id := strings.TrimPrefix(uri, issuer+"/status-lists/")
	parts := strings.Split(id, ".")
	shard, history := parts[0], parts[1]
	for _, other := range []string{
		"", "x", "..", "%2e%2e", id + "x", id + ".", "." + id, "0" + id, shard + "." + history + ".1", shard + "." + history + ".68719476735",
		shard + "." + history + ".99999999999999999999", shard + "." + strings.ToLower(history) + "x.0", shard + ".AAAAAAAAAAA.0",
		"16." + history + ".0", "255." + history + ".0", "-1." + history + ".0", shard + "..0", id + "%00", id + "%0A", strings.Repeat("9", 4000),
	} {
		l.later() // so that no answer waits for the next look at Redis
		l.get(0, "/status-lists/"+other).fails(http.StatusNotFound, "not_found", "")
	}
	l.get(0, "/status-lists").fails(http.StatusNotFound, "not_found", "")
	l.get(0, "/status-lists/"+id+"/x").fails(http.StatusNotFound, "not_found", "")
}

// Tokens of a history that Redis has lost have no status: their list is gone. Those
// that are issued next have one at once.
func TestALossOfDataEndsItsStatusLists(t *testing.T) {
	t.Parallel()
	onListed := func(t *testing.T, mini bool) {
		t.Parallel()
		l := startListed(t, setup{replicas: 2, mini: mini})
		s := l.stranger()
		before := l.login(0)
		if s.revoked(0, before.access) {
			t.Error("shown as revoked before")
		}
		l.check(l.rdb.FlushAll(l.Context()).Err())
		l.later()
		for i := range l.replicas {
			a := s.fetch(i, s.reference(before.access).URI)
			a.fails(http.StatusNotFound, "not_found", "")
		}
		for _, r := range l.replicas {
			l.check(r.store.Open(l.Context()))
		}
		l.account(tokenstore.Account{Username: alice, Scopes: scopes}, password)
		after := l.login(0)
		// Without waiting: each replica has just read that there is no list at all.
		r := s.reference(after.access)
		s.fetch(1, r.URI).is(http.StatusOK)
		if s.revoked(0, after.access) {
			t.Error("a token of the next history is shown as revoked")
		}
		s.fetch(0, s.reference(before.access).URI).is(http.StatusNotFound)
	}
	t.Run("redis", func(t *testing.T) { onListed(t, false) })
	t.Run("miniredis", func(t *testing.T) { onListed(t, true) })
}

// A replica reads a shard once a second at most, whatever it is asked, and shows a
// revocation no later than that.
func TestAStatusListIsASecondOldAtMost(t *testing.T) {
	t.Parallel()
	l := startListed(t, setup{replicas: 1})
	s := l.stranger()
	held := l.login(0)
	r := s.reference(held.access)
	s.fetch(0, r.URI).is(http.StatusOK) // Redis learns the script
	cost := func(ask func()) int64 {
		before := l.replicas[0].trips.n.Load()
		ask()
		return l.replicas[0].trips.n.Load() - before
	}
	l.stopClock()
	l.later()
	var first string
	if n := cost(func() {
		var wg sync.WaitGroup
		texts := make([]string, 50)
		for i := range texts {
			wg.Go(func() {
				a, err := l.try(0, http.MethodGet, strings.TrimPrefix(r.URI, issuer))
				if err != nil || a.status != http.StatusOK {
					t.Errorf("%d, %v", a.status, err)
				}
				texts[i] = a.text
			})
		}
		wg.Wait()
		first = texts[0]
	}); n != 1 {
		t.Errorf("fifty at once cost %d round trips, want 1", n)
	}
	l.post(0, "/auth/logout", bearer(held.access)).is(http.StatusOK)
	if n := cost(func() {
		if again := s.fetch(0, r.URI); again.text != first {
			t.Error("another list within the second")
		}
	}); n != 0 {
		t.Errorf("within the second: %d round trips", n)
	}
	l.later()
	if n := cost(func() {
		if again := s.fetch(0, r.URI); again.text == first {
			t.Error("the list of before after a second")
		}
	}); n != 1 {
		t.Errorf("after a second: %d round trips, want 1", n)
	}
	if !s.revoked(0, held.access) {
		t.Error("the logout does not show")
	}
}

// While Redis does not answer there is no list, be it the one of before.
func TestAnOutageIsNoStatusList(t *testing.T) {
	t.Parallel()
	for name, outage := range outages() {
		if name == "out of memory" {
			continue // reads work, and TestAFullRedisListsRevocations is about the rest
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startListed(t, setup{replicas: 2, impatient: true, redisArgs: []string{"--appendonly", "yes", "--appendfsync", "always"}})
			s := l.stranger()
			held := l.login(0)
			r := s.reference(held.access)
			s.fetch(0, r.URI).is(http.StatusOK)
			outage.begin(t, l.fleet)
			l.later()
			for i := range l.replicas {
				l.get(i, strings.TrimPrefix(r.URI, issuer)).fails(http.StatusServiceUnavailable, "temporarily_unavailable", "")
			}
			outage.end(t, l.fleet)
			l.recovered()
			l.post(1, "/auth/logout", cookie(held.refresh)).is(http.StatusOK)
			if !s.revoked(0, held.access) {
				t.Error("after the outage a logout does not show")
			}
		})
	}
}

// Who has just been told by Redis that there is no such list is not kept waiting.
func TestAnUnknownListIsAnsweredAtOnce(t *testing.T) {
	t.Parallel()
	l := startListed(t, setup{replicas: 1, mini: true})
	shortest := time.Hour
	for range 5 {
		l.later()
		start := time.Now()
		l.get(0, "/status-lists/0.AAAAAAAAAAA.0").fails(http.StatusNotFound, "not_found", "")
		shortest = min(shortest, time.Since(start))
	}
	if shortest > 500*time.Millisecond {
		t.Errorf("each of five answers took %v and more", shortest)
	}
}

// Those who make up the names of lists wait for the next look at Redis in places of their
// own, of which there are not many, and keep nobody from the lists that there are.
func TestStrangersDoNotWaitInCrowds(t *testing.T) {
	t.Parallel()
	const strangers = 20
	l := startListed(t, setup{replicas: 1, settings: func(s *handlers.Settings) { s.MaxInFlight = 1 }})
	s := l.stranger()
	r := s.reference(l.login(0).access)
	madeUp := strings.TrimSuffix(strings.TrimPrefix(r.URI, issuer), "0") + "1"
	l.later()
	s.fetch(0, r.URI).is(http.StatusOK) // for a second it is known what there is
	var away atomic.Int64
	var wg sync.WaitGroup
	for range strangers {
		wg.Go(func() {
			a, err := l.try(0, http.MethodGet, madeUp)
			switch {
			case err != nil:
				t.Error(err)
			case a.status == http.StatusServiceUnavailable:
				a.hasHeader("Retry-After", "1")
				away.Add(1)
			default:
				a.fails(http.StatusNotFound, "not_found", "")
			}
		})
	}
	s.fetch(0, r.URI).is(http.StatusOK)
	wg.Wait()
	if n := away.Load(); n < strangers/2 {
		t.Errorf("%d of %d were turned away", n, strangers)
	}
	if want := fmt.Sprintf("latchkey_shed_total{class=\"status_list\"} %d\n", away.Load()); !strings.Contains(l.metrics(0), want) {
		t.Errorf("the metrics do not have %s", want)
	}
	l.later()
	s.fetch(0, issuer+madeUp).is(http.StatusNotFound)
}

// What a token says of its list counts when a webhook's claims are measured, before
// anything is done that cannot be undone.
func TestAWebhookLeavesRoomForTheStatus(t *testing.T) {
	t.Parallel()
	h := newHook(t)
	h.says(http.StatusOK, `{}`)
	l := startListed(t, setup{replicas: 1, claims: h.Webhook})
	l.account(tokenstore.Account{Username: "bob", Subject: strings.Repeat("s", 255), Scopes: strings.Repeat("p", 1000)}, password)
	s := l.loginAs(0, "bob", password)
	// A claim of n bytes makes a token that is too long by some 40, less than what the
	// claim status takes.
	n := (4096-len(s.access)+40)*3/4 - len(`"tier":"",`)
	h.says(http.StatusOK, `{"claims":{"tier":"`+strings.Repeat("x", n)+`"}}`)
	before := l.session(s.access)
	l.post(0, "/auth/token", form("username", "bob", "password", password)).fails(http.StatusServiceUnavailable, "temporarily_unavailable", "")
	l.post(0, "/auth/refresh", cookie(s.refresh)).fails(http.StatusServiceUnavailable, "temporarily_unavailable", "")
	if diff := cmp.Diff(before, l.session(s.access)); diff != "" {
		t.Errorf("the session changed\n%s", diff)
	}
	h.says(http.StatusOK, `{"claims":{"tier":"`+strings.Repeat("x", n-100)+`"}}`)
	l.refresh(0, s)
}

// Places cost no round trip, and without the setting there is neither claim nor path.
func TestRoundTripsWithStatusLists(t *testing.T) {
	t.Parallel()
	l := startListed(t, setup{replicas: 1})
	client := l.service("client")
	for range 2 {
		held := l.login(0)
		l.own(client)
		l.post(0, "/auth/logout", cookie(l.refresh(0, held).refresh))
		l.post(0, "/auth/logout-all", bearer(l.login(0).access))
	}
	s, other := l.login(0), l.login(0)
	for _, c := range []struct {
		name, path string
		options    []option
		want       int64
	}{
		{"login", "/auth/token", []option{form("username", alice, "password", password)}, 2},
		{"refresh", "/auth/refresh", []option{cookie(s.refresh)}, 1},
		{"refresh with the parent", "/auth/refresh", []option{cookie(s.refresh)}, 1},
		{"a client's own token", "/oauth2/token", []option{client.basic(), form("grant_type", "client_credentials")}, 1},
		{"logout", "/auth/logout", []option{cookie(other.refresh)}, 1},
		{"logout-all", "/auth/logout-all", []option{bearer(s.access)}, 3},
	} {
		before := l.replicas[0].trips.n.Load()
		l.post(0, c.path, c.options...).is(http.StatusOK)
		if got := l.replicas[0].trips.n.Load() - before; got != c.want {
			t.Errorf("%s: %d round trips, want %d", c.name, got, c.want)
		}
	}

	f := start(t, setup{replicas: 1})
	if claims := f.claims(f.login(0).access); claims["status"] != nil {
		t.Errorf("without the setting: %v", claims)
	}
	f.get(0, "/status-lists/0.a.0").fails(http.StatusNotFound, "not_found", "")
}

// BenchmarkStatusList is a list that is asked for again within its second.
func BenchmarkStatusList(b *testing.B) {
	l := startListed(b, setup{replicas: 1})
	r := l.stranger().reference(l.login(0).access)
	serve(b, l.fleet, func() *http.Request {
		return request(b, http.MethodGet, strings.TrimPrefix(r.URI, issuer))
	}, http.StatusOK, nil)
}
