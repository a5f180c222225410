package tour

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
)

// call is one request of the tour: what is sent, and what curl is told to send
// the same. Both come from here, so that they cannot differ.
type call struct {
	at     int // which replica
	method string
	path   string
	form   [][2]string
	bearer bool   // with $TOKEN
	send   string // the cookie jar to send, by the name of curl's file
	keep   string // the cookie jar that takes what comes back
	token  bool   // the answer's access token becomes $TOKEN
}

// curl is the command for a call to a base URL.
func (c call) curl(base string) string {
	args := []string{"curl -s"}
	if c.method != http.MethodGet && len(c.form) == 0 {
		args = append(args, "-X "+c.method)
	}
	if c.send != "" {
		args = append(args, "-b "+c.send)
	}
	if c.keep != "" {
		args = append(args, "-c "+c.keep)
	}
	for _, f := range c.form {
		args = append(args, "-d "+f[0]+"="+f[1])
	}
	if c.bearer {
		args = append(args, `-H "Authorization: Bearer $TOKEN"`)
	}
	return strings.Join(append(args, base+c.path), " ")
}

// shell is the step as commands for a shell, each one or more lines.
func (t *tour) shell(s step) []string {
	var lines []string
	switch {
	case len(s.calls) == 0:
	case len(s.calls) == 1:
		c := s.calls[0]
		line := c.curl(t.replicas[c.at])
		if c.token {
			lines = append(lines, line+" | tee answer", `TOKEN=$(grep -o 'eyJ[^"]*' answer)`)
			break
		}
		lines = append(lines, line)
	case s.calls[0].keep == "": // the same to every replica
		var ports []string
		for _, base := range t.replicas {
			ports = append(ports, base[strings.LastIndex(base, ":")+1:])
		}
		base := t.replicas[0]
		base = base[:strings.LastIndex(base, ":")+1] + "$port"
		curl := strings.Replace(s.calls[0].curl(base), "curl -s", `curl -s -w ' %{http_code}\n'`, 1)
		lines = append(lines, "for port in "+strings.Join(ports, " ")+"; do\n  "+curl+"; done")
	default: // at once
		var calls []string
		for _, c := range s.calls {
			calls = append(calls, c.curl(t.replicas[c.at]))
		}
		lines = append(lines, strings.Join(calls, " &\n")+"; wait")
	}
	if s.then != "" {
		lines = append(lines, s.then)
	}
	return lines
}

// everywhere is a call to every replica.
func (t *tour) everywhere(c call) []call {
	calls := make([]call, len(t.replicas))
	for i := range calls {
		calls[i] = c
		calls[i].at = i
	}
	return calls
}

// nth is the replica that plays a part, counted from 0.
func (t *tour) nth(i int) int { return i % len(t.replicas) }

// request is a call made ready to send.
type request struct {
	method, url string
	form        url.Values
	token       string
	jar         http.CookieJar
	sent        string // the refresh token in the jar
}

// request prepares a call. As with curl, what comes back goes to the jar to
// keep, which starts as a copy of the jar sent.
func (t *tour) request(c call) (request, error) {
	r := request{method: c.method, url: t.replicas[c.at] + c.path}
	if len(c.form) > 0 {
		r.form = url.Values{}
		for _, f := range c.form {
			r.form.Set(f[0], f[1])
		}
	}
	if c.bearer {
		r.token = t.token
	}
	if c.send != "" {
		r.sent = t.refreshToken(c.send)
	}
	if c.send != "" && c.send == c.keep {
		r.jar = t.jars[c.send]
		return r, nil
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		return r, err
	}
	r.jar = jar
	if c.send != "" {
		at, err := t.cookieURL()
		if err != nil {
			return r, err
		}
		jar.SetCookies(at, t.jars[c.send].Cookies(at))
	}
	if c.keep != "" {
		t.jars[c.keep] = jar
	}
	return r, nil
}

// cookieURL is a URL to which the refresh cookie is sent. Cookies know no ports
// (RFC 6265 section 8.5), so the replicas share them as if behind one name.
func (t *tour) cookieURL() (*url.URL, error) { return url.Parse(t.replicas[0] + "/auth/refresh") }

// refreshToken is the refresh token in a jar, or "".
func (t *tour) refreshToken(jar string) string {
	at, err := t.cookieURL()
	if err != nil || t.jars[jar] == nil {
		return ""
	}
	for _, c := range t.jars[jar].Cookies(at) {
		if c.Name == "refresh_token" {
			return c.Value
		}
	}
	return ""
}

// answer is what a replica said.
type answer struct {
	err    error
	status int
	body   []byte
	cookie *http.Cookie // refresh_token, if it was set
	sent   string       // the refresh token that was sent as a cookie
	grant  struct {
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
	}
}

// send makes a request over HTTP.
func (t *tour) send(ctx context.Context, r request) answer {
	a := answer{sent: r.sent}
	var body io.Reader
	if r.form != nil {
		body = strings.NewReader(r.form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, body)
	if err != nil {
		return answer{err: err}
	}
	if r.form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if r.token != "" {
		req.Header.Set("Authorization", "Bearer "+r.token)
	}
	client := &http.Client{Transport: t.wire, Jar: r.jar}
	resp, err := client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	if a.body, err = io.ReadAll(io.LimitReader(resp.Body, 64<<10)); err != nil {
		return answer{err: fmt.Errorf("read the answer of %s: %w", r.url, err)}
	}
	a.status = resp.StatusCode
	for _, c := range resp.Cookies() {
		if c.Name == "refresh_token" {
			a.cookie = c
		}
	}
	// An answer without a grant leaves it empty, which the checks notice.
	_ = json.Unmarshal(a.body, &a.grant)
	return a
}

// took keeps the access token of an answer.
func (t *tour) took(c call, a answer) {
	if a.grant.AccessToken == "" {
		return
	}
	t.tokens = append(t.tokens, a.grant.AccessToken)
	if c.token {
		t.token = a.grant.AccessToken
	}
}
