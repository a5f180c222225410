package handlers

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gin-contrib/cors"
	"github.com/gin-gonic/gin"
	"go.opentelemetry.io/otel/trace"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/accesstoken"
	"github.com/latchkey-auth/latchkey/internal/claimhook"
	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/dpop"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/internal/session"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Settings are the parts of the configuration that show in a response.
type Settings struct {
	Issuer         string
	Audience       string
	ClientID       string // client_id of password logins
	CookieName     string // of the refresh cookie; "" means refresh_token
	CookieSecure   bool
	CookieDomain   string
	CookiePath     string
	AllowedOrigins []string       // besides the API's own
	TrustedProxies []netip.Prefix // whose X-Forwarded-* are believed
	Limits         tokenstore.AttemptLimits
	DeviceKey      []byte // authenticates the cookie of a known device
	AccessCookie   string // the cookie that also carries the access token; "" for none
	// OlderDeviceKeys are those of root secrets that are being replaced.
	OlderDeviceKeys [][]byte
	// JWKSMaxAge is for how long others may keep the key set.
	JWKSMaxAge time.Duration
	// RevocationsToken lets an API follow GET /revocations.
	RevocationsToken []byte
	// ScopeClaims are the claims that a scope brings when it is granted, by scope and
	// name.
	ScopeClaims map[string]map[string]json.RawMessage
	// ClaimsOmit issues tokens without the webhook's claims when it fails; otherwise
	// that is a 503.
	ClaimsOmit bool
	// SignatureSize is how long the longest signature is that the keys make, in bytes; 0
	// means [accesstoken.MaxSignature].
	SignatureSize int
	// StatusListTTL is for how long verifiers may keep a status list, in whole seconds; 0
	// publishes none. The store must give out places then ([tokenstore.Options]).
	StatusListTTL time.Duration
	// Version is what /openapi.json calls this release.
	Version string
	// Docs serves a page at /docs on which the API can be tried out.
	Docs bool
	// MaxInFlight is how many refreshes, how many other requests about sessions, and
	// how many requests for status lists that are not known yet, are under way at once; 0
	// means 512. Of logins and password changes it is as many as Passwords takes.
	MaxInFlight int
	// Nonces, if not nil, must have made the nonce of each DPoP proof.
	Nonces *dpop.Nonces
}

// defaultInFlight is the default of Settings.MaxInFlight.
const defaultInFlight = 512

// Dependencies are what the API is made of. All but Revocations and Claims are
// required.
type Dependencies struct {
	Store     *tokenstore.Store
	Verifier  *edge.Verifier
	Confirmer *edge.Confirmer
	Signer    *accesstoken.Signer
	Refresh   *refreshtoken.Codec
	Passwords *credential.Hasher
	Metrics   *Metrics
	Log       *slog.Logger
	Rand      io.Reader
	// Revocations is what GET /revocations serves; there is no such path without
	// it, or without Settings.RevocationsToken.
	Revocations *edge.Feed
	// Stalled tells whether a request read now may have waited for so long that its
	// client has sent it elsewhere. Nil: never.
	Stalled func() bool
	// Audit takes the security events too, whatever the log's level; nil for none.
	// It must not block.
	Audit slog.Handler
	// Tracer makes a span for each request; nil for none.
	Tracer trace.Tracer
	// Issued verifies tokens for whomever they are: with AnyAudience. It judges what
	// is shown to /oauth2/introspect and /oauth2/revoke and admits nobody.
	Issued *edge.Verifier
	// Claims adds claims to tokens that are about to be issued; nil adds none.
	Claims *claimhook.Webhook
	// Now is the clock by which status lists age here; nil is [time.Now].
	Now      func() time.Time
	Settings Settings
}

// api is the dependencies, with what is derived from them once.
type api struct {
	Dependencies
	crossOrigin *http.CrossOriginProtection
	began       time.Time    // any moment before the first request
	lists       *statusLists // nil for none
	issuerHost  string       // the name of the host that clients know; "" if it is an address
	sessions    *session.Service
	noStore     []string // a value of Cache-Control; all responses share it
	cookieForms map[[2]string]cookieForm
	shedTold    atomic.Int64 // when the log was told last of requests turned away, in Unix nanoseconds
	// Of the second that outageSecond is, in Unix seconds: lines about an outage.
	outageSecond, outageCount atomic.Int64
}

// maxBody is the largest request body, in bytes. The largest honest one is a
// password change: twice 1 KiB, percent-encoded.
const maxBody = 16 << 10

// newAPI returns an api without routes. The error names settings it cannot work with.
func newAPI(d Dependencies) (*api, error) {
	a := &api{Dependencies: d, crossOrigin: http.NewCrossOriginProtection(), began: time.Now(), noStore: []string{"no-store"}}
	a.Settings.CookieName = cmp.Or(a.Settings.CookieName, defaultCookieName)
	a.cookieForms = newCookieForms(a.Settings)
	if issuer, err := url.Parse(a.Settings.Issuer); err == nil {
		a.issuerHost = hostname(issuer.Host)
	}
	var faults []error
	for _, origin := range d.Settings.AllowedOrigins {
		faults = append(faults, a.crossOrigin.AddTrustedOrigin(origin))
	}
	options := sessionOptions(d)
	if d.Settings.StatusListTTL > 0 {
		a.lists = newStatusLists(d, a.inFlight())
		options.StatusReference = a.lists.reference
	}
	var err error
	a.sessions, err = session.New(options)
	return a, errors.Join(append(faults, err)...)
}

// inFlight is how many requests of a class may be under way at once.
func (a *api) inFlight() int64 { return int64(cmp.Or(a.Settings.MaxInFlight, defaultInFlight)) }

// sessionOptions is what the operations on sessions need.
func sessionOptions(d Dependencies) session.Options {
	return session.Options{
		Store: d.Store, Verifier: d.Verifier, Confirmer: d.Confirmer, Signer: d.Signer, RefreshTokens: d.Refresh, Passwords: d.Passwords,
		Issued: d.Issued, Claims: d.Claims, Rand: d.Rand, Log: d.Log, Audit: d.Audit, Stalled: d.Stalled,
		Observe: session.Observer{Event: d.Metrics.event, Confirmed: d.Metrics.confirmed, Asked: d.Metrics.asked},
		Issuer:  d.Settings.Issuer, Audience: d.Settings.Audience, ClientID: d.Settings.ClientID, Limits: d.Settings.Limits,
		DeviceKeys:  append([][]byte{d.Settings.DeviceKey}, d.Settings.OlderDeviceKeys...),
		ScopeClaims: d.Settings.ScopeClaims, ClaimsOmit: d.Settings.ClaimsOmit,
		// RFC 6265bis section 5.6: browsers drop a cookie whose name and value take more
		// than 4096 bytes.
		MaxToken:      accesstoken.MaxLength - len(d.Settings.AccessCookie),
		SignatureSize: d.Settings.SignatureSize, Nonces: d.Settings.Nonces,
	}
}

// API answers requests over HTTP, and Envoy's over gRPC ([API.ExtAuthz]).
type API struct {
	*api
	routes http.Handler
}

// ServeHTTP answers one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.routes.ServeHTTP(w, r) }

// New returns the API. The error names settings it cannot work with.
func New(d Dependencies) (*API, error) {
	gin.SetMode(gin.ReleaseMode)
	a, fault := newAPI(d)
	engine := gin.New()
	engine.HandleMethodNotAllowed = true
	engine.RedirectTrailingSlash = false
	engine.UseEscapedPath = true

	faults := []error{fault}
	proxies := make([]string, len(d.Settings.TrustedProxies))
	for i, p := range d.Settings.TrustedProxies {
		proxies[i] = p.String()
	}
	faults = append(faults, engine.SetTrustedProxies(proxies))
	// X-Real-Ip is not among them: a proxy that does not know it passes on the client's.
	engine.RemoteIPHeaders = []string{"X-Forwarded-For"}
	shared, err := share(d.Settings.AllowedOrigins)
	if err := errors.Join(append(faults, err)...); err != nil {
		return nil, fmt.Errorf("the API's settings: %w", err)
	}
	inFlight := a.inFlight()
	if d.Tracer != nil {
		engine.Use(a.trace)
	}
	engine.Use(a.measure, a.recover, a.bound)
	// Every request of a protected API is asked about here: an answer without a
	// body does without what only a body, or a line in the log, has use for.
	verify := append(slices.Clone(shared), a.serve(a.verify))
	engine.Any(verifyPath, verify...)
	engine.Any(verifyUnder, verify...)

	engine.Use(append([]gin.HandlerFunc{identify, noSniff}, shared...)...)
	engine.NoRoute(a.serve(func(*gin.Context) error { return errNotFound }))
	engine.NoMethod(a.serve(a.otherMethod))

	// Cookies come along with a request that another site made: the endpoints
	// that act on one refuse such requests.
	own := a.sameOrigin
	login := a.within(&class{name: ShedLogin, limit: int64(d.Passwords.Capacity())})
	refresh := a.within(&class{name: ShedRefresh, limit: inFlight})
	session := a.within(&class{name: ShedSession, limit: inFlight})
	engine.POST("/auth/token", own, login, a.serve(a.login))
	engine.POST("/auth/refresh", own, refresh, a.serve(a.refresh))
	engine.POST("/auth/logout", own, session, a.serve(a.logout))
	engine.POST("/auth/logout-all", own, session, a.serve(a.logoutAll))
	engine.GET("/auth/sessions", session, a.serve(a.listSessions))
	engine.DELETE("/auth/sessions/:sid", own, session, a.serve(a.endSession))
	engine.GET("/users/me", session, a.serve(a.me))
	engine.POST("/users/me/password", own, login, a.serve(a.changePassword))
	engine.POST("/oauth2/token", refresh, a.oauth(a.token))
	engine.POST("/oauth2/introspect", session, a.oauth(a.introspect))
	engine.POST("/oauth2/revoke", session, a.oauth(a.revoke))
	engine.GET("/.well-known/jwks.json", a.serve(a.keySet))
	engine.HEAD("/.well-known/jwks.json", a.serve(a.keySet))
	if a.lists != nil {
		engine.GET(statusListPath+":id", a.serve(a.statusList))
		engine.HEAD(statusListPath+":id", a.serve(a.statusList))
	}
	a.describe(engine)
	document := a.openAPI()
	engine.GET("/openapi.json", document)
	engine.HEAD("/openapi.json", document)
	if d.Settings.Docs {
		for _, path := range []string{"/docs", "/docs/:file"} {
			engine.GET(path, a.serve(a.docs))
			engine.HEAD(path, a.serve(a.docs))
		}
	}
	if a.followable() {
		engine.GET("/revocations", a.serve(a.revocations))
	}
	return &API{a, engine}, nil
}

// followable reports whether there is GET /revocations.
func (a *api) followable() bool { return a.Revocations != nil && len(a.Settings.RevocationsToken) > 0 }

// share lets pages of some origins read what the API answers (CORS). Of others
// it takes no notice: their browsers keep the answer from them, and what they may
// do is for sameOrigin to say.
func share(origins []string) ([]gin.HandlerFunc, error) {
	if len(origins) == 0 {
		return nil, nil
	}
	config := cors.Config{
		AllowOrigins:     origins,
		AllowMethods:     []string{http.MethodGet, http.MethodPost, http.MethodDelete},
		AllowHeaders:     []string{"Authorization", "Content-Type", dpop.Header, headerRequestID},
		ExposeHeaders:    []string{headerRequestID, "Retry-After", "WWW-Authenticate", dpop.NonceHeader},
		AllowCredentials: true,
		MaxAge:           time.Hour,
	}
	if err := config.Validate(); err != nil { // cors.New would panic
		return nil, err
	}
	allow := cors.New(config)
	return []gin.HandlerFunc{func(c *gin.Context) {
		if c.Request.Method == http.MethodOptions && strings.HasPrefix(c.Request.URL.Path, verifyPath) {
			// A proxy asks about somebody else's preflight. To answer it here, with
			// a 204, would be to let it through without a token.
			return
		}
		if slices.Contains(origins, c.GetHeader("Origin")) {
			allow(c)
		}
	}}, nil
}

// endpoint is a handler that leaves its errors to the table.
type endpoint func(*gin.Context) error

func (a *api) serve(e endpoint) gin.HandlerFunc {
	return func(c *gin.Context) {
		if err := e(c); err != nil {
			a.fail(c, err)
		}
	}
}
