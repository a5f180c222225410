package tour

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/latchkey-auth/latchkey/internal/terminal"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// tour is the walk through a session's life that `latchkey dev` prints. It is a
// client like any other: HTTP, cookie jars, and an access token.
type tour struct {
	print    *terminal.Printer
	replicas []string // base URL of each
	admin    string   // base URL of the first one's admin listener
	redis    *miniredis.Miniredis
	token    string                    // the access token that was handed out last: $TOKEN
	tokens   []string                  // all of this session
	jars     map[string]http.CookieJar // by the name of the file that curl is told
	before   []keyState                // what Redis held before the logout
	secrets  *regexp.Regexp            // what a token looks like
	wire     *http.Transport
	began    time.Time
}

// step is one stop of the tour.
type step struct {
	title string
	why   string
	calls []call // several are made at once
	want  int    // the status of every answer
	then  string // a shell command that a reader needs after these calls
	// check looks at what the status does not tell, and says what was found.
	check func(ctx context.Context, got []answer) (string, error)
	// show prints more than the answers.
	show func()
}

// steps is the tour. With fewer than three replicas some of them play two parts.
func (t *tour) steps() []step {
	a, b, c := t.nth(0), t.nth(1), t.nth(2)
	return []step{
		{
			title: "Log in at replica " + replicaName(a),
			why: "The access token is in the answer and lives 15 minutes. The refresh token is in a cookie\n" +
				"that scripts on a page cannot read.",
			calls: []call{{
				at: a, method: http.MethodPost, path: "/auth/token", keep: "jar", token: true,
				form: [][2]string{{"username", DemoUser}, {"password", DemoPassword}},
			}},
			want: http.StatusOK, check: t.loggedIn,
		},
		{
			title: "Show the access token to replica " + replicaName(b),
			why:   "All replicas sign with one key, kept sealed in Redis. The one that logged you in may be gone.",
			calls: []call{{at: b, method: http.MethodGet, path: "/users/me", bearer: true}},
			want:  http.StatusOK, check: t.isDemoUser,
		},
		{
			title: "Refresh at replica " + replicaName(b),
			why: "A refresh buys an access token and, at most once in 10 seconds, a new refresh token.\n" +
				"Whoever shows a replaced one after that is taken for a thief, and the session ends.",
			calls: []call{{at: b, method: http.MethodPost, path: "/auth/refresh", send: "jar", keep: "jar", token: true}},
			want:  http.StatusOK, check: t.rotated,
		},
		{
			title: "Show the new access token to replica " + replicaName(c),
			why:   "It speaks for the same session.",
			calls: []call{{at: c, method: http.MethodGet, path: "/users/me", bearer: true}},
			want:  http.StatusOK, check: t.isDemoUser,
		},
		{
			title: fmt.Sprintf("Two tabs refresh at once, at replicas %s and %s", replicaName(a), replicaName(b)),
			why: "Both send the same cookie, and one comes second. That is no theft: for 10 seconds after a\n" +
				"refresh the new token and the one it replaced both yield the new one, at every replica.",
			calls: []call{
				{at: a, method: http.MethodPost, path: "/auth/refresh", send: "jar", keep: "tab1"},
				{at: b, method: http.MethodPost, path: "/auth/refresh", send: "jar", keep: "tab2"},
			},
			then: "cp tab1 jar",
			want: http.StatusOK, check: t.converged,
		},
		{
			title: "Log out at replica " + replicaName(c),
			why: "Only the cookie is sent. The answer comes when it is done: from here on no replica takes\n" +
				"a token of this session, whoever holds it.",
			calls: []call{{at: c, method: http.MethodPost, path: "/auth/logout", send: "jar", keep: "jar"}},
			want:  http.StatusOK, check: t.loggedOut,
		},
		{
			title: "Show the access token to every replica",
			why:   "Its signature is right and it has minutes to live. It was not even sent with the logout.",
			calls: t.everywhere(call{method: http.MethodGet, path: "/users/me", bearer: true}),
			want:  http.StatusUnauthorized, check: t.allTokensRefused,
		},
		{
			title: "Show the refresh token to every replica",
			why:   "The second tab still has its cookie, the newest there was.",
			calls: t.everywhere(call{method: http.MethodPost, path: "/auth/refresh", send: "tab2"}),
			want:  http.StatusUnauthorized, check: t.refreshRefused,
		},
		{
			title: "Look into Redis",
			why: "Redis never held a token, only the SHA-256 of one. The refresh key is deleted. A denylist\n" +
				"entry names the session until its last access token has expired, plus 10 seconds for clocks.",
			show:  t.showKeys,
			check: t.keysEnded,
		},
	}
}

// loggedIn checks the answer to the login.
func (t *tour) loggedIn(_ context.Context, got []answer) (string, error) {
	cookie := got[0].cookie
	if cookie == nil || !cookie.HttpOnly || cookie.MaxAge <= 0 {
		return "", errors.New("there is no refresh_token cookie that is HttpOnly and has a Max-Age")
	}
	if got[0].grant.AccessToken == "" || got[0].grant.TokenType != "bearer" {
		return "", errors.New("there is no bearer token in the answer")
	}
	return "a session is open, on every replica at once", nil
}

func (t *tour) isDemoUser(_ context.Context, got []answer) (string, error) {
	var who struct{ Username string }
	if err := json.Unmarshal(got[0].body, &who); err != nil || who.Username != DemoUser {
		return "", fmt.Errorf("the answer does not name %s", DemoUser)
	}
	if len(t.replicas) == 1 {
		return "accepted", nil
	}
	return "accepted by a replica that did not issue it", nil
}

func (t *tour) rotated(_ context.Context, got []answer) (string, error) {
	old, next := got[0].sent, got[0].cookie
	if old == "" || next == nil || next.Value == old {
		return "", errors.New("the refresh token was not replaced")
	}
	return fmt.Sprintf("rotated: %s is spent, %s is its successor", t.short(old), t.short(next.Value)), nil
}

func (t *tour) converged(_ context.Context, got []answer) (string, error) {
	one, two := t.refreshToken("tab1"), t.refreshToken("tab2")
	if one == "" || one != two {
		return "", errors.New("the tabs were given different refresh tokens")
	}
	if got[0].grant.AccessToken == got[1].grant.AccessToken {
		return "", errors.New("the tabs were given the same access token")
	}
	t.jars["jar"] = t.jars["tab1"]
	t.before = t.keys()
	return "both go on with the same refresh token, " + t.short(one), nil
}

func (t *tour) loggedOut(_ context.Context, got []answer) (string, error) {
	if c := got[0].cookie; c == nil || c.MaxAge >= 0 || t.refreshToken("jar") != "" {
		return "", errors.New("the cookie was not taken back")
	}
	return "the session has ended and the cookie is taken back", nil
}

// allTokensRefused shows the older access tokens too, those of the login, the
// refresh and both tabs, and to the endpoint that looks at the denylist alone.
func (t *tour) allTokensRefused(ctx context.Context, _ []answer) (string, error) {
	for _, token := range t.tokens {
		for i, base := range t.replicas {
			got := t.send(ctx, request{method: http.MethodGet, url: base + "/auth/verify", token: token})
			if got.err != nil {
				return "", got.err
			}
			if got.status != http.StatusUnauthorized {
				return "", fmt.Errorf("/auth/verify at replica %s answered %d to an access token of the session", replicaName(i), got.status)
			}
		}
	}
	return fmt.Sprintf("refused at once, and so are all %d access tokens of the session", len(t.tokens)), nil
}

func (t *tour) refreshRefused(context.Context, []answer) (string, error) {
	return "refused at once: the session cannot be renewed", nil
}

// keyState is one key of the session in Redis, without its value.
type keyState struct {
	name  string
	there bool
	ttl   time.Duration
}

func (k keyState) String() string {
	if !k.there {
		return "no such key"
	}
	return "expires in " + k.ttl.Round(time.Second).String()
}

// keys looks up the session's refresh key and denylist entry, which are named by
// the sid in the access token.
func (t *tour) keys() []keyState {
	parts := strings.Split(t.token, ".")
	if len(parts) != 3 {
		return nil
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil
	}
	var claims struct{ SID string }
	if err := json.Unmarshal(payload, &claims); err != nil {
		return nil
	}
	sid, err := tokenstore.ParseID(claims.SID)
	if err != nil {
		return nil
	}
	var states []keyState
	for _, kind := range []string{"rt", "deny"} {
		name := fmt.Sprintf("lk:{%d}:%s:%s", sid.Shard(), kind, sid)
		states = append(states, keyState{name: name, there: t.redis.Exists(name), ttl: t.redis.TTL(name)})
	}
	return states
}

func (t *tour) showKeys() {
	port := t.redis.Port()
	t.print.Command("redis-cli -p " + port + " --scan --pattern 'lk:*:rt:*'")
	t.print.Command("redis-cli -p " + port + " --scan --pattern 'lk:*:deny:*'")
	now := t.keys()
	t.print.Text(fmt.Sprintf("%-36s  %-20s  %s", "key", "before the logout", "now"))
	for i, k := range now {
		if i < len(t.before) {
			t.print.Text(fmt.Sprintf("%-36s  %-20s  %s", k.name, t.before[i], k))
		}
	}
}

func (t *tour) keysEnded(context.Context, []answer) (string, error) {
	now := t.keys()
	switch {
	case len(now) != 2 || len(t.before) != 2 || !t.before[0].there || t.before[1].there:
		return "", errors.New("the session was not found in Redis before the logout")
	case now[0].there:
		return "", errors.New("the refresh key is still there")
	case !now[1].there || now[1].ttl <= 0:
		return "", errors.New("there is no denylist entry that expires")
	}
	return "nothing to refresh with, and a denial that outlives every token it names", nil
}

// run makes the steps, up to the first that fails: those after it depend on it.
func (t *tour) run(ctx context.Context) error {
	for i, s := range t.steps() {
		t.print.Line("")
		t.print.Line(t.print.Bold(fmt.Sprintf("%d  %s", i+1, s.title)))
		t.print.Text(s.why)
		found, err := t.perform(ctx, s)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			t.print.Text(t.print.Red("✗ " + err.Error()))
			return fmt.Errorf("step %d: %w", i+1, err)
		}
		t.print.Text(t.print.Green("✓ ") + found)
	}
	return nil
}

// perform makes one step.
func (t *tour) perform(ctx context.Context, s step) (string, error) {
	for _, l := range t.shell(s) {
		t.print.Command(l)
	}
	got := make([]answer, len(s.calls))
	var wg sync.WaitGroup
	for i, c := range s.calls {
		r, err := t.request(c)
		if err != nil {
			return "", err
		}
		wg.Go(func() { got[i] = t.send(ctx, r) })
	}
	wg.Wait()
	for i, a := range got {
		if a.err != nil {
			return "", a.err
		}
		t.took(s.calls[i], a)
		t.answered(s.calls[i].at, a)
	}
	for i, a := range got {
		if a.status != s.want {
			return "", fmt.Errorf("replica %s answered %d and not %d", replicaName(s.calls[i].at), a.status, s.want)
		}
	}
	if s.show != nil {
		s.show()
	}
	return s.check(ctx, got)
}
