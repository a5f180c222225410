package handlers_test

import (
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// browser keeps cookies as browsers do, and knows the service as auth.example.com.
type browser struct {
	f   *fleet
	jar *cookiejar.Jar
}

func (f *fleet) browser() *browser {
	f.Helper()
	jar, err := cookiejar.New(nil)
	f.check(err)
	return &browser{f: f, jar: jar}
}

// at is an address as the browser sees it.
func (b *browser) at(host, path string) *url.URL {
	return &url.URL{Scheme: "https", Host: host, Path: path}
}

// do sends a request with the browser's cookies, and keeps those of the answer.
func (b *browser) do(replica int, method, path string, options ...option) answer {
	b.f.Helper()
	at := b.at("auth.example.com", path)
	for _, c := range b.jar.Cookies(at) {
		options = append(options, func(r *http.Request) { r.AddCookie(c) })
	}
	a := b.f.do(replica, method, path, append(options, func(r *http.Request) { r.Host = at.Host })...)
	b.jar.SetCookies(at, (&http.Response{Header: a.header}).Cookies())
	return a
}

func (b *browser) login(replica int, username string) tokens {
	b.f.Helper()
	a := b.do(replica, http.MethodPost, "/auth/token", form("username", username, "password", password)).is(http.StatusOK)
	return tokens{access: a.member("access_token"), refresh: b.held("refresh_token", "/auth/refresh")[0]}
}

// held are the values of a cookie that the browser sends to a path.
func (b *browser) held(name, path string) []string {
	var values []string
	for _, c := range b.jar.Cookies(b.at("auth.example.com", path)) {
		if c.Name == name {
			values = append(values, c.Value)
		}
	}
	return values
}

// plant has a host set a cookie.
func (b *browser) plant(host string, c http.Cookie) {
	c.Secure = true
	b.jar.SetCookies(b.at(host, "/"), []*http.Cookie{&c})
}

// is fails unless a refresh of the browser's, if it succeeds, is that of a user.
func (b *browser) is(replica int, want string) {
	b.f.Helper()
	a := b.do(replica, http.MethodPost, "/auth/refresh").is(http.StatusOK)
	if got := b.f.claim(a.member("access_token"), "sub"); got != want {
		b.f.Errorf("a refresh is answered for %s, want %s", got, want)
	}
	if held := b.held("refresh_token", "/auth/refresh"); len(held) != 1 {
		b.f.Errorf("the browser has %d refresh cookies", len(held))
	}
}

// changing starts two replicas, the second with other settings than the first.
func changing(t *testing.T, first, second func(*handlers.Settings)) *fleet {
	t.Helper()
	var n atomic.Int32
	f := start(t, setup{replicas: 2, settings: func(s *handlers.Settings) {
		if n.Add(1) == 1 {
			first(s)
		} else {
			second(s)
		}
	}})
	f.account(tokenstore.Account{Username: "bob"}, password)
	f.account(tokenstore.Account{Username: "mallory"}, password)
	return f
}

// alice logs in; where the cookie is set changes; bob logs in with the same browser, and
// is bob from then on.
func TestWhoLogsInIsWhoRefreshes(t *testing.T) {
	t.Parallel()
	path := func(p string) func(*handlers.Settings) { return func(s *handlers.Settings) { s.CookiePath = p } }
	domain := func(d string) func(*handlers.Settings) { return func(s *handlers.Settings) { s.CookieDomain = d } }
	for name, c := range map[string]struct{ before, after func(*handlers.Settings) }{
		"nothing changed":       {path("/auth"), path("/auth")},
		"a shorter path":        {path("/auth"), path("/")},
		"a longer path":         {path("/"), path("/auth")},
		"a path with a slash":   {path("/auth/"), path("/auth")},
		"a domain":              {domain(""), domain("example.com")},
		"no domain any more":    {domain("example.com"), domain("")},
		"another domain":        {domain("auth.example.com"), domain("example.com")},
		"a domain and its path": {func(s *handlers.Settings) { s.CookieDomain, s.CookiePath = "example.com", "/" }, path("/auth")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := changing(t, c.before, c.after)
			b := f.browser()
			alices := b.login(0, alice)
			bobs := b.login(1, "bob")
			for range 2 {
				b.is(1, "bob")
			}
			f.dead(alices)
			f.alive(bobs.access)
			if e := f.events(); e["logout"] != 1 || e["refresh_reuse"] != 0 {
				t.Errorf("events: %v", e)
			}
		})
	}
}

// A host of the same domain plants the cookie of a session of its own, before the login
// or after it.
func TestAPlantedRefreshCookie(t *testing.T) {
	t.Parallel()
	same := func(*handlers.Settings) {}
	for name, c := range map[string]http.Cookie{
		"at the domain":          {Domain: "example.com", Path: "/auth"},
		"at the domain's root":   {Domain: "example.com", Path: "/"},
		"at a longer path":       {Domain: "example.com", Path: "/auth/refresh"},
		"at a path with a slash": {Domain: "example.com", Path: "/auth/"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := changing(t, same, same)
			mallory := f.loginAs(0, "mallory", password)
			c.Name, c.Value = "refresh_token", mallory.refresh
			b := f.browser()
			if c.Path != "/auth/refresh" { // a login does not get to see that one
				b.plant("evil.example.com", c)
				b.login(0, alice)
				f.dead(mallory)
				b.is(0, alice)
				mallory = f.loginAs(0, "mallory", password)
				c.Value = mallory.refresh
			} else {
				b.login(0, alice)
			}
			alices := b.held("refresh_token", "/auth/refresh")[0]
			// And once more: now two sessions are alive, and neither is picked.
			b.plant("evil.example.com", c)
			before := f.events()
			a := b.do(0, http.MethodPost, "/auth/refresh")
			a.fails(http.StatusUnauthorized, "invalid_grant", "Invalid refresh token")
			if held := b.held("refresh_token", "/auth/refresh"); len(held) != 0 {
				t.Errorf("the browser still has %d refresh cookies", len(held))
			}
			e := f.events()
			if e["refresh_ambiguous"] != 1 || e["refresh_reuse"] != 0 || e["refresh_refused"] != before["refresh_refused"] {
				t.Errorf("events: %v", e)
			}
			f.alive(mallory.access)
			for _, token := range []string{alices, mallory.refresh} { // neither has ended
				f.post(0, "/auth/refresh", cookie(token)).is(http.StatusOK)
			}
			b.login(1, alice)
			b.is(1, alice)
		})
	}
}

// A living token that a browser cannot use, another client's or one that is bound to a
// key, is none of two: it keeps nobody from refreshing.
func TestATokenOfNoUseIsNotOneOfTwo(t *testing.T) {
	t.Parallel()
	f := usual(t)
	clients := f.logs(f.service("full"))
	s := f.login(0)
	a := f.post(1, "/auth/refresh", cookie(clients.refresh), cookie(s.refresh)).is(http.StatusOK)
	if got, want := f.claim(a.member("access_token"), "sid"), f.claim(s.access, "sid"); got != want {
		t.Errorf("session %s, want %s", got, want)
	}
	f.alive(clients.access)
	// Without one that is of use it is refused as it is alone.
	f.post(1, "/auth/refresh", cookie(clients.refresh), cookie("garbage")).fails(http.StatusUnauthorized, "invalid_grant", "Invalid refresh token")
}

// Among several spent cookies a theft is still one.
func TestATheftAmongSeveralCookies(t *testing.T) {
	t.Parallel()
	f := usual(t)
	old, out := f.login(0), f.login(1)
	f.post(0, "/auth/logout", cookie(out.refresh)).is(http.StatusOK)
	f.refresh(0, old)
	f.age(old.access, 2*grace)
	f.post(1, "/auth/refresh", cookie(out.refresh), cookie(old.refresh)).fails(http.StatusUnauthorized, "invalid_grant", "")
	f.dead(old)
	if n := f.events()["refresh_reuse"]; n != 1 {
		t.Errorf("%d thefts, want 1", n)
	}
}

// A login that cannot end what its cookies name is a 503: the cookies stay, and the session
// that it has opened is ended again.
func TestALoginThatCannotEndTheSessionBefore(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	f.account(tokenstore.Account{Username: "bob"}, password)
	alices := f.login(0)
	// A denial of another type makes the script that ends the session fail, and it alone.
	deny := f.keyOf("deny", alices.access, "sid")
	f.check(f.rdb.HSet(t.Context(), deny, "a", "b").Err())
	failed := f.post(0, "/auth/token", form("username", "bob", "password", password), cookie(alices.refresh)).is(http.StatusServiceUnavailable)
	if set := failed.header.Values("Set-Cookie"); len(set) != 0 {
		t.Errorf("cookies: %q", set)
	}
	var opened, ended []any // sessions, by the events
	for _, l := range f.lines() {
		if l["event"] == "login" {
			opened = append(opened, l["sid"])
		}
		if l["event"] == "logout" && l["confirmed"] == any(false) {
			ended = append(ended, l["sid"])
		}
	}
	if !slices.Equal(opened, ended) { // alice's, which may have ended, and bob's
		t.Errorf("opened %v, ended %v", opened, ended)
	}
	bobs := f.loginAs(0, "bob", password)
	if list := f.sessions(bobs.access); len(list) != 1 {
		t.Errorf("bob has %d sessions, want 1", len(list))
	}
	f.check(f.rdb.Del(t.Context(), deny).Err())
	f.post(0, "/auth/token", form("username", "bob", "password", password), cookie(alices.refresh)).is(http.StatusOK)
	f.dead(alices)
	// A wrong password ends nothing.
	carols := f.login(0)
	f.post(0, "/auth/token", form("username", "bob", "password", "wrong"), cookie(carols.refresh)).is(http.StatusUnauthorized)
	f.alive(carols.access)
}

// A request with tokens of more sessions than any browser has ends none of them, asks Redis
// nothing, and has the browser delete its cookies.
func TestTokensOfTooManySessions(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	s := f.login(0)
	other, err := refreshtoken.New([]byte("canary-other-secret-0123456789abcdef0123456789"))
	f.check(err)
	// made returns n tokens of sessions that there are not, in cookies.
	made := func(codec *refreshtoken.Codec, n int) (list []option) {
		uid := f.replicas[0].store.UserID(alice)
		for range n {
			sid, err := f.replicas[0].store.Sessions.NewID(uid)
			f.check(err)
			token, err := codec.First(sid, uid, rand.Reader)
			f.check(err)
			list = append(list, cookie(codec.Encode(token)))
		}
		return list
	}
	right := form("username", alice, "password", password)
	for name, c := range map[string]struct {
		path    string
		options []option
	}{
		"a logout":                          {"/auth/logout", append(made(f.codec, 16), bearer(s.access))},
		"a logout that cannot check them":   {"/auth/logout", append(made(other, 16), bearer(s.access))},
		"a logout with one token in a body": {"/auth/logout", append(made(f.codec, 16), form("refresh_token", s.refresh))},
		"a login":                           {"/auth/token", append(made(f.codec, 17), right)},
	} {
		before := f.replicas[0].trips.n.Load()
		a := f.post(0, c.path, c.options...)
		a.fails(http.StatusBadRequest, "invalid_request", "Tokens of more than 16 sessions were sent. Nothing has ended; the browser was told to delete the cookies")
		if n := f.replicas[0].trips.n.Load() - before; n != 0 {
			t.Errorf("%s: %d round trips", name, n)
		}
		set := a.cookies("refresh_token")
		if len(set) == 0 || slices.ContainsFunc(set, func(c *http.Cookie) bool { return c.MaxAge >= 0 }) {
			t.Errorf("%s: the cookies stay: %v", name, set)
		}
	}
	f.alive(s.access)
	f.post(0, "/auth/logout", append(made(f.codec, 15), bearer(s.access))...).is(http.StatusOK)
	f.dead(s)
	f.post(0, "/auth/token", append(made(f.codec, 16), right)...).is(http.StatusOK)
}

// lost forwards scripts to Redis and loses the answer of those that it is told to.
type lost struct {
	redis.Hook
	match func(cmds ...redis.Cmder) bool
}

func (l lost) DialHook(next redis.DialHook) redis.DialHook { return next }

func (l lost) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if l.match(cmd) {
			err = io.ErrUnexpectedEOF
			cmd.SetErr(err)
		}
		return err
	}
}

func (l lost) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		if l.match(cmds...) {
			err = io.ErrUnexpectedEOF
			for _, cmd := range cmds {
				cmd.SetErr(err)
			}
		}
		return err
	}
}

// loses has a replica lose the answer of every command that has one of the arguments.
func (f *fleet) loses(replica int, argument func(string) bool) (again func()) {
	var off atomic.Bool
	f.replicas[replica].rdb.AddHook(lost{match: func(cmds ...redis.Cmder) bool {
		return !off.Load() && slices.ContainsFunc(cmds, func(cmd redis.Cmder) bool {
			return slices.ContainsFunc(cmd.Args(), func(arg any) bool {
				text, ok := arg.(string)
				return ok && argument(text)
			})
		})
	}})
	return func() { off.Store(true) }
}

// Redis opens the session and its answer is lost: the session whose cookie came along lives
// on, since the browser still has it alone.
func TestALoginWithoutAnAnswerOfRedisEndsNothing(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	f.account(tokenstore.Account{Username: "bob"}, password)
	alices := f.login(0)
	bob := f.replicas[0].store.UserID("bob")
	again := f.loses(0, func(arg string) bool { return strings.HasSuffix(arg, ":us:"+bob.String()) })
	failed := f.post(0, "/auth/token", form("username", "bob", "password", password), cookie(alices.refresh)).is(http.StatusServiceUnavailable)
	again()
	if set := failed.header.Values("Set-Cookie"); len(set) != 0 {
		t.Errorf("cookies: %q", set)
	}
	lines := f.lines()
	i := slices.IndexFunc(lines, func(l map[string]any) bool { return l["event"] == "login" && l["sub"] == "bob" })
	if i < 0 || lines[i]["confirmed"] != any(false) {
		t.Errorf("the session that may be there is no event with confirmed=false: %v", lines)
	}
	f.alive(alices.access)
	f.post(0, "/auth/refresh", cookie(alices.refresh)).is(http.StatusOK)
	if n := f.events()["logout"]; n != 0 {
		t.Errorf("%d sessions were ended", n)
	}
}

// The session that a login takes the place of does not count as one of the user's: no other
// one is ended in its stead.
func TestALoginInPlaceOfASessionIsNotOneTooMany(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, sessions: 2})
	elsewhere := f.login(0)
	f.older(elsewhere)
	here := f.login(0)
	f.post(0, "/auth/token", form("username", alice, "password", password), cookie(here.refresh)).is(http.StatusOK)
	f.alive(elsewhere.access)
	f.dead(here)
	if n := f.events()["session_ended"]; n != 0 {
		t.Errorf("%d sessions were ended by the limit", n)
	}
}

// A login whose refresh token goes into the body ends the cookie's session, too, and takes
// the cookie back: the next refresh would else be sent with two tokens.
func TestALoginInTheBodyTakesTheCookieBack(t *testing.T) {
	t.Parallel()
	f := changing(t, func(*handlers.Settings) {}, func(*handlers.Settings) {})
	b := f.browser()
	alices := b.login(0, alice)
	b.do(1, http.MethodPost, "/auth/token", form("username", "bob", "password", password, "refresh_delivery", "body")).is(http.StatusOK)
	f.dead(alices)
	if held := b.held("refresh_token", "/auth/refresh"); len(held) != 0 {
		t.Errorf("the browser still has %d refresh cookies", len(held))
	}
}

// With a name of its own the cookie is set, read and cleared by it. A refresh reads no other.
func TestCookieName(t *testing.T) {
	t.Parallel()
	const name = "__Host-session"
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) { s.CookieName, s.CookiePath = name, "/" }})
	a := f.post(0, "/auth/token", form("username", alice, "password", password)).is(http.StatusOK)
	c := a.cookie(name)
	if c.Path != "/" || !c.Secure || c.Domain != "" || len(a.cookies("refresh_token")) != 0 {
		t.Errorf("cookies: %q", a.header.Values("Set-Cookie"))
	}
	named := func(token string) option { return header("Cookie", name+"="+token) }
	f.post(0, "/auth/refresh", cookie(c.Value)).fails(http.StatusUnauthorized, "invalid_grant", "Refresh token missing")
	next := f.post(0, "/auth/refresh", named(c.Value)).is(http.StatusOK).cookie(name)
	f.alive(a.member("access_token"))
	if gone := f.post(0, "/auth/logout", named(next.Value)).is(http.StatusOK).cookie(name); gone.MaxAge >= 0 || !gone.Secure || gone.Path != "/" {
		t.Errorf("after the logout: %v", gone)
	}
	f.accessDead(a.member("access_token"))
}

// An access cookie that is a stranger's, or stale, locks nobody out, and goes when the
// service sets its own.
func TestAStrayAccessCookie(t *testing.T) {
	t.Parallel()
	f := browsers(t, 2)
	f.account(tokenstore.Account{Username: "mallory"}, password)
	out := f.login(0)
	f.post(0, "/auth/logout", bearer(out.access)).is(http.StatusOK)
	expired := f.sign(f.header(), f.payload(f.login(0).access, map[string]any{"iat": 1000, "exp": 2000}))
	for name, planted := range map[string]string{
		"garbage": "garbage", "a JWT of somebody else": flipLast(out.access), "a revoked one": out.access, "an expired one": expired,
	} {
		b := f.browser()
		s := b.login(0, alice)
		b.plant("evil.example.com", http.Cookie{Name: accessCookie, Value: planted, Domain: "example.com", Path: "/"})
		for _, path := range []string{"/auth/verify", "/users/me", "/auth/sessions"} {
			if a := b.do(1, http.MethodGet, path); a.status >= 300 {
				t.Errorf("%s: %s is answered %d", name, path, a.status)
			}
		}
		b.do(1, http.MethodPost, "/auth/refresh").is(http.StatusOK)
		if held := b.held(accessCookie, "/users/me"); len(held) != 1 || held[0] == planted {
			t.Errorf("%s: after a refresh the browser has %d access cookies", name, len(held))
		}
		f.alive(s.access)
	}
	// The tokens of one session are no two.
	s := f.login(0)
	newer := f.refresh(0, s)
	f.get(1, "/auth/verify", byCookie(newer.access), byCookie(s.access)).names(newer.access)
	// Good ones of two sessions are: nobody knows which is meant.
	mallory := f.loginAs(0, "mallory", password)
	f.get(1, "/auth/verify", byCookie(mallory.access), byCookie(s.access)).fails(http.StatusUnauthorized, "invalid_token", "")
	// What is no good says why the best of them is not.
	f.get(1, "/auth/verify", byCookie("garbage"), byCookie(expired)).is(http.StatusUnauthorized)
	if a := f.get(1, "/auth/verify", byCookie("garbage"), byCookie(expired)); a.member("error_description") != "The access token has expired" {
		t.Errorf("an expired one and garbage: %s", a.text)
	}
	many := make([]option, 20)
	for i := range many {
		many[i] = byCookie("x" + strings.Repeat("y", i))
	}
	f.get(1, "/auth/verify", append(many, byCookie(s.access))...).fails(http.StatusUnauthorized, "invalid_token", "")
}

// An answer that expires cookies stays within what proxies take for its headers: nginx has
// 4 KiB where a page of memory is that large.
func TestExpiredCookiesAreShort(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) {
		s.AccessCookie, s.CookieDomain, s.CookiePath = accessCookie, "example.com", "/api/v1/auth"
		s.Issuer = issuer
	}})
	s := f.login(0)
	host := func(r *http.Request) { r.Host = "a.b.c.d.e.auth.example.org" }
	a := f.post(0, "/auth/token", form("username", alice, "password", password), cookie(s.refresh), cookie("garbage"), byCookie(s.access), byCookie("x"), host).is(http.StatusOK)
	size := 0
	for _, line := range a.header.Values("Set-Cookie") {
		size += len("Set-Cookie: \r\n") + len(line)
	}
	if size > 8<<10 {
		t.Errorf("%d bytes of Set-Cookie", size)
	}
	t.Logf("%d bytes in %d headers", size, len(a.header.Values("Set-Cookie")))
	for _, name := range []string{"refresh_token", accessCookie} {
		list := a.cookies(name)
		if last := list[len(list)-1]; last.Value == "" || slices.ContainsFunc(list[:len(list)-1], func(c *http.Cookie) bool { return c.Value != "" }) {
			t.Errorf("%s is not set after all others are expired", name)
		}
	}
	// A Host that is no name is in no cookie.
	for _, bad := range []string{"192.0.2.1", "[2001:db8::1]:443", "localhost:8080", "a_b.example", "-a.example", ".example.com"} {
		a := f.post(0, "/auth/logout", cookie("a"), cookie("b"), func(r *http.Request) { r.Host = bad }).is(http.StatusOK)
		for _, c := range a.cookies("refresh_token") {
			if !slices.Contains([]string{"", "example.com", "auth.example.com"}, c.Domain) {
				t.Errorf("Host %s: a cookie of %s", bad, c.Domain)
			}
		}
	}
}
