package handlers_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/claimhook"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// mute takes the Redis client's own messages: outages are wanted here.
type mute struct{}

func (mute) Printf(context.Context, string, ...any) {}

func TestMain(m *testing.M) {
	redis.SetLogger(mute{})
	goleak.VerifyTestMain(m)
}

const (
	issuer   = "https://auth.example.com"
	audience = "https://api.example.com"
	clientID = "latchkey"

	alice    = "alice"
	password = "canary-password-8f14e45fceea"
	scopes   = "read write"

	rootSecret = "canary-root-secret-0123456789abcdef0123456789"

	shards = 16
	grace  = 10 * time.Minute // tests let it pass by age; a busy machine does not
	pad    = 10 * time.Second // how much longer than its tokens a denial is kept
	// Nobody follows. The lease is what the first logout of each shard takes, and the
	// expiries of a Redis in memory stand still meanwhile.
	lease = time.Second
)

// setup says how a fleet differs from the usual one.
type setup struct {
	replicas int  // 0 is 3
	mini     bool // miniredis in place of redis-server
	// impatient gives the store the timeouts of the product. Otherwise they are
	// generous: a busy machine is not an outage.
	impatient bool
	grace     time.Duration // 0 is the constant; less than 0 is none, and each refresh rotates
	redisArgs []string
	settings  func(*handlers.Settings)
	rand      func() io.Reader
	memoryKiB uint32 // of a password hash; 0 is 64
	noKey     bool   // nobody has made a signing key yet
	refetch   func(context.Context) error
	// sessions is how many a user may have; 0 is any number.
	sessions int
	// statusLists publishes them, to be kept for 30 s.
	statusLists bool
	// dependencies, if set, has the last word on what a replica is made of.
	dependencies func(*handlers.Dependencies)
	claims       *claimhook.Webhook
}

// fleet is some replicas of the service over one Redis, and a client of them.
type fleet struct {
	testing.TB
	redis    *redistest.Server // nil on miniredis
	rdb      *redis.Client     // the test's own
	ring     *accesstoken.Ring
	key      ed25519.PrivateKey // what the ring signs with
	kid      string
	codec    *refreshtoken.Codec
	hasher   *credential.Hasher
	life     tokenstore.Lifetimes
	replicas []*replica
	began    time.Time
	log      *logBuffer
	client   *http.Client
	secrets  *secretList
}

type replica struct {
	url     string
	addr    string
	store   *tokenstore.Store
	rdb     redis.UniversalClient
	trips   *trips
	handler http.Handler
	admin   http.Handler
}

// usual is three replicas on a real Redis with one account, alice.
func usual(t testing.TB) *fleet { return start(t, setup{}) }

// onBoth runs a test on redis-server and on miniredis.
func onBoth(t *testing.T, test func(t *testing.T, f *fleet)) {
	t.Helper()
	t.Parallel()
	for name, mini := range map[string]bool{"redis": false, "miniredis": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, start(t, setup{mini: mini}))
		})
	}
}

func start(t testing.TB, s setup) *fleet {
	t.Helper()
	if s.replicas == 0 {
		s.replicas = 3
	}
	f := &fleet{
		TB: t, began: time.Now(), ring: accesstoken.NewRing(), log: &logBuffer{}, secrets: &secretList{},
		life: tokenstore.Lifetimes{Access: 15 * time.Minute, Refresh: 168 * time.Hour, Session: 720 * time.Hour, Grace: cmp.Or(s.grace, grace)},
	}
	redisURL := ""
	if s.mini {
		redisURL = "redis://" + redistest.Mini(t).Addr() + "/0"
		f.rdb = redis.NewClient(&redis.Options{Addr: strings.TrimSuffix(strings.TrimPrefix(redisURL, "redis://"), "/0")})
		t.Cleanup(func() { _ = f.rdb.Close() })
	} else {
		f.redis = redistest.Start(t, s.redisArgs...)
		f.rdb, redisURL = f.redis.Client(), f.redis.URL()
	}

	seed := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(seed)
	f.key = ed25519.NewKeyFromSeed(seed)
	key, err := accesstoken.Generate(accesstoken.EdDSA, bytes.NewReader(seed))
	f.check(err)
	f.kid = key.ID()
	if !s.noKey {
		f.ring.Add(key)
		f.check(f.ring.Activate(key.ID()))
	}
	f.codec, err = refreshtoken.New([]byte(rootSecret))
	f.check(err)
	if s.memoryKiB == 0 {
		s.memoryKiB = 64
	}
	f.hasher, err = credential.NewHasher(credential.Options{MemoryKiB: s.memoryKiB, Iterations: 1, Queue: 1000, MaxWait: 30 * time.Second})
	f.check(err)

	f.client = &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: 100, DisableCompression: true},
		Timeout:       2 * time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(f.client.CloseIdleConnections)
	t.Cleanup(f.nothingLeaked)
	for range s.replicas {
		f.replicas = append(f.replicas, f.replica(s, redisURL))
	}
	f.account(tokenstore.Account{Username: alice, Scopes: scopes}, password)
	return f
}

// replica wires one as the program does.
func (f *fleet) replica(s setup, redisURL string) *replica {
	f.Helper()
	timeout := time.Minute
	if s.impatient {
		timeout = 250 * time.Millisecond
	}
	rdb, err := tokenstore.Dial(tokenstore.DialOptions{URL: redisURL, Timeout: timeout, PoolSize: 20})
	f.check(err)
	f.Cleanup(func() { _ = rdb.Close() })
	r := &replica{rdb: rdb, trips: &trips{}}
	rdb.AddHook(r.trips)

	metrics := handlers.NewMetrics("test", "go", f.hasher.Depth)
	r.store, err = tokenstore.New(rdb, tokenstore.Options{
		Shards: shards, Lifetimes: f.life, Timeout: 3 * timeout, Observe: metrics.StoreCall, SessionsPerUser: s.sessions, StatusLists: s.statusLists,
	})
	f.check(err)
	f.check(r.store.Open(f.Context()))

	settings := handlers.Settings{
		Issuer: issuer, Audience: audience, ClientID: clientID, CookieSecure: true, CookiePath: "/auth",
		Limits: tokenstore.AttemptLimits{
			Client:  tokenstore.Limit{Burst: 1000, Period: time.Hour},
			Account: tokenstore.Limit{Burst: 1000, Period: time.Hour},
			Address: tokenstore.Limit{Burst: 1000, Period: time.Hour},
		},
		DeviceKey: []byte("canary-device-key-0123456789abcd"), JWKSMaxAge: 5 * time.Minute, Version: "test",
	}
	if s.statusLists {
		settings.StatusListTTL = 30 * time.Second
	}
	if s.settings != nil {
		s.settings(&settings)
	}
	random := rand.Reader
	if s.rand != nil {
		random = s.rand()
	}
	verifier, err := edge.New(edge.Options{
		Revocations: r.store.Revocations, Ring: f.ring, Issuer: issuer, Audience: audience, Refetch: s.refetch,
	})
	f.check(err)
	issued, err := edge.New(edge.Options{Revocations: r.store.Revocations, Ring: f.ring, Issuer: issuer, AnyAudience: true, Refetch: s.refetch})
	f.check(err)
	deps := handlers.Dependencies{
		Store: r.store, Verifier: verifier, Confirmer: edge.NewConfirmer(r.store.Revocations, lease),
		Signer: accesstoken.NewSigner(f.ring), Refresh: f.codec, Passwords: f.hasher, Metrics: metrics,
		Log:  slog.New(slog.NewJSONHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Rand: random, Settings: settings, Issued: issued, Claims: s.claims,
	}
	if s.dependencies != nil {
		s.dependencies(&deps)
	}
	r.handler, err = handlers.New(deps)
	f.check(err)
	r.admin = handlers.NewAdmin(handlers.AdminOptions{Metrics: metrics, Ready: func() error { return nil }})

	srv := httptest.NewUnstartedServer(documented(f, r.handler, deps.Settings))
	limits(srv.Config)
	srv.Start()
	f.Cleanup(srv.Close)
	r.url, r.addr = srv.URL, srv.Listener.Addr().String()
	return r
}

// limits are those of the program's own server.
func limits(s *http.Server) {
	s.ReadHeaderTimeout, s.ReadTimeout, s.WriteTimeout = 5*time.Second, 15*time.Second, 30*time.Second
	s.IdleTimeout, s.MaxHeaderBytes = 2*time.Minute, 16<<10
	s.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
}

func (f *fleet) check(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// account makes an account with a password.
func (f *fleet) account(a tokenstore.Account, password string) {
	f.Helper()
	if a.Hash == "" {
		hash, err := f.hasher.Hash(f.Context(), password)
		f.check(err)
		a.Hash = hash
	}
	f.secrets.add(password)
	f.check(f.replicas[0].store.Accounts.Create(f.Context(), a))
}

// option shapes a request.
type option func(*http.Request)

// body is sent as it is.
func body(contentType, text string) option {
	return func(r *http.Request) {
		r.Body = io.NopCloser(strings.NewReader(text))
		r.ContentLength = int64(len(text))
		r.Header.Set("Content-Type", contentType)
	}
}

func form(pairs ...string) option {
	v := url.Values{}
	for pair := range slices.Chunk(pairs, 2) {
		v.Add(pair[0], pair[1])
	}
	return body("application/x-www-form-urlencoded", v.Encode())
}

func jsonBody(text string) option { return body("application/json", text) }

func header(name, value string) option {
	return func(r *http.Request) { r.Header.Add(name, value) }
}

func bearer(token string) option { return header("Authorization", "Bearer "+token) }

func cookie(token string) option { return header("Cookie", "refresh_token="+token) }

func known(device string) option { return header("Cookie", "known_device="+device) }

// answer is a response, read.
type answer struct {
	f      *fleet
	what   string
	status int
	header http.Header
	text   string
	closes bool
	bound  bool // Authorization: DPoP was sent
}

// do sends a request to a replica and checks what holds for every answer.
func (f *fleet) do(replica int, method, path string, options ...option) answer {
	f.Helper()
	a, err := f.try(replica, method, path, options...)
	if err != nil {
		f.Fatal(err)
	}
	a.proper()
	return a
}

func (f *fleet) post(replica int, path string, options ...option) answer {
	f.Helper()
	return f.do(replica, http.MethodPost, path, options...)
}

func (f *fleet) get(replica int, path string, options ...option) answer {
	f.Helper()
	return f.do(replica, http.MethodGet, path, options...)
}

// try may be called from any goroutine.
func (f *fleet) try(replica int, method, path string, options ...option) (answer, error) {
	req, err := http.NewRequestWithContext(context.WithoutCancel(f.Context()), method, f.replicas[replica].url+path, http.NoBody)
	if err != nil {
		return answer{}, err
	}
	for _, o := range options {
		o(req)
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{
		f: f, what: fmt.Sprintf("%s %s at replica %d", method, path, replica),
		status: resp.StatusCode, header: resp.Header, text: string(text), closes: resp.Close,
		bound: strings.HasPrefix(req.Header.Get("Authorization"), "DPoP "),
	}
	f.secrets.issuedBy(a)
	return a, nil
}

// proper checks what every answer of the API has.
func (a answer) proper() {
	a.f.Helper()
	a.hasHeader("Cache-Control", "no-store")
	if a.status != http.StatusNoContent || !strings.Contains(a.what, "/auth/verify") {
		a.hasHeader("X-Content-Type-Options", "nosniff")
		if a.header.Get("X-Request-Id") == "" {
			a.f.Errorf("%s: no X-Request-Id", a.what)
		}
	}
	challenge := a.header.Get("WWW-Authenticate")
	challenged := a.status == http.StatusUnauthorized || a.status == http.StatusForbidden && strings.Contains(a.text, "insufficient_scope")
	scheme := "Bearer"
	if a.status == http.StatusUnauthorized && strings.Contains(a.text, `"invalid_client"`) {
		scheme = "Basic"
	}
	if a.bound && scheme == "Bearer" {
		scheme = "DPoP"
	}
	if challenged != strings.HasPrefix(challenge, scheme+` realm="latchkey"`) {
		a.f.Errorf("%s: %d with WWW-Authenticate %q", a.what, a.status, challenge)
	}
	retry := a.header.Get("Retry-After")
	wait, _ := strconv.Atoi(retry)
	if waits := a.status == http.StatusServiceUnavailable || a.status == http.StatusTooManyRequests; waits != (wait > 0) {
		a.f.Errorf("%s: %d with Retry-After %q", a.what, a.status, retry)
	}
	if a.status < 400 {
		return
	}
	// A logout that is refused expires what it was shown.
	logout := a.status == http.StatusUnauthorized && strings.Contains(a.what, "/auth/logout ")
	several := strings.Contains(a.text, "The refresh cookies of several sessions were sent") || strings.Contains(a.text, "Tokens of more than 16 sessions were sent")
	if set := a.header.Values("Set-Cookie"); len(set) > 0 && !logout && !several {
		a.f.Errorf("%s: %d touches cookies: %q", a.what, a.status, set)
	}
	if strings.HasPrefix(a.what, http.MethodHead) {
		return
	}
	a.hasHeader("Content-Type", "application/json; charset=utf-8")
	var p map[string]any
	if err := json.Unmarshal([]byte(a.text), &p); err != nil {
		a.f.Errorf("%s: the body is no JSON: %q", a.what, a.text)
		return
	}
	for _, member := range []string{"error", "error_description", "detail"} {
		if text, ok := p[member].(string); !ok || text == "" {
			a.f.Errorf("%s: %s is missing in %s", a.what, member, a.text)
		}
	}
	if len(p) != 3 {
		a.f.Errorf("%s: more than three members: %s", a.what, a.text)
	}
}

// hasHeader fails unless a header is there once, with this value.
func (a answer) hasHeader(name, want string) {
	a.f.Helper()
	if got := a.header.Values(name); len(got) != 1 || got[0] != want {
		a.f.Errorf("%s: %s: got %q, want %q", a.what, name, got, want)
	}
}

// is ends the test unless the status is as wanted.
func (a answer) is(status int) answer {
	a.f.Helper()
	if a.status != status {
		a.f.Fatalf("%s: got %d, want %d\n%s", a.what, a.status, status, a.text)
	}
	return a
}

// fails checks an error answer.
func (a answer) fails(status int, code, detail string) {
	a.f.Helper()
	a.is(status)
	if got := a.member("error"); got != code {
		a.f.Errorf("%s: error: got %q, want %q", a.what, got, code)
	}
	if got := a.member("detail"); detail != "" && got != detail {
		a.f.Errorf("%s: detail: got %q, want %q", a.what, got, detail)
	}
}

func (a answer) json() map[string]any {
	a.f.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(a.text), &v); err != nil {
		a.f.Fatalf("%s: %v in %q", a.what, err, a.text)
	}
	return v
}

// member is a string member of the body, or "".
func (a answer) member(name string) string {
	a.f.Helper()
	s, _ := a.json()[name].(string)
	return s
}

// cookies are those of a name that the answer sets.
func (a answer) cookies(name string) []*http.Cookie {
	var list []*http.Cookie
	for _, c := range (&http.Response{Header: a.header}).Cookies() {
		if c.Name == name {
			list = append(list, c)
		}
	}
	return list
}

// cookie is the one cookie of a name that the answer sets.
func (a answer) cookie(name string) *http.Cookie {
	a.f.Helper()
	list := a.cookies(name)
	if len(list) != 1 {
		a.f.Fatalf("%s: %d cookies %s: %q", a.what, len(list), name, a.header.Values("Set-Cookie"))
	}
	return list[0]
}

// tokens are what a client holds.
type tokens struct{ access, refresh string }

// tokens reads them out of an answer, wherever the refresh token was put.
func (a answer) tokens() tokens {
	a.f.Helper()
	a.is(http.StatusOK)
	t := tokens{access: a.member("access_token"), refresh: a.member("refresh_token")}
	if t.refresh == "" {
		t.refresh = a.cookie("refresh_token").Value
	}
	return t
}

func (f *fleet) login(replica int) tokens { return f.loginAs(replica, alice, password) }

func (f *fleet) loginAs(replica int, username, password string) tokens {
	f.Helper()
	return f.post(replica, "/auth/token", form("username", username, "password", password)).tokens()
}

func (f *fleet) refresh(replica int, t tokens) tokens {
	f.Helper()
	return f.post(replica, "/auth/refresh", cookie(t.refresh)).tokens()
}

// rotate lets the grace pass and refreshes: the refresh token is replaced.
func (f *fleet) rotate(replica int, t tokens) tokens {
	f.Helper()
	f.age(t.access, f.life.Grace+time.Second)
	return f.refresh(replica, t)
}

// alive fails unless every replica accepts an access token.
func (f *fleet) alive(access string) {
	f.Helper()
	for i := range f.replicas {
		f.get(i, "/auth/verify", bearer(access)).is(http.StatusNoContent)
		if !tokenstore.IsClient(f.claim(access, "client_id")) { // whose tokens do not manage accounts
			f.get(i, "/users/me", bearer(access)).is(http.StatusOK)
		}
	}
}

// accessDead fails unless every replica refuses an access token everywhere.
func (f *fleet) accessDead(list ...string) {
	f.Helper()
	for _, access := range list {
		for i := range f.replicas {
			f.get(i, "/auth/verify", bearer(access)).fails(http.StatusUnauthorized, "invalid_token", "Could not validate credentials")
			f.get(i, "/users/me", bearer(access)).fails(http.StatusUnauthorized, "invalid_token", "Could not validate credentials")
		}
	}
}

// dead fails unless every replica refuses both tokens.
func (f *fleet) dead(t tokens) {
	f.Helper()
	f.accessDead(t.access)
	for i := range f.replicas {
		f.post(i, "/auth/refresh", cookie(t.refresh)).fails(http.StatusUnauthorized, "invalid_grant", "Invalid refresh token")
	}
}

// claims reads an access token without checking it.
func (f *fleet) claims(access string) map[string]any {
	f.Helper()
	parts := strings.Split(access, ".")
	if len(parts) != 3 {
		f.Fatal("not a JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	f.check(err)
	var c map[string]any
	f.check(json.Unmarshal(payload, &c))
	return c
}

func (f *fleet) claim(access, name string) string {
	f.Helper()
	s, _ := f.claims(access)[name].(string)
	return s
}

// rtKey names the refresh key of an access token's session.
func (f *fleet) rtKey(access string) string { return f.keyOf("rt", access, "sid") }

func (f *fleet) keyOf(kind, access, claim string) string {
	f.Helper()
	id, err := tokenstore.ParseID(f.claim(access, claim))
	f.check(err)
	return fmt.Sprintf("lk:{%d}:%s:%s", id.Shard(), kind, id)
}

// age makes the last rotation of a session look older.
func (f *fleet) age(access string, d time.Duration) {
	f.Helper()
	f.check(f.rdb.HIncrBy(f.Context(), f.rtKey(access), "rot", -d.Milliseconds()).Err())
}

// session reads a refresh key as it is.
func (f *fleet) session(access string) map[string]string {
	f.Helper()
	fields, err := f.rdb.HGetAll(f.Context(), f.rtKey(access)).Result()
	f.check(err)
	return fields
}

// sign makes a JWT of any header and claims with a true signature of the fleet's key.
func (f *fleet) sign(header, payload string) string {
	signed := b64(header) + "." + b64(payload)
	return signed + "." + b64(string(ed25519.Sign(f.key, []byte(signed))))
}

// header is the JOSE header of the fleet's tokens.
func (f *fleet) header() string { return fmt.Sprintf(`{"alg":"EdDSA","kid":%q,"typ":"at+jwt"}`, f.kid) }

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// logBuffer collects log lines.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// lines are the log's lines, read.
func (f *fleet) lines() []map[string]any {
	f.Helper()
	var list []map[string]any
	for line := range strings.Lines(f.log.String()) {
		var l map[string]any
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			f.Fatalf("a log line is no JSON: %v: %q", err, line)
		}
		list = append(list, l)
	}
	return list
}

// events are the security events in the log, by name.
func (f *fleet) events() map[string]int {
	f.Helper()
	n := map[string]int{}
	for _, l := range f.lines() {
		if e, ok := l["event"].(string); ok {
			n[e]++
		}
	}
	return n
}

// metrics is what a replica shows at /metrics.
func (f *fleet) metrics(replica int) string {
	f.Helper()
	w := httptest.NewRecorder()
	f.replicas[replica].admin.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/metrics", http.NoBody))
	if w.Code != http.StatusOK {
		f.Fatalf("/metrics: %d", w.Code)
	}
	return w.Body.String()
}

// secretList is every secret that a test had in hand: none may show.
type secretList struct {
	mu   sync.Mutex
	list map[string]bool
}

func (s *secretList) add(secrets ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list == nil {
		s.list = map[string]bool{rootSecret: true}
	}
	for _, secret := range secrets {
		if len(secret) >= 8 { // shorter ones are words
			s.list[secret] = true
		}
	}
}

// issuedBy adds the tokens of an answer.
func (s *secretList) issuedBy(a answer) {
	for _, c := range append(a.cookies("refresh_token"), a.cookies("known_device")...) {
		s.add(c.Value)
	}
	var t struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
		Device  string `json:"device_token"`
	}
	if json.Unmarshal([]byte(a.text), &t) == nil {
		s.add(t.Access, t.Refresh, t.Device)
		if parts := strings.Split(t.Access, "."); len(parts) == 3 {
			s.add(parts[1], parts[2])
		}
	}
}

func (s *secretList) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for secret := range s.list {
		list = append(list, secret)
	}
	return list
}

// nothingLeaked runs at the end of every test: no secret of it shows in the log
// or the metrics, every log line is one, and every security event has its form.
func (f *fleet) nothingLeaked() {
	for _, l := range f.lines() {
		if l["msg"] == "security" {
			f.wellFormed(l)
		}
	}
	seen := map[string]string{"the log": f.log.String()}
	for i := range f.replicas {
		seen["the metrics of replica "+strconv.Itoa(i)] = f.metrics(i)
	}
	for _, secret := range f.secrets.all() {
		for where, text := range seen {
			if strings.Contains(text, secret) {
				f.Errorf("%s shows a secret: %s...", where, secret[:8])
			}
		}
	}
}

// trips counts a client's round trips: commands, and pipelines as one.
type trips struct{ n atomic.Int64 }

func (c *trips) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *trips) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmd)
	}
}

func (c *trips) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmds)
	}
}

// raw sends bytes to a replica as they are and returns what comes back until
// the connection ends or a whole response is there.
func (f *fleet) raw(addr, text string) (status string, all []byte) {
	f.Helper()
	conn, err := net.Dial("tcp", addr)
	f.check(err)
	defer func() { _ = conn.Close() }()
	f.check(conn.SetDeadline(time.Now().Add(20 * time.Second)))
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		_, _ = io.WriteString(conn, text) // the server may have heard enough
	}()
	all, err = io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		f.Fatalf("the server neither answered nor closed the connection: %q", all)
	}
	<-wrote
	line, _, _ := strings.Cut(string(all), "\r\n")
	return line, all
}

// near fails unless two durations are alike within slack.
// near compares a time with what it was when the test began: slack is how much it may be
// off then, and as much time as has passed since is added.
func (f *fleet) near(t testing.TB, what string, got, want, slack time.Duration) {
	t.Helper()
	slack += time.Since(f.began)
	if got < want-slack || got > want+slack {
		t.Errorf("%s: got %v, want %v within %v", what, got, want, slack)
	}
}

func prefixes(t testing.TB, list ...string) []netip.Prefix {
	t.Helper()
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func toJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// request and record are for what needs no network.
func request(t testing.TB, method, path string, options ...option) *http.Request {
	r := httptest.NewRequestWithContext(context.WithoutCancel(t.Context()), method, path, http.NoBody)
	for _, o := range options {
		o(r)
	}
	return r
}

func record(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}
