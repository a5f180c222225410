package main

import (
	"fmt"
	"net/url"
	"testing"

	"github.com/latchkey-auth/latchkey/test/redistest"
)

// TestReplicasOfDifferentSettings runs replicas side by side that differ in what an
// operator changes while a service runs: how tokens are verified, the lease, and the life
// of access tokens. One has a single CPU. Whoever logs in at one and out at another is
// accepted by all before, and by none after.
func TestReplicasOfDifferentSettings(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	account(t, server.URL())
	settings := []string{"LATCHKEY_EDGE_LEASE=1s", "LATCHKEY_VERIFY=strict", "LATCHKEY_EDGE_LEASE=3s", "LATCHKEY_ACCESS_TTL=20m", "GOMAXPROCS=1"}
	var replicas []*process
	for _, setting := range settings {
		replicas = append(replicas, launch(t, bin, server.URL(), setting))
	}
	for _, r := range replicas {
		r.becomes(200)
	}
	for i, first := range replicas {
		for j, second := range replicas {
			pair := fmt.Sprintf("in at %s, out at %s", settings[i], settings[j])
			in := ask(t, "POST", first.api+"/auth/token", login(), "", "")
			want(t, pair+": log in", in, 200)
			for k, r := range replicas {
				want(t, pair+": verify at "+settings[k], ask(t, "GET", r.api+"/auth/verify", nil, in.access(), ""), 204)
			}
			want(t, pair+": log out", ask(t, "POST", second.api+"/auth/logout", url.Values{}, in.access(), in.refresh()), 200)
			for k, r := range replicas {
				want(t, pair+": after it, verify at "+settings[k], ask(t, "GET", r.api+"/auth/verify", nil, in.access(), ""), 401)
				want(t, pair+": after it, refresh at "+settings[k], ask(t, "POST", r.api+"/auth/refresh", url.Values{}, "", in.refresh()), 401)
			}
		}
	}
}
