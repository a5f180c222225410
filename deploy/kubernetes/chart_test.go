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
		{"blue.green", "", "blue-green-latchkey"}, // a release may have a dot, a Service may not
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
		{"no replica to scale from", "autoscaling.minReplicas=0", "minReplicas"},
		{"a setting that does not exist", "config.LATCHKEY_ACCES_TTL=5m", "LATCHKEY_ACCES_TTL"},
		{"a setting among the environment", "extraEnv[0].name=LATCHKEY_ISSUER", "extraEnv"},
		{"root", "podSecurityContext.runAsNonRoot=false", "runAsNonRoot"},
		{"user 0", "securityContext.runAsUser=0", "runAsUser"},
		{"a root that can be written", "securityContext.readOnlyRootFilesystem=false", "readOnlyRootFilesystem"},
		{"a capability", "securityContext.capabilities.add[0]=NET_ADMIN", "capabilities"},
		{"the label that selects", "podLabels.app\\.kubernetes\\.io/name=x", "app.kubernetes.io/name"},
		{"a path that is none", "ingress.hosts[0].host=a,ingress.hosts[0].paths[0].path=x", "path"},
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

// Values that bound each other are refused with what to do.
func TestValuesThatContradict(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		set        []string
	}{
		{"more at least than at most", "raise one or lower the other", []string{"autoscaling.minReplicas=20"}},
		{"killed before it has ended", "a replica takes up to 70 s", []string{"config.LATCHKEY_SHUTDOWN_TIMEOUT=1m"}},
		{"a long delay", "a replica takes up to 65.5 s", []string{"config.LATCHKEY_SHUTDOWN_DELAY=40s500ms"}},
		{"a long preStop", "a replica takes up to 85 s", []string{"preStopSeconds=60"}},
		{"a short grace period", "give it more", []string{"terminationGracePeriodSeconds=30"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := try(t, nil, tool(t, "helm"), "template", "latchkey", chart, "--set", strings.Join(tt.set, ","))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	helm(t, "--set", "config.LATCHKEY_SHUTDOWN_TIMEOUT=1m,terminationGracePeriodSeconds=75")
	helm(t, "--set", "autoscaling.enabled=false,autoscaling.minReplicas=20")
}

// What users of charts set arrives where it belongs, in objects that pass the schemas.
func TestCustomValues(t *testing.T) {
	manifests := helm(t, "--values", "testdata/custom-values.yaml")
	run(t, manifests, tool(t, "kubeconform"), "-strict", "-schema-location", "testdata/schemas/{{.ResourceKind}}{{.KindSuffix}}.json", "-")
	objects := decode(t, manifests)
	d := find(t, objects, "Deployment", "latchkey-auth")
	service, account := find(t, objects, "Service", "auth"), find(t, objects, "ServiceAccount", "latchkey-id")
	ingress, policy := find(t, objects, "Ingress", "latchkey-auth"), find(t, objects, "NetworkPolicy", "latchkey-auth")
	pod := object(d.at("spec", "template", "spec").(map[string]any))
	container := object(pod.at("containers", 0).(map[string]any))
	for _, tt := range []struct {
		what      string
		got, want any
	}{
		{"common label of the Service", service.at("metadata", "labels", "team"), "identity"},
		{"common label of the pods", d.at("spec", "template", "metadata", "labels", "team"), "identity"},
		{"label of the pods", d.at("spec", "template", "metadata", "labels", "azure.workload.identity/use"), "true"},
		{"annotation of the pods", d.at("spec", "template", "metadata", "annotations", "example.com/scan"), "yes"},
		{"annotation of the Deployment", d.at("metadata", "annotations", "reloader.stakater.com/auto"), "true"},
		{"selector", d.at("spec", "selector", "matchLabels", "app.kubernetes.io/name"), "auth"},
		{"type of the Service", service.at("spec", "type"), "LoadBalancer"},
		{"port of the Service", service.at("spec", "ports", 0, "port"), uint64(8080)},
		{"annotation of the Service", service.at("metadata", "annotations", "example.com/lb"), "internal"},
		{"label of the Service", service.at("metadata", "labels", "lb"), "internal"},
		{"identity of the account", account.at("metadata", "annotations", "eks.amazonaws.com/role-arn"), "arn:aws:iam::1:role/latchkey"},
		{"account of the pods", pod.at("serviceAccountName"), "latchkey-id"},
		{"variable", container.at("env", 3, "name"), "OTEL_EXPORTER_OTLP_HEADERS"}, // no CPU limit, so no GOMAXPROCS before it
		{"variable from a Secret", container.at("env", 3, "valueFrom", "secretKeyRef", "name"), "otel"},
		{"CPU limit", container.at("resources", "limits", "cpu"), nil},
		{"user of the pod", pod.at("securityContext", "runAsUser"), nil},
		{"group of files", pod.at("securityContext", "fsGroup"), nil},
		{"user of the container", container.at("securityContext", "runAsUser"), nil},
		{"no root", container.at("securityContext", "runAsNonRoot"), true},
		{"priority class", pod.at("priorityClassName"), "high"},
		{"DNS policy", pod.at("dnsPolicy"), "None"},
		{"DNS server", pod.at("dnsConfig", "nameservers", 0), "10.0.0.10"},
		{"affinity", pod.at("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution") != nil, true},
		{"topology key", pod.at("topologySpreadConstraints", 1, "topologyKey"), "example.com/rack"},
		{"init container", pod.at("initContainers", 0, "name"), "wait"},
		{"sidecar", pod.at("containers", 1, "name"), "proxy"},
		{"volume", pod.at("volumes", 1, "name"), "extra"},
		{"mount", container.at("volumeMounts", 1, "mountPath"), "/extra"},
		{"strategy", d.at("spec", "strategy", "rollingUpdate", "maxSurge"), "50%"},
		{"egress", policy.at("spec", "egress", 2, "ports", 0, "port"), uint64(4318)},
		{"ingress of the policy", policy.at("spec", "ingress", 2, "from", 0, "ipBlock", "cidr"), "192.0.2.0/24"},
		{"second host", ingress.at("spec", "rules", 1, "host"), "login.example.com"},
		{"path of the second host", ingress.at("spec", "rules", 1, "http", "paths", 1, "path"), "/oauth2"},
		{"Service behind the Ingress", ingress.at("spec", "rules", 1, "http", "paths", 1, "backend", "service", "name"), "auth"},
		{"certificate", ingress.at("spec", "tls", 0, "secretName"), "both"},
		{"least replicas", find(t, objects, "HorizontalPodAutoscaler", "latchkey-auth").at("spec", "minReplicas"), uint64(1)},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %v, want %v", tt.what, tt.got, tt.want)
		}
	}
	// An account of somebody else's is named and not made.
	objects = decode(t, helm(t, "--set", "serviceAccount.create=false"))
	if got := find(t, objects, "Deployment", "latchkey").text("spec", "template", "spec", "serviceAccountName"); got != "default" {
		t.Errorf("the account is %q, want default", got)
	}
	for _, o := range objects {
		if o.kind() == "ServiceAccount" {
			t.Errorf("%s is made all the same", o.id())
		}
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
