// Package config holds every setting of Latchkey: its name, its default, its
// bounds and what it is for, all in the tags of one struct. The table in the
// documentation (docs/settings.md) and the example environment file are generated from those tags.
//
// A caller needs [Load], which reads an environment and reports everything that
// is wrong with it in one error. Nothing here falls back to a guess: an unknown
// name, a boolean that is neither true nor false, or a short secret is a fault.
//
// The package never logs, and never puts a secret into an error or a document.
package config

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"time"
)

// Prefix begins the name of every setting. The whole of it belongs to Latchkey:
// a variable that begins so and is not a setting is a fault.
const Prefix = "LATCHKEY_"

// The secrets that have been published with Latchkey. [Config.Validate] refuses
// them, since whoever reads them here could sign tokens with them.
const (
	// DevSecret is the secret of `latchkey dev`.
	DevSecret = "latchkey dev secret: published and worthless and refused by serve"
	// ExampleSecret stands where a secret belongs in the example environment file.
	ExampleSecret = "replace-this-with-the-output-of-openssl-rand-base64-48"
)

// SecretHint is the command that makes a good secret.
const SecretHint = "openssl rand -base64 48"

// Config is every setting, ready for use. Each field's tags are its document:
//
//	env         the variable
//	envDefault  the value when the variable is unset or empty
//	doc         what it is for
//	kind        what to call its type, where the Go type does not say it
//	min, max    the bounds, both included
//	unit        "s": a duration of whole seconds
//	oneof       the values allowed
//	secret      "yes": never shown, and can be read from the file named by NAME_FILE
type Config struct {
	Addr      string `env:"LATCHKEY_ADDR" envDefault:":8080" kind:"address" doc:"Where the API listens, host:port; without a host, on every interface."`
	AdminAddr string `env:"LATCHKEY_ADMIN_ADDR" envDefault:":9090" kind:"address" doc:"Where /metrics, /healthz and /readyz are served. Not for the public: keep it off the load balancer."`

	ExtAuthzAddr     string `env:"LATCHKEY_EXTAUTHZ_ADDR" kind:"address" doc:"Where Envoy's gRPC ext_authz service (envoy.service.auth.v3) listens, such as :9191. Empty: nowhere."`
	RevocationsToken Secret `env:"LATCHKEY_REVOCATIONS_TOKEN" secret:"yes" kind:"secret" doc:"The bearer token, 32 bytes or more, that lets an API follow GET /revocations. Empty: the endpoint is off."`

	RedisURL         RedisURL      `env:"LATCHKEY_REDIS_URL" envDefault:"redis://127.0.0.1:6379/0" kind:"URL" secret:"yes" doc:"Redis: redis://user:password@host:port/db, unix:// for a socket; Sentinels: redis://host:port/db?addr=host:port&master_name=name; a Cluster: redis://user:password@host:port?addr=host:port. rediss:// is TLS; pool_size=n is the most connections to a server, ten per CPU without it. Percent-encode special characters in the password. When shown, the user and password are redacted. See docs/redis.md."`
	RedisTLSCAFile   string        `env:"LATCHKEY_REDIS_TLS_CA_FILE" kind:"path" doc:"A file of the authorities (PEM) that sign Redis's certificates, in place of the system's. For rediss:// URLs."`
	RedisTLSCertFile string        `env:"LATCHKEY_REDIS_TLS_CERT_FILE" kind:"path" doc:"The client certificate (PEM) to show to Redis; read again for each connection."`
	RedisTLSKeyFile  string        `env:"LATCHKEY_REDIS_TLS_KEY_FILE" kind:"path" doc:"The key (PEM) of that certificate."`
	RedisTimeout     time.Duration `env:"LATCHKEY_REDIS_TIMEOUT" envDefault:"250ms" min:"50ms" max:"5s" doc:"How long one attempt at Redis may take. A request whose attempts all fail is answered 503."`

	Secret    Secret        `env:"LATCHKEY_SECRET" secret:"yes" kind:"secret" doc:"The root secret, 32 bytes or more, the same on every replica: it seals the signing keys in Redis and authenticates refresh tokens. Several, separated by commas or newlines: the first is used, the others are still accepted; docs/keys.md says how to replace one. Required. Make one with: openssl rand -base64 48"`
	Issuer    string        `env:"LATCHKEY_ISSUER" envDefault:"http://localhost:8080" kind:"URL" doc:"The iss claim: the URL at which clients reach Latchkey. Tokens of another issuer are refused."`
	Audience  string        `env:"LATCHKEY_AUDIENCE" kind:"text" doc:"The aud claim: whom the access tokens are for. Empty: the issuer."`
	Algorithm string        `env:"LATCHKEY_ALG" envDefault:"EdDSA" oneof:"EdDSA ES256 RS256 HS256" doc:"How access tokens are signed. With HS256 nothing is published for others to verify with."`
	AccessTTL time.Duration `env:"LATCHKEY_ACCESS_TTL" envDefault:"15m" min:"1s" max:"24h" unit:"s" doc:"How long an access token lives. Redis keeps a revocation this long."`

	KeyRotation time.Duration `env:"LATCHKEY_KEY_ROTATION" envDefault:"720h" min:"0s" max:"17520h" unit:"s" doc:"How long a signing key signs before the next one takes its place; the next one is published for twice LATCHKEY_JWKS_MAX_AGE before. 0: until latchkey key rotate."`
	JWKSMaxAge  time.Duration `env:"LATCHKEY_JWKS_MAX_AGE" envDefault:"5m" min:"1s" max:"24h" unit:"s" doc:"How long others may keep the published keys (Cache-Control of /.well-known/jwks.json). A new key signs after twice this, so that nobody meets a key that is not in its copy. After lowering it, wait for the old value before a rotation."`
	KeysDir     string        `env:"LATCHKEY_KEYS_DIR" kind:"folder" doc:"A folder of PEM or JWK files to sign and verify with, in place of keys that the replicas make and share through Redis. The file that the file active names signs, or else the last by name; looked at every second. LATCHKEY_ALG and LATCHKEY_KEY_ROTATION then mean nothing."`

	StatusList    bool          `env:"LATCHKEY_STATUS_LIST" envDefault:"false" doc:"Publish status lists (draft-ietf-oauth-status-list) at /status-lists, for verifiers that use no library of Latchkey's: access tokens then name a list, and a place in it that shows whether they were revoked. See docs/oauth.md."`
	StatusListTTL time.Duration `env:"LATCHKEY_STATUS_LIST_TTL" envDefault:"30s" min:"1s" max:"1h" unit:"s" doc:"How long verifiers may keep a status list. A revocation shows to them within this and 2 seconds. Less than LATCHKEY_ACCESS_TTL."`

	RefreshTTL   time.Duration `env:"LATCHKEY_REFRESH_TTL" envDefault:"168h" min:"2s" max:"8760h" unit:"s" doc:"How long a session may stay idle: the life of a refresh token and of its cookie. More than LATCHKEY_ACCESS_TTL and LATCHKEY_REFRESH_GRACE together, at most LATCHKEY_SESSION_MAX."`
	SessionMax   time.Duration `env:"LATCHKEY_SESSION_MAX" envDefault:"720h" min:"2s" max:"8760h" unit:"s" doc:"How long a session may last however often it is refreshed; then the user logs in again."`
	RefreshGrace time.Duration `env:"LATCHKEY_REFRESH_GRACE" envDefault:"10s" min:"2s" max:"60s" doc:"How long after a refresh the session's refresh token stays the same: meanwhile the new token and the one that it replaced both yield the new one, so that requests that race and answers that were lost do not look like theft. Below 2s a request that the network repeats would look like theft and end the session."`

	SessionsPerUser int `env:"LATCHKEY_SESSIONS_PER_USER" envDefault:"100" min:"1" max:"1000" doc:"How many sessions a user may have. A login beyond that ends the session that would expire first: the one unused for longest (to the hour), or one that is about to reach LATCHKEY_SESSION_MAX. If there are more, as after this was lowered, each login ends up to four."`

	CookieName     string         `env:"LATCHKEY_COOKIE_NAME" envDefault:"refresh_token" kind:"name" doc:"Name of the refresh cookie. If it begins with __Host-, browsers accept the cookie from this host over HTTPS only; that needs LATCHKEY_COOKIE_SECURE=true, LATCHKEY_COOKIE_PATH=/ and no LATCHKEY_COOKIE_DOMAIN. A name that begins with __Secure- needs LATCHKEY_COOKIE_SECURE=true."`
	CookieSecure   bool           `env:"LATCHKEY_COOKIE_SECURE" envDefault:"true" doc:"Send the refresh cookie over HTTPS only. false is for development without TLS."`
	CookieDomain   string         `env:"LATCHKEY_COOKIE_DOMAIN" kind:"domain" doc:"The Domain of the refresh cookie, such as example.com. Empty: the host that set it and no other, which is the safest."`
	CookiePath     string         `env:"LATCHKEY_COOKIE_PATH" envDefault:"/auth" kind:"path" doc:"The Path of the refresh cookie, as browsers see it: change it when a proxy serves Latchkey below another path."`
	AccessCookie   string         `env:"LATCHKEY_ACCESS_COOKIE" kind:"name" doc:"Name of an HttpOnly cookie that also carries the access token, for browser apps behind forward-auth, such as access_token. Empty: none is set or read."`
	AllowedOrigins []string       `env:"LATCHKEY_ALLOWED_ORIGINS" kind:"origins" doc:"Comma-separated origins, scheme://host[:port], whose pages may call the API and use the refresh cookie (CORS). Empty: the API's own origin only."`
	TrustedProxies []netip.Prefix `env:"LATCHKEY_TRUSTED_PROXIES" kind:"networks" doc:"Comma-separated addresses or CIDR networks of the proxies whose X-Forwarded-For is believed. Empty: none, and a client's address is that of the connection. For DPoP at /auth/verify the other X-Forwarded-* must come from one of them."`
	DPoPNonce      bool           `env:"LATCHKEY_DPOP_NONCE" envDefault:"false" doc:"Accept DPoP proofs only with a nonce that a replica gave out in the last minutes, so that none can be made in advance (RFC 9449 section 8)."`

	Shards int `env:"LATCHKEY_SHARDS" envDefault:"16" min:"1" max:"256" doc:"Into how many groups the keys in Redis are divided; each lives in one Redis Cluster slot. Fixed when Redis is first used: a replica with another number refuses to start."`

	Verify             string        `env:"LATCHKEY_VERIFY" envDefault:"follow" oneof:"follow strict" doc:"How access tokens are checked. follow: from a copy of the denylist in memory, with no round trip. strict: by one round trip to Redis each."`
	EdgeLease          time.Duration `env:"LATCHKEY_EDGE_LEASE" envDefault:"1s" min:"100ms" max:"30s" doc:"How long a replica may check tokens from memory without having heard from Redis. The same on every replica: a logout waits this long for one that died just now, and after a failover of Redis."`
	EdgeOutage         Outage        `env:"LATCHKEY_EDGE_OUTAGE" envDefault:"deny" doc:"What a check is answered when the lease is over and Redis does not answer. deny: 503. serve-stale:30s: what memory says, for that long; logouts made meanwhile elsewhere are missed."`
	EdgeMaxDenied      int           `env:"LATCHKEY_EDGE_MAX_DENIED" envDefault:"4000000" min:"1000" max:"100000000" doc:"How many revocations a replica keeps in memory, about 50 bytes each. Beyond, it checks tokens in Redis: none is forgotten."`
	EdgeCache          int           `env:"LATCHKEY_EDGE_CACHE" envDefault:"65536" min:"16" max:"10000000" doc:"How many verified tokens a replica remembers, about 1.5 KiB each, so that a signature is checked once."`
	RevokeWaitReplicas int           `env:"LATCHKEY_REVOKE_WAIT_REPLICAS" envDefault:"0" min:"0" max:"16" doc:"How many replicas of Redis must have a logout before it is answered (WAIT). All that can be promoted: then no failover loses a logout, nor does a deposed primary extend a lease."`

	ClaimsURL     string `env:"LATCHKEY_CLAIMS_URL" kind:"URL" doc:"A webhook that is asked for further claims whenever an access token is issued (docs/oauth.md). Empty: none."`
	ClaimsSecret  Secret `env:"LATCHKEY_CLAIMS_SECRET" secret:"yes" kind:"secret" doc:"The key, 32 bytes or more, that signs the requests to LATCHKEY_CLAIMS_URL: the webhook has it, too. Required with it."`
	ClaimsFailure string `env:"LATCHKEY_CLAIMS_FAILURE" envDefault:"deny" oneof:"deny omit" doc:"What happens when the webhook fails. deny: the request is answered 503. omit: the token is issued without its claims."`
	ScopeClaims   string `env:"LATCHKEY_SCOPE_CLAIMS" kind:"JSON" doc:"Claims that a scope brings when it is granted: a JSON object of scopes, each an object of claims, such as {\"reports:read\":{\"department\":\"finance\"}}."`

	LoginLimitClient  Rate `env:"LATCHKEY_LOGIN_LIMIT_CLIENT" envDefault:"10/5m" doc:"Failed logins of one account from one address or known device: 10/5m allows 10 at once, regained evenly over 5 minutes. A login counts while its password is checked, and stays counted only if that was wrong or the account is disabled."`
	LoginLimitAccount Rate `env:"LATCHKEY_LOGIN_LIMIT_ACCOUNT" envDefault:"100/1h" doc:"Failed logins of one account from all unknown devices together; one network (IPv4 /24, IPv6 /48) may spend a quarter of it. Devices on which the user has logged in before are not held up by it, so a stranger cannot lock the owner out there."`
	LoginLimitAddress Rate `env:"LATCHKEY_LOGIN_LIMIT_ADDRESS" envDefault:"100/5m" doc:"Failed logins from one address over all accounts, but for known devices. An IPv6 address is its /64; a /56 may spend 4 times as much, a /48 16 times."`

	PasswordMemory     uint32        `env:"LATCHKEY_PASSWORD_MEMORY" envDefault:"19456" min:"7168" max:"1048576" doc:"Memory of one argon2id hash, in KiB. Each password worker takes this much."`
	PasswordIterations uint32        `env:"LATCHKEY_PASSWORD_ITERATIONS" envDefault:"2" min:"1" max:"32" doc:"Passes of argon2id over that memory. Stored hashes of other parameters are replaced at the next login."`
	PasswordWorkers    int           `env:"LATCHKEY_PASSWORD_WORKERS" envDefault:"0" min:"0" max:"1024" doc:"How many passwords are hashed at once; 0: three quarters of the CPUs, and one at least, so that the rest is there for everything else."`
	PasswordWait       time.Duration `env:"LATCHKEY_PASSWORD_WAIT" envDefault:"2s" min:"100ms" max:"30s" doc:"How long a login may wait for a password worker before it is answered 503."`

	MaxConnections int `env:"LATCHKEY_MAX_CONNECTIONS" envDefault:"4096" min:"16" max:"1000000" doc:"How many connections the API's listener holds, and Envoy's. One more takes the place of one that has been silent for 10 s with no request under way, or is answered 503. A connection costs up to 20 KiB, and 35 KiB with the largest headers and body on it."`

	Docs bool `env:"LATCHKEY_DOCS" envDefault:"false" doc:"Serve an interactive page of the API at /docs. It puts a large script on the origin that has the refresh cookie, so it is for development and trusted networks. /openapi.json is always there."`

	LogLevel  string `env:"LATCHKEY_LOG_LEVEL" envDefault:"info" oneof:"debug info warn error" doc:"The least severe log lines written."`
	LogFormat string `env:"LATCHKEY_LOG_FORMAT" envDefault:"json" oneof:"json text" doc:"The form of log lines, written to standard error."`

	Traces      string `env:"LATCHKEY_TRACES" envDefault:"off" oneof:"off otlp" doc:"otlp: send OpenTelemetry traces by OTLP over HTTP. The standard variables say the rest: OTEL_EXPORTER_OTLP_ENDPOINT and its kin where to, OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES as which service, OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG which requests; without these a tenth, and those that a traceparent header asks for."`
	AuditStream int    `env:"LATCHKEY_AUDIT_STREAM" envDefault:"0" min:"0" max:"100000000" doc:"How many security events, about, to keep in the Redis stream lk:audit besides the log; 0: none. About 350 bytes of Redis each. See docs/audit.md."`

	ShutdownDelay   time.Duration `env:"LATCHKEY_SHUTDOWN_DELAY" envDefault:"0s" min:"0s" max:"5m" doc:"On SIGTERM, how long to go on serving with /readyz already failing, so that balancers notice before the listener closes."`
	ShutdownTimeout time.Duration `env:"LATCHKEY_SHUTDOWN_TIMEOUT" envDefault:"20s" min:"1s" max:"10m" doc:"How long requests under way may then take to finish."`
	PProf           bool          `env:"LATCHKEY_PPROF" envDefault:"false" doc:"Serve Go's profiler at /debug/pprof/ on the admin listener."`

	secretFiles []secretFile // those that Load has read
}

// ClaimsOfScopes is ScopeClaims, by scope and claim; empty if it is none that
// [Config.Validate] accepts.
func (c *Config) ClaimsOfScopes() map[string]map[string]json.RawMessage {
	var m map[string]map[string]json.RawMessage
	if c.ScopeClaims == "" || json.Unmarshal([]byte(c.ScopeClaims), &m) != nil {
		return nil
	}
	return m
}

// Level is LogLevel for log/slog; info if it is none that [Config.Validate] accepts.
func (c *Config) Level() slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return slog.LevelInfo
	}
	return l
}

// KeyPublish is for how long a signing key is published before it signs: once for
// the copies that others keep, and once for all replicas to have it.
func (c *Config) KeyPublish() time.Duration { return 2 * c.JWKSMaxAge }
