//go:build kube

// Package kubernetes_test renders what is deployed to Kubernetes, the Kustomize
// tree here and the Helm chart beside it, with the tools themselves, and checks it
// without a cluster: against the schemas in testdata, against each other, and
// against the program, which must accept the settings and answer the probes.
package kubernetes_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
)

const (
	chart     = "../helm/latchkey"
	namespace = "latchkey"
)

// overlays are the folders whose output somebody applies, or a test.
func overlays() []string {
	return []string{"base", "overlays/demo", "overlays/production", "testdata/everything"}
}

// charts are, for the overlays that the chart can render too, the flags that make it.
func charts() map[string][]string {
	return map[string][]string{
		"base":                {},
		"overlays/production": {"--values", chart + "/values-production.yaml"},
		"testdata/everything": {"--values", "testdata/everything/values.yaml"},
	}
}

// object is one decoded manifest.
type object map[string]any

func (o object) kind() string { return o.text("kind") }
func (o object) name() string { return o.text("metadata", "name") }
func (o object) id() string   { return o.kind() + "/" + o.name() }

// at returns what is at a path of field names and list indexes, or nil.
func (o object) at(path ...any) any {
	var v any = map[string]any(o)
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

func (o object) text(path ...any) string { s, _ := o.at(path...).(string); return s }
func (o object) list(path ...any) []any  { l, _ := o.at(path...).([]any); return l }

// seconds is for fields that count them: negative if there is none.
func (o object) seconds(path ...any) time.Duration {
	switch n := o.at(path...).(type) {
	case uint64:
		return time.Duration(n) * time.Second
	case int64:
		return time.Duration(n) * time.Second
	}
	return -time.Second
}

// find returns the one object of a kind and a name, less the hash that Kustomize appends.
func find(t *testing.T, objects []object, kind, name string) object {
	t.Helper()
	for _, o := range objects {
		if o.kind() == kind && hashed.ReplaceAllString(o.name(), "") == name {
			return o
		}
	}
	t.Fatalf("no %s/%s", kind, name)
	return nil
}

// hashed matches the end of a generated ConfigMap's name.
var hashed = regexp.MustCompile(`-[a-z0-9]{10}$`)

// run returns what a program prints.
func run(t *testing.T, stdin []byte, bin string, args ...string) []byte {
	t.Helper()
	out, err := try(t, stdin, bin, args...)
	if err != nil {
		t.Fatalf("%s %s: %v", filepath.Base(bin), strings.Join(args, " "), err)
	}
	return out
}

// try is run for a program that may fail; the error holds what it wrote to standard error.
func try(t *testing.T, stdin []byte, bin string, args ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &stderr
	// Helm reads and writes below these; the tests are not to see the user's.
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
	out, err := cmd.Output()
	if err != nil {
		err = errors.Join(err, errors.New(stderr.String()+string(out)))
	}
	return out, err
}

// tool is the path of one of the programs that `make test` builds from tools/.
func tool(t *testing.T, name string) string {
	t.Helper()
	bin := filepath.Join(os.Getenv("KUBE_TOOLS"), name)
	if _, err := os.Stat(bin); os.Getenv("KUBE_TOOLS") == "" || err != nil {
		t.Fatalf("%s is not built; run `make kube-test`, which builds it and names its folder in KUBE_TOOLS", name)
	}
	return bin
}

func kustomize(t *testing.T, folder string) []byte {
	t.Helper()
	return run(t, nil, tool(t, "kustomize"), "build", folder)
}

func helm(t *testing.T, flags ...string) []byte {
	t.Helper()
	return run(t, nil, tool(t, "helm"), append([]string{"template", "latchkey", chart, "--namespace", namespace}, flags...)...)
}

// decode reads a stream of manifests.
func decode(t *testing.T, manifests []byte) []object {
	t.Helper()
	var objects []object
	for d := yaml.NewDecoder(bytes.NewReader(manifests)); ; {
		var o object
		err := d.Decode(&o)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		if o != nil {
			objects = append(objects, o)
		}
	}
}

// rendered is every manifest that is shipped, by where it comes from.
func rendered(t *testing.T) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, folder := range overlays() {
		all[folder] = kustomize(t, folder)
	}
	for name, flags := range charts() {
		all["chart as "+name] = helm(t, flags...)
	}
	examples, err := filepath.Glob("examples/*.yaml")
	if err != nil || len(examples) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, path := range examples {
		if all[path], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	return all
}
