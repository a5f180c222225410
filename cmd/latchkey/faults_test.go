package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/replica"
	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// redisFault is something that happens to Redis while users log in, refresh, check tokens
// and log out at two replicas.
type redisFault struct {
	options redistest.Options
	begin   func(*faultRun)
	// repeat is called over and over while the fault lasts; nil for nothing.
	repeat func(*faultRun)
	end    func(*faultRun)
	// answers must be given by each replica before the fault ends. If there are none, the
	// fault ends after some more logouts.
	answers []reply
	// loses is set if sessions that began before the end of the fault may be refused.
	loses bool
	// empties is set if sessions that began before the fault must be refused after it.
	empties bool
	// undoes is set if logouts from before the end of the fault may be undone until the
	// replicas have put them back.
	undoes bool
}

// reply is a kind of request and the status of its answer.
type reply struct {
	request string
	status  int
}

const (
	check   = "verify"
	refresh = "refresh"
	logIn   = "token"
	logOut  = "logout"
)

var (
	noWrites  = []reply{{refresh, 503}, {logIn, 503}, {logOut, 503}}
	noAnswers = append([]reply{{check, 503}}, noWrites...)
	noSession = []reply{{check, 401}, {refresh, 401}}
)

// rights are those of the user in deploy/redis.conf.
var rights = []string{"~lk:*", "&*", "+@all", "-@admin", "-@dangerous", "+info"}

// promptSync lets a replica have a primary's data at once and not after 5 s.
var promptSync = []string{"--repl-diskless-sync-delay", "0"}

func redisFaults() map[string]redisFault {
	command := func(args ...any) func(*faultRun) {
		return func(r *faultRun) {
			r.t.Helper()
			r.must(r.admin.Do(r.t.Context(), args...).Err())
		}
	}
	sequence := func(steps ...func(*faultRun)) func(*faultRun) {
		return func(r *faultRun) {
			for _, step := range steps {
				step(r)
			}
		}
	}
	nothing := func(*faultRun) {}
	setUser := func(rules ...any) func(*faultRun) {
		return command(append([]any{"ACL", "SETUSER", redistest.User}, rules...)...)
	}
	restricted := redistest.Options{ACL: strings.Join(rights, " ")}
	killClients := command("CLIENT", "KILL", "TYPE", "normal")
	promote := command("REPLICAOF", "NO", "ONE")

	syncs := redistest.Options{Args: promptSync}

	return map[string]redisFault{
		"replica of a server that is not there": {
			begin: command("REPLICAOF", "127.0.0.1", "1"), end: promote, answers: noWrites,
		},
		"replica of its own promoted replica": {
			options: syncs,
			begin: func(r *faultRun) {
				other := redistest.Start(r.t, promptSync...)
				r.replicate(other.Client(), r.server)
				r.must(other.Client().ReplicaOf(r.t.Context(), "NO", "ONE").Err())
				r.replicate(r.admin, other)
			},
			end: promote, answers: noWrites, loses: true, // what was written before the second command
		},
		"replica of an empty server": {
			begin: func(r *faultRun) { r.replicate(r.admin, redistest.Start(r.t, promptSync...)) },
			end:   sequence(promote, (*faultRun).createAccount), answers: noAnswers, loses: true, empties: true,
		},
		"CLIENT PAUSE ALL, short": {
			begin: nothing, repeat: sequence(command("CLIENT", "PAUSE", "50", "ALL"), (*faultRun).breathe), end: nothing,
		},
		"CLIENT PAUSE WRITE": {
			begin: command("CLIENT", "PAUSE", "600000", "WRITE"), end: command("CLIENT", "UNPAUSE"), answers: noAnswers,
		},
		"CLIENT KILL, repeated": {begin: nothing, repeat: sequence(killClients, (*faultRun).breathe), end: nothing},
		"SCRIPT FLUSH, repeated": {
			begin:  nothing,
			repeat: sequence(command("SCRIPT", "FLUSH", "SYNC"), (*faultRun).breathe, command("SCRIPT", "FLUSH", "ASYNC")),
			end:    nothing,
		},
		"a script that does not end": {
			options: redistest.Options{Args: []string{"--busy-reply-threshold", "50"}},
			begin: func(r *faultRun) {
				c := redis.NewClient(&redis.Options{Addr: r.server.Addr(), MaxRetries: -1, ReadTimeout: -1})
				r.t.Cleanup(func() { _ = c.Close() })
				r.wg.Go(func() { _ = c.Eval(context.Background(), "while true do end", nil).Err() })
			},
			end: func(r *faultRun) {
				stacktest.Eventually(r.t, "SCRIPT KILL", func() bool { return r.admin.ScriptKill(r.t.Context()).Err() == nil })
			},
			answers: noAnswers,
		},
		"maxmemory": {
			begin: command("CONFIG", "SET", "maxmemory", "1"), end: command("CONFIG", "SET", "maxmemory", "0"),
			answers: []reply{{refresh, 503}, {logIn, 503}, {logOut, 200}, {check, 204}},
		},
		"min-replicas-to-write": {
			begin: command("CONFIG", "SET", "min-replicas-to-write", "1"),
			end:   command("CONFIG", "SET", "min-replicas-to-write", "0"), answers: noWrites,
		},
		"another requirepass": {
			begin: sequence(command("CONFIG", "SET", "requirepass", "another"), killClients),
			end: func(r *faultRun) {
				c := redis.NewClient(&redis.Options{Addr: r.server.Addr(), Password: "another"})
				defer func() { _ = c.Close() }()
				r.must(c.ConfigSet(r.t.Context(), "requirepass", "").Err())
			},
			answers: noAnswers,
		},
		"an ACL user without commands": {
			options: restricted, begin: setUser("-@all"), end: setUser("+@all", "-@admin", "-@dangerous", "+info"),
			answers: noAnswers,
		},
		"an ACL user without keys": {
			options: restricted, begin: setUser("resetkeys"), end: setUser("~lk:*"), answers: noAnswers,
		},
		"an ACL user that is off": {
			options: restricted, begin: sequence(setUser("off"), killClients), end: setUser("on"), answers: noAnswers,
		},
		"FLUSHALL": {
			begin: command("FLUSHALL"), end: (*faultRun).createAccount, answers: noSession, loses: true, empties: true,
		},
		"SWAPDB": {
			begin: command("SWAPDB", "0", "1"), end: (*faultRun).createAccount, answers: noSession, loses: true, empties: true,
		},
		"SHUTDOWN NOSAVE": {
			// It is answered by the end of the connection.
			begin:   func(r *faultRun) { _ = r.admin.ShutdownNoSave(r.t.Context()).Err() },
			end:     sequence(func(r *faultRun) { r.server.Restart(r.t) }, (*faultRun).createAccount),
			answers: noAnswers, loses: true, empties: true,
		},
		"restarted from an older snapshot": {
			begin: func(r *faultRun) {
				r.must(r.admin.Save(r.t.Context()).Err())
				r.awaitLogouts(4)
				r.server.Kill(r.t)
			},
			end: func(r *faultRun) { r.server.Restart(r.t) }, answers: noAnswers, loses: true, undoes: true,
		},
	}
}

// Phases of a faultRun.
const (
	before = iota
	during
	after
)

// faultRun is two replicas in this process on a Redis of their own, and their users.
type faultRun struct {
	t      *testing.T
	fault  redisFault
	server *redistest.Server
	admin  *redis.Client
	apis   [2]string
	store  *tokenstore.Store
	hash   string
	wg     sync.WaitGroup

	mu      sync.Mutex
	phase   int
	answers [2]map[reply]int // of each replica, since the phase began
	logouts int              // answered 200
	ended   []session
	faults  []string
}

// session is one login.
type session struct {
	phase           int // in which it began, or an earlier one
	access, refresh string
}

// Whatever happens to Redis: no replica accepts a token after its logout was answered 200,
// no session is refused without a cause, every other failure is a 503, and service
// recovers by itself.
func TestFaultsOfRedis(t *testing.T) {
	t.Parallel()
	for name, fault := range redisFaults() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newFaultRun(t, fault)
			// Two sessions that stay, and two that are logged out during the fault.
			stay := [2]session{r.login(0), r.login(1)}
			leave := [2]session{r.login(0), r.login(1)}
			ctx, stop := context.WithCancel(context.Background())
			defer r.wg.Wait()
			defer stop()
			for i := range r.apis {
				r.wg.Go(func() { r.comeAndGo(ctx, i) })
			}
			r.awaitLogouts(2)

			r.enter(during)
			fault.begin(r)
			answered := r.awaitAnswers(&stay, &leave)
			fault.end(r)
			r.enter(after)
			if !answered {
				return
			}
			r.awaitLogouts(4)
			stop()
			r.wg.Wait()
			r.judge(&stay, &leave)
		})
	}
}

func newFaultRun(t *testing.T, fault redisFault) *faultRun {
	t.Helper()
	r := &faultRun{t: t, fault: fault, server: redistest.StartWith(t, fault.options)}
	r.admin = r.server.Client()
	hasher, err := credential.NewHasher(credential.Options{MemoryKiB: 7168, Iterations: 1})
	r.must(err)
	r.hash, err = hasher.Hash(t.Context(), "secret")
	r.must(err)
	for i := range r.apis {
		cfg := config.Dev()
		cfg.Addr, cfg.AdminAddr, cfg.Secret, cfg.RedisURL = "127.0.0.1:0", "", testSecret, config.RedisURL(r.server.URL())
		cfg.EdgeLease, cfg.RedisTimeout = 500*time.Millisecond, 200*time.Millisecond
		cfg.RefreshGrace = time.Minute // a refresh is sent again until the fault is over
		cfg.PasswordMemory, cfg.PasswordIterations = 7168, 1
		few := config.Rate{Burst: 1_000_000, Period: time.Hour}
		cfg.LoginLimitClient, cfg.LoginLimitAccount, cfg.LoginLimitAddress = few, few, few
		cfg.ShutdownTimeout = 10 * time.Second
		rep, err := replica.New(t.Context(), replica.Options{Config: cfg, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Version: "test"})
		r.must(err)
		r.apis[i], r.store = "http://"+rep.Addr(), rep.Store()
		r.answers[i] = map[reply]int{}
		ended := make(chan error, 1)
		go func() { ended <- rep.Run(t.Context()) }() // until the clean-up begins
		t.Cleanup(func() {
			if err := <-ended; err != nil {
				t.Errorf("replica %d: %v", i, err)
			}
		})
		stacktest.Eventually(t, "the replica is ready", func() bool { return rep.Ready() == nil })
	}
	r.createAccount()
	return r
}

func (r *faultRun) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *faultRun) createAccount() {
	r.t.Helper()
	stacktest.Eventually(r.t, "an account", func() bool {
		return r.store.Accounts.Create(r.t.Context(), tokenstore.Account{Username: "johndoe", Hash: r.hash}) == nil
	})
}

// replicate makes one server a replica of another and waits until it has its data.
func (r *faultRun) replicate(replica *redis.Client, primary *redistest.Server) {
	r.t.Helper()
	host, port, err := net.SplitHostPort(primary.Addr())
	r.must(err)
	r.must(replica.ReplicaOf(r.t.Context(), host, port).Err())
	stacktest.Eventually(r.t, "a replica in step", func() bool {
		info, err := replica.Info(r.t.Context(), "replication").Result()
		return err == nil && strings.Contains(info, "master_link_status:up")
	})
}

// breathe lets some requests through between two commands of a fault.
func (*faultRun) breathe() { <-time.After(20 * time.Millisecond) }

func (r *faultRun) enter(phase int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.phase = phase
	for _, a := range r.answers {
		clear(a)
	}
}

// awaitAnswers sends requests to both replicas until each has given the answers that the
// fault must cause.
func (r *faultRun) awaitAnswers(stay, leave *[2]session) bool {
	r.t.Helper()
	r.mu.Lock()
	logouts := r.logouts + 6
	r.mu.Unlock()
	missing := func(replica int) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, a := range r.fault.answers {
			if r.answers[replica][a] == 0 {
				return true
			}
		}
		return r.fault.answers == nil && r.logouts < logouts
	}
	for deadline := time.Now().Add(2 * time.Minute); missing(0) || missing(1); r.breathe() {
		if time.Now().After(deadline) {
			r.mu.Lock()
			r.t.Errorf("want %v of each replica, got %v", r.fault.answers, r.answers)
			r.mu.Unlock()
			return false
		}
		if r.fault.repeat != nil {
			r.fault.repeat(r)
		}
		if r.fault.answers == nil {
			continue
		}
		var wg sync.WaitGroup
		for i := range r.apis {
			wg.Go(func() {
				if a := r.ask(i, refresh, session{refresh: stay[i].refresh}); a.status == http.StatusOK {
					stay[i].refresh = a.refresh()
				}
			})
			wg.Go(func() { r.ask(i, check, session{access: stay[i].access}) })
			wg.Go(func() { r.ask(i, logIn, session{}) })
			wg.Go(func() { r.ask(i, logOut, leave[i]) })
		}
		wg.Wait()
	}
	return true
}

// awaitLogouts waits until n more sessions were logged out.
func (r *faultRun) awaitLogouts(n int) {
	r.t.Helper()
	r.mu.Lock()
	n += r.logouts
	r.mu.Unlock()
	stacktest.Eventually(r.t, "users log in and out", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.logouts >= n
	})
}

// ask sends a request. Whatever the fault is, its answer is a success, a 401, or a 503 with
// Retry-After that sets no cookie.
func (r *faultRun) ask(replica int, request string, s session) answer {
	method, form := http.MethodPost, url.Values(nil)
	switch request {
	case check:
		method = http.MethodGet
	case logIn:
		form = login()
	}
	a, err := try(context.Background(), method, r.apis[replica]+"/auth/"+request, form, s.access, s.refresh)
	r.mu.Lock()
	r.answers[replica][reply{request, a.status}]++
	r.mu.Unlock()
	switch retry, _ := strconv.Atoi(a.header.Get("Retry-After")); {
	case err != nil:
		r.fail("%s: %v", request, err)
	case a.status == http.StatusServiceUnavailable && (retry < 1 || len(a.cookies) > 0):
		r.fail("%s: 503 with Retry-After %q and cookies %v", request, a.header.Get("Retry-After"), a.cookies)
	case a.status != http.StatusServiceUnavailable && a.status != http.StatusUnauthorized && a.status/100 != 2:
		r.fail("%s: %d %v", request, a.status, a.body)
	}
	return a
}

func (r *faultRun) fail(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.faults) < 20 {
		r.faults = append(r.faults, [...]string{"before: ", "during: ", "after: "}[r.phase]+fmt.Sprintf(format, args...))
	}
}

// askUntilAnswered asks until the answer is not a 503, or ctx ends.
func (r *faultRun) askUntilAnswered(ctx context.Context, replica int, request string, s session) (answer, bool) {
	for ctx.Err() == nil {
		if a := r.ask(replica, request, s); a.status != http.StatusServiceUnavailable {
			return a, true
		}
		r.breathe()
	}
	return answer{}, false
}

// mayBeLost reports whether a session that began in a phase may be refused now.
func (r *faultRun) mayBeLost(phase int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fault.loses && r.phase > before && phase < after
}

func (r *faultRun) login(replica int) session {
	r.t.Helper()
	a, _ := r.askUntilAnswered(r.t.Context(), replica, logIn, session{})
	if a.status != http.StatusOK {
		r.t.Fatalf("login: %d %v", a.status, a.body)
	}
	return session{before, a.access(), a.refresh()}
}

// comeAndGo is a user who logs in at one replica, refreshes at the other and logs out, over
// and over.
func (r *faultRun) comeAndGo(ctx context.Context, replica int) {
	for ctx.Err() == nil {
		r.mu.Lock()
		phase := r.phase
		r.mu.Unlock()
		in, ok := r.askUntilAnswered(ctx, replica, logIn, session{})
		if !ok {
			return
		}
		if in.status != http.StatusOK {
			if !r.mayBeLost(phase) {
				r.fail("login: %d %v", in.status, in.body)
			}
			r.breathe()
			continue
		}
		s := session{phase, in.access(), in.refresh()}
		r.checkAlive(s)
		again, ok := r.askUntilAnswered(ctx, 1-replica, refresh, session{refresh: s.refresh})
		if !ok {
			return
		}
		switch {
		case again.status == http.StatusOK:
			s.access, s.refresh = again.access(), again.refresh()
			r.checkAlive(s)
		case !r.mayBeLost(phase):
			r.fail("refresh: %d %v", again.status, again.body)
		}
		out, ok := r.askUntilAnswered(ctx, replica, logOut, s)
		if !ok {
			return
		}
		if out.status != http.StatusOK {
			r.fail("logout: %d %v", out.status, out.body)
			continue
		}
		r.mu.Lock()
		r.logouts++
		r.ended = append(r.ended, s)
		first := r.ended[0]
		r.mu.Unlock()
		r.checkEnded(s)
		r.checkEnded(first)
	}
}

// checkAlive shows the access token of a session that was not logged out to both replicas.
func (r *faultRun) checkAlive(s session) {
	for i := range r.apis {
		if a := r.ask(i, check, session{access: s.access}); a.status == http.StatusUnauthorized && !r.mayBeLost(s.phase) {
			r.fail("replica %d refuses a session that was not logged out: %v", i, a.body)
		}
	}
}

// checkEnded shows the tokens of a session that was logged out to both replicas.
func (r *faultRun) checkEnded(s session) {
	for i := range r.apis {
		verified := r.ask(i, check, session{access: s.access}).status
		refreshed := r.ask(i, refresh, session{refresh: s.refresh}).status
		r.mu.Lock()
		undone := r.fault.undoes && r.phase > before
		r.mu.Unlock()
		if (verified/100 == 2 || refreshed/100 == 2) && !undone {
			r.fail("replica %d after the logout: access token %d, refresh token %d", i, verified, refreshed)
		}
	}
}

// judge looks at all sessions when the fault is over, and reports what was wrong before.
func (r *faultRun) judge(stay, leave *[2]session) {
	r.t.Helper()
	ctx := r.t.Context()
	statuses := func(s session) (list []int) {
		for i := range r.apis {
			a, _ := r.askUntilAnswered(ctx, i, check, session{access: s.access})
			b, _ := r.askUntilAnswered(ctx, i, refresh, session{refresh: s.refresh})
			list = append(list, a.status, b.status)
		}
		return list
	}
	alive, dead := []int{204, 200, 204, 200}, []int{401, 401, 401, 401}
	want := alive
	if r.fault.empties {
		want = dead
	}
	for _, s := range stay {
		if got := statuses(s); !slices.Equal(got, want) {
			r.t.Errorf("a session from before: %v, want %v", got, want)
		}
	}
	for i, s := range leave {
		if a, _ := r.askUntilAnswered(ctx, i, logOut, s); a.status != http.StatusOK {
			r.t.Errorf("logout: %d %v", a.status, a.body)
		}
	}
	for _, s := range append(r.ended, leave[:]...) {
		ended := func() bool { return slices.Equal(statuses(s), dead) }
		if r.fault.undoes {
			stacktest.Eventually(r.t, "a logout that was undone holds again", ended)
		} else if !ended() {
			r.t.Error("a session is alive that was logged out")
		}
	}
	for _, f := range r.faults {
		r.t.Error(f)
	}
	r.t.Logf("%d logouts; since the fault: %v and %v", r.logouts, r.answers[0], r.answers[1])
}
