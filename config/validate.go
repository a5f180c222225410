package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// minSecret is the least length of the root secret in bytes: the strength of the
// HMAC-SHA256 and AES-256 keys derived from it.
const minSecret = 32

// Validate reports everything wrong with the settings, as a [Faults], or nil.
// It refuses [DevSecret] and [ExampleSecret].
func (c *Config) Validate() error {
	var f collector
	c.validate(&f, false)
	return f.err()
}

// ValidateDev is [Config.Validate] for `latchkey dev`: it accepts [DevSecret].
// Never serve with settings that only this accepts.
func (c *Config) ValidateDev() error {
	var f collector
	c.validate(&f, true)
	return f.err()
}

func (c *Config) validate(f *collector, dev bool) {
	v := reflect.ValueOf(c).Elem()
	for _, s := range settings() {
		s.check(f, v.FieldByIndex(s.index))
	}
	c.checkListeners(f)
	c.checkRedisURL(f)
	c.checkRedis(f)
	c.checkSecret(f, dev)
	c.checkTokens(f)
	c.checkKeys(f)
	c.checkLifetimes(f)
	c.checkCookie(f)
	c.checkOrigins(f)
	c.checkProxies(f)
	c.checkEdge(f)
	c.checkClaims(f)
}

// check holds a value to the bounds in its tags.
func (s setting) check(f *collector, v reflect.Value) {
	ok := true
	switch x := v.Interface().(type) {
	case time.Duration:
		ok = x >= duration(s.min) && x <= duration(s.max) && (s.unit != "s" || x%time.Second == 0)
	case Rate:
		ok = x.inBounds()
	case int:
		ok = s.inRange(int64(x))
	case float64:
		ok = x >= fraction(s.min) && x <= fraction(s.max)
	case uint32:
		ok = s.inRange(int64(x))
	case uint8:
		ok = s.inRange(int64(x))
	case string:
		ok = s.oneof == nil || slices.Contains(s.oneof, x)
	}
	if !ok {
		f.add(s.name, quote(show(v))+" is not allowed", "write "+s.form())
	}
}

func (s setting) inRange(n int64) bool { return n >= integer(s.min) && n <= integer(s.max) }

// duration, integer and fraction read bounds, which are ours: a test reads them all.
func duration(s string) time.Duration {
	d, _ := time.ParseDuration(s)
	return d
}

func integer(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

func fraction(s string) float64 {
	x, _ := strconv.ParseFloat(s, 64)
	return x
}

func (c *Config) checkListeners(f *collector) {
	for name, addr := range map[string]string{"LATCHKEY_ADDR": c.Addr, "LATCHKEY_ADMIN_ADDR": c.AdminAddr} {
		checkAddress(f, name, addr)
	}
	if c.Addr == c.AdminAddr && !strings.HasSuffix(c.Addr, ":0") {
		f.add("LATCHKEY_ADMIN_ADDR", "the same as LATCHKEY_ADDR", "give it a port of its own: metrics and profiles are not for the public")
	}
}

func checkAddress(f *collector, name, addr string) {
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		f.add(name, quote(addr)+" is not an address", "write host:port or :port, with a port from 0 (any free one) to 65535")
	}
}

// checkEdge holds together what the edge needs.
func (c *Config) checkEdge(f *collector) {
	if n := len(c.RevocationsToken.Reveal()); n > 0 && n < minSecret {
		f.add("LATCHKEY_REVOCATIONS_TOKEN", fmt.Sprintf("%d bytes, too short to be safe", n), "make one with: "+SecretHint)
	}
	if c.ExtAuthzAddr != "" {
		checkAddress(f, "LATCHKEY_EXTAUTHZ_ADDR", c.ExtAuthzAddr)
	}
}

// checkClaims holds together what the claims of the operator's own need. The URL is
// not shown: it may hold a password.
func (c *Config) checkClaims(f *collector) {
	if c.ScopeClaims != "" && c.ClaimsOfScopes() == nil {
		f.add("LATCHKEY_SCOPE_CLAIMS", "not an object of objects", `write JSON such as {"reports:read":{"department":"finance"}}`)
	}
	if c.ClaimsURL == "" {
		return
	}
	u, err := url.Parse(c.ClaimsURL)
	switch {
	case err == nil && u.User != nil:
		f.add("LATCHKEY_CLAIMS_URL", "holds a user name or password", "leave them out: the request is signed")
	case err == nil && (u.RawQuery != "" || u.ForceQuery):
		// The URL is shown by latchkey config: it is no place for a key.
		f.add("LATCHKEY_CLAIMS_URL", "holds a query", "leave it out: the request is signed with LATCHKEY_CLAIMS_SECRET")
	case err != nil, u.Scheme != "https" && u.Scheme != "http", u.Hostname() == "", u.Fragment != "":
		f.add("LATCHKEY_CLAIMS_URL", "not a URL", "write https://host[:port][/path]")
	}
	switch n := len(c.ClaimsSecret); {
	case n == 0:
		f.add("LATCHKEY_CLAIMS_SECRET", "not set", "make one with: "+SecretHint+", and give it to the webhook")
	case n < minSecret:
		f.add("LATCHKEY_CLAIMS_SECRET", fmt.Sprintf("%d bytes long; at least %d are needed", n, minSecret), "make one with: "+SecretHint)
	case slices.Contains(c.Secret.List(), c.ClaimsSecret):
		f.add("LATCHKEY_CLAIMS_SECRET", "the same as LATCHKEY_SECRET", "make one of its own: the webhook must not be able to sign tokens")
	}
}

// cookieName tells whether s is a token (RFC 9110 section 5.6.2).
func cookieName(s string) bool {
	return s != "" && len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}

// checkCookieName holds a cookie's name to RFC 6265 section 4.1.1, and one with a prefix to
// what browsers demand of a cookie of that name (RFC 6265bis section 4.1.3): they would
// drop it otherwise, and nobody could log in. Prefixes are compared without case there.
func (c *Config) checkCookieName(f *collector, setting, name, path string) {
	if !cookieName(name) || name == "known_device" {
		f.add(setting, quote(name)+" cannot name this cookie", "write letters, digits, - and _, such as __Host-session")
		return
	}
	begins := func(prefix string) bool {
		return len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
	}
	host := begins("__Host-")
	if !host && !begins("__Secure-") && !begins("__Http-") {
		return
	}
	if !c.CookieSecure {
		f.add(setting, quote(name)+" needs LATCHKEY_COOKIE_SECURE", "set it to true, or leave the prefix out")
	}
	if host && c.CookieDomain != "" {
		f.add(setting, quote(name)+" allows no LATCHKEY_COOKIE_DOMAIN", "unset it, or leave the prefix out")
	}
	if host && path != "/" {
		f.add(setting, quote(name)+" needs LATCHKEY_COOKIE_PATH=/", "set it, or leave the prefix out")
	}
}

// checkRedisURL never shows the URL, nor what the parser says of it: both may
// hold the password.
func (c *Config) checkRedisURL(f *collector) {
	const name = "LATCHKEY_REDIS_URL"
	const form = "write redis://user:password@host:port/db, rediss:// for TLS or unix:// for a socket, with special characters in the password percent-encoded"
	u, err := url.Parse(c.RedisURL.Reveal())
	switch {
	case err != nil || u.Opaque != "" || u.Fragment != "":
		f.add(name, "not a URL", form)
	case u.Scheme == "unix" && u.Path == "":
		f.add(name, "names no socket", form)
	case u.Scheme == "unix":
	case u.Scheme != "redis" && u.Scheme != "rediss":
		f.add(name, "its scheme is none of redis, rediss and unix", form)
	case u.Hostname() == "":
		f.add(name, "names no host", form)
	case !databaseNumber(strings.Trim(u.Path, "/")):
		f.add(name, "what follows the host is not a database number", form)
	}
}

func databaseNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return s == "" || err == nil
}

// checkRedis holds the settings of Redis against its URL, unless that one is at fault.
func (c *Config) checkRedis(f *collector) {
	const address = "LATCHKEY_REDIS_URL"
	u, err := url.Parse(c.RedisURL.Reveal())
	if err != nil || f.has(address) {
		return
	}
	q := u.Query()
	sentinel := q.Has("master_name")
	cluster := !sentinel && q.Has("addr")
	if u.Scheme == "unix" && (sentinel || cluster) {
		f.add(address, "names a socket, which is neither a Sentinel nor a Cluster", "write redis:// or rediss://")
	}
	if db := strings.Trim(u.Path, "/"); cluster && db != "" && db != "0" {
		f.add(address, "names a database, and a Cluster has only 0", "leave it out")
	}
	if pool := q.Get("pool_size"); q.Has("pool_size") {
		if n, err := strconv.Atoi(pool); err != nil || n < 2 || n > 10_000 {
			f.add(address, "its pool_size is not a whole number from 2 to 10000; a replica that follows holds one connection to wait for revocations", "correct it, or leave it out for ten per CPU")
		}
	}
	for name, v := range map[string]string{
		"LATCHKEY_REDIS_TLS_CA_FILE": c.RedisTLSCAFile, "LATCHKEY_REDIS_TLS_CERT_FILE": c.RedisTLSCertFile,
		"LATCHKEY_REDIS_TLS_KEY_FILE": c.RedisTLSKeyFile,
	} {
		if v != "" && u.Scheme != "rediss" {
			f.add(name, "set, and "+address+" is not rediss://, so nothing would be encrypted", "write rediss://, or unset it")
		}
	}
	if c.RedisTLSCertFile != "" && c.RedisTLSKeyFile == "" {
		f.add("LATCHKEY_REDIS_TLS_CERT_FILE", "set without LATCHKEY_REDIS_TLS_KEY_FILE", "set both")
	}
	if c.RedisTLSKeyFile != "" && c.RedisTLSCertFile == "" {
		f.add("LATCHKEY_REDIS_TLS_KEY_FILE", "set without LATCHKEY_REDIS_TLS_CERT_FILE", "set both")
	}
}

func (c *Config) checkSecret(f *collector, dev bool) {
	const name = "LATCHKEY_SECRET"
	const remedy = "make one with: " + SecretHint
	list := c.Secret.List()
	switch n := len(list); {
	case n == 0:
		f.add(name, "not set", remedy)
	case n > maxSecrets:
		f.add(name, fmt.Sprintf("%d secrets", n), fmt.Sprintf("leave out the oldest: at most %d", maxSecrets))
	}
	for i, s := range list {
		which := ""
		if len(list) > 1 {
			which = fmt.Sprintf("secret %d of %d: ", i+1, len(list))
		}
		switch {
		case s == DevSecret && !dev:
			f.add(name, which+"this is the published secret of `latchkey dev`, with which anybody could forge tokens", remedy)
		case s == ExampleSecret:
			f.add(name, which+"this is the placeholder of the example file, with which anybody could forge tokens", remedy)
		case len(s) < minSecret:
			f.add(name, which+fmt.Sprintf("%d bytes long; at least %d are needed", len(s), minSecret), remedy)
		case slices.Contains(list[:i], s):
			f.add(name, which+"given before", "leave it out")
		}
	}
}

// maxSecrets bounds what a made-up refresh token costs.
const maxSecrets = 8

// checkKeys holds the rotation to what lets old keys go before there are many.
func (c *Config) checkKeys(f *collector) {
	const rotation = "LATCHKEY_KEY_ROTATION"
	if f.has(rotation) || f.has("LATCHKEY_JWKS_MAX_AGE") || f.has("LATCHKEY_ACCESS_TTL") || c.KeyRotation == 0 {
		return
	}
	if least := c.AccessTTL + c.KeyPublish(); c.KeyRotation < least {
		f.add(rotation, formatDuration(c.KeyRotation)+" is less than LATCHKEY_ACCESS_TTL and twice LATCHKEY_JWKS_MAX_AGE together ("+formatDuration(least)+")",
			"raise it, or write 0 for no rotation on schedule")
	}
}

func (c *Config) checkTokens(f *collector) {
	// RFC 8414 section 2: an issuer has no query and no fragment. Its value is
	// not shown when it holds a password.
	u, err := url.Parse(c.Issuer)
	switch {
	case err == nil && u.User != nil:
		f.add("LATCHKEY_ISSUER", "holds a user name or password", "leave them out: the issuer is in every token")
	case err != nil, u.Scheme != "https" && u.Scheme != "http", u.Hostname() == "", strings.ContainsAny(c.Issuer, "?# @"):
		f.add("LATCHKEY_ISSUER", quote(c.Issuer)+" is not an issuer", "write https://host[:port][/path], without query and fragment")
	}
	// A folder's keys are looked at when they are read.
	if c.StatusList && c.Algorithm == "HS256" && c.KeysDir == "" {
		f.add("LATCHKEY_STATUS_LIST", "true, and with LATCHKEY_ALG=HS256 nobody could check a list", "choose another algorithm, or write false")
	}
	if c.Audience != c.Issuer && !plainText(c.Audience) {
		f.add("LATCHKEY_AUDIENCE", quote(c.Audience)+" is not allowed", "write 1 to 255 printable ASCII characters without spaces")
	}
}

// plainText is visible ASCII, of which every claim, header and log line can hold 255 bytes.
func plainText(s string) bool {
	return s != "" && len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// checkLifetimes compares lifetimes with each other, unless one is at fault by itself.
func (c *Config) checkLifetimes(f *collector) {
	const access, refresh, session = "LATCHKEY_ACCESS_TTL", "LATCHKEY_REFRESH_TTL", "LATCHKEY_SESSION_MAX"
	const grace = "LATCHKEY_REFRESH_GRACE"
	const status = "LATCHKEY_STATUS_LIST_TTL"
	if c.StatusList && !f.has(status) && !f.has(access) && c.StatusListTTL >= c.AccessTTL {
		f.add(status, formatDuration(c.StatusListTTL)+" is not less than "+access+" ("+formatDuration(c.AccessTTL)+")",
			"lower it: a token would expire before its revocation shows")
	}
	if f.has(refresh) {
		return
	}
	// A refresh within the grace of a rotation does not prolong the session; the next one,
	// an access token later, must still find it.
	if least := c.AccessTTL + c.RefreshGrace; !f.has(access) && !f.has(grace) && c.RefreshTTL <= least {
		f.add(refresh, formatDuration(c.RefreshTTL)+" is not more than "+access+" and "+grace+" together ("+formatDuration(least)+")",
			"raise it: a session lasts for this long after the last refresh that replaced its token")
	}
	if !f.has(session) && c.RefreshTTL > c.SessionMax {
		f.add(refresh, formatDuration(c.RefreshTTL)+" is more than "+session+" ("+formatDuration(c.SessionMax)+")",
			"lower it, or raise "+session)
	}
}

func (c *Config) checkCookie(f *collector) {
	c.checkCookieName(f, "LATCHKEY_COOKIE_NAME", c.CookieName, c.CookiePath)
	if c.AccessCookie != "" {
		c.checkCookieName(f, "LATCHKEY_ACCESS_COOKIE", c.AccessCookie, "/")
		if c.AccessCookie == c.CookieName {
			f.add("LATCHKEY_ACCESS_COOKIE", quote(c.AccessCookie)+" is the name of the refresh cookie, too", "write another")
		}
	}
	if d := c.CookieDomain; d != "" {
		_, err := netip.ParseAddr(d)
		if err == nil || !domainName(d) {
			f.add("LATCHKEY_COOKIE_DOMAIN", quote(d)+" is not a domain", "write a name such as example.com, without scheme, port or leading dot")
		}
	}
	// RFC 6265 section 4.1.1: a path is any text without control characters and semicolons.
	if p := c.CookiePath; !strings.HasPrefix(p, "/") || !plainText(p) || strings.Contains(p, ";") {
		f.add("LATCHKEY_COOKIE_PATH", quote(p)+" is not a path", "write one that begins with / and has no spaces or semicolons, such as /auth")
	}
}

// domainName tells whether s is labels of letters, digits and hyphens (RFC 1123 section 2.1).
func domainName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, r := range label {
			if r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
				return false
			}
		}
	}
	return true
}

func (c *Config) checkOrigins(f *collector) {
	for _, o := range c.AllowedOrigins {
		if problem, remedy := originFault(o); problem != "" {
			f.add("LATCHKEY_ALLOWED_ORIGINS", quote(o)+" "+problem, remedy)
			return
		}
	}
}

// originFault says why a browser would never send o as an Origin (RFC 6454
// section 6.2); origins are compared byte for byte.
func originFault(o string) (problem, remedy string) {
	const form = "write scheme://host or scheme://host:port, separated by commas"
	if o == "*" {
		return "would let every site use the cookies of your users", "list the origins of your own pages"
	}
	u, err := url.Parse(o)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil {
		return "is not an origin", form
	}
	if o != u.Scheme+"://"+u.Host {
		exact := u.Scheme + "://" + strings.ToLower(u.Host)
		return "is more than an origin", "write " + exact
	}
	if l := strings.ToLower(o); o != l {
		return "has capitals, which browsers never send", "write " + l
	}
	if strings.ContainsFunc(o, func(r rune) bool { return r <= ' ' || r > '~' || r == '*' }) {
		return "is not an origin", "write the host in full and in ASCII (xn--...)"
	}
	if p := u.Port(); strings.HasSuffix(o, ":") || u.Scheme == "https" && p == "443" || u.Scheme == "http" && p == "80" {
		return "names the default port, which browsers leave out", "write " + u.Scheme + "://" + strings.TrimSuffix(u.Host, ":"+p)
	}
	if _, err := strconv.ParseUint(u.Port(), 10, 16); u.Port() != "" && err != nil {
		return "is not an origin", form
	}
	return "", ""
}

func (c *Config) checkProxies(f *collector) {
	const name = "LATCHKEY_TRUSTED_PROXIES"
	for _, p := range c.TrustedProxies {
		switch {
		case !p.IsValid():
			f.add(name, "an element is not a network", "write 10.0.0.7 or 10.0.0.0/8, separated by commas")
		case p.Addr().Is4In6():
			f.add(name, quote(p.String())+" is an IPv4 network in IPv6 form, which matches nothing", "write it as IPv4")
		case p != p.Masked():
			f.add(name, quote(p.String())+" has bits beyond its prefix", "write "+p.Masked().String()+" for the network or "+p.Addr().String()+" for the one address")
		}
	}
}

// Warnings lists what is allowed but rarely meant, one sentence each, for the log
// at start. None holds a secret.
func (c *Config) Warnings() []string {
	var w []string
	if !c.CookieSecure {
		w = append(w, "LATCHKEY_COOKIE_SECURE is false: the refresh cookie is also sent over plain HTTP, where anybody on the way can read it")
	}
	if strings.HasPrefix(c.Issuer, "http:") {
		w = append(w, "LATCHKEY_ISSUER is not https: clients that follow RFC 8414 refuse it")
	}
	for _, o := range c.AllowedOrigins {
		if u, err := url.Parse(o); err == nil && u.Scheme == "http" && !loopback(u.Hostname()) {
			w = append(w, "LATCHKEY_ALLOWED_ORIGINS has "+o+": a page without TLS can be rewritten on the way and then acts for your users")
		}
	}
	for _, p := range c.TrustedProxies {
		if p.Bits() == 0 {
			w = append(w, "LATCHKEY_TRUSTED_PROXIES has "+p.String()+": every client can invent its address and so evade the login limits")
		}
	}
	if u, err := url.Parse(c.RedisURL.Reveal()); err == nil && u.Query().Has("skip_verify") {
		w = append(w, "LATCHKEY_REDIS_URL has skip_verify: whoever is on the way can pose as Redis")
	}
	if c.Verify == "follow" && c.EdgeLease < 2*c.RedisTimeout {
		w = append(w, "LATCHKEY_EDGE_LEASE is less than twice LATCHKEY_REDIS_TIMEOUT: one slow answer ends every lease, and tokens are then checked in Redis")
	}
	if c.EdgeOutage.ServeStale > 0 {
		w = append(w, "LATCHKEY_EDGE_OUTAGE is serve-stale: while Redis does not answer, a token that was logged out elsewhere may be accepted for "+formatDuration(c.EdgeOutage.ServeStale))
	}
	for _, s := range c.Secret.List() {
		if n := variety(s); n < 8 {
			w = append(w, fmt.Sprintf("LATCHKEY_SECRET has only %d different bytes and can be guessed: make one with: %s", n, SecretHint))
		}
	}
	if u, err := url.Parse(c.ClaimsURL); err == nil && u.Scheme == "http" && !loopback(u.Hostname()) {
		w = append(w, "LATCHKEY_CLAIMS_URL is not https: whoever is on the way can put claims into tokens")
	}
	if !c.passwordCostAdequate() {
		w = append(w, fmt.Sprintf("LATCHKEY_PASSWORD_MEMORY=%d with LATCHKEY_PASSWORD_ITERATIONS=%d is weaker than OWASP's least argon2id parameters, such as 19456 with 2", c.PasswordMemory, c.PasswordIterations))
	}
	if c.PProf && !loopback(hostOf(c.AdminAddr)) {
		w = append(w, "LATCHKEY_PPROF is true and LATCHKEY_ADMIN_ADDR is not on the loopback interface: a memory profile can hold tokens")
	}
	files := c.secretFiles
	if c.RedisTLSKeyFile != "" {
		files = append(slices.Clip(files), secretFile{"LATCHKEY_REDIS_TLS_KEY_FILE", c.RedisTLSKeyFile})
	}
	for _, f := range files {
		if exposed := ExposedFile(f.setting, f.path); exposed != "" {
			w = append(w, exposed)
		}
	}
	return w
}

// passwordCostAdequate compares with the equal choices of the OWASP Password
// Storage Cheat Sheet for argon2id.
func (c *Config) passwordCostAdequate() bool {
	for _, least := range []struct{ memory, iterations uint32 }{{47104, 1}, {19456, 2}, {12288, 3}, {9216, 4}, {7168, 5}} {
		if c.PasswordMemory >= least.memory && c.PasswordIterations >= least.iterations {
			return true
		}
	}
	return false
}

func variety(s Secret) int {
	seen := make(map[byte]struct{})
	for _, b := range s.Reveal() {
		seen[b] = struct{}{}
	}
	return len(seen)
}

func hostOf(addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	return host
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || err == nil && a.IsLoopback()
}
