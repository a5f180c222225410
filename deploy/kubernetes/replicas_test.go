//go:build kube

package kubernetes_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// cluster is as much of a Kubernetes API as `helm template --dry-run=server` asks: discovery, and
// the objects at some paths.
func cluster(t *testing.T, objects map[string]string) (url string) {
	t.Helper()
	kinds := map[string][]string{
		"v1": {"ConfigMap", "Service", "ServiceAccount"}, "apps/v1": {"Deployment"}, "autoscaling/v2": {"HorizontalPodAutoscaler"},
		"networking.k8s.io/v1": {"NetworkPolicy"}, "policy/v1": {"PodDisruptionBudget"},
	}
	api := map[string]string{
		"/version": `{"major": "1", "minor": "34", "gitVersion": "v1.34.0"}`,
		"/api":     `{"kind": "APIVersions", "versions": ["v1"]}`,
	}
	var groups []string
	for version, list := range kinds {
		path := "/apis/" + version
		if group, v, grouped := strings.Cut(version, "/"); grouped {
			groups = append(groups, fmt.Sprintf(`{"name": %q, "versions": [{"groupVersion": %q, "version": %q}]}`, group, version, v))
		} else {
			path = "/api/" + version
		}
		var resources []string
		for _, kind := range list {
			resources = append(resources, fmt.Sprintf(`{"name": %q, "namespaced": true, "kind": %q, "verbs": ["get"]}`, strings.ToLower(kind)+"s", kind))
		}
		api[path] = fmt.Sprintf(`{"kind": "APIResourceList", "groupVersion": %q, "resources": [%s]}`, version, strings.Join(resources, ", "))
	}
	api["/apis"] = fmt.Sprintf(`{"kind": "APIGroupList", "apiVersion": "v1", "groups": [%s]}`, strings.Join(groups, ", "))
	for path, o := range objects {
		api[path] = o
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		body, found := api[r.URL.Path]
		if !found {
			w.WriteHeader(http.StatusNotFound)
			body = `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}`
		}
		_, _ = fmt.Fprint(w, body)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// An upgrade that switches autoscaling on keeps the replicas that run, and never asks for fewer
// than minReplicas; a Deployment without the field would drop to one.
func TestAutoscalingKeepsTheReplicas(t *testing.T) {
	const deployment, account = "/apis/apps/v1/namespaces/latchkey/deployments/latchkey", "/api/v1/namespaces/latchkey/serviceaccounts/default"
	running := func(n int) map[string]string {
		return map[string]string{deployment: fmt.Sprintf(
			`{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "latchkey", "namespace": "latchkey",
				"labels": {"app.kubernetes.io/managed-by": "Helm"},
				"annotations": {"meta.helm.sh/release-name": "latchkey", "meta.helm.sh/release-namespace": "latchkey"}}, "spec": {"replicas": %d}}`, n)}
	}
	for _, tt := range []struct {
		name    string
		objects map[string]string
		set     string
		want    any
	}{
		{"eight run", running(8), "autoscaling.enabled=true", uint64(8)},
		{"more than the most run", running(40), "autoscaling.enabled=true", uint64(40)},
		{"fewer than the least run", running(1), "autoscaling.enabled=true", uint64(3)},
		{
			"none runs, in a namespace that is there",
			map[string]string{account: `{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}`},
			"autoscaling.minReplicas=4", uint64(4),
		},
		{"no autoscaling", running(8), "autoscaling.enabled=false", uint64(3)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			objects := decode(t, helm(t, "--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", cluster(t, tt.objects), "--set", tt.set))
			if got := find(t, objects, "Deployment", "latchkey").at("spec", "replicas"); got != tt.want {
				t.Errorf("%v replicas, want %v", got, tt.want)
			}
		})
	}
	// Who renders without a cluster applies the result again and again: it must not undo what the
	// autoscaler decided.
	if got := find(t, decode(t, helm(t)), "Deployment", "latchkey").at("spec", "replicas"); got != nil {
		t.Errorf("%v replicas without a cluster, want none", got)
	}
}
