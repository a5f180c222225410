package tour

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What a reader is told to paste is what the tour sends.
func TestTourCommands(t *testing.T) {
	tr := &tour{replicas: []string{"http://127.0.0.1:8080", "http://127.0.0.1:8081", "http://127.0.0.1:8082"}}
	want := map[string][]string{
		"Log in at replica A": {
			"curl -s -c jar -d username=johndoe -d password=secret http://127.0.0.1:8080/auth/token | tee answer",
			`TOKEN=$(grep -o 'eyJ[^"]*' answer)`,
		},
		"Show the access token to replica B": {
			`curl -s -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8081/users/me`,
		},
		"Refresh at replica B": {
			"curl -s -X POST -b jar -c jar http://127.0.0.1:8081/auth/refresh | tee answer",
			`TOKEN=$(grep -o 'eyJ[^"]*' answer)`,
		},
		"Show the new access token to replica C": {
			`curl -s -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8082/users/me`,
		},
		"Two tabs refresh at once, at replicas A and B": {
			"curl -s -X POST -b jar -c tab1 http://127.0.0.1:8080/auth/refresh &\n" +
				"curl -s -X POST -b jar -c tab2 http://127.0.0.1:8081/auth/refresh; wait",
			"cp tab1 jar",
		},
		"Log out at replica C": {
			"curl -s -X POST -b jar -c jar http://127.0.0.1:8082/auth/logout",
		},
		"Show the access token to every replica": {
			"for port in 8080 8081 8082; do\n" +
				`  curl -s -w ' %{http_code}\n' -H "Authorization: Bearer $TOKEN" http://127.0.0.1:$port/users/me; done`,
		},
		"Show the refresh token to every replica": {
			"for port in 8080 8081 8082; do\n" +
				`  curl -s -w ' %{http_code}\n' -X POST -b tab2 http://127.0.0.1:$port/auth/refresh; done`,
		},
		"Look into Redis": nil,
	}
	got := map[string][]string{}
	for _, s := range tr.steps() {
		got[s.title] = tr.shell(s)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// As curl does, a call sends one jar and writes another, and writes none unless told.
func TestTourJars(t *testing.T) {
	tr := &tour{replicas: []string{"http://127.0.0.1:8080"}, jars: map[string]http.CookieJar{}}
	at, err := tr.cookieURL()
	if err != nil {
		t.Fatal(err)
	}
	receive := func(c call, value string) {
		t.Helper()
		r, err := tr.request(c)
		if err != nil {
			t.Fatal(err)
		}
		r.jar.SetCookies(at, []*http.Cookie{{Name: "refresh_token", Value: value, Path: "/auth"}})
	}
	receive(call{keep: "jar"}, "first")
	receive(call{send: "jar", keep: "tab1"}, "second")
	receive(call{send: "tab1"}, "third")
	for jar, want := range map[string]string{"jar": "first", "tab1": "second", "none": ""} {
		if got := tr.refreshToken(jar); got != want {
			t.Errorf("%s: got %q, want %q", jar, got, want)
		}
	}
	receive(call{send: "jar", keep: "jar"}, "fourth")
	if got := tr.refreshToken("jar"); got != "fourth" {
		t.Errorf("jar, sent and kept: got %q", got)
	}
}

func TestTourShortensTokens(t *testing.T) {
	tr := &tour{secrets: tokenPattern()}
	for _, tt := range []struct{ text, want string }{
		{`{"access_token":"eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJqb2huZG9lIn0.c2lnbmF0dXJl"}`, `{"access_token":"eyJ…F0dXJl"}`},
		{"refresh_token=lkr1_" + strings.Repeat("A-_z", 28) + "; Path=/auth", "refresh_token=lkr1_…_zA-_z; Path=/auth"},
		{"refresh_token=; Path=/auth", "refresh_token=; Path=/auth"},
		{"eyJhbGciOiJFZERTQSJ9.eyJz", "eyJ…"},
		{`{"message":"Successfully logged out"}`, `{"message":"Successfully logged out"}`},
	} {
		if got := tr.shown(tt.text); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.text, got, tt.want)
		}
	}
}
