//go:build kube

package kubernetes_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// deployed are the overlays whose settings somebody runs.
func deployed() []string { return []string{"base", "overlays/demo", "overlays/production"} }

// The program, with what the manifests give it.
func TestProgram(t *testing.T) {
	bin := stacktest.Build(t, "../..")
	t.Run("accepts the settings", func(t *testing.T) { settingsAreAccepted(t, bin) })
	t.Run("answers the probes", func(t *testing.T) { probesAreAnswered(t, bin) })
}

// environment is what the container of an overlay's Deployment gets, with the Secret in files of the test.
func environment(t *testing.T, objects []object, redisURL string) map[string]string {
	t.Helper()
	env := map[string]string{}
	settings, _ := find(t, objects, "ConfigMap", "latchkey").at("data").(map[string]any)
	for name, v := range settings {
		env[name], _ = v.(string)
	}
	container := object(find(t, objects, "Deployment", "latchkey").at("spec", "template", "spec", "containers", 0).(map[string]any))
	secrets := t.TempDir()
	for file, content := range map[string]string{"secret": "Zk3v0q8TjR1mYcW7uHs5nBxE2pLdA9fG", "redis-url": redisURL, "redis-ca.crt": authority(t)} {
		if err := os.WriteFile(filepath.Join(secrets, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mount := container.text("volumeMounts", 0, "mountPath")
	for _, e := range container.list("env") {
		v := object(e.(map[string]any))
		value := v.text("value")
		if resource := v.text("valueFrom", "resourceFieldRef", "resource"); resource != "" {
			list, name, _ := strings.Cut(resource, ".")
			value = quantity(t, container.text("resources", list, name))
		}
		if value == "" {
			t.Fatalf("%s has no value", v.name())
		}
		env[v.text("name")] = value
	}
	for name, v := range env {
		if strings.HasPrefix(v, mount+"/") {
			env[name] = secrets + strings.TrimPrefix(v, mount)
		}
	}
	return env
}

// authority is a certificate authority, PEM.
func authority(t *testing.T) string {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// quantity is a resource as the kubelet puts it into a variable: a whole number of cores or bytes.
func quantity(t *testing.T, q string) string {
	t.Helper()
	digits, mebi := strings.CutSuffix(q, "Mi")
	n, err := strconv.Atoi(digits)
	if err != nil || n == 0 {
		t.Fatalf("quantity %q: this test knows whole cores and Mi", q)
	}
	if mebi {
		n <<= 20
	}
	return strconv.Itoa(n)
}

func list(env map[string]string) []string {
	var all []string
	for name, v := range env {
		all = append(all, name+"="+v)
	}
	return all
}

// settingsAreAccepted: all that are deployed, and no others.
func settingsAreAccepted(t *testing.T, bin string) {
	t.Helper()
	for _, folder := range deployed() {
		t.Run(folder, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			env := environment(t, decode(t, kustomize(t, folder)), "rediss://latchkey:password@n1.example.com:6379?addr=n2.example.com:6379&addr=n3.example.com:6379")
			cmd := exec.CommandContext(ctx, bin, "config")
			cmd.Env = list(env)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if !bytes.Contains(out, []byte(env["LATCHKEY_ISSUER"])) {
				t.Errorf("the issuer is not in force:\n%s", out)
			}
			env["LATCHKEY_NO_SUCH"] = "1"
			cmd = exec.CommandContext(ctx, bin, "config")
			cmd.Env = list(env)
			if out, err := cmd.CombinedOutput(); err == nil {
				t.Errorf("a setting that does not exist passes:\n%s", out)
			}
		})
	}
}

// probesAreAnswered: a replica with the environment of the Deployment serves them and metrics, is
// ready while Redis is, goes on living when it is not, and on SIGTERM ends within the grace period.
func probesAreAnswered(t *testing.T, bin string) {
	t.Helper()
	redis := redistest.Start(t)
	objects := decode(t, kustomize(t, "overlays/demo"))
	d := find(t, objects, "Deployment", "latchkey")
	env := environment(t, objects, redis.URL())
	admin := "127.0.0.1:" + freePort(t)
	env["LATCHKEY_ADDR"], env["LATCHKEY_ADMIN_ADDR"] = "127.0.0.1:"+freePort(t), admin
	env["LATCHKEY_SHUTDOWN_DELAY"] = "1s" // what it is set to only lengthens this test

	cmd := exec.CommandContext(t.Context(), bin, d.text("spec", "template", "spec", "containers", 0, "args", 0))
	var logs bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = list(env), &logs, &logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	path := func(probe string) string {
		return d.text("spec", "template", "spec", "containers", 0, probe, "httpGet", "path")
	}
	startup, live, ready := path("startupProbe"), path("livenessProbe"), path("readinessProbe")
	await(t, admin, startup, http.StatusOK)
	await(t, admin, ready, http.StatusOK)
	await(t, admin, find(t, decode(t, kustomize(t, "overlays/production")), "ServiceMonitor", "latchkey").text("spec", "endpoints", 0, "path"), http.StatusOK)
	redis.Kill(t)
	await(t, admin, ready, http.StatusServiceUnavailable)
	await(t, admin, live, http.StatusOK)
	redis.Restart(t)
	await(t, admin, ready, http.StatusOK)

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	await(t, admin, ready, http.StatusServiceUnavailable) // draining: balancers see it, nobody restarts it
	await(t, admin, live, http.StatusOK)
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("%v\n%s", err, &logs)
		}
	case <-time.After(grace(d)):
		t.Error("it has not ended within the grace period")
	}
}

func grace(d object) time.Duration {
	return d.seconds("spec", "template", "spec", "terminationGracePeriodSeconds")
}

// await returns when a path of the admin listener answers with a status.
func await(t *testing.T, admin, path string, want int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	last := "nothing"
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == want {
				tick.Stop()
				return
			}
			last = resp.Status
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("GET %s: want %d, got %s (%v)", path, want, last, err)
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// The pod's grace period holds all that happens in it: preStop, the delay, and the requests under way.
func TestDrainFitsTheGracePeriod(t *testing.T) {
	for _, folder := range deployed() {
		objects := decode(t, kustomize(t, folder))
		d, settings := find(t, objects, "Deployment", "latchkey"), find(t, objects, "ConfigMap", "latchkey")
		sum := d.seconds("spec", "template", "spec", "containers", 0, "lifecycle", "preStop", "sleep", "seconds")
		if sum <= 0 {
			t.Errorf("%s: no preStop", folder)
		}
		for _, name := range []string{"LATCHKEY_SHUTDOWN_DELAY", "LATCHKEY_SHUTDOWN_TIMEOUT"} {
			v, err := time.ParseDuration(settings.text("data", name))
			if err != nil {
				t.Fatalf("%s: %s: %v", folder, name, err)
			}
			sum += v
		}
		if sum+5*time.Second > grace(d) {
			t.Errorf("%s: %s of draining in a grace period of %s", folder, sum, grace(d))
		}
	}
}

// The demo's Redis starts with its configuration, and never evicts nor forgets.
func TestDemoRedis(t *testing.T) {
	text, err := os.ReadFile("overlays/demo/redis.conf")
	if err != nil {
		t.Fatal(err)
	}
	var args []string
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(line, "#") || words[0] == "bind" || words[0] == "dir" {
			continue
		}
		args = append(append(args, "--"+words[0]), strings.Trim(strings.Join(words[1:], " "), `"`))
	}
	s := redistest.Start(t, append(args, "--requirepass", "password")...)
	for name, want := range map[string]string{"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "always", "maxmemory": fmt.Sprint(192 << 20)} {
		got, err := s.Client().ConfigGet(t.Context(), name).Result()
		if err != nil || got[name] != want {
			t.Errorf("%s is %q (%v), want %q", name, got[name], err, want)
		}
	}
}
