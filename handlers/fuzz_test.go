package handlers

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

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

// Whatever cookies a browser sends, a refresh token and an access token are found in what it
// said, each value once.
func FuzzCookies(f *testing.F) {
	for _, s := range []string{
		"refresh_token=lkr1_x", "refresh_token=a; refresh_token=b; refresh_token=a", "refresh_token=", "refresh_token",
		`refresh_token="quoted"; access_token=x; access_token=y`, "known_device=AAAA", "known_device=" + strings.Repeat("A", 43),
		"; ;=;a=b;;", "refresh_token=\x00\xff", strings.Repeat("refresh_token=x;", 500), "REFRESH_TOKEN=x", "refresh_token =x",
	} {
		f.Add(s, "")
	}
	f.Add("refresh_token=a", "refresh_token=b")
	a := &api{Dependencies: Dependencies{Settings: Settings{CookieName: defaultCookieName, AccessCookie: "access_token"}}}
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
	})
}
