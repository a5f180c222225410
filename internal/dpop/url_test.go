package dpop

import "testing"

// RFC 9449 section 4.3 item 9, by RFC 3986 sections 6.2.2 and 6.2.3.
func TestNormal(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"https://a.example", "https://a.example/"},
		{"https://a.example/?q#f", "https://a.example/"},
		{"HTTP://A.Example:80/B", "http://a.example/B"},
		{"https://a.example:443/b", "https://a.example/b"},
		{"https://a.example:80/b", "https://a.example:80/b"},
		{"https://a.example:/b", "https://a.example/b"},
		{"https://[::1]:443/b", "https://[::1]/b"},
		{"https://[::1]:8443/b", "https://[::1]:8443/b"},
		{"https://a.example/a/./b/../c", "https://a.example/a/c"},
		{"https://a.example/../../c", "https://a.example/c"},
		{"https://a.example/a/..", "https://a.example/"},
		{"https://a.example/a/.", "https://a.example/a/"},
		{"https://a.example/a//b", "https://a.example/a//b"},
		{"https://a.example/.well-known/x", "https://a.example/.well-known/x"},
		{"https://a.example/%7euser/%2f%c3%a9", "https://a.example/~user/%2F%C3%A9"},
		{"https://a.example/a/%2e%2e/b", "https://a.example/b"},
		{"https://a.example/a%2Fb", "https://a.example/a%2Fb"},
		{"ftp://a.example/", ""},
		{"https:a.example", ""},
		{"//a.example/", ""},
		{"https:///b", ""},
		{"https://u@a.example/", ""},
		{"https://a.example/%zz", ""},
		{"", ""},
	} {
		got, ok := normal(c.text)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%q: %q, %v, want %q", c.text, got, ok, c.want)
		}
		if again, _ := normal(got); ok && again != got {
			t.Errorf("%q: %q and then %q", c.text, got, again)
		}
	}
}
