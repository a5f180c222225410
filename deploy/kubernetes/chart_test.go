//go:build kube

package kubernetes_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The chart renders the objects of the Kustomize tree, but for what belongs to the tool: the name
// of a generated ConfigMap, the labels of a release, and the namespace.
func TestChartIsKustomize(t *testing.T) {
	for name, flags := range charts() {
		t.Run(name, func(t *testing.T) {
			want, got := normalised(t, kustomize(t, name)), normalised(t, helm(t, flags...))
			if len(want) < 8 {
				t.Fatalf("%d objects", len(want))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Kustomize (-) and the chart (+):\n%s", diff)
			}
		})
	}
}

// normalised is what a stream of manifests says, by kind and name.
func normalised(t *testing.T, manifests []byte) map[string]object {
	t.Helper()
	all := map[string]object{}
	for _, o := range decode(t, manifests) {
		if o.kind() == "Namespace" {
			continue // a release is put into one that exists
		}
		metadata, _ := o.at("metadata").(map[string]any)
		delete(metadata, "namespace")
		if o.kind() == "ConfigMap" {
			metadata["name"] = hashed.ReplaceAllString(o.name(), "")
		}
		if labels, ok := metadata["labels"].(map[string]any); ok {
			for _, l := range []string{"helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version"} {
				delete(labels, l)
			}
		}
		if template, ok := o.at("spec", "template", "metadata").(map[string]any); ok && o.text("spec", "template", "metadata", "annotations", "checksum/config") != "" {
			delete(template, "annotations")
		}
		if from, ok := o.at("spec", "template", "spec", "containers", 0, "envFrom", 0, "configMapRef").(map[string]any); ok {
			name, _ := from["name"].(string)
			from["name"] = hashed.ReplaceAllString(name, "")
		}
		if _, twice := all[o.id()]; twice {
			t.Errorf("%s twice", o.id())
		}
		all[o.id()] = o
	}
	return all
}

// A changed setting changes the pods, with either tool.
func TestSettingsRollTheReplicas(t *testing.T) {
	one := find(t, decode(t, helm(t)), "Deployment", "latchkey").text("spec", "template", "metadata", "annotations", "checksum/config")
	other := find(t, decode(t, helm(t, "--set", "config.LATCHKEY_LOG_LEVEL=debug")), "Deployment", "latchkey").text("spec", "template", "metadata", "annotations", "checksum/config")
	if one == "" || one == other {
		t.Errorf("checksums %q and %q", one, other)
	}
	path := []any{"spec", "template", "spec", "containers", 0, "envFrom", 0, "configMapRef", "name"}
	base := find(t, decode(t, kustomize(t, "base")), "Deployment", "latchkey").text(path...)
	demo := find(t, decode(t, kustomize(t, "overlays/demo")), "Deployment", "latchkey").text(path...)
	if !hashed.MatchString(base) || base == demo {
		t.Errorf("ConfigMaps %q and %q", base, demo)
	}
}

// An operator may know its own objects by a label.
func TestLabelsOfTheServiceMonitor(t *testing.T) {
	m := find(t, decode(t, helm(t, "--set", "serviceMonitor.enabled=true", "--set", "serviceMonitor.labels.release=monitoring")), "ServiceMonitor", "latchkey")
	if m.text("metadata", "labels", "release") != "monitoring" || m.text("metadata", "labels", "app.kubernetes.io/name") != "latchkey" {
		t.Errorf("labels %v", m.at("metadata", "labels"))
	}
}

func TestOtherNames(t *testing.T) {
	for _, tt := range []struct{ release, override, want string }{
		{"latchkey", "", "latchkey"},
		{"blue", "", "blue-latchkey"},
		{"latchkey-blue", "", "latchkey-blue"},
		{"blue", "auth", "auth"},
	} {
		objects := decode(t, run(t, nil, tool(t, "helm"), "template", tt.release, chart, "--set", "fullnameOverride="+tt.override))
		d := find(t, objects, "Deployment", tt.want)
		if got := d.text("spec", "template", "spec", "containers", 0, "envFrom", 0, "configMapRef", "name"); got != tt.want {
			t.Errorf("release %s: settings from %s", tt.release, got)
		}
		hpa := find(t, objects, "HorizontalPodAutoscaler", tt.want)
		if got := hpa.text("spec", "scaleTargetRef", "name"); got != tt.want {
			t.Errorf("release %s: %s is scaled", tt.release, got)
		}
	}
}

func TestValuesRefused(t *testing.T) {
	for _, tt := range []struct{ name, set, why string }{
		{"a value that does not exist", "replicaCount=3", "replicaCount"},
		{"the tag latest", "image.tag=latest", "tag"},
		{"a tag in the repository", "image.repository=example.com/latchkey:1.0", "repository"},
		{"a digest cut short", "image.digest=sha256:abc", "digest"},
		{"a secret among the settings", "config.LATCHKEY_SECRET=x", "LATCHKEY_SECRET"},
		{"a Redis URL among the settings", "config.LATCHKEY_REDIS_URL=redis://r", "LATCHKEY_REDIS_URL"},
		{"a setting of another program", "config.PATH=/bin", "PATH"},
		{"a setting that is no string", "config.LATCHKEY_SHARDS=16", "string"},
		{"another port", "config.LATCHKEY_ADDR=:80", "LATCHKEY_ADDR"},
		{"no issuer", "config.LATCHKEY_ISSUER=null", "LATCHKEY_ISSUER"},
		{"no memory request", "resources.requests.memory=null", "memory"},
		{"a memory limit that is none", "resources.limits.memory=much", "memory"},
		{"one replica to scale from", "autoscaling.minReplicas=1", "minReplicas"},
		{"a budget of nothing", "podDisruptionBudget.maxUnavailable=0", "maxUnavailable"},
		{"an unknown spread", "topologySpread.zones=Never", "zones"},
		{"out to everywhere", "networkPolicy.redis.to={}", "to"},
		{"in from everywhere", "networkPolicy.ingressNamespaces={}", "ingressNamespaces"},
		{"no name of a Secret", "secretName=", "secretName"},
		{"no time to drain", "terminationGracePeriodSeconds=0", "terminationGracePeriodSeconds"},
		{"no preStop", "preStopSeconds=0", "preStopSeconds"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := try(t, nil, tool(t, "helm"), "template", "latchkey", chart, "--set", tt.set)
			if err == nil {
				t.Fatalf("--set %s passes", tt.set)
			}
			if !strings.Contains(err.Error(), "values don't meet the specifications") || !strings.Contains(err.Error(), tt.why) {
				t.Errorf("--set %s: %v", tt.set, err)
			}
		})
	}
}

// No secret can be put among the chart's settings, and every other setting can.
func TestSchemaKnowsEverySecret(t *testing.T) {
	page, err := os.ReadFile("../../docs/settings.md")
	if err != nil {
		t.Fatal(err)
	}
	var secrets, others []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(LATCHKEY_[A-Z_]+)`( \\(or `_FILE`\\))? ").FindAllStringSubmatch(string(page), -1) {
		switch {
		case m[2] != "":
			secrets = append(secrets, m[1])
		case m[1] != "LATCHKEY_ADDR" && m[1] != "LATCHKEY_ADMIN_ADDR" && m[1] != "LATCHKEY_EXTAUTHZ_ADDR": // the ports are the chart's
			others = append(others, m[1])
		}
	}
	if !slices.Contains(secrets, "LATCHKEY_SECRET") || !slices.Contains(others, "LATCHKEY_ISSUER") {
		t.Fatalf("the page of settings has the secrets %q and the settings %q", secrets, others)
	}
	for _, s := range secrets {
		if _, err := try(t, nil, tool(t, "helm"), "template", "latchkey", chart, "--set", "config."+s+"=x"); err == nil {
			t.Errorf("%s can be put into values", s)
		}
	}
	flags := []string{}
	for _, s := range others {
		flags = append(flags, "--set-string", "config."+s+"=x")
	}
	helm(t, flags...)
}
