package config_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/latchkey-auth/latchkey/config"
)

// goodSecret is what a test may use as the root secret.
const goodSecret = "Zk3v0q8TjR1mYcW7uHs5nBxE2pLdA9fG"

// claimsSecret is another.
const claimsSecret = "Xk3v0q8TjR1mYcW7uHs5nBxE2pLdA9fG"

// withSecret is the least environment that loads, and settings on top.
func withSecret(env ...string) []string {
	return append([]string{"PATH=/bin", "LATCHKEY_SECRET=" + goodSecret}, env...)
}

func load(t *testing.T, env ...string) *config.Config {
	t.Helper()
	cfg, err := config.Load(withSecret(env...))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestDefaults(t *testing.T) {
	want := &config.Config{
		Addr: ":8080", AdminAddr: ":9090",
		RedisURL: "redis://127.0.0.1:6379/0", RedisTimeout: 250 * time.Millisecond,
		Secret: goodSecret, Issuer: "http://localhost:8080", Audience: "http://localhost:8080",
		Algorithm: "EdDSA", AccessTTL: 15 * time.Minute, KeyRotation: 720 * time.Hour, JWKSMaxAge: 5 * time.Minute, RefreshTTL: 168 * time.Hour, SessionMax: 720 * time.Hour, RefreshGrace: 10 * time.Second, SessionsPerUser: 100,
		CookieName: "refresh_token", CookieSecure: true, CookiePath: "/auth", Shards: 16,
		LoginLimitClient:  config.Rate{Burst: 10, Period: 5 * time.Minute},
		LoginLimitAccount: config.Rate{Burst: 100, Period: time.Hour},
		LoginLimitAddress: config.Rate{Burst: 100, Period: 5 * time.Minute},
		PasswordMemory:    19456, PasswordIterations: 2, PasswordWait: 2 * time.Second, MaxConnections: 4096,
		LogLevel: "info", LogFormat: "json", ShutdownTimeout: 20 * time.Second,
		Verify: "follow", EdgeLease: time.Second, EdgeMaxDenied: 4_000_000, EdgeCache: 65536,
		Traces:        "off",
		ClaimsFailure: "deny", StatusListTTL: 30 * time.Second,
	}
	if diff := cmp.Diff(want, load(t), cmpopts.EquateComparable(netip.Prefix{}), cmpopts.IgnoreUnexported(config.Config{})); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
}

func TestEverySettingIsRead(t *testing.T) {
	cfg := load(
		t, "LATCHKEY_ADDR=127.0.0.1:0", "LATCHKEY_ADMIN_ADDR=127.0.0.1:0",
		"LATCHKEY_REDIS_URL=rediss://u:p%40ss@r.example:6380/3?master_name=m", "LATCHKEY_REDIS_TIMEOUT=50ms",
		"LATCHKEY_ISSUER=https://auth.example/a", "LATCHKEY_AUDIENCE=api", "LATCHKEY_ALG=ES256",
		"LATCHKEY_ACCESS_TTL=2s", "LATCHKEY_REFRESH_TTL=5s", "LATCHKEY_SESSION_MAX=8760h", "LATCHKEY_REFRESH_GRACE=2s", "LATCHKEY_SESSIONS_PER_USER=1000",
		"LATCHKEY_COOKIE_NAME=session", "LATCHKEY_COOKIE_SECURE=false", "LATCHKEY_COOKIE_DOMAIN=example.com", "LATCHKEY_COOKIE_PATH=/api/auth",
		"LATCHKEY_ALLOWED_ORIGINS=https://a.example, https://b.example:8443", "LATCHKEY_TRUSTED_PROXIES=10.0.0.0/8, 192.0.2.7,2001:db8::/32",
		"LATCHKEY_SHARDS=256", "LATCHKEY_LOGIN_LIMIT_CLIENT=1/1s", "LATCHKEY_LOGIN_LIMIT_ACCOUNT=2/90s", "LATCHKEY_LOGIN_LIMIT_ADDRESS=1000000/24h",
		"LATCHKEY_PASSWORD_MEMORY=65536", "LATCHKEY_PASSWORD_ITERATIONS=3", "LATCHKEY_PASSWORD_WORKERS=5",
		"LATCHKEY_PASSWORD_WAIT=100ms", "LATCHKEY_MAX_CONNECTIONS=1000", "LATCHKEY_LOG_LEVEL=debug", "LATCHKEY_LOG_FORMAT=text",
		"LATCHKEY_SHUTDOWN_DELAY=5s", "LATCHKEY_SHUTDOWN_TIMEOUT=1s", "LATCHKEY_PPROF=true",
		"LATCHKEY_VERIFY=strict", "LATCHKEY_EDGE_LEASE=500ms", "LATCHKEY_EDGE_OUTAGE=serve-stale:30s", "LATCHKEY_EDGE_MAX_DENIED=1000",
		"LATCHKEY_EDGE_CACHE=16", "LATCHKEY_REVOKE_WAIT_REPLICAS=2", "LATCHKEY_ACCESS_COOKIE=access_token", "LATCHKEY_EXTAUTHZ_ADDR=:9191",
		"LATCHKEY_REVOCATIONS_TOKEN="+goodSecret, "LATCHKEY_KEY_ROTATION=24h", "LATCHKEY_JWKS_MAX_AGE=1m", "LATCHKEY_KEYS_DIR=/etc/latchkey/keys", "LATCHKEY_DOCS=true",
		"LATCHKEY_REDIS_TLS_CA_FILE=/ca",
		"LATCHKEY_REDIS_TLS_CERT_FILE=/cert", "LATCHKEY_REDIS_TLS_KEY_FILE=/key",
		"LATCHKEY_TRACES=otlp", "LATCHKEY_AUDIT_STREAM=100000",
		"LATCHKEY_CLAIMS_URL=https://claims.example.com/latchkey", "LATCHKEY_CLAIMS_SECRET="+claimsSecret,
		"LATCHKEY_CLAIMS_FAILURE=omit", "LATCHKEY_DPOP_NONCE=true", `LATCHKEY_SCOPE_CLAIMS={"read":{"a":1}}`,
		"LATCHKEY_STATUS_LIST=true", "LATCHKEY_STATUS_LIST_TTL=1s",
	)
	want := &config.Config{
		Addr: "127.0.0.1:0", AdminAddr: "127.0.0.1:0",
		RedisURL: "rediss://u:p%40ss@r.example:6380/3?master_name=m", RedisTimeout: 50 * time.Millisecond,
		Secret: goodSecret, Issuer: "https://auth.example/a", Audience: "api", Algorithm: "ES256",
		AccessTTL: 2 * time.Second, RefreshTTL: 5 * time.Second, SessionMax: 8760 * time.Hour, RefreshGrace: 2 * time.Second, SessionsPerUser: 1000,
		CookieName: "session", CookieDomain: "example.com", CookiePath: "/api/auth",
		AllowedOrigins: []string{"https://a.example", "https://b.example:8443"},
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8::/32")},
		Shards:         256, LoginLimitClient: config.Rate{Burst: 1, Period: time.Second},
		LoginLimitAccount: config.Rate{Burst: 2, Period: 90 * time.Second}, LoginLimitAddress: config.Rate{Burst: 1000000, Period: 24 * time.Hour},
		PasswordMemory: 65536, PasswordIterations: 3, PasswordWorkers: 5, PasswordWait: 100 * time.Millisecond, MaxConnections: 1000,
		LogLevel: "debug", LogFormat: "text", ShutdownDelay: 5 * time.Second, ShutdownTimeout: time.Second, PProf: true,
		Verify: "strict", EdgeLease: 500 * time.Millisecond, EdgeOutage: config.Outage{ServeStale: 30 * time.Second}, EdgeMaxDenied: 1000, EdgeCache: 16,
		RevokeWaitReplicas: 2, AccessCookie: "access_token", ExtAuthzAddr: ":9191", RevocationsToken: goodSecret,
		RedisTLSCAFile: "/ca", RedisTLSCertFile: "/cert",
		RedisTLSKeyFile: "/key",
		KeyRotation:     24 * time.Hour, JWKSMaxAge: time.Minute, KeysDir: "/etc/latchkey/keys", Docs: true,
		Traces: "otlp", AuditStream: 100_000,
		ClaimsURL: "https://claims.example.com/latchkey", ClaimsSecret: claimsSecret,
		ClaimsFailure: "omit", DPoPNonce: true, ScopeClaims: `{"read":{"a":1}}`,
		StatusList: true, StatusListTTL: time.Second,
	}
	if diff := cmp.Diff(want, cfg, cmpopts.EquateComparable(netip.Prefix{}), cmpopts.IgnoreUnexported(config.Config{})); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	if cfg.Level() != slog.LevelDebug {
		t.Errorf("Level() = %v, want debug", cfg.Level())
	}
	for _, v := range cfg.Effective() {
		if v.Default {
			t.Errorf("%s: this test gives it its default, and so does not show that it is read", v.Name)
		}
	}
}

func TestFaults(t *testing.T) {
	const (
		origin    = "LATCHKEY_ALLOWED_ORIGINS: "
		redisForm = "; write redis://user:password@host:port/db, rediss:// for TLS or unix:// for a socket, with special characters in the password percent-encoded"
	)
	long := strings.Repeat("x", 200)
	for _, tt := range []struct{ name, env, want string }{
		{"boolean 1", "LATCHKEY_COOKIE_SECURE=1", `LATCHKEY_COOKIE_SECURE: "1" is not allowed; write true or false`},
		{"boolean capital", "LATCHKEY_PPROF=True", `LATCHKEY_PPROF: "True" is not allowed; write true or false`},
		{"boolean typo", "LATCHKEY_COOKIE_SECURE=ture", `LATCHKEY_COOKIE_SECURE: "ture" is not allowed; write true or false`},
		{"number text", "LATCHKEY_SHARDS=many", `LATCHKEY_SHARDS: "many" is not allowed; write a whole number from 1 to 256`},
		{"number low", "LATCHKEY_SHARDS=0", `LATCHKEY_SHARDS: "0" is not allowed; write a whole number from 1 to 256`},
		{"number high", "LATCHKEY_SHARDS=257", `LATCHKEY_SHARDS: "257" is not allowed; write a whole number from 1 to 256`},
		{"number overflow", "LATCHKEY_PASSWORD_ITERATIONS=4294967296", `LATCHKEY_PASSWORD_ITERATIONS: "4294967296" is not allowed; write a whole number from 1 to 32`},
		{"number negative unsigned", "LATCHKEY_PASSWORD_MEMORY=-1", `LATCHKEY_PASSWORD_MEMORY: "-1" is not allowed; write a whole number from 7168 to 1048576`},
		{"number below", "LATCHKEY_PASSWORD_MEMORY=7167", `LATCHKEY_PASSWORD_MEMORY: "7167" is not allowed; write a whole number from 7168 to 1048576`},
		{"duration without unit", "LATCHKEY_ACCESS_TTL=900", `LATCHKEY_ACCESS_TTL: "900" is not allowed; write a duration such as 15m, from 1s to 24h, in whole seconds`},
		{"duration short", "LATCHKEY_ACCESS_TTL=0s", `LATCHKEY_ACCESS_TTL: "0s" is not allowed; write a duration such as 15m, from 1s to 24h, in whole seconds`},
		{"duration long", "LATCHKEY_ACCESS_TTL=24h1s", `LATCHKEY_ACCESS_TTL: "24h0m1s" is not allowed; write a duration such as 15m, from 1s to 24h, in whole seconds`},
		{"duration fraction", "LATCHKEY_ACCESS_TTL=10500ms", `LATCHKEY_ACCESS_TTL: "10.5s" is not allowed; write a duration such as 15m, from 1s to 24h, in whole seconds`},
		{"grace short", "LATCHKEY_REFRESH_GRACE=1999ms", `LATCHKEY_REFRESH_GRACE: "1.999s" is not allowed; write a duration such as 10s, from 2s to 60s`},
		{"grace long", "LATCHKEY_REFRESH_GRACE=61s", `LATCHKEY_REFRESH_GRACE: "1m1s" is not allowed; write a duration such as 10s, from 2s to 60s`},
		{"session too long", "LATCHKEY_SESSION_MAX=8761h", `LATCHKEY_SESSION_MAX: "8761h" is not allowed; write a duration such as 720h, from 2s to 8760h, in whole seconds`},
		{"no sessions", "LATCHKEY_SESSIONS_PER_USER=0", `LATCHKEY_SESSIONS_PER_USER: "0" is not allowed; write a whole number from 1 to 1000`},
		{"timeout", "LATCHKEY_REDIS_TIMEOUT=49ms", `LATCHKEY_REDIS_TIMEOUT: "49ms" is not allowed; write a duration such as 250ms, from 50ms to 5s`},
		{"one connection", "LATCHKEY_REDIS_URL=redis://r?pool_size=1", `LATCHKEY_REDIS_URL: its pool_size is not a whole number from 2 to 10000; a replica that follows holds one connection to wait for revocations; correct it, or leave it out for ten per CPU`},
		{"algorithm", "LATCHKEY_ALG=none", `LATCHKEY_ALG: "none" is not allowed; write EdDSA, ES256, RS256 or HS256`},
		{"algorithm case", "LATCHKEY_ALG=eddsa", `LATCHKEY_ALG: "eddsa" is not allowed; write EdDSA, ES256, RS256 or HS256`},
		{"level", "LATCHKEY_LOG_LEVEL=verbose", `LATCHKEY_LOG_LEVEL: "verbose" is not allowed; write debug, info, warn or error`},
		{"format", "LATCHKEY_LOG_FORMAT=xml", `LATCHKEY_LOG_FORMAT: "xml" is not allowed; write json or text`},
		{"verify", "LATCHKEY_VERIFY=lax", `LATCHKEY_VERIFY: "lax" is not allowed; write follow or strict`},
		{"outage", "LATCHKEY_EDGE_OUTAGE=serve-stale:2h", `LATCHKEY_EDGE_OUTAGE: "serve-stale:2h" is not allowed; write deny, or serve-stale: and a duration from 1s to 1h`},
		{"claims without a secret", "LATCHKEY_CLAIMS_URL=https://claims.example.com", `LATCHKEY_CLAIMS_SECRET: not set; make one with: openssl rand -base64 48, and give it to the webhook`},
		{"claims of scopes that are no objects", `LATCHKEY_SCOPE_CLAIMS={"read":1}`, `LATCHKEY_SCOPE_CLAIMS: not an object of objects; write JSON such as {"reports:read":{"department":"finance"}}`},
		{"claims failure", "LATCHKEY_CLAIMS_FAILURE=allow", `LATCHKEY_CLAIMS_FAILURE: "allow" is not allowed; write deny or omit`},
		{"short revocations token", "LATCHKEY_REVOCATIONS_TOKEN=hunter2", `LATCHKEY_REVOCATIONS_TOKEN: 7 bytes, too short to be safe; make one with: openssl rand -base64 48`},
		{"ext_authz address", "LATCHKEY_EXTAUTHZ_ADDR=9191", `LATCHKEY_EXTAUTHZ_ADDR: "9191" is not an address; write host:port or :port, with a port from 0 (any free one) to 65535`},
		{"access cookie's name", "LATCHKEY_ACCESS_COOKIE=a b", `LATCHKEY_ACCESS_COOKIE: "a b" cannot name this cookie; write letters, digits, - and _, such as __Host-session`},
		{"access cookie clashes", "LATCHKEY_ACCESS_COOKIE=refresh_token", `LATCHKEY_ACCESS_COOKIE: "refresh_token" is the name of the refresh cookie, too; write another`},
		{"cookie's name", "LATCHKEY_COOKIE_NAME=a=b", `LATCHKEY_COOKIE_NAME: "a=b" cannot name this cookie; write letters, digits, - and _, such as __Host-session`},
		{"cookie's name clashes", "LATCHKEY_COOKIE_NAME=known_device", `LATCHKEY_COOKIE_NAME: "known_device" cannot name this cookie; write letters, digits, - and _, such as __Host-session`},
		{"cookie of the host, with a path", "LATCHKEY_COOKIE_NAME=__Host-session", `LATCHKEY_COOKIE_NAME: "__Host-session" needs LATCHKEY_COOKIE_PATH=/; set it, or leave the prefix out`},
		{"rate zero", "LATCHKEY_LOGIN_LIMIT_CLIENT=0/5m", `LATCHKEY_LOGIN_LIMIT_CLIENT: "0/5m" is not allowed; write a number and a period such as 10/5m: 1 to 1000000 in 1s to 24h`},
		{"rate form", "LATCHKEY_LOGIN_LIMIT_CLIENT=10", `LATCHKEY_LOGIN_LIMIT_CLIENT: "10" is not allowed; write a number and a period such as 10/5m: 1 to 1000000 in 1s to 24h`},
		{"rate number", "LATCHKEY_LOGIN_LIMIT_ACCOUNT=x/5m", `LATCHKEY_LOGIN_LIMIT_ACCOUNT: "x/5m" is not allowed; write a number and a period such as 100/1h: 1 to 1000000 in 1s to 24h`},
		{"rate period", "LATCHKEY_LOGIN_LIMIT_ADDRESS=10/500ms", `LATCHKEY_LOGIN_LIMIT_ADDRESS: "10/500ms" is not allowed; write a number and a period such as 100/5m: 1 to 1000000 in 1s to 24h`},
		{"rate period text", "LATCHKEY_LOGIN_LIMIT_ADDRESS=10/minute", `LATCHKEY_LOGIN_LIMIT_ADDRESS: "10/minute" is not allowed; write a number and a period such as 100/5m: 1 to 1000000 in 1s to 24h`},
		{"long value", "LATCHKEY_SHARDS=" + long, `LATCHKEY_SHARDS: "` + long[:80] + `"... is not allowed; write a whole number from 1 to 256`},
		{"line break in value", "LATCHKEY_SHARDS=1\n2", `LATCHKEY_SHARDS: "1\n2" is not allowed; write a whole number from 1 to 256`},

		{"refresh not above access and grace", "LATCHKEY_REFRESH_TTL=15m10s", `LATCHKEY_REFRESH_TTL: 15m10s is not more than LATCHKEY_ACCESS_TTL and LATCHKEY_REFRESH_GRACE together (15m10s); raise it: a session lasts for this long after the last refresh that replaced its token`},
		{"refresh above session", "LATCHKEY_SESSION_MAX=167h", `LATCHKEY_REFRESH_TTL: 168h is more than LATCHKEY_SESSION_MAX (167h); lower it, or raise LATCHKEY_SESSION_MAX`},

		{"address", "LATCHKEY_ADDR=8080", `LATCHKEY_ADDR: "8080" is not an address; write host:port or :port, with a port from 0 (any free one) to 65535`},
		{"address port", "LATCHKEY_ADMIN_ADDR=:65536", `LATCHKEY_ADMIN_ADDR: ":65536" is not an address; write host:port or :port, with a port from 0 (any free one) to 65535`},
		{"same address", "LATCHKEY_ADMIN_ADDR=:8080", `LATCHKEY_ADMIN_ADDR: the same as LATCHKEY_ADDR; give it a port of its own: metrics and profiles are not for the public`},

		{"redis scheme", "LATCHKEY_REDIS_URL=http://u:hunter2@r", `LATCHKEY_REDIS_URL: its scheme is none of redis, rediss and unix` + redisForm},
		{"redis host and port only", "LATCHKEY_REDIS_URL=localhost:6379", `LATCHKEY_REDIS_URL: not a URL` + redisForm},
		{"redis password not encoded", "LATCHKEY_REDIS_URL=redis://u:hunter2#x@r", `LATCHKEY_REDIS_URL: not a URL` + redisForm},
		{"redis no host", "LATCHKEY_REDIS_URL=redis:///0", `LATCHKEY_REDIS_URL: names no host` + redisForm},
		{"redis database", "LATCHKEY_REDIS_URL=redis://r/hunter2", `LATCHKEY_REDIS_URL: what follows the host is not a database number` + redisForm},
		{"redis socket", "LATCHKEY_REDIS_URL=unix://hunter2", `LATCHKEY_REDIS_URL: names no socket` + redisForm},

		{"secret short", "LATCHKEY_SECRET=hunter2hunter2hunter2hunter2hun", `LATCHKEY_SECRET: 31 bytes long; at least 32 are needed; make one with: openssl rand -base64 48`},
		{"secret missing", "LATCHKEY_SECRET=", `LATCHKEY_SECRET: not set; make one with: openssl rand -base64 48`},
		{"secret of dev", "LATCHKEY_SECRET=" + config.DevSecret, "LATCHKEY_SECRET: this is the published secret of `latchkey dev`, with which anybody could forge tokens; make one with: openssl rand -base64 48"},
		{"secret of dev, padded", "LATCHKEY_SECRET=" + config.DevSecret + "\n", "LATCHKEY_SECRET: this is the published secret of `latchkey dev`, with which anybody could forge tokens; make one with: openssl rand -base64 48"},
		{"secret of the example", "LATCHKEY_SECRET=" + config.ExampleSecret, `LATCHKEY_SECRET: this is the placeholder of the example file, with which anybody could forge tokens; make one with: openssl rand -base64 48`},

		{"second secret short", "LATCHKEY_SECRET=" + goodSecret + ",hunter2", `LATCHKEY_SECRET: secret 2 of 2: 7 bytes long; at least 32 are needed; make one with: openssl rand -base64 48`},
		{"second secret of dev", "LATCHKEY_SECRET=" + goodSecret + "\n" + config.DevSecret, "LATCHKEY_SECRET: secret 2 of 2: this is the published secret of `latchkey dev`, with which anybody could forge tokens; make one with: openssl rand -base64 48"},
		{"the same secret twice", "LATCHKEY_SECRET=" + goodSecret + ", " + goodSecret, `LATCHKEY_SECRET: secret 2 of 2: given before; leave it out`},
		{"no secret in the list", "LATCHKEY_SECRET=,\n", `LATCHKEY_SECRET: not set; make one with: openssl rand -base64 48`},
		{"rotation too often", "LATCHKEY_KEY_ROTATION=24m", `LATCHKEY_KEY_ROTATION: 24m is less than LATCHKEY_ACCESS_TTL and twice LATCHKEY_JWKS_MAX_AGE together (25m); raise it, or write 0 for no rotation on schedule`},

		{"issuer no scheme", "LATCHKEY_ISSUER=auth.example", `LATCHKEY_ISSUER: "auth.example" is not an issuer; write https://host[:port][/path], without query and fragment`},
		{"issuer query", "LATCHKEY_ISSUER=https://auth.example?", `LATCHKEY_ISSUER: "https://auth.example?" is not an issuer; write https://host[:port][/path], without query and fragment`},
		{"issuer fragment", "LATCHKEY_ISSUER=https://auth.example#", `LATCHKEY_ISSUER: "https://auth.example#" is not an issuer; write https://host[:port][/path], without query and fragment`},
		{"issuer space", "LATCHKEY_ISSUER=https://auth.example/a b", `LATCHKEY_ISSUER: "https://auth.example/a b" is not an issuer; write https://host[:port][/path], without query and fragment`},
		{"issuer credentials", "LATCHKEY_ISSUER=https://u:hunter2@auth.example", `LATCHKEY_ISSUER: holds a user name or password; leave them out: the issuer is in every token`},
		{"issuer broken credentials", "LATCHKEY_ISSUER=https://u:hunter2 @auth.example", `LATCHKEY_ISSUER: the value is not an issuer; write https://host[:port][/path], without query and fragment`},
		{"audience", "LATCHKEY_AUDIENCE=a b", `LATCHKEY_AUDIENCE: "a b" is not allowed; write 1 to 255 printable ASCII characters without spaces`},

		{"domain URL", "LATCHKEY_COOKIE_DOMAIN=https://example.com", `LATCHKEY_COOKIE_DOMAIN: "https://example.com" is not a domain; write a name such as example.com, without scheme, port or leading dot`},
		{"domain dot", "LATCHKEY_COOKIE_DOMAIN=.example.com", `LATCHKEY_COOKIE_DOMAIN: ".example.com" is not a domain; write a name such as example.com, without scheme, port or leading dot`},
		{"domain address", "LATCHKEY_COOKIE_DOMAIN=192.0.2.1", `LATCHKEY_COOKIE_DOMAIN: "192.0.2.1" is not a domain; write a name such as example.com, without scheme, port or leading dot`},
		{"domain attribute", "LATCHKEY_COOKIE_DOMAIN=a;Path=/", `LATCHKEY_COOKIE_DOMAIN: "a;Path=/" is not a domain; write a name such as example.com, without scheme, port or leading dot`},
		{"path relative", "LATCHKEY_COOKIE_PATH=auth", `LATCHKEY_COOKIE_PATH: "auth" is not a path; write one that begins with / and has no spaces or semicolons, such as /auth`},
		{"path attribute", "LATCHKEY_COOKIE_PATH=/;Domain=x", `LATCHKEY_COOKIE_PATH: "/;Domain=x" is not a path; write one that begins with / and has no spaces or semicolons, such as /auth`},

		{"origin any", "LATCHKEY_ALLOWED_ORIGINS=*", origin + `"*" would let every site use the cookies of your users; list the origins of your own pages`},
		{"origin null", "LATCHKEY_ALLOWED_ORIGINS=null", origin + `"null" is not an origin; write scheme://host or scheme://host:port, separated by commas`},
		{"origin host", "LATCHKEY_ALLOWED_ORIGINS=app.example", origin + `"app.example" is not an origin; write scheme://host or scheme://host:port, separated by commas`},
		{"origin slash", "LATCHKEY_ALLOWED_ORIGINS=https://app.example/", origin + `"https://app.example/" is more than an origin; write https://app.example`},
		{"origin path", "LATCHKEY_ALLOWED_ORIGINS=https://app.example:81/x?y", origin + `"https://app.example:81/x?y" is more than an origin; write https://app.example:81`},
		{"origin capitals", "LATCHKEY_ALLOWED_ORIGINS=https://App.example", origin + `"https://App.example" has capitals, which browsers never send; write https://app.example`},
		{"origin default port", "LATCHKEY_ALLOWED_ORIGINS=https://app.example:443", origin + `"https://app.example:443" names the default port, which browsers leave out; write https://app.example`},
		{"origin port", "LATCHKEY_ALLOWED_ORIGINS=https://app.example:65536", origin + `"https://app.example:65536" is not an origin; write scheme://host or scheme://host:port, separated by commas`},
		{"origin wildcard", "LATCHKEY_ALLOWED_ORIGINS=https://*.example", origin + `"https://*.example" is not an origin; write the host in full and in ASCII (xn--...)`},
		{"origin empty element", "LATCHKEY_ALLOWED_ORIGINS=https://a.example,,https://b.example", origin + `"" is not an origin; write scheme://host or scheme://host:port, separated by commas`},
		{"origin credentials", "LATCHKEY_ALLOWED_ORIGINS=https://u:hunter2@a.example", origin + `the value is not an origin; write scheme://host or scheme://host:port, separated by commas`},

		{"proxy name", "LATCHKEY_TRUSTED_PROXIES=10.0.0.0/8,balancer", `LATCHKEY_TRUSTED_PROXIES: "balancer" is neither an address nor a network; write 10.0.0.7 or 10.0.0.0/8, separated by commas`},
		{"proxy zone", "LATCHKEY_TRUSTED_PROXIES=fe80::1%eth0", `LATCHKEY_TRUSTED_PROXIES: "fe80::1%eth0" is neither an address nor a network; write 10.0.0.7 or 10.0.0.0/8, separated by commas`},
		{"proxy bits", "LATCHKEY_TRUSTED_PROXIES=10.0.0.1/8", `LATCHKEY_TRUSTED_PROXIES: "10.0.0.1/8" has bits beyond its prefix; write 10.0.0.0/8 for the network or 10.0.0.1 for the one address`},
		{"proxy mapped", "LATCHKEY_TRUSTED_PROXIES=::ffff:10.0.0.1", `LATCHKEY_TRUSTED_PROXIES: "::ffff:10.0.0.1/128" is an IPv4 network in IPv6 form, which matches nothing; write it as IPv4`},

		{"unknown near", "LATCHKEY_ACCES_TTL=15m", `LATCHKEY_ACCES_TTL: no such setting; did you mean LATCHKEY_ACCESS_TTL?`},
		{"unknown far", "LATCHKEY_FLUX_CAPACITOR=1", `LATCHKEY_FLUX_CAPACITOR: no such setting; unset it, or look its name up in docs/settings.md`},
		{"unknown case", "latchkey_addr=:1", `latchkey_addr: no such setting; did you mean LATCHKEY_ADDR?`},
		{"unknown file", "LATCHKEY_SECRETS_FILE=/x", `LATCHKEY_SECRETS_FILE: no such setting; did you mean LATCHKEY_SECRET_FILE?`},
		{"prefix alone", "LATCHKEY_=1", `LATCHKEY_: no such setting; unset it, or look its name up in docs/settings.md`},
		{"unknown with line break", "LATCHKEY_A\nB=1", `"LATCHKEY_A\nB": no such setting; did you mean LATCHKEY_ALG?`},
		{"file for what is no secret", "LATCHKEY_ADDR_FILE=/x", `LATCHKEY_ADDR_FILE: only a secret can be read from a file; set LATCHKEY_ADDR`},
		{"port is no service link", "LATCHKEY_PORT=8080", `LATCHKEY_PORT: no such setting; unset it, or look its name up in docs/settings.md`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := config.Load(withSecret(tt.env))
			if err == nil {
				t.Fatalf("Load succeeded with %q", tt.env)
			}
			if cfg != nil {
				t.Error("Load returned settings beside the error")
			}
			if want := "1 setting is wrong:\n  " + tt.want; err.Error() != want {
				t.Errorf("error\n got: %s\nwant: %s", err, want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Error("the error holds a password")
			}
		})
	}
}

func TestFaultsAreReportedAllAtOnceInTheOrderOfTheSettings(t *testing.T) {
	_, err := config.Load([]string{
		"LATCHKEY_ZZZ=1", "LATCHKEY_SHARDS=x", "LATCHKEY_COOKIE_SECURE=yes", "LATCHKEY_ACCESS_TTL=0s",
		"LATCHKEY_REFRESH_TTL=1s", "LATCHKEY_ADR=:1", "LATCHKEY_REDIS_URL=nonsense",
	})
	want := []string{
		"8 settings are wrong:",
		"LATCHKEY_REDIS_URL:", "LATCHKEY_SECRET: not set;", "LATCHKEY_ACCESS_TTL:", "LATCHKEY_REFRESH_TTL:",
		"LATCHKEY_COOKIE_SECURE:", "LATCHKEY_SHARDS:", "LATCHKEY_ADR: no such setting; did you mean LATCHKEY_ADDR?", "LATCHKEY_ZZZ:",
	}
	if err == nil {
		t.Fatal("Load succeeded")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines, want %d:\n%s", len(lines), len(want), err)
	}
	for i, l := range lines {
		if !strings.HasPrefix(strings.TrimSpace(l), want[i]) {
			t.Errorf("line %d is %q, want it to begin with %q", i, l, want[i])
		}
	}
}

func TestKubernetesServiceLinksAreNoSettings(t *testing.T) {
	load(
		t, "LATCHKEY_SERVICE_HOST=10.0.0.7", "LATCHKEY_SERVICE_PORT=8080", "LATCHKEY_SERVICE_PORT_HTTP=8080", "LATCHKEY_PORT=tcp://10.0.0.7:8080",
		"LATCHKEY_PORT_8080_TCP=tcp://10.0.0.7:8080", "LATCHKEY_PORT_8080_TCP_PROTO=tcp", "LATCHKEY_PORT_8080_TCP_PORT=8080", "LATCHKEY_PORT_8080_TCP_ADDR=10.0.0.7",
		"LATCHKEY_REDIS_SERVICE_HOST=10.0.0.8", "LATCHKEY_REDIS_PORT=tcp://10.0.0.8:6379", "LATCHKEY_REDIS_PORT_6379_TCP_PORT=6379",
	)
}

func TestAnEmptyValueIsUnsetAndTheLastOfTwoCounts(t *testing.T) {
	cfg := load(t, "LATCHKEY_ADDR=", "LATCHKEY_SHARDS=4", "LATCHKEY_SHARDS=8", "LATCHKEY_SECRET_FILE=")
	if cfg.Addr != ":8080" || cfg.Shards != 8 {
		t.Errorf("Addr = %q, Shards = %d; want :8080 and 8", cfg.Addr, cfg.Shards)
	}
}

// A caller's mistake must not make the library read the environment of the process.
func TestOnlyTheGivenEnvironmentIsRead(t *testing.T) {
	t.Setenv("LATCHKEY_SECRET", goodSecret)
	if _, err := config.Load(nil); err == nil {
		t.Error("Load(nil) read the process's environment")
	}
	t.Setenv("LATCHKEY_SHARDS", "3")
	if got := config.Dev().Shards; got != 16 {
		t.Errorf("Dev().Shards = %d, read from the process's environment", got)
	}
}

func TestSecretFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct {
		name, content, want string
	}{
		{"plain", goodSecret, goodSecret},
		{"newline", goodSecret + "\n", goodSecret},
		{"windows", goodSecret + "\r\n", goodSecret},
		{"two newlines", goodSecret + "\n\n", goodSecret + "\n"},
		{"spaces", " " + goodSecret + " ", " " + goodSecret + " "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := config.Load([]string{
				"LATCHKEY_SECRET_FILE=" + file("secret", tt.content),
				"LATCHKEY_REDIS_URL_FILE=" + file("redis", "redis://:pw@r:1/2\n"),
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := string(cfg.Secret.Reveal()); got != tt.want {
				t.Errorf("secret %q, want %q", got, tt.want)
			}
			if got := cfg.RedisURL.Reveal(); got != "redis://:pw@r:1/2" {
				t.Errorf("Redis URL %q", got)
			}
		})
	}

	const remedy = "; give the path of a file that holds the value and that this user may read"
	for _, tt := range []struct {
		name string
		env  []string
		want string
	}{
		{"both", withSecret("LATCHKEY_SECRET_FILE=" + file("secret", goodSecret)), "LATCHKEY_SECRET: given twice, here and by LATCHKEY_SECRET_FILE; unset one of the two"},
		{"missing", []string{"LATCHKEY_SECRET_FILE=" + dir + "/none"}, "LATCHKEY_SECRET: LATCHKEY_SECRET_FILE names a file that cannot be read (no such file or directory)" + remedy},
		{"the secret itself", []string{"LATCHKEY_SECRET_FILE=" + goodSecret}, "LATCHKEY_SECRET: LATCHKEY_SECRET_FILE names a file that cannot be read (no such file or directory)" + remedy},
		{"folder", []string{"LATCHKEY_SECRET_FILE=" + dir}, "LATCHKEY_SECRET: LATCHKEY_SECRET_FILE names a file that cannot be read (is a directory)" + remedy},
		{"empty", []string{"LATCHKEY_SECRET_FILE=" + file("empty", "\n")}, "LATCHKEY_SECRET: LATCHKEY_SECRET_FILE names a file that is empty" + remedy},
		{"large", []string{"LATCHKEY_SECRET_FILE=" + file("large", strings.Repeat("x", 64<<10+1))}, "LATCHKEY_SECRET: LATCHKEY_SECRET_FILE names a file that is larger than 64 KiB" + remedy},
		{"short", []string{"LATCHKEY_SECRET_FILE=" + file("short", "hunter2\n")}, "LATCHKEY_SECRET: 7 bytes long; at least 32 are needed; make one with: openssl rand -base64 48"},
		{"missing Redis URL", withSecret("LATCHKEY_REDIS_URL_FILE=" + dir + "/none"), "LATCHKEY_REDIS_URL: LATCHKEY_REDIS_URL_FILE names a file that cannot be read (no such file or directory)" + remedy},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.Load(tt.env)
			if err == nil || err.Error() != "1 setting is wrong:\n  "+tt.want {
				t.Errorf("error\n got: %v\nwant: %s", err, tt.want)
			}
		})
	}
}

func TestDevIsForDevAlone(t *testing.T) {
	cfg := config.Dev()
	if err := cfg.ValidateDev(); err != nil {
		t.Errorf("ValidateDev: %v", err)
	}
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "published secret of `latchkey dev`") {
		t.Errorf("Validate = %v, want it to refuse the published secret", err)
	}
	cfg.Shards = 0
	if err := cfg.ValidateDev(); err == nil {
		t.Error("ValidateDev let Shards = 0 pass")
	}
	cfg = config.Dev()
	cfg.Secret = config.ExampleSecret
	if err := cfg.ValidateDev(); err == nil {
		t.Error("ValidateDev let the placeholder pass")
	}
}

func TestStatusListFaults(t *testing.T) {
	for name, c := range map[string]struct {
		env  []string
		want string
	}{
		"HS256": {[]string{"LATCHKEY_ALG=HS256"}, "LATCHKEY_STATUS_LIST: true, and with LATCHKEY_ALG=HS256 nobody could check a list; choose another algorithm, or write false"},
		"as long as a token": {
			[]string{"LATCHKEY_STATUS_LIST_TTL=15m"},
			"LATCHKEY_STATUS_LIST_TTL: 15m is not less than LATCHKEY_ACCESS_TTL (15m); lower it: a token would expire before its revocation shows",
		},
	} {
		if _, err := config.Load(withSecret(append(c.env, "LATCHKEY_STATUS_LIST=true")...)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := config.Load(withSecret(c.env...)); err != nil {
			t.Errorf("%s, without status lists: %v", name, err)
		}
	}
}

func TestClaimsWebhookFaults(t *testing.T) {
	for name, c := range map[string]struct{ url, secret, want string }{
		"password":        {"https://user:canary@claims.example.com", claimsSecret, "LATCHKEY_CLAIMS_URL: holds a user name or password"},
		"query":           {"https://claims.example.com/c?api_key=canary", claimsSecret, "LATCHKEY_CLAIMS_URL: holds a query"},
		"scheme":          {"ftp://claims.example.com", claimsSecret, "LATCHKEY_CLAIMS_URL: not a URL"},
		"no host":         {"https://", claimsSecret, "LATCHKEY_CLAIMS_URL: not a URL"},
		"short secret":    {"https://claims.example.com", "hunter2", "LATCHKEY_CLAIMS_SECRET: 7 bytes long; at least 32 are needed"},
		"the root secret": {"https://claims.example.com", goodSecret, "LATCHKEY_CLAIMS_SECRET: the same as LATCHKEY_SECRET"},
	} {
		_, err := config.Load(withSecret("LATCHKEY_CLAIMS_URL="+c.url, "LATCHKEY_CLAIMS_SECRET="+c.secret))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWarnings(t *testing.T) {
	quiet := []string{"LATCHKEY_ISSUER=https://auth.example"}
	for _, tt := range []struct{ name, env, want string }{
		{"none", "LATCHKEY_PPROF=false", ""},
		{"cookie", "LATCHKEY_COOKIE_SECURE=false", "LATCHKEY_COOKIE_SECURE is false: "},
		{"issuer", "LATCHKEY_ISSUER=http://auth.example", "LATCHKEY_ISSUER is not https: "},
		{"origin", "LATCHKEY_ALLOWED_ORIGINS=http://app.example", "LATCHKEY_ALLOWED_ORIGINS has http://app.example: "},
		{"local origin", "LATCHKEY_ALLOWED_ORIGINS=http://localhost:3000,http://[::1]:1", ""},
		{"every proxy", "LATCHKEY_TRUSTED_PROXIES=0.0.0.0/0", "LATCHKEY_TRUSTED_PROXIES has 0.0.0.0/0: "},
		{"TLS unchecked", "LATCHKEY_REDIS_URL=rediss://u:hunter2@r?skip_verify=true", "LATCHKEY_REDIS_URL has skip_verify: "},
		{"dull secret", "LATCHKEY_SECRET=" + strings.Repeat("hunter2", 5), "LATCHKEY_SECRET has only 7 different bytes "},
		{"weak hash", "LATCHKEY_PASSWORD_ITERATIONS=1", "LATCHKEY_PASSWORD_MEMORY=19456 with LATCHKEY_PASSWORD_ITERATIONS=1 is weaker "},
		{"profiler", "LATCHKEY_PPROF=true", "LATCHKEY_PPROF is true "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := load(t, append(slices.Clone(quiet), tt.env)...).Warnings()
			if tt.want == "" && len(got) == 0 {
				return
			}
			if len(got) != 1 || !strings.HasPrefix(got[0], tt.want) || tt.want == "" {
				t.Errorf("warnings %q, want one that begins with %q", got, tt.want)
			}
			if strings.Contains(strings.Join(got, ""), "hunter2") {
				t.Error("a warning holds a password")
			}
		})
	}
	if w := load(t, quiet[0], "LATCHKEY_PPROF=true", "LATCHKEY_ADMIN_ADDR=127.0.0.1:9090").Warnings(); w != nil {
		t.Errorf("warnings %q for a profiler on the loopback interface", w)
	}
}

func TestSecretFilesThatOthersCanReadAreWarnedOf(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name, setting string
		file, folder  os.FileMode
		want          string
	}{
		{"open to all", "LATCHKEY_SECRET_FILE", 0o644, 0o755, "(mode 0644): let only the user that Latchkey runs as read it, as with: chmod 600 "},
		{"the key of the client certificate", "LATCHKEY_REDIS_TLS_KEY_FILE", 0o404, 0o755, "(mode 0404): "},
		{"the owner's and the group's", "LATCHKEY_SECRET_FILE", 0o440, 0o755, ""},
		{"in a closed folder", "LATCHKEY_SECRET_FILE", 0o644, 0o750, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			folder := filepath.Join(dir, tt.name)
			path := filepath.Join(folder, "file")
			for _, err := range []error{
				os.Mkdir(folder, 0o700), os.WriteFile(path, []byte(goodSecret), 0o600), os.Chmod(path, tt.file), os.Chmod(folder, tt.folder),
				// As Kubernetes mounts a Secret.
				os.Symlink(path, path+"-link"),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			env := []string{"LATCHKEY_ISSUER=https://auth.example", tt.setting + "=" + path + "-link"}
			if tt.setting != "LATCHKEY_SECRET_FILE" {
				env = withSecret(append(env, "LATCHKEY_REDIS_URL=rediss://r.example", "LATCHKEY_REDIS_TLS_CERT_FILE=/cert")...)
			}
			cfg, err := config.Load(env)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(cfg.Warnings(), "\n")
			named := strings.HasPrefix(got, tt.setting+": ") && strings.Contains(got, path+"-link")
			if tt.want == "" && got != "" || tt.want != "" && (!named || !strings.Contains(got, tt.want)) || strings.Contains(got, goodSecret) {
				t.Errorf("warnings %q, want %q", got, tt.want)
			}
		})
	}
}

func TestSecretsAreRedactedWhereverTheyArePrinted(t *testing.T) {
	const password = "hunter2hunter2"
	cfg := load(t, "LATCHKEY_REDIS_URL=redis://user:"+password+"@r.example:6379/1")
	outputs := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%t", "%T%v", "%10.3s"} {
		n := strings.Count(verb, "%")
		for name, v := range map[string]any{"secret": cfg.Secret, "url": cfg.RedisURL, "struct": *cfg, "pointer": cfg, "slice": []config.Secret{cfg.Secret}, "map": map[config.RedisURL]config.Secret{cfg.RedisURL: cfg.Secret}} {
			args := []any{v, v}[:n]
			outputs[name+" "+verb] = fmt.Sprintf(verb, args...)
		}
	}
	for name, v := range map[string]any{"secret": cfg.Secret, "url": cfg.RedisURL, "config": cfg, "effective": cfg.Effective()} {
		j, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		outputs["json "+name] = string(j)
		for kind, handler := range map[string]func(*bytes.Buffer) slog.Handler{
			"json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
			"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		} {
			var b bytes.Buffer
			slog.New(handler(&b)).InfoContext(t.Context(), "start", "value", v)
			outputs["slog "+kind+" "+name] = b.String()
		}
	}
	x, err := xml.Marshal(cfg.Secret)
	if err != nil {
		t.Fatal(err)
	}
	outputs["xml"] = string(x)

	for name, out := range outputs {
		for _, s := range []string{goodSecret, password, fmt.Sprintf("%x", goodSecret), fmt.Sprintf("%X", password), fmt.Sprintf("% x", password), "user"} {
			if strings.Contains(out, s) {
				t.Errorf("%s shows a secret: %s", name, out)
			}
		}
		if !strings.Contains(out, config.Redacted) {
			t.Errorf("%s does not say %s: %s", name, config.Redacted, out)
		}
	}
	if got := fmt.Sprint(config.Secret("")); got != "" {
		t.Errorf("an empty secret prints %q: it must be seen that none is set", got)
	}
}

func TestRedisURLShowsAllButTheCredentials(t *testing.T) {
	for _, tt := range []struct{ url, want string }{
		{"", ""},
		{"redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"},
		{"redis://r", "redis://r"},
		{"rediss://user:hunter2@r.example:6380/3?protocol=3&client_name=x", "rediss://[redacted]@r.example:6380/3?protocol=3&client_name=x"},
		{"redis://:hunter2@r", "redis://[redacted]@r"},
		{"redis://hunter2@r", "redis://[redacted]@r"},
		{"redis://r?sentinel_password=hunter2&addr=b:1", "redis://r?sentinel_password=[redacted]&addr=b:1"},
		{"redis://r?p%61ssword=hunter2", "redis://r?p%61ssword=[redacted]"},
		{"unix://u:hunter2@/run/redis.sock?db=1", "unix://[redacted]@/run/redis.sock?db=1"},
		{"unix:///run/redis.sock", "unix:///run/redis.sock"},
		{"redis://u:hunter2/x@r:6379", "[redacted]"},
		{"redis://u:1/hunter2@r:6379", "[redacted]"},
		{"redis://u:p@hunter2/x@r:6379", "[redacted]"},
		{"redis://u:1#hunter2@r:6379", "[redacted]"},
		{"redis://u:1?hunter2@r:6379", "[redacted]"},
		{"redis:hunter2", "[redacted]"},
		{"hunter2\n", "[redacted]"},
	} {
		if got := config.RedisURL(tt.url).String(); got != tt.want {
			t.Errorf("%q is shown as %q, want %q", tt.url, got, tt.want)
		}
	}
}

func TestEffectiveNamesEverySettingInTheFormInWhichItIsSet(t *testing.T) {
	cfg := load(
		t, "LATCHKEY_REDIS_URL=redis://:pw@r/0", "LATCHKEY_SHARDS=4", "LATCHKEY_TRUSTED_PROXIES=10.0.0.7,2001:db8::/32",
		"LATCHKEY_ALLOWED_ORIGINS=https://a.example,https://b.example", "LATCHKEY_ACCESS_TTL=90m",
	)
	got := map[string]config.Value{}
	env := []string{}
	for _, v := range cfg.Effective() {
		got[v.Name] = v
		if v.Name != "LATCHKEY_SECRET" && v.Name != "LATCHKEY_REDIS_URL" {
			env = append(env, v.Name+"="+v.Value)
		}
	}
	want := map[string]config.Value{
		"LATCHKEY_SECRET":             {Value: "[redacted]"},
		"LATCHKEY_REDIS_URL":          {Value: "redis://[redacted]@r/0"},
		"LATCHKEY_SHARDS":             {Value: "4"},
		"LATCHKEY_TRUSTED_PROXIES":    {Value: "10.0.0.7/32,2001:db8::/32"},
		"LATCHKEY_ACCESS_TTL":         {Value: "1h30m"},
		"LATCHKEY_REFRESH_TTL":        {Value: "168h", Default: true},
		"LATCHKEY_AUDIENCE":           {Value: "http://localhost:8080", Default: true},
		"LATCHKEY_LOGIN_LIMIT_CLIENT": {Value: "10/5m", Default: true},
		"LATCHKEY_COOKIE_SECURE":      {Value: "true", Default: true},
	}
	for name, w := range want {
		w.Name = name
		if got[name] != w {
			t.Errorf("%s: %+v, want %+v", name, got[name], w)
		}
	}
	// What is shown can be set again, and means the same.
	again := load(t, append(env, "LATCHKEY_REDIS_URL=redis://:pw@r/0")...)
	if diff := cmp.Diff(cfg, again, cmpopts.EquateComparable(netip.Prefix{}), cmpopts.IgnoreUnexported(config.Config{})); diff != "" {
		t.Errorf("settings shown and read again (-first +again):\n%s", diff)
	}
}

func TestDocument(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range config.Document() {
		if !strings.HasPrefix(r.Name, config.Prefix) || seen[r.Name] {
			t.Errorf("%q is not a name of its own that begins with %s", r.Name, config.Prefix)
		}
		seen[r.Name] = true
		if r.Type == "" || !strings.HasSuffix(r.Doc, ".") && !strings.HasSuffix(r.Doc, config.SecretHint) {
			t.Errorf("%s: type %q and text %q: want both, the text in sentences", r.Name, r.Type, r.Doc)
		}
		if want := slices.Contains([]string{"LATCHKEY_SECRET", "LATCHKEY_REDIS_URL", "LATCHKEY_REVOCATIONS_TOKEN", "LATCHKEY_CLAIMS_SECRET"}, r.Name); r.Secret != want {
			t.Errorf("%s: Secret = %t", r.Name, r.Secret)
		}
		if r.Secret && r.Type == "secret" && r.Default != "" {
			t.Errorf("%s is a secret with a default", r.Name)
		}
	}
	if len(seen) < 13 {
		t.Errorf("%d settings documented", len(seen))
	}
}

func TestParseRate(t *testing.T) {
	for _, s := range []string{"10/5m", "1/1s", "100/1h", "3/1h30m", "7/1h0m1s"} {
		r, err := config.ParseRate(s)
		if err != nil || r.String() != s {
			t.Errorf("ParseRate(%q) = %v, %v", s, r, err)
		}
	}
	for _, s := range []string{"", "/", "10", "10/", "/5m", "a/5m", "10/5", "10/5m/1h", "10 / 5m"} {
		if r, err := config.ParseRate(s); err == nil {
			t.Errorf("ParseRate(%q) = %v, want an error", s, r)
		}
	}
}

// Whatever the environment, Load either returns settings that Validate accepts or
// one error of one line per fault, with no secret in it.
func FuzzLoad(f *testing.F) {
	f.Add("LATCHKEY_ADDR", ":1", "LATCHKEY_SHARDS", "1")
	f.Add("LATCHKEY_TRUSTED_PROXIES", "10.0.0.0/8,::1%x", "LATCHKEY_ALLOWED_ORIGINS", "https://[::1]:,*")
	f.Add("LATCHKEY_REDIS_URL", "redis://a:b@[::1", "LATCHKEY_ISSUER", "http://%zz@")
	f.Add("LATCHKEY_LOGIN_LIMIT_CLIENT", "9999999999999999999/1ns", "LATCHKEY_ACCESS_TTL", "-9223372036854775808ns")
	f.Add("LATCHKEY_", "", "latchkey_\x00", "=")
	f.Add("LATCHKEY_0_BURST", "1", "LATCHKEY_PORT", "tcp://")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2 string) {
		for _, name := range []string{name1, name2} {
			if strings.HasSuffix(name, "_FILE") {
				t.Skip("reads files")
			}
		}
		env := withSecret(name1+"="+value1, name2+"="+value2)
		// Any setting may get the value, so that each parser sees some.
		if rows := config.Document(); len(value2) > 0 {
			env = append(env, rows[int(value2[0])%len(rows)].Name+"="+value1)
		}
		cfg, err := config.Load(env)
		if err == nil {
			if verr := cfg.Validate(); verr != nil {
				t.Errorf("Load accepts what Validate refuses: %v", verr)
			}
			_, _ = cfg.Warnings(), cfg.Effective()
			return
		}
		var faults config.Faults
		if !asFaults(err, &faults) || len(faults) == 0 {
			t.Fatalf("the error is a %T, want config.Faults", err)
		}
		if lines := strings.Count(err.Error(), "\n"); lines != len(faults) {
			t.Errorf("%d lines for %d faults: %q", lines, len(faults), err)
		}
		if strings.Contains(err.Error(), goodSecret) && !strings.Contains(name1+value1+name2+value2, goodSecret) {
			t.Errorf("the error holds the secret: %s", err)
		}
	})
}

// What Redis is and how it is reached must go together; each fault names the setting to change.
func TestRedisSettingsGoTogether(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  []string
		want string // the fault, "" for none
	}{
		{"standalone", []string{"LATCHKEY_REDIS_URL=redis://r/3"}, ""},
		{"Sentinels", []string{"LATCHKEY_REDIS_URL=redis://:of-sentinels@r/3?master_name=m&addr=s:1&username=app&password=p"}, ""},
		{"a Cluster", []string{"LATCHKEY_REDIS_URL=redis://r?addr=s:1"}, ""},
		{"a Cluster's database", []string{"LATCHKEY_REDIS_URL=redis://r/1?addr=s:1"}, "LATCHKEY_REDIS_URL: names a database, and a Cluster has only 0; "},
		{"a socket of a Cluster", []string{"LATCHKEY_REDIS_URL=unix:///s?addr=s:1"}, "LATCHKEY_REDIS_URL: names a socket"},
		{"a CA without TLS", []string{"LATCHKEY_REDIS_TLS_CA_FILE=/ca"}, "LATCHKEY_REDIS_TLS_CA_FILE: set, and LATCHKEY_REDIS_URL is not rediss://"},
		{"a certificate without key", []string{"LATCHKEY_REDIS_URL=rediss://r", "LATCHKEY_REDIS_TLS_CERT_FILE=/c"}, "LATCHKEY_REDIS_TLS_CERT_FILE: set without LATCHKEY_REDIS_TLS_KEY_FILE; "},
		{"a key without certificate", []string{"LATCHKEY_REDIS_URL=rediss://r", "LATCHKEY_REDIS_TLS_KEY_FILE=/k"}, "LATCHKEY_REDIS_TLS_KEY_FILE: set without LATCHKEY_REDIS_TLS_CERT_FILE; "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.Load(append([]string{"LATCHKEY_SECRET=" + goodSecret}, tt.env...))
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %q", err, tt.want)
			case err != nil && strings.Contains(err.Error(), "hunter2"):
				t.Errorf("a secret in %v", err)
			}
		})
	}
}

func TestASecretIsAList(t *testing.T) {
	const second = "another secret of this test and long enough"
	for _, tt := range []struct{ name, value string }{
		{"comma", goodSecret + "," + second},
		{"comma and space", goodSecret + ", " + second + " "},
		{"lines", goodSecret + "\n" + second + "\n\n"},
		{"lines of Windows", goodSecret + "\r\n" + second + "\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := config.Load([]string{"LATCHKEY_SECRET=" + tt.value})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{goodSecret, second}, reveal(cfg.Secret.List())); diff != "" {
				t.Errorf("the list (-want +got):\n%s", diff)
			}
		})
	}
}

func reveal(list []config.Secret) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s.Reveal())
	}
	return out
}

// A browser drops a cookie whose name's prefix promises what its attributes do not keep
// (RFC 6265bis section 4.1.3). Such settings are refused at the start.
func TestCookieNamePrefixes(t *testing.T) {
	for name, c := range map[string]struct {
		settings []string
		faults   []string
	}{
		"__Host-":                  {[]string{"LATCHKEY_COOKIE_NAME=__Host-session", "LATCHKEY_COOKIE_PATH=/"}, nil},
		"__Secure-":                {[]string{"LATCHKEY_COOKIE_NAME=__Secure-session", "LATCHKEY_COOKIE_DOMAIN=example.com"}, nil},
		"__Host- for access":       {[]string{"LATCHKEY_ACCESS_COOKIE=__Host-access"}, nil},
		"the prefix alone":         {[]string{"LATCHKEY_COOKIE_NAME=__Hos", "LATCHKEY_COOKIE_SECURE=false"}, nil},
		"everything wrong":         {[]string{"LATCHKEY_COOKIE_NAME=__host-session", "LATCHKEY_COOKIE_SECURE=false", "LATCHKEY_COOKIE_DOMAIN=example.com"}, []string{"needs LATCHKEY_COOKIE_SECURE;"}},
		"a domain and a path":      {[]string{"LATCHKEY_COOKIE_NAME=__host-session", "LATCHKEY_COOKIE_DOMAIN=example.com"}, []string{"allows no LATCHKEY_COOKIE_DOMAIN;"}},
		"__Secure- without":        {[]string{"LATCHKEY_COOKIE_NAME=__secure-session", "LATCHKEY_COOKIE_SECURE=false"}, []string{"needs LATCHKEY_COOKIE_SECURE;"}},
		"__Http- without":          {[]string{"LATCHKEY_COOKIE_NAME=__Http-session", "LATCHKEY_COOKIE_SECURE=false"}, []string{"needs LATCHKEY_COOKIE_SECURE;"}},
		"access, with a domain":    {[]string{"LATCHKEY_ACCESS_COOKIE=__Host-access", "LATCHKEY_COOKIE_DOMAIN=example.com"}, []string{"LATCHKEY_ACCESS_COOKIE: \"__Host-access\" allows no LATCHKEY_COOKIE_DOMAIN;"}},
		"access, without security": {[]string{"LATCHKEY_ACCESS_COOKIE=__Host-access", "LATCHKEY_COOKIE_SECURE=false"}, []string{"LATCHKEY_ACCESS_COOKIE: \"__Host-access\" needs LATCHKEY_COOKIE_SECURE;"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Load(withSecret(c.settings...))
			if len(c.faults) == 0 && err != nil {
				t.Error(err)
			}
			for _, fault := range c.faults {
				if err == nil || !strings.Contains(err.Error(), fault) {
					t.Errorf("%v does not say %q", err, fault)
				}
			}
		})
	}
}
