//go:build unix

package proxies_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A rule by path is only as good as the agreement of the proxy and the service on what
// the path is. The service of these tests agrees with nobody: it normalises as all
// lenient frameworks together do.

// lenient returns the path that the service takes a request target for. It decodes
// escapes as often as there are any, IIS's %u0061 and overlong UTF-8 too; drops control
// characters; takes a backslash for a slash; cuts parameters (";x") off segments, and
// blanks and trailing dots; merges slashes, removes dot segments, and ignores case.
func lenient(target string) string {
	if scheme, rest, found := strings.Cut(target, "://"); found && !strings.Contains(scheme, "/") {
		_, path, _ := strings.Cut(rest, "/")
		target = "/" + path
	}
	if opaque(target) {
		target = strings.TrimPrefix(target, "http:")
	}
	path, _, _ := strings.Cut(target, "?")
	for {
		next := normalizedOnce(path)
		if next == path {
			return path
		}
		path = next
	}
}

func normalizedOnce(path string) string {
	var decoded []byte
	for i := 0; i < len(path); {
		if b, err := strconv.ParseUint(part(path, i+1, 2), 16, 8); path[i] == '%' && err == nil {
			decoded, i = append(decoded, byte(b)), i+3
		} else if r, err := strconv.ParseUint(part(path, i+2, 4), 16, 16); strings.HasPrefix(path[i:], "%u") && err == nil {
			decoded, i = append(decoded, string(rune(r))...), i+6
		} else {
			decoded, i = append(decoded, path[i]), i+1
		}
	}
	path = shortened(decoded)
	path = strings.Map(func(r rune) rune {
		switch {
		case r == '\\':
			return '/'
		case r < ' ' || r == 0x7f:
			return -1
		}
		return r
	}, path)
	var segments []string
	for segment := range strings.SplitSeq(strings.ToLower(path), "/") {
		segment, _, _ = strings.Cut(segment, ";")
		segment = strings.TrimSpace(segment)
		if segment == ".." {
			segments = segments[:max(0, len(segments)-1)]
			continue
		}
		if segment = strings.TrimRight(segment, ". "); segment != "" {
			segments = append(segments, segment)
		}
	}
	return "/" + strings.Join(segments, "/")
}

// shortened decodes ASCII characters that are written in two, three or four bytes of
// UTF-8, which is forbidden: the bytes of "/" can be C0 AF.
func shortened(b []byte) string {
	var out []byte
	for i := 0; i < len(b); i++ {
		more := map[bool]int{b[i]&0xe0 == 0xc0: 1, b[i]&0xf0 == 0xe0: 2, b[i]&0xf8 == 0xf0: 3}[true]
		if more == 0 || i+more >= len(b) {
			out = append(out, b[i])
			continue
		}
		r := rune(b[i] & (0x3f >> more))
		for _, c := range b[i+1 : i+1+more] {
			r = r<<6 | rune(c&0x3f)
		}
		if r >= 0x80 {
			out = append(out, b[i])
			continue
		}
		out, i = append(out, byte(r)), i+more
	}
	return string(out)
}

func part(s string, from, length int) string {
	if from+length > len(s) {
		return ""
	}
	return s[from : from+length]
}

// inAdmin reports whether a normal path needs the scope admin.
func inAdmin(path string) bool {
	rest, found := strings.CutPrefix(path, "/admin")
	return found && (rest == "" || strings.ContainsAny(rest[:1], "/.?#"))
}

// spellings are request targets that the lenient service takes for a path below /admin.
func spellings() []string {
	list := []string{
		// Plain, but for case and what may follow a prefix.
		"/admin", "/admin/", "/admin/x", "/ADMIN/x", "/Admin", "/aDmIn/x?y=/", "/admin.json", "/admin./x", "/admin;a=b/x", "/admin;/x", "/admin%3b/x",
		"/admin%20/x", "/admin%09/x", "/admin%00/x", "/admin%2fx", "/admin%5cx", "/admin\\x", "/admin%3fx", "/admin#x", "/admin%23x",
		// Escaped.
		"/%61dmin/x", "/%41dmin/x", "/%61%64%6d%69%6e/x", "/admi%6e", "/admi%6E/x", "/%2561dmin/x", "/%252561dmin/x", "/%25%36%31dmin/x", "/%u0061dmin/x", "/%U0061dmin",
		// Empty segments.
		"//admin/x", "///admin", "//ADMIN", "/%2fadmin/x", "/%2Fadmin/x", "/%252fadmin/x", "/;/admin/x", "/;a=b/admin/x", "/%3b/admin/x", "/%3Ba/admin/x", "/%20/admin",
		"/\\admin/x", "\\admin/x", "/%5cadmin/x", "/%5Cadmin", "/%255cadmin", "/%u002fadmin", "/%u2215/../admin",
		// Dot segments.
		"/./admin/x", "/././admin", "/x/../admin/x", "/x/y/../../admin", "/../admin", "/x/./../admin/x", "/x//../admin/x", "/.//admin", "/.../admin", "/..../admin",
		"/%2e/admin/x", "/x/%2e%2e/admin/x", "/x/.%2e/admin/x", "/x/%2E./admin/x", "/x/%252e%252e/admin/x", "/x/..%2fadmin/x", "/x/..%5cadmin/x", "/x/..\\admin/x",
		"/x/%2e%2e%2fadmin/x", "/x/..;/admin/x", "/x/..;a=b/admin/x", "/.;/admin/x", "/x/..%3b/admin/x", "/x/%2e%2e;/admin/x", "/x/..%20/admin", "/x/..%00/admin", "/admin/x/..",
		"/admin/.", "/admin/y/../x", "/admin//x", "/x/../ADMIN",
		// What some take for the end of the path.
		"/#/../admin/x", "/x#/../admin", "/%23/../admin/x", "/x%3f/../admin/x", "/x%3F/..%2fadmin", "/x%00/../admin",
		// Dropped or trimmed characters.
		"/%09admin/x", "/ad%0amin/x", "/ad%0d%0amin/x", "/%00admin/x", "/adm%00in/x", "/%7fadmin/x", "/%20admin/x", "/%20%20admin/x", "/ad\x01min/x", "/ad\x7fmin/x",
		// Overlong UTF-8.
		"/%c0%afadmin/x", "/%C1%A1dmin/x", "/x/%c0%ae%c0%ae/admin/x", "/%e0%80%afadmin/x", "/%f0%80%80%afadmin/x", "/\xc0\xafadmin/x", "/\xc1\xa1dmin/x",
		"/%c0%2fadmin", "/%e0%81%a1dmin/x",
		// Escapes that are none.
		"/%zz/../admin/x", "/%/../admin/x", "/%2/../admin/x", "/x/../admin/%", "/admin/%", "/%%32%66admin", "/%25zz/../admin",
		// Absolute.
		"http://shop.example.com/admin/x", "http://shop.example.com/%61dmin/x", "http://shop.example.com//admin/x", "HTTP://shop.example.com/x/../admin", "http://shop.example.com/ADMIN",
		// No path at all.
		"admin/x", "./admin/x", "../admin", "http:admin/x", "http:x/../admin", "*/../admin",
	}
	// Every byte, as it is and escaped, at places where to drop, decode or cut it makes a difference.
	for b := range 256 {
		for _, char := range []string{string([]byte{byte(b)}), fmt.Sprintf("%%%02x", b), fmt.Sprintf("%%%02X", b), fmt.Sprintf("%%25%02x", b)} {
			for _, place := range []string{"/%sdmin/x", "/a%smin/x", "/ad%smin/x", "/%sadmin/x", "/%s/admin/x", "/x/..%sadmin/x", "/x/..%s/admin/x", "/x/.%s/admin/x", "/x/%s/../../admin/x", "/admin%sx"} {
				list = append(list, fmt.Sprintf(place, char))
			}
		}
	}
	slices.Sort(list)
	return slices.DeleteFunc(slices.Compact(list), func(target string) bool {
		return strings.ContainsAny(target, " \r\n") || !inAdmin(lenient(target))
	})
}

// honest are targets that need no scope, and must reach the service as they are.
func honest() []string {
	return []string{
		"/", "/orders/1", "/orders/", "/adm", "/x/admin/y", "/x?next=/admin/", "/x?next=//evil/../%2e%2e/%zz;%5c", "/?/../admin", "/?x=%00",
		"/a%20b", "/a+b", "/caf%C3%A9", "/caf%c3%a9", "/%E6%97%A5%E6%9C%AC", "/%F0%9F%98%80", "/users/a%40b.example", "/a@b", "/~user", "/.well-known/x", "/a..b/c", "/a.b/..c",
		"/x/.y", "/map;zoom=3/x", "/@scope/name", "/a:b", "/(x)!*'", "/a,b=c&d$e", "/a%26b%3Dc", "/a%3Bb", "/a%3Fb", "/tags/%23go", "/a%2Cb", "/a_b-c", "/a%7Cb", "/a%5Bb%5D",
	}
}

// handshake asks for a WebSocket, or another protocol, and returns the status. What
// opens must carry bytes both ways.
func (w *world) handshake(headers ...string) int {
	w.Helper()
	conn, err := (&net.Dialer{}).DialContext(w.Context(), "tcp", w.front)
	w.check(err)
	defer func() { _ = conn.Close() }()
	w.check(conn.SetDeadline(time.Now().Add(20 * time.Second)))
	_, err = io.WriteString(conn, "GET /chat HTTP/1.1\r\nHost: shop.example.com\r\n"+strings.Join(headers, "\r\n")+"\r\n\r\n")
	w.check(err)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	w.check(err)
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return resp.StatusCode
	}
	_, err = io.WriteString(conn, "hello")
	w.check(err)
	back := make([]byte, 5)
	if _, err := io.ReadFull(in, back); err != nil || string(back) != "hello" {
		w.Errorf("through the WebSocket came %q, %v", back, err)
	}
	return resp.StatusCode
}

// opensWebSockets: by cookie only for pages of its own origin, which other pages could
// read; and no other protocol for anybody.
func (w *world) opensWebSockets() {
	w.Helper()
	token := w.login()
	browser := []string{"Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}
	cookie := "Cookie: " + accessCookie + "=" + token
	for _, c := range []struct {
		headers []string
		want    int
	}{
		{[]string{cookie}, 101}, // no browser
		{[]string{cookie, "Origin: http://shop.example.com"}, 101},
		{[]string{cookie, "Origin: http://shop.example.com", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: websocket", "Sec-Fetch-Dest: websocket"}, 101},
		{[]string{cookie, "Origin: https://evil.example"}, 403},
		{[]string{cookie, "Origin: https://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: websocket"}, 403},
		{[]string{cookie, "Origin: https://blog.example.com", "Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: websocket"}, 403},
		{[]string{cookie, "Origin: null"}, 403},
		{[]string{"Authorization: Bearer " + token, "Origin: https://evil.example"}, 101}, // no page has that
		{[]string{"Origin: http://shop.example.com"}, 401},
		{[]string{"Cookie: " + accessCookie + "=garbage"}, 401},
	} {
		if got := w.handshake(append(browser[:4:4], c.headers...)...); got != c.want {
			w.Errorf("a WebSocket with %q: %d, want %d", c.headers, got, c.want)
		}
	}
	// h2c would be a connection on which nobody asks. The service watches.
	good := "Authorization: Bearer " + token
	for _, headers := range [][]string{
		{"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"},
		{"Connection: Upgrade", "Upgrade: H2C"},
		{"Connection: Upgrade", "Upgrade: h2c, websocket"},
		{"Connection: Upgrade", "Upgrade: websocket, h2c"},
		{"Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket"},
		{"Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"},
	} {
		w.handshake(append(headers, good)...)
	}
}

// opaque reports whether a target has a scheme and then no slash. Traefik passes on what
// follows, whatever its rules are.
func opaque(target string) bool {
	rest, found := strings.CutPrefix(target, "http:")
	return found && !strings.HasPrefix(rest, "/")
}

// guardsPaths: however the path is written, nobody gets into /admin without its scope
// (the service watches, too), and honest requests get through.
func (w *world) guardsPaths() {
	w.Helper()
	token, root := w.login(), w.loginAs(admin)
	for _, target := range spellings() {
		if strings.HasPrefix(w.Name(), "TestProxies/Traefik") && opaque(target) {
			continue // README.md tells
		}
		for _, version := range []string{"1.1", "1.0"} {
			a, err := sendVersion(version, w.front, "GET", target, "", "Authorization: Bearer "+token)
			if err != nil { // a proxy may close the connection at once
				continue
			}
			// A proxy that normalises may pass on another path, of which the service judges.
			if a.header.Get("X-Service") == "" && !slices.Contains([]int{400, 403, 404}, a.status) {
				w.Errorf("GET %q: %d %s", target, a.status, a.body)
			}
			if !strings.Contains(target, "%61") {
				break
			}
		}
	}
	for _, target := range []string{"/admin", "/admin/", "/admin/x?y=1", "/ADMIN/x"} {
		w.through(w.ask("GET", target, "", "Authorization: Bearer "+root), root)
	}
	for _, target := range honest() {
		e := w.through(w.ask("GET", target, "", "Authorization: Bearer "+token), token)
		if !strings.EqualFold(e.URI, target) { // escapes may be in capitals
			w.Errorf("%q arrived as %q", target, e.URI)
		}
	}
}
