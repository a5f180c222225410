//go:build kube

package kubernetes_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every manifest is what its schema says, with no unknown field, and all of them have a schema.
func TestSchemas(t *testing.T) {
	for name, manifests := range rendered(t) {
		t.Run(name, func(t *testing.T) {
			run(t, manifests, tool(t, "kubeconform"), "-strict", "-schema-location", "testdata/schemas/{{.ResourceKind}}{{.KindSuffix}}.json", "-")
		})
	}
}

// The schemas are strict: what is misspelt is a fault, in our own manifests and in custom resources.
func TestSchemasRefuse(t *testing.T) {
	for _, tt := range []struct{ file, from, to string }{
		{"base/deployment.yaml", "minReadySeconds:", "minReadySecond:"},
		{"base/networkpolicy.yaml", "policyTypes:", "policyType:"},
		{"components/servicemonitor/servicemonitor.yaml", "jobLabel:", "jobLabels:"},
		{"components/gateway/httproute.yaml", "hostnames:", "hostname:"},
		{"examples/traefik.yaml", "trustForwardHeader:", "trustForwardHeaders:"},
		{"examples/gateway-api.yaml", "protocol: GRPC", "protocol: TELEPATHY"},
		{"examples/envoy-gateway.yaml", "failOpen:", "failsOpen:"},
	} {
		t.Run(tt.file, func(t *testing.T) {
			text, err := os.ReadFile(tt.file)
			if err != nil {
				t.Fatal(err)
			}
			broken := strings.Replace(string(text), tt.from, tt.to, 1)
			if broken == string(text) {
				t.Fatalf("no %q", tt.from)
			}
			if _, err := try(t, []byte(broken), tool(t, "kubeconform"), "-strict", "-schema-location", "testdata/schemas/{{.ResourceKind}}{{.KindSuffix}}.json", "-"); err == nil {
				t.Errorf("%s for %s passes", tt.to, tt.from)
			}
		})
	}
}

func TestHelmLint(t *testing.T) {
	for name, flags := range charts() {
		t.Run(name, func(t *testing.T) {
			run(t, nil, tool(t, "helm"), append([]string{"lint", "--strict", chart}, flags...)...)
		})
	}
}

// scored is one object in kube-score's report.
type scored struct {
	Name   string `json:"object_name"`
	Checks []struct {
		Check struct {
			ID string `json:"id"`
		} `json:"check"`
		Grade   int  `json:"grade"`
		Skipped bool `json:"skipped"`
	} `json:"checks"`
}

const gradeOK = 10

// kubeScore returns the findings, as "Kind/name check", sorted.
func kubeScore(t *testing.T, manifests []byte, flags ...string) []string {
	t.Helper()
	out, err := try(t, manifests, tool(t, "kube-score"), append([]string{
		"score", "-", "--output-format", "json", "--kubernetes-version", "v1.34",
		"--enable-optional-test", "container-seccomp-profile", "--enable-optional-test", "container-ports-check",
	}, flags...)...)
	var report []scored
	if jsonErr := json.Unmarshal(out, &report); jsonErr != nil { // it fails when it finds something
		t.Fatalf("kube-score: %v, %v", err, jsonErr)
	}
	if len(report) == 0 {
		t.Fatal("kube-score looked at nothing")
	}
	findings := []string{}
	for _, o := range report {
		for _, c := range o.Checks {
			if !c.Skipped && c.Grade < gradeOK {
				kind, _, _ := strings.Cut(o.Name, "/") // KIND/VERSION/NAMESPACE/NAME
				findings = append(findings, kind+o.Name[strings.LastIndex(o.Name, "/"):]+" "+c.Check.ID)
			}
		}
	}
	slices.Sort(findings)
	return findings
}

// kube-score finds nothing but what an annotation excuses, and every excuse is needed and argued
// in a comment above it.
func TestKubeScore(t *testing.T) {
	for name, manifests := range rendered(t) {
		if strings.HasPrefix(name, "examples/") {
			continue // of objects that are not there: the shop's
		}
		t.Run(name, func(t *testing.T) {
			if found := kubeScore(t, manifests); len(found) > 0 {
				t.Errorf("findings: %q", found)
			}
			excused := []string{}
			for _, o := range decode(t, manifests) {
				for check := range strings.SplitSeq(o.text("metadata", "annotations", "kube-score/ignore"), ",") {
					if check != "" {
						excused = append(excused, o.id()+" "+check)
					}
				}
			}
			slices.Sort(excused)
			if diff := cmp.Diff(excused, kubeScore(t, manifests, "--disable-ignore-checks-annotations")); diff != "" {
				t.Errorf("excused (-) and found (+):\n%s", diff)
			}
		})
	}
}

func TestEveryExcuseIsArgued(t *testing.T) {
	found := false
	for _, path := range sources(t) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		comments := ""
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "#") {
				comments += line + "\n"
			}
			ignored, ok := strings.CutPrefix(line, "kube-score/ignore: ")
			if !ok {
				continue
			}
			found = true
			for check := range strings.SplitSeq(ignored, ",") {
				if !strings.Contains(comments, "# "+check+": ") && !strings.Contains(comments, "# Argued in deploy/kubernetes/base/deployment.yaml.") {
					t.Errorf("%s ignores %s without a reason", path, check)
				}
			}
		}
	}
	if !found {
		t.Error("no annotation was looked at")
	}
}

// sources are the files that manifests are made of.
func sources(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*/*.yaml", "*/*/*.yaml", "../helm/latchkey/*.yaml", "../helm/latchkey/templates/*"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, paths...)
	}
	return all
}
