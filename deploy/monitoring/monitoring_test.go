//go:build unix

// Package monitoring_test holds the monitoring that is shipped to what a real
// Prometheus makes of a real run.
package monitoring_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/latchkey-auth/latchkey/test/stacktest"
)

const (
	rulesFile     = "prometheus/rules.yml"
	dashboardFile = "grafana/dashboards/latchkey.json"
)

// ruleFile is what the tests read of rules.yml.
type ruleFile struct {
	Groups []struct {
		Rules []struct {
			Record, Alert, Expr string
			Labels, Annotations map[string]string
		}
	}
}

// read decodes a file that is shipped.
func read(t *testing.T, path string, into any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	decode := yaml.Unmarshal
	if filepath.Ext(path) == ".json" {
		decode = json.Unmarshal
	}
	if err := decode(b, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// installed finds a program, or says how to get it.
func installed(t *testing.T, name string) string {
	t.Helper()
	bin, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed, and this test needs the real one; on Debian or Ubuntu: sudo apt-get install -y --no-install-recommends prometheus", name)
	}
	return bin
}

// The files are what Prometheus reads, and each alert fires when it should and
// stays quiet when it should.
func TestRules(t *testing.T) {
	t.Parallel()
	promtool := installed(t, "promtool")
	for _, args := range [][]string{
		{"check", "config", "prometheus/prometheus.yml"}, {"check", "rules", rulesFile}, {"test", "rules", "prometheus/rules_test.yml"},
	} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	var rules ruleFile
	read(t, rulesFile, &rules)
	tests, err := os.ReadFile("prometheus/rules_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			for _, what := range []string{" fires\n", " stays quiet\n"} {
				if r.Alert != "" && !strings.Contains(string(tests), "name: "+r.Alert+what) {
					t.Errorf("no test shows that %s%s", r.Alert, strings.TrimSuffix(what, "\n"))
				}
			}
		}
	}
}

// Every alert has a runbook, and every runbook an alert.
func TestRunbooks(t *testing.T) {
	t.Parallel()
	const page = "https://github.com/latchkey-auth/latchkey/blob/main/docs/runbooks.md#"
	text, err := os.ReadFile("../../docs/runbooks.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{} // by anchor, as GitHub makes them of one-word headings
	for _, s := range regexp.MustCompile(`(?m)^## `).Split(string(text), -1)[1:] {
		heading, body, _ := strings.Cut(s, "\n")
		sections[strings.ToLower(heading)] = body
	}
	var rules ruleFile
	read(t, rulesFile, &rules)
	alerts := map[string]bool{}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			alerts[strings.ToLower(r.Alert)] = true
			anchor, ok := strings.CutPrefix(r.Annotations["runbook_url"], page)
			if !ok || anchor != strings.ToLower(r.Alert) {
				t.Errorf("%s: runbook_url %q", r.Alert, r.Annotations["runbook_url"])
			}
			for _, part := range []string{"**Means**", "**Confirm**", "**Do**"} {
				if !strings.Contains(sections[anchor], part) {
					t.Errorf("docs/runbooks.md: the section %s lacks %s", r.Alert, part)
				}
			}
			if s := r.Labels["severity"]; s != "page" && s != "ticket" {
				t.Errorf("%s: severity %q", r.Alert, s)
			}
		}
	}
	for anchor := range sections {
		if strings.HasPrefix(anchor, "latchkey") && !alerts[anchor] {
			t.Errorf("docs/runbooks.md: %s is no alert", anchor)
		}
	}
}

// panel is one panel of the dashboard, and what it asks.
type panel struct {
	Title, Type, Description string
	Targets                  []struct{ Expr string }
	GridPos                  struct{ X, Y, W, H int }
}

// A real Prometheus scrapes three real replicas under traffic: every panel of
// the dashboard and every recording rule has something to show.
func TestDashboard(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	prom := d.prometheus()

	var rules ruleFile
	read(t, rulesFile, &rules)
	asked := map[string]string{} // by what asks
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Record != "" {
				asked["rule "+r.Record] = r.Record
			}
		}
	}
	var dashboard struct {
		UID    string
		Panels []panel
	}
	read(t, dashboardFile, &dashboard)
	variables := strings.NewReplacer("$__rate_interval", "5s", "$__range", "1m", "$job", ".+")
	for i, p := range dashboard.Panels {
		if p.Type != "row" && (p.Description == "" || len(p.Targets) == 0) {
			t.Errorf("%s: no description, or no query", p.Title)
		}
		for _, q := range dashboard.Panels[:i] {
			a, b := p.GridPos, q.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s lies over %s", p.Title, q.Title)
			}
		}
		for j, target := range p.Targets {
			asked[fmt.Sprintf("panel %q, query %d", p.Title, j)] = variables.Replace(target.Expr)
		}
	}
	if len(asked) < 50 {
		t.Fatalf("only %d queries were found", len(asked))
	}
	missing := maps.Clone(asked)
	for deadline := time.Now().Add(45 * time.Second); len(missing) > 0 && time.Now().Before(deadline); time.Sleep(time.Second) { // scrapes take their time
		maps.DeleteFunc(missing, func(_, query string) bool { return prom.query(query).number() })
	}
	for what, query := range missing {
		t.Errorf("%s has no data: %s\n%s", what, query, prom.query(query))
	}

	// Sanity of what is shown, and no alert that a healthy run would raise.
	if v := prom.query("count(latchkey_ready == 1)"); v.value() != 3 {
		t.Errorf("replicas: %s", v)
	}
	if v := prom.query("max(latchkey_edge_members)"); v.value() != 3 {
		t.Errorf("members: %s", v)
	}
	if v := prom.query(`ALERTS{alertstate="firing"}`); v.number() {
		t.Errorf("alerts in a healthy run: %s", v)
	}
	if bad := d.failed(); bad > 0 {
		t.Errorf("%d requests of the traffic failed", bad)
	}
}

// prometheus is a running Prometheus.
type prometheus struct {
	t    *testing.T
	base string
}

// result is the answer to an instant query.
type result struct {
	Status, Error string
	Data          struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any
		}
	}
}

func (r result) String() string {
	b, _ := json.Marshal(r)
	return string(b)
}

// number reports whether there is a series whose value is a number.
func (r result) number() bool {
	return slices.ContainsFunc(r.Data.Result, func(s struct {
		Metric map[string]string
		Value  [2]any
	},
	) bool {
		v, err := strconv.ParseFloat(fmt.Sprint(s.Value[1]), 64)
		return err == nil && !math.IsNaN(v)
	})
}

// value is that of the one series, or NaN.
func (r result) value() float64 {
	if len(r.Data.Result) != 1 {
		return math.NaN()
	}
	v, err := strconv.ParseFloat(fmt.Sprint(r.Data.Result[0].Value[1]), 64)
	if err != nil {
		return math.NaN()
	}
	return v
}

func (p *prometheus) query(q string) result {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base+"/api/v1/query?query="+url.QueryEscape(q), http.NoBody)
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return result{Error: err.Error()}
	}
	defer func() { _ = resp.Body.Close() }()
	var r result
	if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
		return result{Error: err.Error()}
	}
	return r
}

// prometheus starts one with the shipped files: but for the addresses, and for
// how often it looks, which would take minutes.
func (d *deployment) prometheus() *prometheus {
	d.Helper()
	var config map[string]any
	read(d.T, "prometheus/prometheus.yml", &config)
	config["global"] = map[string]any{"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"}
	rules, err := filepath.Abs(rulesFile)
	d.check(err)
	config["rule_files"] = []string{rules}
	jobs, _ := config["scrape_configs"].([]any)
	if len(jobs) != 1 {
		d.Fatalf("prometheus.yml has %d jobs", len(jobs))
	}
	job, _ := jobs[0].(map[string]any)
	delete(job, "dns_sd_configs")
	job["static_configs"] = []any{map[string]any{"targets": d.admins}}
	text, err := yaml.Marshal(config)
	d.check(err)
	dir := d.TempDir()
	d.check(os.WriteFile(filepath.Join(dir, "prometheus.yml"), text, 0o600))
	port := stacktest.FreePort(d)
	d.launch(nil, nil, installed(d.T, "prometheus"), "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:"+port)
	p := &prometheus{t: d.T, base: "http://127.0.0.1:" + port}
	stacktest.Eventually(d, "Prometheus scrapes three replicas", func() bool { return p.query("sum(up)").value() == 3 })
	return p
}
