package handlers_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/golang-jwt/jwt/v5" //nolint:depguard // the textbook way is one of the contenders
	"github.com/redis/go-redis/v9"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// BenchmarkFloors compares the API with what Gin and Redis themselves allow:
// every server is loaded in turn, by the same load, in short rounds, and put in
// relation round by round, so that what else the machine does meets all of them.
// Only the ratios mean something: absolute figures are the machine's. Run it
// once: make bench-floors.
func BenchmarkFloors(b *testing.B) {
	wrk, err := exec.LookPath("wrk")
	if err != nil {
		b.Fatal("wrk is not installed, and it loads the servers: apt-get install -y wrk")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // for all of them, as a replica with a memory limit has it
	for b.Loop() {
		f := newFloors(b)
		verify := []contender{
			{name: "bare Gin, 204", url: f.serve(bareVerify())},
			{name: "Latchkey, follow", url: f.serve(f.api(true))},
			{name: "Latchkey, strict", url: f.serve(f.api(false))},
			{name: "textbook: golang-jwt + EXISTS", url: f.serve(f.textbook())},
		}
		token := f.login()
		for range rounds {
			for i := range verify {
				verify[i].rates = append(verify[i].rates, wrkRate(b, wrk, verify[i].url+"/auth/verify", token))
			}
		}
		refresh := []contender{
			{name: "Gin + one script + one signature", url: f.serve(f.bareRefresh())},
			{name: "Latchkey, follow", url: verify[1].url},
		}
		for range rounds {
			for i := range refresh {
				refresh[i].rates = append(refresh[i].rates, f.refreshRate(refresh[i].url))
			}
		}
		table(b, "/auth/verify", verify)
		table(b, "/auth/refresh", refresh)
		b.ReportMetric(verify[1].to(verify[0]), "verify/floor")
		b.ReportMetric(verify[1].to(verify[3]), "verify/textbook")
		b.ReportMetric(refresh[1].to(refresh[0]), "refresh/floor")
		b.ReportMetric(0, "ns/op")
	}
}

// contender is one server under load.
type contender struct {
	name  string
	url   string
	rates []float64 // requests a second, by round
}

// rounds is how often each server is loaded, for a second.
const rounds = 11

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[len(sorted)/2]
}

// to is the median of the rounds' ratios.
func (c contender) to(other contender) float64 {
	ratios := make([]float64, len(c.rates))
	for i, r := range c.rates {
		ratios[i] = r / other.rates[i]
	}
	return median(ratios)
}

func table(b *testing.B, route string, list []contender) {
	b.Helper()
	fmt.Printf("\n%-14s %-34s %12s %8s   %s\n", route, "", "requests/s", "ratio", "rounds")
	for _, c := range list {
		each := make([]string, len(c.rates))
		for i, r := range c.rates {
			each[i] = strconv.Itoa(int(r / 1000))
		}
		fmt.Printf("%-14s %-34s %12.0f %8.2f   %s k\n", "", c.name, median(c.rates), c.to(list[0]), strings.Join(each, " "))
	}
}

// floors is what the contenders share: one Redis, one key, one user.
type floors struct {
	b     *testing.B
	rdb   redis.UniversalClient
	store *tokenstore.Store
	ring  *accesstoken.Ring
	key   ed25519.PrivateKey // of the textbook and the refresh floor
	codec *refreshtoken.Codec
	where string // a Latchkey with the user
}

const floorSecret = "a benchmark's root secret of 32 bytes or more"

func newFloors(b *testing.B) *floors {
	b.Helper()
	f := &floors{b: b, ring: accesstoken.NewRing()}
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	var err error
	f.rdb, err = tokenstore.Dial(tokenstore.DialOptions{URL: redistest.Start(b).URL(), Timeout: 5 * time.Second})
	must(err)
	b.Cleanup(func() { _ = f.rdb.Close() })
	f.store, err = tokenstore.New(f.rdb, tokenstore.Options{Shards: 16, Lifetimes: tokenstore.Lifetimes{
		Access: 15 * time.Minute, Refresh: 168 * time.Hour, Session: 720 * time.Hour,
		Grace: -time.Millisecond, // none: each refresh rotates
	}, Timeout: 10 * time.Second})
	must(err)
	must(f.store.Open(b.Context()))
	key, err := accesstoken.Generate(accesstoken.EdDSA, rand.Reader)
	must(err)
	f.ring.Add(key)
	must(f.ring.Activate(key.ID()))
	_, f.key, err = ed25519.GenerateKey(rand.Reader)
	must(err)
	f.codec, err = refreshtoken.New([]byte(floorSecret))
	must(err)
	hasher, err := credential.NewHasher(credential.Options{MemoryKiB: 64, Iterations: 1})
	must(err)
	hash, err := hasher.Hash(b.Context(), "secret")
	must(err)
	must(f.store.CreateAccount(b.Context(), tokenstore.Account{Username: "johndoe", Hash: hash}))
	return f
}

// serve listens as the product does.
func (f *floors) serve(h http.Handler) string {
	f.b.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(f.b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		f.b.Fatal(err)
	}
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	f.b.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return "http://" + l.Addr().String()
}

func bareVerify() http.Handler {
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.GET("/auth/verify", func(c *gin.Context) { c.Status(http.StatusNoContent) })
	return e
}

// api is the product, wired as the program wires it.
func (f *floors) api(follow bool) http.Handler {
	f.b.Helper()
	hasher, err := credential.NewHasher(credential.Options{MemoryKiB: 64, Iterations: 1})
	if err != nil {
		f.b.Fatal(err)
	}
	var follower *edge.Follower
	if follow {
		follower = edge.NewFollower(edge.FollowerOptions{Store: f.store})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			follower.Run(ctx)
		}()
		f.b.Cleanup(func() {
			cancel()
			<-ended
		})
		<-follower.Ready()
	}
	verifier, err := edge.New(edge.Options{Store: f.store, Ring: f.ring, Issuer: "iss", Audience: "aud", Follower: follower})
	if err != nil {
		f.b.Fatal(err)
	}
	h, err := handlers.New(handlers.Dependencies{
		Store: f.store, Verifier: verifier, Confirmer: edge.NewConfirmer(f.store, time.Second),
		Signer: accesstoken.NewSigner(f.ring), Refresh: f.codec, Passwords: hasher,
		Metrics: handlers.NewMetrics("bench", runtime.Version(), hasher.Depth),
		Log:     slog.New(slog.NewJSONHandler(io.Discard, nil)), Rand: rand.Reader,
		Settings: handlers.Settings{
			Issuer: "iss", Audience: "aud", ClientID: "latchkey", CookieSecure: true, CookiePath: "/auth", DeviceKey: []byte(floorSecret),
		},
	})
	if err != nil {
		f.b.Fatal(err)
	}
	if f.where == "" {
		f.where = f.serve(h)
	}
	return h
}

// textbook is how a denylist is usually checked.
func (f *floors) textbook() http.Handler {
	e := gin.New()
	key := f.ring.Active()
	jwk, _ := key.PublicJWK()
	raw, err := base64.RawURLEncoding.DecodeString(jwk.X)
	if err != nil {
		f.b.Fatal(err)
	}
	public := ed25519.PublicKey(raw)
	e.GET("/auth/verify", func(c *gin.Context) {
		text := strings.TrimPrefix(c.GetHeader("Authorization"), "Bearer ")
		claims := jwt.MapClaims{}
		_, err := jwt.ParseWithClaims(text, claims, func(*jwt.Token) (any, error) { return public, nil }, jwt.WithValidMethods([]string{"EdDSA"}))
		if err != nil {
			c.Status(http.StatusUnauthorized)
			return
		}
		jti, _ := claims["jti"].(string)
		n, err := f.rdb.Exists(c.Request.Context(), "deny:"+jti).Result()
		if err != nil || n > 0 {
			c.Status(http.StatusUnauthorized)
			return
		}
		c.Status(http.StatusNoContent)
	})
	return e
}

// bareRefresh is the least that a refresh can be: one script, one signature.
func (f *floors) bareRefresh() http.Handler {
	script := redis.NewScript(`redis.call('HSET', KEYS[1], 'gen', ARGV[1]) return redis.call('TIME')`)
	e := gin.New()
	e.POST("/auth/refresh", func(c *gin.Context) {
		cookie, err := c.Request.Cookie("refresh_token")
		if err != nil {
			c.Status(http.StatusUnauthorized)
			return
		}
		if err := script.Run(c.Request.Context(), f.rdb, []string{"floor"}, len(cookie.Value)).Err(); err != nil {
			c.Status(http.StatusServiceUnavailable)
			return
		}
		sum := sha256.Sum256([]byte(cookie.Value))
		signature := ed25519.Sign(f.key, sum[:])
		http.SetCookie(c.Writer, &http.Cookie{Name: "refresh_token", Value: cookie.Value, Path: "/auth", HttpOnly: true})
		c.JSON(http.StatusOK, gin.H{"access_token": base64.RawURLEncoding.EncodeToString(signature), "token_type": "bearer", "expires_in": 900})
	})
	return e
}

// login returns an access token of the product's.
func (f *floors) login() string {
	access, _ := f.tokens()
	return access
}

func (f *floors) tokens() (access, refresh string) {
	f.b.Helper()
	req, err := http.NewRequestWithContext(f.b.Context(), http.MethodPost, f.where+"/auth/token", strings.NewReader("username=johndoe&password=secret"))
	if err != nil {
		f.b.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.b.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		f.b.Fatalf("login: %v %s %s", err, resp.Status, body)
	}
	access = string(regexp.MustCompile(`"access_token":"([^"]+)"`).FindSubmatch(body)[1])
	for _, c := range resp.Cookies() {
		if c.Name == "refresh_token" {
			refresh = c.Value
		}
	}
	return access, refresh
}

// wrkRate loads a URL for a second, over as many connections as leave a machine of two
// CPUs next to nothing to wait for: of fewer (32, by one thread) an eighth of it idles,
// and what is measured is how server and client wake one another.
func wrkRate(b *testing.B, wrk, url, token string) float64 {
	b.Helper()
	out, err := exec.CommandContext(b.Context(), wrk, "-t2", "-c128", "-d1s", "-H", "Authorization: Bearer "+token, url).CombinedOutput()
	if err != nil {
		b.Fatalf("wrk: %v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("Non-2xx")) {
		b.Fatalf("wrk met refusals:\n%s", out)
	}
	m := regexp.MustCompile(`Requests/sec:\s+([\d.]+)`).FindSubmatch(out)
	if m == nil {
		b.Fatalf("wrk does not tell the rate:\n%s", out)
	}
	rate, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return rate
}

// refreshRate runs 32 chains of refreshes for a second, each over a
// connection of its own, with as little of a client as HTTP allows.
func (f *floors) refreshRate(url string) float64 {
	f.b.Helper()
	const chains = 32
	cookies := make([]string, chains)
	for i := range cookies {
		_, cookies[i] = f.tokens()
	}
	var done atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	end := start.Add(time.Second)
	for _, cookie := range cookies {
		wg.Go(func() {
			n, err := chainOfRefreshes(f.b.Context(), strings.TrimPrefix(url, "http://"), cookie, end)
			if err != nil {
				f.b.Error(err)
			}
			done.Add(n)
		})
	}
	wg.Wait()
	return float64(done.Load()) / time.Since(start).Seconds()
}

func chainOfRefreshes(ctx context.Context, addr, cookie string, end time.Time) (int64, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	r := bufio.NewReader(conn)
	var n int64
	for time.Now().Before(end) {
		if _, err := io.WriteString(conn, "POST /auth/refresh HTTP/1.1\r\nHost: "+addr+"\r\nContent-Length: 0\r\nCookie: refresh_token="+cookie+"\r\n\r\n"); err != nil {
			return n, err
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return n, err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			return n, fmt.Errorf("refresh: %s %w", resp.Status, err)
		}
		for _, c := range resp.Cookies() {
			if c.Name == "refresh_token" {
				cookie = c.Value
			}
		}
		n++
	}
	return n, nil
}
