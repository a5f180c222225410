//go:build unix

package monitoring_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// deployment is three replicas on a real Redis, under traffic until the test ends.
type deployment struct {
	*testing.T
	redis        *redistest.Server
	apis, admins []string // host:port
	bad          atomic.Int64
}

func deploy(t *testing.T) *deployment {
	t.Helper()
	d := &deployment{T: t, redis: redistest.Start(t)}
	d.accounts()
	bin := stacktest.Build(t, "../..")
	for range 3 {
		d.replica(bin)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	for i := range 3 {
		running.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				d.visit(ctx, n)
			}
		})
	}
	t.Cleanup(func() { stop(); running.Wait() })
	return d
}

// accounts makes three users.
func (d *deployment) accounts() {
	d.Helper()
	rdb, err := tokenstore.Dial(tokenstore.DialOptions{URL: d.redis.URL(), Timeout: 5 * time.Second})
	d.check(err)
	defer func() { _ = rdb.Close() }()
	store, err := tokenstore.New(rdb, tokenstore.Options{
		Shards: 16, Timeout: 5 * time.Second,
		Lifetimes: tokenstore.Lifetimes{Access: 15 * time.Minute, Refresh: time.Hour, Session: 2 * time.Hour, Grace: 10 * time.Second},
	})
	d.check(err)
	d.check(store.Open(d.Context()))
	hasher, err := credential.NewHasher(credential.Options{MemoryKiB: 7168, Iterations: 1})
	d.check(err)
	hash, err := hasher.Hash(d.Context(), "secret")
	d.check(err)
	for i := range 3 {
		d.check(store.Accounts.Create(d.Context(), tokenstore.Account{Username: "user" + strconv.Itoa(i), Hash: hash}))
	}
}

func (d *deployment) check(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

// replica starts one, and waits until it serves.
func (d *deployment) replica(bin string) {
	d.Helper()
	serving := make(chan [2]string, 1)
	d.launch([]string{
		"LATCHKEY_SECRET=the monitoring's tests' own secret of 32 bytes", "LATCHKEY_REDIS_URL=" + d.redis.URL(),
		"LATCHKEY_ADDR=127.0.0.1:0", "LATCHKEY_ADMIN_ADDR=127.0.0.1:0", "LATCHKEY_COOKIE_SECURE=false",
		"LATCHKEY_PASSWORD_MEMORY=7168", "LATCHKEY_PASSWORD_ITERATIONS=1", "LATCHKEY_AUDIT_STREAM=1000", "HOME=" + d.TempDir(),
	}, func(line string) {
		var l struct{ Msg, Address, Admin string }
		if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "serving" {
			serving <- [2]string{l.Address, l.Admin}
		}
	}, bin, "serve")
	select {
	case at := <-serving:
		d.apis, d.admins = append(d.apis, at[0]), append(d.admins, at[1])
	case <-time.After(2 * time.Minute):
		d.Fatal("a replica does not serve within 2 minutes")
	}
}

// launch starts a program, which ends with the test; line is given what it logs.
func (d *deployment) launch(env []string, line func(string), bin string, args ...string) {
	d.Helper()
	cmd := exec.CommandContext(context.Background(), bin, args...) // its cleanup ends it
	cmd.Env, cmd.SysProcAttr = env, &syscall.SysProcAttr{Setpgid: true}
	stderr, err := cmd.StderrPipe()
	d.check(err)
	d.check(cmd.Start())
	var log bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			log.WriteString(lines.Text() + "\n")
			if line != nil {
				line(lines.Text())
			}
		}
	}()
	d.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-done
		_ = cmd.Wait()
		if d.Failed() {
			d.Logf("%s:\n%s", filepath.Base(bin), log.String()[max(0, log.Len()-4000):])
		}
	})
}

// failed is how many requests of the traffic were answered as they should not be.
func (d *deployment) failed() int64 { return d.bad.Load() }

// visit is what a user does, with a thief and a typing error now and then.
func (d *deployment) visit(ctx context.Context, n int) {
	user := "user" + strconv.Itoa(n%3)
	access, refresh := d.ask(ctx, n, "POST", "/auth/token", 200, url.Values{"username": {user}, "password": {"secret"}}, "", "")
	for i := range 20 {
		d.ask(ctx, n+i, "GET", "/auth/verify", 204, nil, access, "")
	}
	d.ask(ctx, n, "GET", "/users/me", 200, nil, access, "")
	newAccess, next := d.ask(ctx, n+1, "POST", "/auth/refresh", 200, url.Values{}, "", refresh)
	d.ask(ctx, n+2, "POST", "/auth/refresh", 200, url.Values{}, "", refresh) // a second tab
	if n%7 == 0 {
		d.ask(ctx, n, "POST", "/auth/token", 401, url.Values{"username": {"user-" + strconv.Itoa(n)}, "password": {"wrong"}}, "", "")
		_, third := d.ask(ctx, n, "POST", "/auth/refresh", 200, url.Values{}, "", next)
		d.age(ctx, newAccess)
		d.ask(ctx, n+1, "POST", "/auth/refresh", 401, url.Values{}, "", refresh) // a thief
		d.ask(ctx, n+2, "POST", "/auth/refresh", 401, url.Values{}, "", third)
		d.ask(ctx, n, "GET", "/nowhere", 404, nil, "", "")
		return
	}
	d.ask(ctx, n+2, "POST", "/auth/logout", 200, url.Values{}, newAccess, next)
	d.ask(ctx, n+1, "GET", "/auth/verify", 401, nil, newAccess, "")
}

// age lets the grace pass since the last rotation of an access token's session.
func (d *deployment) age(ctx context.Context, access string) {
	_, rest, _ := strings.Cut(access, ".")
	payload, _, _ := strings.Cut(rest, ".")
	var claims struct{ SID string }
	raw, err := base64.RawURLEncoding.DecodeString(payload)
	if err == nil {
		err = json.Unmarshal(raw, &claims)
	}
	sid, err2 := tokenstore.ParseID(claims.SID)
	if err != nil || err2 != nil {
		return // the request was not answered, which counts already
	}
	key := fmt.Sprintf("lk:{%d}:rt:%s", sid.Shard(), sid)
	if err := d.redis.Client().HIncrBy(ctx, key, "rot", -time.Minute.Milliseconds()).Err(); err != nil && ctx.Err() == nil {
		d.bad.Add(1)
	}
}

// ask sends a request to a replica and returns the tokens of the answer.
func (d *deployment) ask(ctx context.Context, replica int, method, path string, want int, form url.Values, access, refresh string) (string, string) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+d.apis[replica%3]+path, strings.NewReader(form.Encode()))
	if err != nil {
		d.bad.Add(1)
		return "", ""
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if access != "" {
		req.Header.Set("Authorization", "Bearer "+access)
	}
	if refresh != "" {
		req.AddCookie(&http.Cookie{Name: "refresh_token", Value: refresh})
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		if ctx.Err() == nil {
			d.bad.Add(1)
		}
		return "", ""
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != want {
		d.bad.Add(1)
		d.Logf("%s %s: %s %s", method, path, resp.Status, body)
	}
	var grant struct {
		Access string `json:"access_token"`
	}
	_ = json.Unmarshal(body, &grant) // not every answer is a grant
	for _, c := range resp.Cookies() {
		if c.Name == "refresh_token" && c.Value != "" {
			refresh = c.Value
		}
	}
	return grant.Access, refresh
}
