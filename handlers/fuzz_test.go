package handlers

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
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

// Whatever cookies a browser sends, a refresh token, an access token and a known device
// are found in what it said, each value once, and none of them is believed.
func FuzzCookies(f *testing.F) {
	for _, s := range []string{
		"refresh_token=lkr1_x", "refresh_token=a; refresh_token=b; refresh_token=a", "refresh_token=", "refresh_token",
		`refresh_token="quoted"; access_token=x; access_token=y`, "known_device=AAAA", "known_device=" + strings.Repeat("A", 43),
		"; ;=;a=b;;", "refresh_token=\x00\xff", strings.Repeat("refresh_token=x;", 500), "REFRESH_TOKEN=x", "refresh_token =x",
	} {
		f.Add(s, "")
	}
	f.Add("refresh_token=a", "refresh_token=b")
	codec, err := refreshtoken.New([]byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		f.Fatal(err)
	}
	a := &api{Dependencies: Dependencies{Refresh: codec, Settings: Settings{CookieName: defaultCookieName, AccessCookie: "access_token", DeviceKey: []byte("key")}}}
	f.Fuzz(func(t *testing.T, first, second string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/auth/refresh", http.NoBody)
		r.Header["Cookie"] = []string{first, second}
		for _, values := range [][]string{a.refreshCookies(r), a.accessCookies(r)} {
			seen := map[string]bool{}
			for _, v := range values {
				if v == "" || seen[v] || !strings.Contains(first+"\n"+second, v) {
					t.Fatalf("%q in %q", v, values)
				}
				seen[v] = true
			}
		}
		if id := a.knownDevice(r, "alice", first); id != "" {
			t.Fatalf("the device %q is known", id)
		}
		if list := a.families(a.refreshCookies(r)); len(list) > 0 {
			t.Fatalf("%d families", len(list))
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
