package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/replica"
	"github.com/latchkey-auth/latchkey/test/redistest"
)

// patientClient verifies by the published keys. It keeps a set for as long as it
// may, and never asks again for a key that is not in it: the least friendly cache
// that is still a correct one.
type patientClient struct {
	replicas []*process

	mu      sync.Mutex
	ring    *accesstoken.Ring
	until   time.Time
	etag    string
	fetches int
	same    int // answers 304
}

func (p *patientClient) verify(ctx context.Context, token string) (accesstoken.Claims, error) {
	ring, err := p.keys(ctx)
	if err != nil {
		return accesstoken.Claims{}, err
	}
	const iss = "http://localhost:8080"
	return accesstoken.NewVerifier(ring, accesstoken.VerifierOptions{Issuer: iss, Audience: iss, Leeway: 5 * time.Second}).Verify(token, time.Now())
}

func (p *patientClient) keys(ctx context.Context) (*accesstoken.Ring, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Now().Before(p.until) {
		return p.ring, nil
	}
	at := p.replicas[p.fetches%len(p.replicas)]
	p.fetches++
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.api+"/.well-known/jwks.json", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("If-None-Match", p.etag)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	age, err := strconv.Atoi(strings.TrimPrefix(resp.Header.Get("Cache-Control"), "public, max-age="))
	if err != nil || resp.Header.Get("ETag") == "" {
		return nil, fmt.Errorf("status %d, headers %v", resp.StatusCode, resp.Header)
	}
	p.until = time.Now().Add(time.Duration(age) * time.Second) // from its arrival on
	if resp.StatusCode == http.StatusNotModified {
		p.same++
		return p.ring, nil
	}
	set, err := accesstoken.ParseSet(text)
	if err != nil {
		return nil, err
	}
	p.ring, p.etag = accesstoken.NewRing(), resp.Header.Get("ETag")
	for _, k := range set {
		p.ring.Add(k)
	}
	return p.ring, nil
}

// Two rotations on schedule, while clients refresh, verify at every replica, and
// verify by keys that they keep for as long as they may: nobody is refused.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	// The times of the product are 720 h, 5 min and 15 min.
	settings := []string{"LATCHKEY_KEY_ROTATION=6s", "LATCHKEY_JWKS_MAX_AGE=2s", "LATCHKEY_ACCESS_TTL=2s"}
	replicas := launchThree(t, bin, server.URL(), settings...)
	account(t, server.URL())

	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	outside := &patientClient{replicas: replicas}
	var kids sync.Map // that have signed
	var signers, checks atomic.Int64
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			in, err := try(ctx, "POST", replicas[w].api+"/auth/token", login(), "", "")
			if err != nil || in.status != 200 {
				t.Errorf("login: %v, %v", in.status, err)
				return
			}
			refresh := in.refresh()
			for n := 0; signers.Load() < 3 && ctx.Err() == nil; n++ {
				got, err := try(ctx, "POST", replicas[(w+n)%3].api+"/auth/refresh", url.Values{}, "", refresh)
				if err != nil || got.status != 200 {
					t.Errorf("refresh: %v %v, %v", got.status, got.body, err)
					return
				}
				refresh = got.refresh()
				issued := time.Now()
				for time.Since(issued) < 300*time.Millisecond && ctx.Err() == nil {
					claims, err := outside.verify(ctx, got.access())
					if err != nil && time.Since(issued) < time.Second { // else it has expired on a slow machine
						t.Errorf("by the published keys: %v", err)
						return
					}
					if _, known := kids.LoadOrStore(claims.KeyID, true); !known {
						signers.Add(1)
					}
					for i, r := range replicas {
						a, err := try(ctx, "GET", r.api+"/auth/verify", nil, got.access(), "")
						if (err != nil || a.status != 204) && time.Since(issued) < time.Second {
							t.Errorf("at replica %d: %v %v, %v", i, a.status, a.body, err)
							return
						}
						checks.Add(1)
					}
				}
			}
		})
	}
	wg.Wait()
	if n := signers.Load(); n < 3 {
		t.Errorf("%d keys have signed, want 3: two rotations", n)
	}
	if outside.fetches > 60 || outside.same == 0 {
		t.Errorf("the keys were fetched %d times, %d of them unchanged", outside.fetches, outside.same)
	}
	t.Logf("%d checks at the replicas, %d fetches of the keys, %d keys, no refusal", checks.Load(), outside.fetches, signers.Load())
	for _, series := range []string{`latchkey_signing_keys{state="active"} 1`, "latchkey_signing_key_age_seconds", "latchkey_signing_key_rotation_seconds"} {
		if !strings.Contains(metrics(t, replicas[0]), series) {
			t.Errorf("the metrics lack %s", series)
		}
	}
}

// launchThree starts three replicas, the last of which checks in Redis.
func launchThree(t *testing.T, bin, redisURL string, settings ...string) []*process {
	t.Helper()
	replicas := make([]*process, 3)
	var wg sync.WaitGroup
	for i := range replicas {
		own := settings
		if i == 2 {
			own = append([]string{"LATCHKEY_VERIFY=strict"}, settings...)
		}
		wg.Go(func() { replicas[i] = launch(t, bin, redisURL, own...) })
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, r := range replicas {
		r.becomes(200)
	}
	return replicas
}

// runKey runs the operator's command.
func runKey(t *testing.T, bin, redisURL string, env []string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.Env = append([]string{"LATCHKEY_SECRET=" + testSecret, "LATCHKEY_REDIS_URL=" + redisURL, "HOME=" + t.TempDir()}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func listKeys(t *testing.T, bin, redisURL string, env ...string) []keyView {
	t.Helper()
	out, err := runKey(t, bin, redisURL, env, "key", "list", "--json")
	var views []keyView
	if err == nil {
		err = json.Unmarshal([]byte(out), &views)
	}
	if err != nil {
		t.Fatalf("key list: %v\n%s", err, out)
	}
	return views
}

// stolen opens the key of a replica as somebody does who has the root secret and
// can read Redis.
func stolen(t *testing.T, redisURL, secret string) *accesstoken.Ring {
	t.Helper()
	cfg := config.Dev()
	cfg.RedisURL = config.RedisURL(redisURL)
	rdb, store, err := replica.OpenStore(cfg, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rdb.Close() }()
	sealer, err := accesstoken.NewSealer([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	var key *accesstoken.Key
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) { // the keeper may be about to seal it anew
		have, err := store.Keys.Ring(t.Context())
		if err == nil {
			key, err = sealer.Open(have.Active, have.Keys[have.Active].Sealed)
		}
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	ring := accesstoken.NewRing()
	ring.Add(key)
	if err := ring.Activate(key.ID()); err != nil {
		t.Fatal(err)
	}
	return ring
}

// A key was stolen. Once it is revoked no replica accepts what it has signed, nor
// what the thief signs with it; nobody is logged out; and it does not come back.
func TestARevokedKeysTokensDieAtOnce(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	replicas := launchThree(t, bin, server.URL())
	account(t, server.URL())
	in := ask(t, "POST", replicas[0].api+"/auth/token", login(), "", "")
	want(t, "login", in, 200)
	thief := stolen(t, server.URL(), testSecret)
	claims, err := accesstoken.NewVerifier(thief, accesstoken.VerifierOptions{Issuer: "http://localhost:8080", Audience: "http://localhost:8080"}).Authentic(in.access())
	if err != nil {
		t.Fatal(err)
	}
	claims.ExpiresAt += int64((365 * 24 * time.Hour).Seconds())
	forged, err := accesstoken.NewSigner(thief).Sign(claims)
	if err != nil {
		t.Fatal(err)
	}
	everywhere := func(what, token string, status int) {
		t.Helper()
		for i, r := range replicas {
			a := ask(t, "GET", r.api+"/auth/verify", nil, token, "")
			want(t, fmt.Sprintf("%s at replica %d", what, i), a, status)
			if status == 401 && strings.Contains(fmt.Sprint(a.body), "expired") {
				t.Errorf("%s has expired, which shows nothing", what)
			}
		}
	}
	everywhere("the token before", in.access(), 204)
	everywhere("the thief's before", forged, 204)

	kid := claims.KeyID
	if out, err := runKey(t, bin, server.URL(), nil, "key", "revoke", "--", kid); err == nil || !strings.Contains(out, "signs now") {
		t.Errorf("the active key, without --now: %v\n%s", err, out)
	}
	everywhere("the token after a refused command", in.access(), 204)
	for range 2 { // the second time completes a command that was cut off
		if out, err := runKey(t, bin, server.URL(), nil, "key", "revoke", "--now", "--", kid); err != nil {
			t.Fatalf("key revoke: %v\n%s", err, out)
		}
		everywhere("the token", in.access(), 401)
		everywhere("the thief's", forged, 401)
	}
	again := ask(t, "POST", replicas[1].api+"/auth/refresh", url.Values{}, "", in.refresh())
	want(t, "the session goes on", again, 200)
	everywhere("the new token", again.access(), 204)

	// A replica that comes later has never had the key, and learns that it is revoked.
	replicas[0].kill()
	replicas[0] = launch(t, bin, server.URL())
	replicas[0].becomes(200)
	everywhere("the thief's, after a restart", forged, 401)
	views := listKeys(t, bin, server.URL())
	if len(views) != 2 || views[0].State != "active" || views[0].ID == kid || views[1].State != "revoked" || views[1].ID != kid {
		t.Errorf("key list: %+v", views)
	}
	for _, r := range replicas {
		if set := keySetOf(t, r); strings.Contains(set, kid) || !strings.Contains(set, views[0].ID) {
			t.Errorf("the published keys: %s", set)
		}
	}
}

// A client shows an access token at its logout whose key was rotated away and has gone
// since. The session is alive until then, and over at every replica after.
func TestALogoutWithATokenWhoseKeyHasGone(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	settings := []string{"LATCHKEY_ACCESS_TTL=2s", "LATCHKEY_JWKS_MAX_AGE=2s", "LATCHKEY_KEY_ROTATION=0s"}
	replicas := launchThree(t, bin, server.URL(), settings...)
	account(t, server.URL())
	in := ask(t, "POST", replicas[0].api+"/auth/token", login(), "", "")
	want(t, "login", in, 200)
	kid := signedWith(t, in.access())
	if out, err := runKey(t, bin, server.URL(), settings, "key", "rotate", "--now"); err != nil {
		t.Fatalf("key rotate: %v\n%s", err, out)
	}
	state := func() string {
		for _, v := range listKeys(t, bin, server.URL(), settings...) {
			if v.ID == kid {
				return v.State
			}
		}
		return ""
	}
	for deadline := time.Now().Add(2 * time.Minute); state() != stateRecognised; time.Sleep(200 * time.Millisecond) { // a poll, not a timing
		if time.Now().After(deadline) {
			t.Fatalf("the key is %q", state())
		}
	}
	// A replica that comes now has never had the key.
	late := launch(t, bin, server.URL(), settings...)
	late.becomes(200)
	if set := keySetOf(t, late); strings.Contains(set, kid) {
		t.Errorf("the published keys: %s", set)
	}
	want(t, "verify", ask(t, "GET", late.api+"/auth/verify", nil, in.access(), ""), 401)
	alive := ask(t, "POST", replicas[1].api+"/auth/refresh", url.Values{}, "", in.refresh())
	want(t, "the session is alive", alive, 200)
	want(t, "logout", ask(t, "POST", late.api+"/auth/logout", url.Values{}, in.access(), ""), 200)
	for i, r := range append(replicas, late) {
		want(t, fmt.Sprint("refresh at replica ", i), ask(t, "POST", r.api+"/auth/refresh", url.Values{}, "", alive.refresh()), 401)
	}
	// Of a key that was revoked nothing is believed: that is no 200.
	in = ask(t, "POST", replicas[0].api+"/auth/token", login(), "", "")
	want(t, "login", in, 200)
	stolen := signedWith(t, in.access())
	if out, err := runKey(t, bin, server.URL(), settings, "key", "revoke", "--now", "--", stolen); err != nil {
		t.Fatalf("key revoke: %v\n%s", err, out)
	}
	for deadline := time.Now().Add(time.Minute); strings.Contains(keySetOf(t, late), stolen); time.Sleep(50 * time.Millisecond) { // it looks once a second
		if time.Now().After(deadline) {
			t.Fatal("the replica keeps the key")
		}
	}
	want(t, "logout under a revoked key", ask(t, "POST", late.api+"/auth/logout", url.Values{}, in.access(), ""), 401)
	want(t, "its session is alive", ask(t, "POST", replicas[2].api+"/auth/refresh", url.Values{}, "", in.refresh()), 200)
}

// kill ends the process at once.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	for range p.done { // until it is reaped
	}
}

func keySetOf(t *testing.T, p *process) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.api+"/.well-known/jwks.json", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The root secret is replaced in two steps while replicas run. Half of them know
// only the step before at any time, and nobody is logged out.
func TestTheRootSecretIsReplaced(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	const second = "the next secret of this test which is long enough"
	step := func(list ...string) *process {
		p := launch(t, bin, server.URL(), "LATCHKEY_SECRET="+strings.Join(list, ","))
		p.becomes(200)
		return p
	}
	old := step(testSecret)
	account(t, server.URL())
	in := ask(t, "POST", old.api+"/auth/token", login(), "", "")
	want(t, "login", in, 200)
	refresh := in.refresh()
	together := func(what string, pair ...*process) {
		t.Helper()
		// Both are shown the same token, as by two tabs, and must agree on the next.
		a := ask(t, "POST", pair[0].api+"/auth/refresh", url.Values{}, "", refresh)
		b := ask(t, "POST", pair[1].api+"/auth/refresh", url.Values{}, "", refresh)
		want(t, what, a, 200)
		want(t, what+", the other", b, 200)
		if a.refresh() != b.refresh() {
			t.Errorf("%s: two successors", what)
		}
		for _, r := range pair {
			want(t, what+": verify", ask(t, "GET", r.api+"/auth/verify", nil, a.access(), ""), 204)
			want(t, what+": verify", ask(t, "GET", r.api+"/auth/verify", nil, b.access(), ""), 204)
			// A login at either is a session at both.
			fresh := ask(t, "POST", r.api+"/auth/token", login(), "", "")
			for _, other := range pair {
				fresh = ask(t, "POST", other.api+"/auth/refresh", url.Values{}, "", fresh.refresh())
				want(t, what+": a new session", fresh, 200)
			}
		}
		refresh = b.refresh()
	}
	first := step(testSecret, second)
	together("the new secret is added", old, first)
	last := step(second, testSecret)
	together("the new secret comes first", first, last)
	// Every replica has been restarted, or they would seal the key in turn.
	old.kill()
	first.kill()
	// The keeper has sealed the key anew: it opens under the new secret alone.
	stolen(t, server.URL(), second)
	alone := step(second)
	want(t, "a token of before", ask(t, "GET", alone.api+"/auth/verify", nil, in.access(), ""), 204)
	want(t, "a session of before", ask(t, "POST", alone.api+"/auth/refresh", url.Values{}, "", refresh), 401)
}

// Keys from a folder: swapped as Kubernetes does it, by a symlink, and taken over
// without a restart; a bad file changes nothing.
func TestKeysFromAFolder(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	dir := t.TempDir()
	volume := func(version string, files map[string]string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, version, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(os.Symlink(version, filepath.Join(dir, "tmp")), os.Rename(filepath.Join(dir, "tmp"), filepath.Join(dir, "data"))); err != nil {
			t.Fatal(err)
		}
	}
	seed := func(b byte) string {
		key := ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(b), 32)))
		return string(pemOf(t, key))
	}
	volume("1", map[string]string{"a.pem": seed('a')})
	setting := "LATCHKEY_KEYS_DIR=" + filepath.Join(dir, "data")
	p := launch(t, bin, server.URL(), setting)
	p.becomes(200)
	account(t, server.URL())
	kids := func() string {
		var list []string
		for _, v := range listKeys(t, bin, server.URL(), setting) {
			list = append(list, v.State+" "+v.ID[:4])
		}
		return strings.Join(list, ", ")
	}
	before := ask(t, "POST", p.api+"/auth/token", login(), "", "")
	a := signedWith(t, before.access())

	volume("2", map[string]string{"a.pem": seed('a'), "b.pem": seed('b'), "active": "a.pem\n"})
	published(t, p, 2)
	if got := signedWith(t, ask(t, "POST", p.api+"/auth/token", login(), "", "").access()); got != a {
		t.Errorf("signed with %s, and the file active says %s", got, a)
	}
	volume("3", map[string]string{"a.pem": seed('a'), "b.pem": "no key at all"})
	for !strings.Contains(p.logged(), "keeping the keys of before") {
		if t.Context().Err() != nil {
			t.Fatal("the replica does not notice")
		}
		time.Sleep(20 * time.Millisecond) // a poll of another process's state, not a timing
	}
	published(t, p, 2)
	want(t, "a bad file", ask(t, "GET", p.api+"/auth/verify", nil, before.access(), ""), 204)
	volume("4", map[string]string{"b.pem": seed('b')})
	published(t, p, 1)
	want(t, "a key that is gone", ask(t, "GET", p.api+"/auth/verify", nil, before.access(), ""), 401)
	after := ask(t, "POST", p.api+"/auth/token", login(), "", "")
	b := signedWith(t, after.access())
	if got := kids(); b == a || got != "active "+b[:4] {
		t.Errorf("key list: %s; signed with %s", got, b)
	}
	if out, err := runKey(t, bin, server.URL(), []string{setting}, "key", "rotate"); err == nil || !strings.Contains(out, "LATCHKEY_KEYS_DIR") {
		t.Errorf("key rotate: %v\n%s", err, out)
	}
	if out, err := runKey(t, bin, server.URL(), []string{setting}, "key", "revoke", "--now", "--", b); err != nil {
		t.Errorf("key revoke: %v\n%s", err, out)
	}
	want(t, "a revoked key", ask(t, "GET", p.api+"/auth/verify", nil, after.access(), ""), 401)
}

// published waits until so many keys are.
func published(t *testing.T, p *process, n int) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for strings.Count(keySetOf(t, p), `"kid"`) != n {
		if time.Now().After(deadline) {
			t.Fatalf("not %d keys: %s\n%s", n, keySetOf(t, p), p.logged())
		}
		time.Sleep(20 * time.Millisecond) // a poll of another process's state, not a timing
	}
}

// signedWith returns the kid of a token.
func signedWith(t *testing.T, token string) string {
	t.Helper()
	head, _, _ := strings.Cut(token, ".")
	text, err := base64.RawURLEncoding.DecodeString(head)
	var h struct{ Kid string }
	if err == nil {
		err = json.Unmarshal(text, &h)
	}
	if err != nil || h.Kid == "" {
		t.Fatalf("no kid in %q: %v", text, err)
	}
	return h.Kid
}
