//go:build kube

package kubernetes_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Nothing that is applied owns the namespace: deleting it would delete the Secret, and the data of
// Redis, of whoever else is in it.
func TestNothingOwnsTheNamespace(t *testing.T) {
	for name, manifests := range rendered(t) {
		for _, o := range decode(t, manifests) {
			if o.kind() == "Namespace" {
				t.Errorf("%s: %s", name, o.id())
			}
		}
	}
}

// No manifest holds a secret, in a Secret or elsewhere, and every image is named by a version.
func TestNoSecretsAndNoLatest(t *testing.T) {
	credentials := regexp.MustCompile(`://[^/\s@]+@|-----BEGIN|(?i)LATCHKEY_(SECRET|REDIS_URL|REVOCATIONS_TOKEN):`)
	version := regexp.MustCompile(`(:[A-Za-z0-9_][A-Za-z0-9._-]*|@sha256:[0-9a-f]{64})$`)
	images := 0
	for name, manifests := range rendered(t) {
		if found := credentials.FindString(string(manifests)); found != "" {
			t.Errorf("%s: %q looks like a secret", name, found)
		}
		for _, o := range decode(t, manifests) {
			if o.kind() == "Secret" {
				t.Errorf("%s: %s; secrets are made by the operator", name, o.id())
			}
			for _, c := range containers(o) {
				image := c.text("image")
				images++
				if !version.MatchString(image) || strings.HasSuffix(image, ":latest") {
					t.Errorf("%s: image %q", name, image)
				}
			}
		}
	}
	if images == 0 {
		t.Error("no image was looked at")
	}
}

func containers(o object) []object {
	var all []object
	for _, list := range []string{"containers", "initContainers"} {
		for _, c := range o.list("spec", "template", "spec", list) {
			all = append(all, c.(map[string]any))
		}
	}
	return all
}

// Every pod passes the pod security standard "restricted", and more: its root is read-only, and it
// has no token of the Kubernetes API.
func TestPodsAreConfined(t *testing.T) {
	for name, manifests := range rendered(t) {
		for _, o := range decode(t, manifests) {
			if len(containers(o)) == 0 {
				continue
			}
			for path, want := range map[string]any{
				"automountServiceAccountToken": false, "enableServiceLinks": false, "hostNetwork": nil, "hostPID": nil, "hostIPC": nil,
				"securityContext.runAsNonRoot": true, "securityContext.runAsUser": uint64(65532), "securityContext.seccompProfile.type": "RuntimeDefault",
			} {
				if got := o.at(steps("spec.template.spec." + path)...); got != want {
					t.Errorf("%s: %s: %s is %v, want %v", name, o.id(), path, got, want)
				}
			}
			for _, c := range containers(o) {
				for path, want := range map[string]any{
					"allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
				} {
					if got := c.at(steps("securityContext." + path)...); got != want {
						t.Errorf("%s: %s: %s is %v, want %v", name, o.id(), path, got, want)
					}
				}
				if drop := c.list("securityContext", "capabilities", "drop"); len(drop) != 1 || drop[0] != "ALL" || c.at("securityContext", "capabilities", "add") != nil {
					t.Errorf("%s: %s keeps capabilities", name, o.id())
				}
			}
		}
	}
}

func steps(path string) []any {
	var all []any
	for s := range strings.SplitSeq(path, ".") {
		all = append(all, s)
	}
	return all
}

// Every port that is named somewhere is a port of the container, and the admin port is behind the
// headless Service alone.
func TestPortsAreThere(t *testing.T) {
	for _, folder := range []string{"base", "testdata/everything"} {
		objects := decode(t, kustomize(t, folder))
		d := find(t, objects, "Deployment", "latchkey")
		container := object(d.at("spec", "template", "spec", "containers", 0).(map[string]any))
		var ports []string
		for _, p := range container.list("ports") {
			ports = append(ports, object(p.(map[string]any)).text("name"))
		}
		named := map[string][]string{}
		for _, probe := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
			named[probe] = []string{container.text(probe, "httpGet", "port")}
		}
		for _, service := range []string{"latchkey", "latchkey-admin"} {
			for _, p := range find(t, objects, "Service", service).list("spec", "ports") {
				named[service] = append(named[service], object(p.(map[string]any)).text("targetPort"))
			}
		}
		for _, rule := range find(t, objects, "NetworkPolicy", "latchkey").list("spec", "ingress") {
			for _, p := range object(rule.(map[string]any)).list("ports") {
				named["NetworkPolicy"] = append(named["NetworkPolicy"], object(p.(map[string]any)).text("port"))
			}
		}
		for what, names := range named {
			for _, n := range names {
				if !slices.Contains(ports, n) {
					t.Errorf("%s: %s names the port %q, and there are %q", folder, what, n, ports)
				}
			}
		}
		for _, n := range ports {
			if !slices.Contains(named["NetworkPolicy"], n) {
				t.Errorf("%s: the NetworkPolicy lets nobody to the port %s", folder, n)
			}
		}
		if slices.Contains(named["latchkey"], "admin") || !slices.Equal(named["latchkey-admin"], []string{"admin"}) {
			t.Errorf("%s: Services %v", folder, named)
		}
	}
}

// A rolling update never goes below full strength, and production never puts two replicas more
// into one zone than into another.
func TestFullStrengthWhileRolling(t *testing.T) {
	for name, manifests := range rendered(t) {
		for _, o := range decode(t, manifests) {
			if o.kind() != "Deployment" {
				continue
			}
			if got := o.at("spec", "strategy", "rollingUpdate", "maxUnavailable"); got != uint64(0) {
				t.Errorf("%s: maxUnavailable %v", name, got)
			}
			zones := o.text("spec", "template", "spec", "topologySpreadConstraints", 1, "whenUnsatisfiable")
			if strings.HasSuffix(name, "production") && zones != "DoNotSchedule" {
				t.Errorf("%s: zones %s", name, zones)
			}
		}
	}
	objects := decode(t, kustomize(t, "overlays/production"))
	if n := find(t, objects, "HorizontalPodAutoscaler", "latchkey").at("spec", "minReplicas"); n != uint64(3) {
		t.Errorf("%v replicas at least, want 3", n)
	}
}
