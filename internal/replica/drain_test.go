package replica

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestDrainingIsFinal(t *testing.T) {
	r := &Replica{}
	for _, err := range []error{nil, errBooting, nil, errDraining} {
		r.setReady(err)
		if got := r.Ready(); !errors.Is(got, err) {
			t.Fatalf("ready() = %v, want %v", got, err)
		}
	}
	r.setReady(nil) // what a look at Redis found that began before
	if !errors.Is(r.Ready(), errDraining) {
		t.Error("a replica that drains is ready again")
	}
}

func TestAnswersOfADrainingReplicaEndTheirConnection(t *testing.T) {
	r := &Replica{}
	r.setReady(nil)
	srv := httptest.NewServer(r.closeWhenDraining(http.NotFoundHandler()))
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
	r.setReady(errDraining)
	if !ends() {
		t.Error("the connection is kept open")
	}
}
