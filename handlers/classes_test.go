package handlers_test

import (
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/handlers"
)

// Each class of requests has its own bound: one that is full turns its own requests
// away, at once and with when to come back, and no other's.
func TestAFullClassTurnsItsOwnAway(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) { s.MaxInFlight = 1 }})
	one, two := f.login(0), f.login(0)
	// A client whose body does not come holds no place.
	slow, err := net.Dial("tcp", f.replicas[0].addr)
	f.check(err)
	defer func() { _ = slow.Close() }()
	_, err = io.WriteString(slow, "POST /auth/refresh HTTP/1.1\r\nHost: latchkey\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\nrefresh_token=")
	f.check(err)
	one = f.refresh(0, one)

	f.redis.Pause(t)
	held := make(chan answer, 1)
	go func() {
		a, err := f.try(0, http.MethodPost, "/auth/refresh", cookie(one.refresh))
		if err != nil {
			t.Error(err)
		}
		held <- a
	}()
	for !strings.Contains(f.metrics(0), `latchkey_requests_in_flight{class="refresh"} 1`) {
		if t.Context().Err() != nil {
			t.Fatal("the refresh did not begin")
		}
	}
	const turnedAway = 20
	for range turnedAway {
		a := f.post(0, "/auth/refresh", cookie(two.refresh))
		a.fails(http.StatusServiceUnavailable, "temporarily_unavailable", "Service temporarily unavailable")
		a.hasHeader("Retry-After", "1")
		if !strings.Contains(a.member("error_description"), "As many requests of this kind") {
			t.Errorf("refused by something else: %s", a.member("error_description"))
		}
	}
	f.get(0, "/auth/verify").is(http.StatusUnauthorized)
	f.redis.Resume(t)
	(<-held).is(http.StatusOK)

	f.refresh(0, two)
	for class, want := range map[string]int{"refresh": turnedAway} {
		if text := f.metrics(0); !strings.Contains(text, `latchkey_shed_total{class="`+class+`"} `+strconv.Itoa(want)+"\n") {
			t.Errorf("latchkey_shed_total of %s is not %d", class, want)
		}
	}
	if text := f.metrics(0); !strings.Contains(text, `latchkey_requests_in_flight{class="refresh"} 0`) {
		t.Error("a place was not given back")
	}
	// A line a second, and none for each.
	if n := strings.Count(f.log.String(), "overloaded: "); n == 0 || n > 1+int(time.Minute/time.Second) || n >= turnedAway {
		t.Errorf("%d lines in the log", n)
	}
	if strings.Contains(f.log.String(), "request failed") {
		t.Error("a request that was turned away is logged as a failure")
	}
}

// A request that is full of parameters would cost a multiple of its size.
func TestTooManyParameters(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, mini: true})
	var form, object strings.Builder
	for i := range 100 {
		form.WriteString("a" + strconv.Itoa(i) + "=&")
		object.WriteString(`,"a` + strconv.Itoa(i) + `":""`)
	}
	f.post(0, "/auth/token", body("application/x-www-form-urlencoded", form.String())).is(http.StatusBadRequest)
	f.post(0, "/auth/token", body("application/json", "{"+object.String()[1:]+"}")).is(http.StatusBadRequest)
}
