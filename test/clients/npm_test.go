//go:build npm

package clients_test

import (
	"encoding/json"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// npmFolder has the packages and the scripts that use them.
const npmFolder = "../../tools/npm"

// npmService starts the program under an issuer that is its address: JavaScript
// clients ask there for the metadata.
func npmService(t *testing.T, bin string, settings ...string) *service {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return serve(t, bin, append([]string{"LATCHKEY_ADDR=" + addr, "LATCHKEY_ISSUER=http://" + addr, "LATCHKEY_COOKIE_SECURE=false"}, settings...)...)
}

// node runs a script and fails with it.
func node(t *testing.T, env []string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "node", args...)
	cmd.Dir, cmd.Env = npmFolder, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("node %q: %v\n%s", args[0], err, out)
	}
	t.Logf("%s", out)
}

// jose, oauth4webapi and @sd-jwt/jwt-status-list, against one service for each algorithm
// that has public keys, one of which asks for nonces in proofs.
func TestNPMClients(t *testing.T) {
	bin := program(t)
	for _, alg := range []string{"EdDSA", "ES256", "RS256"} {
		t.Run(alg, func(t *testing.T) {
			nonces := alg == "ES256"
			s := npmService(t, bin, "LATCHKEY_ALG="+alg, "LATCHKEY_STATUS_LIST=true", "LATCHKEY_STATUS_LIST_TTL=1s",
				"LATCHKEY_DPOP_NONCE="+strconv.FormatBool(nonces), "LATCHKEY_TRUSTED_PROXIES=127.0.0.1/32")
			type client struct {
				ID     string `json:"id"`
				Secret string `json:"secret"`
			}
			add := func(args ...string) (c client) {
				c.ID, c.Secret = s.client(args...)
				return c
			}
			app := add("app", "--grant", "refresh_token", "--scope", "read write")
			token := s.login(url.Values{"username": {"alice"}, "password": {password}, "client_id": {app.ID}, "client_secret": {app.Secret}})
			given, err := json.Marshal(map[string]any{
				"base": s.url, "audience": audience, "alg": alg, "nonces": nonces, "user": map[string]string{"username": "alice", "password": password}, "access": token.AccessToken, "refresh": token.RefreshToken,
				"worker": add("worker", "--grant", "client_credentials", "--scope", "read write"),
				"asker":  add("asker", "--introspect"), "app": app,
			})
			if err != nil {
				t.Fatal(err)
			}
			node(t, []string{"LATCHKEY_TEST=" + string(given)}, "--test", "--test-reporter=spec", "clients.mjs")
		})
	}
}

// The page at /docs in Chromium. Its pictures go to SCREENSHOTS, a whole path, if that is set.
func TestDocsInChromium(t *testing.T) {
	s := npmService(t, program(t), "LATCHKEY_DOCS=true")
	args := []string{"page.mjs", s.url, "alice", password}
	if folder := os.Getenv("SCREENSHOTS"); folder != "" {
		args = append(args, folder)
	}
	node(t, nil, args...)
}
