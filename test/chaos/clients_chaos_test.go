//go:build linux && chaos

package chaos

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	password = "correct horse battery staple"
	grace    = 15 * time.Second // LATCHKEY_REFRESH_GRACE
	atOnce   = 3                // sessions of one user
	resting  = 15 * time.Second // for a login and a logout once all is well, on a busy machine
	theft    = "a theft that was shown"
)

// login is one session as its user and the judge know it.
type login struct {
	number  int // in the history
	user    int
	access  string
	refresh []string // by generation, from 1: all that were ever had
	// long is set of a session that is not logged out until a token of it was stolen: it
	// lives for several graces, and so rotates several times.
	long bool
	made span
	// writes are when Redis was asked to write of it: what a failover may lose.
	writes []span
	// theft is when an old refresh token was shown, and refused.
	theft span
	// unheard are the refreshes of the present generation whose answers did not come.
	unheard []span
	// away is until when its user looks after something else; refused is when a refresh
	// first was.
	away    time.Duration
	refused span
	// rests is until when the next token is not spent: what took long may have been
	// sent to Redis more than once, and a copy is good for as long as a request.
	rests time.Duration
}

type span struct{ from, to time.Duration }

func (s span) overlaps(other span) bool { return s.from <= other.to && other.from <= s.to }

// load is what clients do to the service.
type load struct {
	history *History
	http    *http.Client
	addrs   []string // of the replicas

	mu      sync.Mutex
	logins  []*login
	counts  map[string]int // of answers
	strange []string
	unwell  []string
}

func newLoad(addrs []string) *load {
	return &load{
		history: NewHistory(), addrs: addrs, counts: map[string]int{},
		http: &http.Client{Timeout: hearing, Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
	}
}

// answer is what a replica said, with status 0 nothing.
type answer struct {
	status          int
	access, refresh string
	span
}

// ask sends one request.
func (l *load) ask(replica int, method, path, access, refresh string, form url.Values) answer {
	q, err := http.NewRequestWithContext(context.Background(), method, "http://"+l.addrs[replica]+path, strings.NewReader(form.Encode()))
	if err != nil {
		return answer{}
	}
	if form != nil {
		q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if access != "" {
		q.Header.Set("Authorization", "Bearer "+access)
	}
	if refresh != "" {
		q.AddCookie(&http.Cookie{Name: "refresh_token", Value: refresh})
	}
	a := answer{span: span{from: l.history.Now()}}
	r, err := l.http.Do(q)
	if err == nil {
		body, readErr := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if readErr == nil {
			a.status = r.StatusCode
			var tokens struct {
				Access string `json:"access_token"`
			}
			_ = json.Unmarshal(body, &tokens)
			a.access = tokens.Access
			for _, c := range r.Cookies() {
				if c.Name == "refresh_token" {
					a.refresh = c.Value
				}
			}
		}
		if !slices.Contains([]int{0, 200, 204, 401, 503}, a.status) {
			l.odd(fmt.Sprintf("%s %s: %d %s", method, path, a.status, body))
		}
	}
	a.to = l.history.Now()
	l.count(fmt.Sprintf("%s %d", path, a.status))
	return a
}

func (l *load) count(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[what]++
}

func (l *load) odd(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.strange) < 20 {
		l.strange = append(l.strange, what)
	}
}

// said is what a status says of a token.
func said(status int) Answer {
	switch status {
	case 200, 204:
		return Accepted
	case 401:
		return Refused
	}
	return Silent
}

// verify asks a replica whether it accepts a session's access token.
func (l *load) verify(replica int, s *login) Answer {
	a := l.ask(replica, "GET", "/auth/verify", s.access, "", nil)
	l.history.Checked(Check{Session: s.number, Replica: replica, Asked: a.from, AnsweredAt: a.to, Answer: said(a.status)})
	return said(a.status)
}

// everywhere asks all replicas at once.
func (l *load) everywhere(sessions ...*login) {
	var wg sync.WaitGroup
	for i := range l.addrs {
		wg.Go(func() {
			for _, s := range sessions {
				l.verify(i, s)
			}
		})
	}
	wg.Wait()
}

// show shows one of a session's refresh tokens.
func (l *load) show(replica int, s *login, generation int) answer {
	a := l.ask(replica, "POST", "/auth/refresh", "", s.refresh[generation-1], url.Values{})
	if a.status == 200 && (a.refresh == "" || a.access == "") {
		l.odd("a refresh without tokens")
	}
	return a
}

func (l *load) shown(replica int, s *login, generation int, a answer) {
	l.history.Checked(Check{
		Session: s.number, Replica: replica, Asked: a.from, AnsweredAt: a.to, Answer: said(a.status), Generation: generation, Successor: nameOf(a.refresh),
		Kept: a.refresh == s.refresh[generation-1],
	})
}

// nameOf names a token without showing it.
func nameOf(token string) string {
	if token == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:4])
}

// user is one user at work, on one device with several tabs.
type user struct {
	*load
	number int
	rng    *rand.Rand
	alive  []*login
	left   []*login // alone, until long after an answer that did not come
	gone   []*login
}

func (u *user) somewhere() int { return u.rng.IntN(len(u.addrs)) }

// live does one thing after another until ctx ends.
func (u *user) live(ctx context.Context) {
	for ctx.Err() == nil {
		u.act(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(5+u.rng.IntN(40)) * time.Millisecond): // a user who thinks
		}
	}
}

func (u *user) act(ctx context.Context) {
	if i := slices.IndexFunc(u.left, func(s *login) bool { return s.away < u.history.Now() }); i >= 0 {
		s := u.left[i]
		u.left, u.alive = slices.Delete(u.left, i, i+1), append(u.alive, s)
		u.count("came back to a session")
		u.renew(s)
		return
	}
	if i := slices.IndexFunc(u.alive, func(s *login) bool { return len(s.unheard) > 0 }); i >= 0 && u.rng.IntN(2) == 0 {
		u.renew(u.alive[i]) // what was not answered is asked again, before long
		return
	}
	if len(u.alive) == 0 || (len(u.alive) < atOnce && u.rng.IntN(4) == 0) {
		u.login()
		return
	}
	s := u.alive[u.rng.IntN(len(u.alive))]
	switch n := u.rng.IntN(100); {
	case n < 35:
		if u.verify(u.somewhere(), s) == Refused {
			u.bury(s)
		}
	case n < 60:
		u.renew(s)
	case n < 78 && s.long:
		u.steal(s)
	case n < 78:
		u.logout(ctx, s)
	case n < 81 && len(u.left) == 0 && !u.keeps(): // or few of those would live until their user is back
		u.logoutAll(ctx, s)
	case n < 84:
		u.steal(s)
	case len(u.gone) > 0:
		u.haunt()
	}
}

func (u *user) login() {
	a := u.ask(u.somewhere(), "POST", "/auth/token", "", "", url.Values{"username": {userName(u.number)}, "password": {password}})
	if a.status != 200 {
		return
	}
	s := &login{number: u.history.Session(), user: u.number, long: u.keeps() && !slices.ContainsFunc(u.alive, func(s *login) bool { return s.long }), access: a.access, refresh: []string{a.refresh}, made: a.span, writes: []span{a.span}}
	u.alive = append(u.alive, s)
	u.mu.Lock()
	u.logins = append(u.logins, s)
	u.mu.Unlock()
}

// keeps reports whether this user always has a session that is long, and never logs out
// everywhere.
func (u *user) keeps() bool { return u.number%2 == 0 }

func userName(n int) string { return fmt.Sprintf("user-%d", n) }

// renew refreshes, sometimes from two tabs at once.
func (u *user) renew(s *login) {
	if len(s.unheard) == 0 && u.history.Now() < s.rests {
		return
	}
	generation := len(s.refresh)
	tabs := 1
	if u.rng.IntN(3) == 0 {
		tabs = 2
	}
	where := make([]int, tabs)
	got := make([]answer, tabs)
	var wg sync.WaitGroup
	for i := range tabs {
		where[i] = u.somewhere()
		wg.Go(func() { got[i] = u.show(where[i], s, generation) })
	}
	wg.Wait()
	refused, answered := false, false
	var unheard []span
	for i, a := range got {
		u.shown(where[i], s, generation, a)
		u.wrote(s, a.span)
		if a.to-a.from > 100*time.Millisecond {
			s.rests = max(s.rests, a.to+time.Second)
		}
		switch said(a.status) {
		case Accepted:
			answered = true
			if len(s.refresh) == generation {
				s.access = a.access
				if a.refresh != s.refresh[generation-1] {
					s.refresh = append(s.refresh, a.refresh)
				}
			}
		case Refused:
			refused = true
			if s.refused.to == 0 || a.from < s.refused.from {
				s.refused = a.span
			}
		case Silent:
			unheard = append(unheard, a.span)
		}
	}
	switch {
	case refused:
		u.bury(s)
	case answered:
		s.unheard = nil
	case len(unheard) > 0:
		s.unheard = append(s.unheard, unheard...)
		if i := slices.Index(u.alive, s); i >= 0 && len(s.unheard) == len(unheard) && u.rng.IntN(3) == 0 {
			// Closes the lid, and comes back when even a clock that was set meanwhile says
			// that the grace is over.
			u.count("left a session without an answer")
			s.away = got[0].to + grace + 2*maxOffset + time.Second
			u.alive, u.left = slices.Delete(u.alive, i, i+1), append(u.left, s)
		}
	}
}

func (u *user) wrote(s *login, when span) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s.writes = append(s.writes, when)
}

// logout ends a session, asking again until that is confirmed, and then asks
// everybody for it.
func (u *user) logout(ctx context.Context, s *login) {
	if u.rng.IntN(4) == 0 { // questions that are under way meanwhile
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { u.everywhere(s) })
	}
	u.bury(s)
	for ctx.Err() == nil {
		a := u.ask(u.somewhere(), "POST", "/auth/logout", s.access, s.refresh[len(s.refresh)-1], url.Values{})
		u.history.LoggedOut(Logout{Session: s.number, Asked: a.from, AnsweredAt: a.to, Confirmed: a.status == 200})
		if a.status == 200 {
			u.everywhere(s)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(20+u.rng.IntN(80)) * time.Millisecond): // a browser that tries again
		}
	}
}

// logoutAll ends all sessions of the user, or all but one.
func (u *user) logoutAll(ctx context.Context, s *login) {
	except := u.rng.IntN(2) == 0
	a := u.ask(u.somewhere(), "POST", "/auth/logout-all", s.access, "", url.Values{"except_current": {fmt.Sprint(except)}})
	for _, other := range slices.Concat(u.alive, u.left) {
		u.wrote(other, a.span)
		if other == s && except {
			continue
		}
		u.history.LoggedOut(Logout{Session: other.number, Asked: a.from, AnsweredAt: a.to, Confirmed: a.status == 200})
		switch a.status {
		case 200:
			u.bury(other)
			u.everywhere(other)
		default:
			u.logout(ctx, other)
		}
	}
}

// steal shows a refresh token that is too old to be a race.
func (u *user) steal(s *login) {
	if len(s.refresh) < 3 || len(s.unheard) > 0 {
		return
	}
	generation := len(s.refresh) - 2
	where := u.somewhere()
	a := u.show(where, s, generation)
	if a.status == 200 {
		u.shown(where, s, generation, a) // the judge will know
		return
	}
	u.bury(s)
	if a.status == 401 {
		s.theft = a.span
		u.everywhere(s)
	} else {
		u.history.LoggedOut(Logout{Session: s.number, Asked: a.from, AnsweredAt: a.to, Cause: theft})
	}
}

// haunt asks for a session that is over, mostly one that was until lately.
func (u *user) haunt() {
	recent := min(len(u.gone), 20)
	s := u.gone[len(u.gone)-1-u.rng.IntN(recent)]
	if u.rng.IntN(5) == 0 {
		s = u.gone[u.rng.IntN(len(u.gone))]
	}
	if u.rng.IntN(4) > 0 {
		u.verify(u.somewhere(), s)
		return
	}
	u.retry(s)
}

// retry shows the last refresh token of a session that is over.
func (u *user) retry(s *login) {
	where := u.somewhere()
	generation := len(s.refresh)
	a := u.show(where, s, generation)
	u.shown(where, s, generation, a)
}

// last asks everybody for every session there ever was.
func (u *user) last() {
	u.again()
	u.alive, u.left = append(u.alive, u.left...), nil
	u.everywhere(u.alive...)
	for _, s := range slices.Clone(u.alive) {
		u.renew(s)
	}
	u.everywhere(u.gone...)
	for _, s := range u.gone {
		u.retry(s)
	}
}

// again logs in and out once more: now that all is well, that must succeed, and
// everybody must know of it.
func (u *user) again() {
	deadline := u.history.Now() + resting
	before := len(u.alive)
	for u.login(); len(u.alive) == before && u.history.Now() < deadline; u.login() {
		wait(100 * time.Millisecond)
	}
	if len(u.alive) == before {
		u.ill("no login")
		return
	}
	s := u.alive[before]
	u.bury(s)
	for {
		a := u.ask(u.somewhere(), "POST", "/auth/logout", s.access, s.refresh[0], url.Values{})
		u.history.LoggedOut(Logout{Session: s.number, Asked: a.from, AnsweredAt: a.to, Confirmed: a.status == 200})
		switch {
		case a.status == 200:
			u.everywhere(s)
			return
		case a.to > deadline:
			u.ill(fmt.Sprintf("a logout is answered %d", a.status))
			return
		}
		wait(100 * time.Millisecond)
	}
}

func (u *user) ill(what string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.unwell = append(u.unwell, fmt.Sprintf("%s: %s", userName(u.number), what))
}

func (u *user) bury(s *login) {
	if i := slices.Index(u.left, s); i >= 0 {
		u.left = slices.Delete(u.left, i, i+1)
		u.gone = append(u.gone, s)
	}
	if i := slices.Index(u.alive, s); i >= 0 {
		u.alive = slices.Delete(u.alive, i, i+1)
		u.gone = append(u.gone, s)
	}
}
