package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestDrainingIsFinal(t *testing.T) {
	r := &replica{}
	for _, err := range []error{nil, errBooting, nil, errDraining} {
		r.setState(err)
		if got := r.ready(); !errors.Is(got, err) {
			t.Fatalf("ready() = %v, want %v", got, err)
		}
	}
	r.setState(nil) // what a look at Redis found that began before
	if !errors.Is(r.ready(), errDraining) {
		t.Error("a replica that drains is ready again")
	}
}

func TestAnswersOfADrainingReplicaEndTheirConnection(t *testing.T) {
	r := &replica{}
	r.setState(nil)
	srv := httptest.NewServer(r.leaving(http.NotFoundHandler()))
	defer srv.Close()
	ends := func() bool {
		t.Helper()
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := srv.Client().Do(q)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.Close
	}
	if ends() {
		t.Error("before: the connection ends")
	}
	r.setState(errDraining)
	if !ends() {
		t.Error("the connection is kept open")
	}
}
