//go:build unix

// Package k6_test runs the scenarios of this folder with k6 itself, against three
// replicas behind nginx on a real Redis: `make load` and `make load-all`. They are
// benchmarks, so that the tests proper do not take the time.
package k6_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

const (
	password = "correct horse"
	users    = 30
)

// stack is what is put under load.
type stack struct {
	testing.TB
	*stacktest.Fleet
	front   string // URL
	k6, out string
	k6API   string // host:port
}

func newStack(t testing.TB) *stack {
	t.Helper()
	redis := redistest.Start(t, "--appendonly", "yes", "--maxmemory-policy", "noeviction")
	// Longer than nginx keeps connections: see deploy/loadbalancers/nginx.conf.
	fleet := stacktest.NewFleet(t, stacktest.Build(t, "../.."), 3, redis.URL(), "LATCHKEY_TRUSTED_PROXIES=127.0.0.1", "LATCHKEY_SHUTDOWN_DELAY=3s")
	for i := range users {
		fleet.Command(t, password+"\n", "user", "add", fmt.Sprintf("load-%d", i))
	}
	s := &stack{TB: t, Fleet: fleet, k6: os.Getenv("K6"), out: os.Getenv("LOAD_OUT"), k6API: net.JoinHostPort("127.0.0.1", stacktest.FreePort(t))}
	if s.k6 == "" {
		t.Fatal("K6 does not name the program: run this by `make load`, which builds it")
	}
	if s.out == "" {
		s.out = t.TempDir()
	}
	if err := os.MkdirAll(s.out, 0o750); err != nil {
		t.Fatal(err)
	}
	s.front = "http://" + stacktest.Nginx(t, "../loadbalancers/nginx.conf", fleet.Backends())
	return s
}

// run starts a scenario with these settings. The files it leaves are named after it.
func (s *stack) run(scenario string, settings ...string) *stacktest.Process {
	s.Helper()
	html, figures := filepath.Join(s.out, scenario+".html"), filepath.Join(s.out, scenario+".json")
	args := []string{
		"run", "--quiet", "--no-usage-report", "--no-color", "--log-format", "raw", "-e", "BASE_URL=" + s.front, "-e", "REPLICAS=" + s.URLs(),
		"--address", s.k6API, "-e", fmt.Sprintf("USERS=%d", users), "-e", "PASSWORD=" + password, "-e", "SUMMARY=" + figures,
	}
	// Everything is on one machine here, which may have two cores.
	slow := []string{"P95_VERIFY=500", "P95_REFRESH=2000", "P95_LOGIN=3000", "P95_LOGOUT=3000"}
	for _, setting := range append(slow, settings...) {
		args = append(args, "-e", setting)
	}
	return stacktest.Launch(s, []string{
		"HOME=" + s.TempDir(), "K6_WEB_DASHBOARD=true", "K6_WEB_DASHBOARD_PORT=-1", "K6_WEB_DASHBOARD_PERIOD=1s", "K6_WEB_DASHBOARD_EXPORT=" + html,
	}, s.k6, append(args, scenario+".js")...)
}

// result waits for the end of a scenario, prints its table, and returns its metrics.
func (s *stack) result(scenario string, p *stacktest.Process, within time.Duration) figures {
	s.Helper()
	select {
	case <-p.Done():
	case <-time.After(within):
		s.Fatalf("%s does not end", scenario)
	}
	fmt.Printf("\n== %s\n%s\n", scenario, p.Output())
	if code := p.ExitCode(); code != 0 && code != stoppedByAPI {
		s.Errorf("%s: k6 ended with %d", scenario, code)
	}
	if info, err := os.Stat(filepath.Join(s.out, scenario+".html")); err != nil || info.Size() < 10_000 {
		s.Errorf("%s: no HTML report: %v", scenario, err)
	}
	f := s.figures(scenario)
	for name, m := range f.Metrics { // which a k6 that was stopped does not tell by its exit code
		for rule, threshold := range m.Thresholds {
			if !threshold.OK {
				s.Errorf("%s: %s: missed: %s", scenario, name, rule)
			}
		}
	}
	return f
}

// stoppedByAPI is the exit code of a k6 that was asked to stop by its API.
const stoppedByAPI = 103

// stop ends the scenario that runs. Its summary and its thresholds are as if its time were over.
func (s *stack) stop() {
	s.Helper()
	s.ask(http.MethodPatch, "/v1/status", `{"data": {"type": "status", "id": "default", "attributes": {"stopped": true}}}`, nil)
}

// sent is how many requests the scenario that runs has sent.
func (s *stack) sent() float64 {
	s.Helper()
	var metric struct {
		Data struct {
			Attributes struct{ Sample struct{ Count float64 } }
		}
	}
	s.ask(http.MethodGet, "/v1/metrics/requests", "", &metric)
	return metric.Data.Attributes.Sample.Count
}

// ask sends a request to k6's API.
func (s *stack) ask(method, path, body string, into any) {
	s.Helper()
	req, err := http.NewRequestWithContext(s.Context(), method, "http://"+s.k6API+path, strings.NewReader(body))
	if err != nil {
		s.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		s.Fatalf("k6 answers %s %s with %s", method, path, resp.Status)
	}
	if into == nil {
		return
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		s.Fatal(err)
	}
}

func (s *stack) figures(scenario string) figures {
	s.Helper()
	raw, err := os.ReadFile(filepath.Join(s.out, scenario+".json"))
	if err != nil {
		s.Fatal(err)
	}
	var f figures
	if err := json.Unmarshal(raw, &f); err != nil {
		s.Fatal(err)
	}
	return f
}

// figures are what a run leaves as JSON.
type figures struct {
	Metrics map[string]struct {
		Values     map[string]float64
		Thresholds map[string]struct{ OK bool }
	}
}

func (f figures) count(metric string) float64 { return f.Metrics[metric].Values["count"] }

// BenchmarkLoad is `make load`: the steady mix for LOAD_FOR, or for as long as it takes to
// roll one replica and to kill another one while it runs. k6's own thresholds hold that all
// answers are right. No request has to be sent again but for the kill.
func BenchmarkLoad(b *testing.B) {
	length, err := time.ParseDuration(os.Getenv("LOAD_FOR"))
	if err != nil || length < 15*time.Second {
		b.Fatalf("LOAD_FOR=%q: 15s or more is needed (%v)", os.Getenv("LOAD_FOR"), err)
	}
	rate := os.Getenv("LOAD_RATE")
	if rate == "" {
		rate = "200"
	}
	s := newStack(b)
	p := s.run("steady", "DURATION="+(length+time.Hour).String(), "RATE="+rate)
	stacktest.Eventually(b, "the scenario begins", func() bool {
		select {
		case <-p.Done():
			b.Fatalf("k6 has ended:\n%s", p.Output())
		default:
		}
		return strings.Contains(p.Output(), "the scenario begins")
	})
	begun, sent := time.Now(), 0.0
	// loaded waits until requests were sent since it was called last, and for a tenth of the load.
	loaded := func(phase string) {
		b.Helper()
		time.Sleep(length / 10)
		stacktest.Eventually(b, "requests "+phase, func() bool { return s.sent() > sent })
		sent = s.sent()
	}
	loaded("before")
	s.Replicas[0].Terminate(b)
	s.Start(b, 0)
	s.Replicas[0].AwaitReady(b)
	loaded("after one was rolled")
	killed := time.Now()
	s.Replicas[1].Kill()
	s.Start(b, 1)
	s.Replicas[1].AwaitReady(b)
	loaded("after one was killed")
	over := time.Now()
	loaded("in the end")
	time.Sleep(time.Until(begun.Add(length)))
	s.stop()
	s.result("steady", p, time.Minute)
	for _, r := range retries(b, p.Output()) {
		if r.at.Before(killed) || r.at.After(over) {
			b.Errorf("only the kill may cost a second try: %s (one was killed at %v; the next ran at %v)", r.line, killed.UTC(), over.UTC())
		}
	}
	b.Logf("reports: %s", s.out)
}

// retry is a line of the output that says that a request had to be sent again.
type retry struct {
	at   time.Time
	line string
}

var retryLine = regexp.MustCompile(`(?m)^(\d{4}-\d\d-\d\dT[\d:.]+Z) \w+: (?:0|502|503|504) .*$`)

func retries(t testing.TB, output string) []retry {
	t.Helper()
	var all []retry
	for _, m := range retryLine.FindAllStringSubmatch(output, -1) {
		at, err := time.Parse(time.RFC3339, m[1])
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, retry{at, m[0]})
	}
	return all
}

// BenchmarkScenarios is `make load-all`: each of the other scenarios for some
// seconds.
func BenchmarkScenarios(b *testing.B) {
	s := newStack(b)
	for _, tt := range []struct {
		scenario string
		settings []string
	}{
		{"smoke", nil},
		{"login-ramp", []string{"DURATION=8s", "RATE=10"}},
		{"stampede", []string{"DURATION=6s", "VUS=2"}},
		{"logout-storm", []string{"DURATION=6s", "VUS=5"}},
		{"soak", []string{"DURATION=6s", "RATE=100"}},
		{"breakpoint", []string{"DURATION=8s", "RATE=200", "VUS=20"}},
	} {
		f := s.result(tt.scenario, s.run(tt.scenario, tt.settings...), 2*time.Minute)
		if f.count("requests") == 0 || f.count("refused_after_logout") == 0 {
			b.Errorf("%s: %v requests, %v checks after a logout", tt.scenario, f.count("requests"), f.count("refused_after_logout"))
		}
	}
}

// BenchmarkWrongService is the scenarios' own test: a service that forgets logouts,
// gives each tab another successor, now and then takes a good token for a bad one and is
// now and then unavailable is found out.
func BenchmarkWrongService(b *testing.B) {
	var n atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i := n.Add(1)
		switch {
		case r.URL.Path == "/auth/refresh" && i%5 == 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.Path == "/auth/verify" && r.Header.Get("Authorization") == "",
			r.URL.Path == "/auth/verify" && r.UserAgent() == "latchkey-k6" && i%7 == 0:
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/auth/verify":
			w.WriteHeader(http.StatusNoContent)
		default:
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"access_token":"a","refresh_token":"%d","expires_in":900,"sessions":[]}`, i)
		}
	}))
	defer srv.Close()
	s := &stack{TB: b, Fleet: &stacktest.Fleet{}, k6: os.Getenv("K6"), out: b.TempDir(), front: srv.URL, k6API: net.JoinHostPort("127.0.0.1", stacktest.FreePort(b))}
	p := s.run("smoke", "REPLICAS="+srv.URL)
	<-p.Done()
	if p.ExitCode() != 99 { // k6's code for thresholds
		b.Errorf("k6 ended with %d:\n%s", p.ExitCode(), p.Output())
	}
	f := s.figures("smoke")
	for _, metric := range []string{"accepted_after_logout", "false_logouts", "split_successors", "failed"} {
		if f.count(metric) == 0 {
			b.Errorf("%s: none found", metric)
		}
	}
	if n := len(retries(b, p.Output())); n == 0 || float64(n) != f.count("retryable") {
		b.Errorf("%d retries are printed, and %v are counted", n, f.count("retryable"))
	}
}

// testRun is what the k6 operator is told (k6.io/v1alpha1, TestRun): the fields
// that the files of operator/ use, and no other.
type testRun struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct{ Name string }
	Spec       struct {
		Parallelism int
		Script      struct {
			ConfigMap struct{ Name, File string } `yaml:"configMap"`
		}
		Arguments string
		Separate  bool
		Cleanup   string
		Runner    struct {
			Image string
			Env   []struct {
				Name, Value string
				ValueFrom   struct {
					SecretKeyRef struct{ Name, Key string } `yaml:"secretKeyRef"`
				} `yaml:"valueFrom"`
			}
			SecurityContext          map[string]any `yaml:"securityContext"`
			ContainerSecurityContext map[string]any `yaml:"containerSecurityContext"`
			Resources                map[string]map[string]string
		}
	}
}

func TestOperatorObjects(t *testing.T) {
	var bundle struct {
		APIVersion         string `yaml:"apiVersion"`
		Kind               string
		Namespace          string
		Resources          []string
		ConfigMapGenerator []struct {
			Name    string
			Files   []string
			Options map[string]any
		} `yaml:"configMapGenerator"`
	}
	read(t, "kustomization.yaml", &bundle)
	scripts := map[string]bool{}
	for _, file := range bundle.ConfigMapGenerator[0].Files {
		scripts[file] = true
	}
	all, err := filepath.Glob("*.js")
	if err != nil || len(all) != len(scripts) {
		t.Errorf("the folder has %d scripts, the ConfigMap %d (%v)", len(all), len(scripts), err)
	}
	for _, file := range all {
		if !scripts[file] {
			t.Errorf("%s is not in the ConfigMap", file)
		}
	}
	run := map[string]bool{"latchkey.js": true, "summary.js": true} // imported by the others
	objects, err := filepath.Glob("operator/*.yaml")
	if err != nil || len(objects) == 0 {
		t.Fatalf("no objects: %v", err)
	}
	for _, path := range objects {
		var r testRun
		read(t, path, &r)
		name := strings.TrimSuffix(filepath.Base(path), ".yaml")
		if r.APIVersion != "k6.io/v1alpha1" || r.Kind != "TestRun" || r.Metadata.Name != "latchkey-"+name {
			t.Errorf("%s: %s %s %s", path, r.APIVersion, r.Kind, r.Metadata.Name)
		}
		script := r.Spec.Script.ConfigMap
		if script.Name != bundle.ConfigMapGenerator[0].Name || script.File != name+".js" || !scripts[script.File] {
			t.Errorf("%s: runs %s of %s", path, script.File, script.Name)
		}
		if r.Spec.Parallelism < 1 || !strings.Contains(r.Spec.Runner.Image, ":") || strings.HasSuffix(r.Spec.Runner.Image, ":latest") {
			t.Errorf("%s: %d of %s", path, r.Spec.Parallelism, r.Spec.Runner.Image)
		}
		for _, e := range r.Spec.Runner.Env {
			if e.Name == "PASSWORD" && (e.Value != "" || e.ValueFrom.SecretKeyRef.Key == "") {
				t.Errorf("%s: PASSWORD is not from a Secret", path)
			}
		}
		run[script.File] = true
	}
	for script := range scripts {
		if !run[script] {
			t.Errorf("%s has no object", script)
		}
	}
}

// TestDocumentedSettings: what docs/load-testing.md sets, some script reads.
func TestDocumentedSettings(t *testing.T) {
	scripts := ""
	files, err := filepath.Glob("*.js")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/load-testing.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		scripts += string(raw)
		if !strings.Contains(string(doc), f) && f != "summary.js" {
			t.Errorf("%s is not documented", f)
		}
	}
	settings := regexp.MustCompile("-e ([A-Z0-9_]+)=|`([A-Z][A-Z0-9_]+)`").FindAllStringSubmatch(string(doc), -1)
	for _, m := range settings {
		name := m[1] + m[2]
		if !strings.HasPrefix(name, "LATCHKEY_") && !strings.HasPrefix(name, "LOAD_") && name != "DELETE" && !strings.Contains(scripts, "__ENV."+name) {
			t.Errorf("no script reads %s", name)
		}
	}
	if len(settings) < 10 {
		t.Errorf("only %d settings are documented", len(settings))
	}
}

// read reads a document of YAML, of which every field must be known.
func read(t *testing.T, path string, into any) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := yaml.NewDecoder(bufio.NewReader(f), yaml.Strict()).Decode(into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}
