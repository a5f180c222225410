package handlers_test

import (
	"net/http"
	"slices"
	"testing"

	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/dpop/dpoptest"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// notEnded checks the answer of a logout that could not end all that was shown.
func (a answer) notEnded() answer {
	a.f.Helper()
	a.fails(http.StatusUnauthorized, "invalid_token", "Not everything has ended")
	return a
}

// unchanged fails unless the session of an access token is alive in Redis.
func (f *fleet) unchanged(what, access string) {
	f.Helper()
	if len(f.session(access)) == 0 {
		f.Errorf("%s: the session is gone", what)
	}
}

// A token of ours names its session whoever it is for.
func TestLogoutWithATokenForAnotherAudience(t *testing.T) {
	t.Parallel()
	f := usual(t)
	c := f.register(tokenstore.Client{ID: "lkc_orders", Grants: "client_credentials refresh_token", Scopes: "read write", Audiences: "https://orders.example.com", Introspect: true})
	active := func(token string) bool {
		active, _ := f.post(1, "/oauth2/introspect", c.post("token", token)).is(http.StatusOK).json()["active"].(bool)
		return active
	}
	user, own := f.logs(c), f.own(c)
	for _, token := range []string{user.access, user.refresh, own} {
		if !active(token) {
			t.Fatal("the token is not active before the logout")
		}
	}
	f.post(2, "/auth/logout", bearer(user.access)).is(http.StatusOK)
	f.post(2, "/auth/logout", bearer(own)).is(http.StatusOK)
	for what, token := range map[string]string{"access": user.access, "refresh": user.refresh, "the client's own": own} {
		if active(token) {
			t.Errorf("%s: active after a logout that was answered 200", what)
		}
	}
}

// LATCHKEY_ISSUER was changed: what was signed before is ours all the same.
func TestLogoutWithATokenOfAnEarlierIssuer(t *testing.T) {
	t.Parallel()
	f := usual(t)
	s := f.login(0)
	earlier := f.sign(f.header(), f.payload(s.access, map[string]any{"iss": "https://earlier.example.com"}))
	f.get(0, "/auth/verify", bearer(earlier)).is(http.StatusUnauthorized)
	f.post(1, "/auth/logout", bearer(earlier)).is(http.StatusOK)
	f.dead(s)
}

// The key of a token has gone by age. It is recognised for as long as sessions live, and
// never admits.
func TestLogoutWithATokenOfARetiredKey(t *testing.T) {
	t.Parallel()
	f := usual(t)
	c := f.service("app")
	s, old := f.login(0), f.ring.Active()
	fresh, err := accesstoken.Generate(accesstoken.EdDSA, nil)
	f.check(err)
	f.ring.Add(fresh)
	f.check(f.ring.Activate(fresh.ID()))
	f.ring.Remove(old.ID())
	f.ring.Recognise(old)

	// Its time is not over: only the key keeps it out.
	f.accessDead(s.access)
	for _, path := range []string{"/auth/sessions", "/users/me"} {
		f.get(0, path, bearer(s.access)).fails(http.StatusUnauthorized, "invalid_token", "")
	}
	f.post(0, "/auth/logout-all", bearer(s.access)).fails(http.StatusUnauthorized, "invalid_token", "")
	if a := f.post(0, "/oauth2/introspect", c.post("token", s.access)).is(http.StatusOK); a.text != `{"active":false}` {
		t.Errorf("introspection: %s", a.text)
	}
	f.unchanged("before the logout", s.access)
	f.post(1, "/auth/logout", bearer(s.access)).is(http.StatusOK)
	f.dead(s)
}

// What claims to be ours and cannot be checked is not answered 200, as long as the
// session that it names is alive.
func TestLogoutWithWhatCannotBeChecked(t *testing.T) {
	t.Parallel()
	f := start(t, setup{settings: func(s *handlers.Settings) { s.AccessCookie = accessCookie }})
	dropped, err := refreshtoken.New([]byte("a root secret that was taken out of LATCHKEY_SECRET"))
	f.check(err)
	gone, err := accesstoken.Generate(accesstoken.EdDSA, nil)
	f.check(err)
	lost := accesstoken.NewRing()
	lost.Add(gone)
	f.check(lost.Activate(gone.ID()))
	// of returns the tokens of a session under a root secret and a key that nobody has any more.
	of := func(s tokens, edit func(*accesstoken.Claims)) (access, refresh string) {
		genuine, err := f.codec.Parse(s.refresh)
		f.check(err)
		refresh = dropped.Encode(refreshtoken.Token{SID: genuine.SID, UID: genuine.UID, Gen: genuine.Gen, Secret: genuine.Secret})
		ring := accesstoken.NewVerifier(f.ring, accesstoken.VerifierOptions{Issuer: issuer, Audience: audience})
		claims, err := ring.Authentic(s.access)
		f.check(err)
		if edit != nil {
			edit(&claims)
		}
		access, err = accesstoken.NewSigner(lost).Sign(claims)
		f.check(err)
		f.secrets.add(access, refresh)
		return access, refresh
	}
	expired := func(c *accesstoken.Claims) { c.IssuedAt, c.ExpiresAt = c.IssuedAt-2000, c.ExpiresAt-2000 }
	elsewhere := func(c *accesstoken.Claims) { c.Issuer = "https://earlier.example.com" }
	s := f.login(0)
	access, refresh := of(s, nil)
	ended, _ := of(s, expired)
	other, _ := of(s, elsewhere)
	for name, options := range map[string][]option{
		"a key that is gone":                    {bearer(access)},
		"expired besides":                       {bearer(ended)},
		"of an earlier issuer besides":          {bearer(other)},
		"in a cookie":                           {byCookie(access)},
		"a root secret that is gone, in cookie": {cookie(refresh)},
		"a root secret that is gone, in body":   {form("refresh_token", refresh)},
		"altered":                               {cookie(forge(t, s.refresh))},
	} {
		a := f.post(1, "/auth/logout", options...).notEnded()
		f.unchanged(name, s.access)
		// No cookie stays that the next logout would fail over.
		sent, cleared := request(t, "POST", "/", options...).Cookies(), map[string]bool{}
		for _, c := range (&http.Response{Header: a.header}).Cookies() {
			cleared[c.Name] = c.MaxAge < 0 && c.Value == ""
		}
		for _, c := range sent {
			if !cleared[c.Name] {
				t.Errorf("%s: the cookie %s stays", name, c.Name)
			}
		}
		if len(sent) == 0 && len(cleared) > 0 {
			t.Errorf("%s: cookies that were not shown are touched: %v", name, cleared)
		}
	}
	f.alive(s.access)
	f.post(0, "/oauth2/revoke", form("client_id", clientID, "token", access)).fails(http.StatusBadRequest, "invalid_grant", "")
	f.post(0, "/oauth2/revoke", form("client_id", clientID, "token", refresh)).fails(http.StatusBadRequest, "invalid_grant", "")

	// The rest ends, also what comes with it.
	rest := f.login(0)
	f.post(2, "/auth/logout", bearer(access), cookie(rest.refresh)).notEnded()
	f.dead(rest)
	// What can be checked ends the session for both.
	both := f.login(0)
	_, stale := of(both, nil)
	f.post(2, "/auth/logout", bearer(both.access), cookie(stale)).is(http.StatusOK)
	f.dead(both)
	f.post(2, "/auth/logout", cookie(stale)).is(http.StatusOK) // there is no such session any more

	// Of a session that is over nothing lives, whoever signed.
	over := f.login(0)
	_, stale = of(over, nil)
	access, _ = of(over, expired)
	f.post(0, "/auth/logout-all", bearer(over.access)).is(http.StatusOK)
	f.post(1, "/auth/logout", bearer(access), cookie(stale)).is(http.StatusOK)
	// A client's own token is a session by itself, of which Redis knows nothing.
	young, _ := of(f.login(0), func(c *accesstoken.Claims) { c.SessionID = c.SessionID[:2] + "AAAAAAAAAAAAAAAAAAAA" })
	f.post(1, "/auth/logout", bearer(young)).notEnded()
	if n := f.events()["logout_refused"]; n != 9 {
		t.Errorf("%d events of a logout that was refused, want 9", n)
	}
}

// Other replicas may call the refresh cookie otherwise, during a rollout of its name.
func TestACookieOfAnotherNameEndsToo(t *testing.T) {
	t.Parallel()
	f := usual(t)
	f.account(tokenstore.Account{Username: "bob"}, "bob-password")
	renamed := func(s tokens) option { return header("Cookie", "a=b; __Host-session="+s.refresh) }
	s := f.login(0)
	f.post(1, "/auth/logout", renamed(s)).is(http.StatusOK)
	f.dead(s)

	s = f.login(0)
	bob := f.post(1, "/auth/token", renamed(s), form("username", "bob", "password", "bob-password")).tokens()
	f.dead(s)
	f.alive(bob.access)
	f.refresh(2, bob)
}

// A token that is bound to a key is nobody's who does not hold it: in a cookie it is passed
// over, and the rest ends.
func TestAPlantedCookieKeepsNobodyIn(t *testing.T) {
	t.Parallel()
	f := start(t, setup{settings: func(s *handlers.Settings) { s.AccessCookie = accessCookie }})
	f.account(tokenstore.Account{Username: "mallory"}, "mallory-password")
	k := dpoptest.NewKey(t, "ES256")
	planted := f.post(0, "/auth/token", form("username", "mallory", "password", "mallory-password", "refresh_delivery", "body"),
		proof(k.Proof("POST", issuer+"/auth/token", ""))).tokens()
	shown := byCookie(planted.access)
	for name, show := range map[string]func(tokens) []option{
		"beside the refresh cookie": func(s tokens) []option { return []option{shown, cookie(s.refresh)} },
		"before the access cookie":  func(s tokens) []option { return []option{shown, byCookie(s.access)} },
		"beside the header":         func(s tokens) []option { return []option{shown, bearer(s.access)} },
	} {
		s := f.login(0)
		a := f.post(1, "/auth/logout", show(s)...).is(http.StatusOK)
		cleared := append(a.cookies("refresh_token"), a.cookies(accessCookie)...)
		if len(cleared) < 2 || slices.ContainsFunc(cleared, func(c *http.Cookie) bool { return c.MaxAge >= 0 }) {
			t.Errorf("%s: the cookies stay: %v", name, cleared)
		}
		f.dead(s)
	}
	f.post(1, "/auth/logout", shown).is(http.StatusOK)
	// Its own holder is where he was.
	f.get(0, "/users/me", proven(k, "GET", "/users/me", planted.access)...).is(http.StatusOK)

	// In the header it is what the client asks about: it is told, and the rest ends.
	s := f.login(0)
	f.post(1, "/auth/logout", bearer(planted.access), cookie(s.refresh)).fails(http.StatusUnauthorized, "invalid_token", "")
	f.dead(s)
	// Its refresh token ends its session for both.
	f.post(1, "/auth/logout", bearer(planted.access), form("refresh_token", planted.refresh)).is(http.StatusOK)
	f.get(0, "/users/me", proven(k, "GET", "/users/me", planted.access)...).is(http.StatusUnauthorized)
}

// What cannot be checked is asked about in Redis: while that is away nobody knows.
func TestLogoutWithWhatCannotBeCheckedInAnOutage(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, impatient: true})
	s := f.login(0)
	f.redis.Pause(t)
	f.post(0, "/auth/logout", cookie(forge(t, s.refresh))).fails(http.StatusServiceUnavailable, "temporarily_unavailable", "")
	f.redis.Resume(t)
}

// A session that has reached its maximum is gone from Redis. If a token of it still lived, a
// logout with a refresh token that cannot be checked would be answered 200, and the session
// could not be ended by its id.
func TestAnAccessTokenDoesNotOutliveItsSession(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) { s.AccessCookie = accessCookie }})
	s := f.login(0)
	iat, _ := f.claims(s.access)["iat"].(float64)
	last := int64(iat) + 600 // the access lifetime is 900 s
	f.check(f.rdb.HSet(t.Context(), f.rtKey(s.access), "abs", last*1000).Err())
	for _, what := range []string{"rotated", "within the grace"} {
		a := f.post(0, "/auth/refresh", cookie(s.refresh))
		c := f.claims(a.tokens().access)
		exp, _ := c["exp"].(float64)
		iat, _ := c["iat"].(float64)
		if in, _ := a.json()["expires_in"].(float64); int64(exp) > last || int64(exp) < last-1 || in != exp-iat {
			t.Errorf("%s: it expires %v s after the session, expires_in is %v", what, int64(exp)-last, in)
		}
		if age := a.cookie(accessCookie).MaxAge; age != int(exp-iat) {
			t.Errorf("%s: its cookie lives for %d s, it for %v", what, age, exp-iat)
		}
	}
}
