//go:build kube

package kubernetes_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What the pages here name is there: files and folders of the repository, and what links go to.
func TestPagesNameWhatIsThere(t *testing.T) {
	for _, page := range []string{"README.md", chart + "/README.md", chart + "/templates/NOTES.txt"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range regexp.MustCompile(`(?m)(?:^|[ (])(deploy/[a-z/._-]+[a-z])`).FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat("../../" + path[1]); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
		folder := page[:strings.LastIndex(page, "/")+1]
		for _, link := range regexp.MustCompile(`\]\(([a-z.][^)#]*)\)`).FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(folder + link[1]); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
}

// The commands that make the Secret give it the keys that the pods need.
func TestSecretHasTheKeys(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	charts, err := os.ReadFile(chart + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	notes := func(flags ...string) string {
		return string(run(t, nil, tool(t, "helm"), append([]string{"install", "--dry-run=client", "latchkey", chart}, flags...)...))
	}
	for name, tt := range map[string]struct{ folder, text string }{
		"demo":                {"overlays/demo", section(t, string(text), "## A trial")},
		"production":          {"overlays/production", section(t, string(text), "## Production")},
		"chart":               {"overlays/production", string(charts)},
		"notes":               {"base", notes()},
		"notes of production": {"overlays/production", notes("--values", chart+"/values-production.yaml")},
	} {
		var made []string
		for _, m := range regexp.MustCompile(`--from-(?:literal|file)=([a-z.-]+)=`).FindAllStringSubmatch(tt.text, -1) {
			made = append(made, m[1])
		}
		needed := regexp.MustCompile(`: /run/latchkey/(\S+)`).FindAllStringSubmatch(string(kustomize(t, tt.folder)), -1)
		needed = append(needed, regexp.MustCompile(`secretKeyRef:\s+key: (\S+)`).FindAllStringSubmatch(string(kustomize(t, tt.folder)), -1)...)
		if len(needed) < 2 {
			t.Fatalf("%s: keys %q", name, needed)
		}
		for _, m := range needed {
			if !slices.Contains(made, m[1]) {
				t.Errorf("%s: the Secret needs %s and is made with %q", name, m[1], made)
			}
		}
	}
}

// The command that makes an object of the alerts makes a valid one, with all of them.
func TestRulesAreAnObject(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile(`(?s)   (\{ printf .*?\}) \| kubectl -n latchkey apply -f -\n`).FindStringSubmatch(string(text))
	if command == nil {
		t.Fatal("no such command")
	}
	manifest := run(t, nil, "sh", "-c", "cd ../.. && "+command[1])
	run(t, manifest, tool(t, "kubeconform"), "-strict", "-schema-location", "testdata/schemas/{{.ResourceKind}}{{.KindSuffix}}.json", "-")
	rules, err := os.ReadFile("../monitoring/prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	alerts := 0
	for _, group := range find(t, decode(t, manifest), "PrometheusRule", "latchkey").list("spec", "groups") {
		for _, r := range object(group.(map[string]any)).list("rules") {
			if object(r.(map[string]any)).text("alert") != "" {
				alerts++
			}
		}
	}
	if want := strings.Count(string(rules), "- alert: "); alerts != want || want == 0 {
		t.Errorf("%d alerts of %d", alerts, want)
	}
}

// Gateways that send only some headers send all that Latchkey decides by.
func TestGatewaysSendWhatIsAsked(t *testing.T) {
	lists := 0
	for name, manifests := range rendered(t) {
		for _, list := range regexp.MustCompile(`(?:headersToExtAuth|allowedHeaders): \[(.*)\]`).FindAllStringSubmatch(string(manifests), -1) {
			lists++
			headers := strings.Split(list[1], ", ")
			for _, h := range []string{"authorization", "dpop", "cookie", "origin", "sec-fetch-site", "sec-fetch-mode", "sec-websocket-version"} {
				if !slices.Contains(headers, h) {
					t.Errorf("%s: %s is not sent", name, h)
				}
			}
		}
	}
	if lists < 2 {
		t.Errorf("%d lists of headers", lists)
	}
}

// section is a page from a heading to the next.
func section(t *testing.T, page, heading string) string {
	t.Helper()
	_, after, found := strings.Cut(page, heading)
	if !found {
		t.Fatalf("no %s", heading)
	}
	text, _, _ := strings.Cut(after, "\n## ")
	return text
}

// The notes after an installation say where Latchkey is, and what is missing.
func TestNotes(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  string
		want string
		not  string
	}{
		{"no way in", "secretName=mine", "port-forward service/latchkey 8080:80", "Ask it: https"},
		{"the Secret", "secretName=mine", "create secret generic mine", ""},
		{"Ingress", "ingress.enabled=true", "Ask it: https://auth.example.com", "port-forward"},
		{"Gateway", "httpRoute.enabled=true", "Ask it: https://auth.example.com", "port-forward"},
		{"no proxies", "secretName=mine", "LATCHKEY_TRUSTED_PROXIES is not set", ""},
		{"proxies", "config.LATCHKEY_TRUSTED_PROXIES=10.0.0.0/8", "Tokens are issued as", "LATCHKEY_TRUSTED_PROXIES is not set"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, notes, _ := strings.Cut(string(run(t, nil, tool(t, "helm"), "install", "--dry-run=client", "latchkey", chart, "--set", tt.set)), "NOTES:")
			if !strings.Contains(notes, tt.want) {
				t.Errorf("no %q in\n%s", tt.want, notes)
			}
			if tt.not != "" && strings.Contains(notes, tt.not) {
				t.Errorf("%q in\n%s", tt.not, notes)
			}
		})
	}
}
