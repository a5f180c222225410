package handlers

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gin-gonic/gin"
)

// Whatever a body holds, bind reads it or refuses it: and what it reads of a form
// or an object has one value for each name.
func FuzzBind(f *testing.F) {
	for _, s := range []struct{ kind, body string }{
		{"application/x-www-form-urlencoded", "username=a&password=b"},
		{"application/x-www-form-urlencoded", "a=1&a=2"},
		{"application/x-www-form-urlencoded", "%zz=%00;&&=="},
		{"application/json", `{"username":"a","password":"b","flag":true,"none":null}`},
		{"application/json", `{"a":"\u0000\ud800","a":1}`},
		{"application/json", `{"a":{"b":[1,2,{}]}} {}`},
		{"application/json; charset=\"", `[`},
		{"text/plain", "x"},
		{"", ""},
	} {
		f.Add(s.kind, s.body)
	}
	gin.SetMode(gin.ReleaseMode)
	f.Fuzz(func(t *testing.T, kind, body string) {
		c, _ := gin.CreateTestContext(httptest.NewRecorder())
		c.Request = httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(body))
		c.Request.Header["Content-Type"] = []string{kind}
		p, err := bind(c)
		if (p == nil) == (err == nil) {
			t.Fatalf("params %v, error %v", p, err)
		}
		if err != nil {
			if problem, known := problemOf(err); !known || problem.status < 400 || problem.status > 499 {
				t.Fatalf("the client's fault became %d: %v", problem.status, err)
			}
		}
		_, _ = p.flag("flag")
	})
}

// Whatever Authorization holds, bearer finds a token without a space in front,
// or none, or says that there are two.
func FuzzBearer(f *testing.F) {
	for _, s := range []string{"Bearer x", "bearer  x", "Bearer", "Bearer ", "Basic YTpi", "", " ", "Bearer\tx", "BEARER x y", "é x"} {
		f.Add(s, false)
	}
	f.Add("Bearer x", true)
	f.Fuzz(func(t *testing.T, value string, twice bool) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
		r.Header["Authorization"] = []string{value}
		if twice {
			r.Header["Authorization"] = append(r.Header["Authorization"], value)
		}
		token, err := bearer(r)
		if (err != nil) != twice || (err != nil && token != "") {
			t.Fatalf("%q: %q, %v", value, token, err)
		}
		if strings.HasPrefix(token, " ") || !strings.HasSuffix(value, token) {
			t.Fatalf("%q: %q", value, token)
		}
	})
}

// Whatever a client calls itself, its description is short and printable.
func FuzzDevice(f *testing.F) {
	for _, s := range []string{
		"", "curl/8.5.0", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0", "Mozilla/",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
		"Mozilla/5.0 (", "Mozilla/5.0 )(;;/", "\x00\xff\u202e", strings.Repeat("ä", 100), "Mozilla/5.0 " + strings.Repeat("(", 1000),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, userAgent string) {
		text := device(userAgent)
		if len(text) > maxDevice || !utf8.ValidString(text) || strings.ContainsAny(text, "\x00\r\n\u202e") {
			t.Fatalf("%q became %q", userAgent, text)
		}
	})
}

// A long header is cut in one step, not character by character.
func TestDeviceOfALongHeader(t *testing.T) {
	long := strings.Repeat("ä", 8<<10)
	if n := testing.AllocsPerRun(1, func() { device(long) }); n > 100 {
		t.Errorf("%v allocations", n)
	}
}

// The longest header that the server lets through is described in no time: each
// login would pay for it.
func BenchmarkDeviceOfALongHeader(b *testing.B) {
	long := strings.Repeat("ä", 8<<10)
	b.ReportAllocs()
	for b.Loop() {
		device(long)
	}
}
