//go:build snippets && unix

package docs_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// The Python and JavaScript of from-fastapi.md, taken out of the page, protect an
// API as the page says: who is let in before and after a logout, and when Latchkey
// is down. Debian's Python has the libraries; those of JavaScript come from npm.
func TestFromFastAPI(t *testing.T) {
	dir := t.TempDir()
	for _, b := range blocks(readPage(t, "from-fastapi.md")) {
		if b.directive == "file" {
			if err := os.WriteFile(filepath.Join(dir, b.argument), []byte(b.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	const audience = "https://api.example.com"
	fleet := stacktest.NewFleet(t, latchkey(t), 1, redistest.Start(t).URL(), "LATCHKEY_AUDIENCE="+audience, "LATCHKEY_ISSUER=https://auth.example.com")
	python := stacktest.Installed(t, "/usr/bin/python3", "python3-fastapi python3-jwt python3-uvicorn python3-httpx python3-cryptography python3-multipart")

	// The tutorial's users, with its hash of "secret".
	users := `{"johndoe": {"hashed_password": "$2b$12$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW", "disabled": False},
		"alice": {"hashed_password": "$2b$12$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW", "disabled": True}}`
	lines := stacktest.Run(t, []string{"PYTHONPATH=" + dir}, "", python, "-c", "import export_users; print(export_users.lines("+users+"), end='')")
	fleet.Command(t, lines+"\n", "user", "import")
	_, secret, _ := strings.Cut(fleet.Command(t, "", "client", "add", "orders-api", "--introspect", "--audience", audience), "client_secret=")

	service := "http://" + fleet.Replicas[0].Addr
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "LATCHKEY=" + service, "ISSUER=https://auth.example.com", "AUDIENCE=" + audience,
		"CLIENT_SECRET=" + strings.TrimSpace(secret), "PYTHONPATH=" + dir,
	}
	npm := stacktest.Installed(t, "npm", "nodejs npm")
	stacktest.Run(t, append(os.Environ(), "npm_config_cache="+filepath.Join(os.TempDir(), "latchkey-npm")), "", npm,
		"install", "--prefix", dir, "--no-audit", "--no-fund", "--ignore-scripts", "express@5", "jose@6")

	apis := map[string]string{"FastAPI": stacktest.FreePort(t), "Express": stacktest.FreePort(t)}
	stacktest.Launch(t, env, python, "-m", "uvicorn", "--app-dir", dir, "--port", apis["FastAPI"], "protected:app")
	stacktest.Launch(t, append(env, "PORT="+apis["Express"]), stacktest.Installed(t, "node", "nodejs"), filepath.Join(dir, "server.mjs"))
	ask := func(api, path, header string) (int, string) {
		t.Helper()
		return fetch(t, http.MethodGet, "http://127.0.0.1:"+apis[api]+path, "", header)
	}
	for api := range apis {
		stacktest.Eventually(t, api, func() bool { status, _ := ask(api, "/proxied", "X-Auth-Subject: x"); return status == http.StatusOK })
	}

	if status, _ := fetch(t, http.MethodPost, service+"/auth/token", "username=alice&password=secret", ""); status != http.StatusUnauthorized {
		t.Errorf("alice is disabled, and logs in: %d", status)
	}
	status, answer := fetch(t, http.MethodPost, service+"/auth/token", "grant_type=password&username=johndoe&password=secret&scope=", "")
	m := regexp.MustCompile(`"access_token":"([^"]+)"`).FindStringSubmatch(answer)
	if m == nil {
		t.Fatalf("the tutorial's user does not log in: %d %s", status, answer)
	}
	token := "Authorization: Bearer " + m[1]
	expect := func(when, path, header string, want int) {
		t.Helper()
		for api := range apis {
			status, body := ask(api, path, header)
			if status != want || want == http.StatusOK && !strings.Contains(body, `"johndoe"`) {
				t.Errorf("%s, %s%s answers %d %s, want %d", when, api, path, status, body, want)
			}
		}
	}
	expect("logged in", "/introspected", token, http.StatusOK)
	expect("logged in", "/signed", token, http.StatusOK)
	expect("behind a proxy", "/proxied", "X-Auth-Subject: johndoe", http.StatusOK)
	expect("past the proxy", "/proxied", "", http.StatusUnauthorized)
	for _, path := range []string{"/introspected", "/signed"} {
		expect("without a token", path, "", http.StatusUnauthorized)
		expect("with another's", path, token+"x", http.StatusUnauthorized)
	}
	if status, _ := fetch(t, http.MethodPost, service+"/auth/logout", "", token); status != http.StatusOK {
		t.Errorf("logout: %d", status)
	}
	expect("after the logout", "/introspected", token, http.StatusUnauthorized)
	expect("after the logout", "/signed", token, http.StatusOK) // as the page says
	fleet.Replicas[0].Kill()
	expect("without Latchkey", "/introspected", token, http.StatusServiceUnavailable)
}

func fetch(t *testing.T, method, where, form, header string) (status int, body string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, where, strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	if form != "" {
		q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if name, value, ok := strings.Cut(header, ": "); ok {
		q.Header.Set(name, value)
	}
	a, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(q)
	if err != nil {
		return 0, fmt.Sprint(err)
	}
	defer func() { _ = a.Body.Close() }()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, string(text)
}
