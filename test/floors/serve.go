package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/gin-gonic/gin"
	"github.com/golang-jwt/jwt/v5"
	"github.com/redis/go-redis/v9"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// path is where the floors of a check answer, as Latchkey does.
const path = "/auth/verify"

// serveGin serves handle at path. setUp, if not nil, sets what the server bounds.
func serveGin(ctx context.Context, o options, handle gin.HandlerFunc, setUp func(*http.Server)) error {
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.GET(path, handle)
	server := &http.Server{Handler: engine} //nolint:gosec // one of the floors is a server without timeouts
	if setUp != nil {
		setUp(server)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", o.addr)
	if err != nil {
		return err
	}
	return server.Serve(l)
}

// bareGin answers 204, and its server has Go's defaults: no timeout at all.
func bareGin(ctx context.Context, o options) error {
	return serveGin(ctx, o, func(c *gin.Context) { c.Status(http.StatusNoContent) }, nil)
}

// ginWithHeaders answers 204 with the headers of Latchkey's answer to a check, and its server has Latchkey's bounds.
func ginWithHeaders(ctx context.Context, o options) error {
	headers := http.Header{}
	for _, line := range o.headers {
		name, value, _ := strings.Cut(line, ": ")
		headers.Add(name, value)
	}
	if len(headers) == 0 {
		return errors.New("-header is required: the headers that Latchkey answers")
	}
	return serveGin(ctx, o, func(c *gin.Context) {
		to := c.Writer.Header()
		for name, values := range headers {
			to[name] = values
		}
		c.Status(http.StatusNoContent)
	}, bounded)
}

// bounded gives a server the bounds that Latchkey's has.
func bounded(s *http.Server) {
	s.ReadHeaderTimeout, s.ReadTimeout, s.WriteTimeout, s.IdleTimeout = 5*time.Second, 15*time.Second, 30*time.Second, 2*time.Minute
	s.MaxHeaderBytes = 16 << 10
}

// parse accepts a token whose signature and expiry golang-jwt has checked.
func parse(ctx context.Context, o options) error {
	claimsOf, err := parser(ctx, o)
	if err != nil {
		return err
	}
	return serveGin(ctx, o, func(c *gin.Context) {
		if _, err := claimsOf(c); err != nil {
			c.Status(http.StatusUnauthorized)
			return
		}
		c.Status(http.StatusNoContent)
	}, nil)
}

// textbook is how tokens that can be revoked are usually checked: golang-jwt, and one EXISTS in Redis.
func textbook(ctx context.Context, o options) error {
	claimsOf, err := parser(ctx, o)
	if err != nil {
		return err
	}
	rdb, err := dial(ctx, o)
	if err != nil {
		return err
	}
	return serveGin(ctx, o, func(c *gin.Context) {
		claims, err := claimsOf(c)
		if err != nil {
			c.Status(http.StatusUnauthorized)
			return
		}
		revoked, err := rdb.Exists(c.Request.Context(), "revoked:"+claims.ID).Result()
		switch {
		case err != nil:
			c.Status(http.StatusServiceUnavailable)
		case revoked > 0:
			c.Status(http.StatusUnauthorized)
		default:
			c.Status(http.StatusNoContent)
		}
	}, nil)
}

// parser returns a function that checks a request's token with Latchkey's key.
func parser(ctx context.Context, o options) (func(*gin.Context) (jwt.RegisteredClaims, error), error) {
	key, err := publicKey(ctx, o.jwks)
	if err != nil {
		return nil, err
	}
	p := jwt.NewParser(jwt.WithValidMethods([]string{"EdDSA"}), jwt.WithExpirationRequired())
	keyOf := func(*jwt.Token) (any, error) { return key, nil } //nolint:unparam // a jwt.Keyfunc
	return func(c *gin.Context) (claims jwt.RegisteredClaims, err error) {
		_, err = p.ParseWithClaims(strings.TrimPrefix(c.GetHeader("Authorization"), "Bearer "), &claims, keyOf)
		return claims, err
	}, nil
}

// publicKey reads the first Ed25519 key of a key set.
func publicKey(ctx context.Context, url string) (ed25519.PublicKey, error) {
	if url == "" {
		return nil, errors.New("-jwks is required")
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	var set struct {
		Keys []struct{ Crv, X string }
	}
	if err := json.NewDecoder(io.LimitReader(a.Body, 1<<20)).Decode(&set); err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	for _, k := range set.Keys {
		if raw, err := base64.RawURLEncoding.DecodeString(k.X); err == nil && k.Crv == "Ed25519" && len(raw) == ed25519.PublicKeySize {
			return raw, nil
		}
	}
	return nil, fmt.Errorf("%s has no Ed25519 key", url)
}

// dial connects to Redis.
func dial(ctx context.Context, o options) (*redis.Client, error) {
	to, err := redis.ParseURL(o.redis)
	if err != nil {
		return nil, fmt.Errorf("-redis: %w", err)
	}
	to.PoolSize = 128 // one for each request under way
	rdb := redis.NewClient(to)
	return rdb, rdb.Ping(ctx).Err()
}

// oneScript runs one script in Redis, the least that a server does that keeps state there.
func oneScript(ctx context.Context, o options) error {
	rdb, err := dial(ctx, o)
	if err != nil {
		return err
	}
	script := redis.NewScript(`redis.call('HSET', KEYS[1], 'n', ARGV[1]) return redis.call('TIME')`)
	if err := script.Load(ctx, rdb).Err(); err != nil {
		return err
	}
	return serveGin(ctx, o, func(c *gin.Context) {
		if err := script.EvalSha(c.Request.Context(), rdb, []string{"floor"}, 1).Err(); err != nil {
			c.Status(http.StatusServiceUnavailable)
			return
		}
		c.Status(http.StatusNoContent)
	}, nil)
}

// doNothingExtAuthz accepts every check, with Latchkey's headers.
func doNothingExtAuthz(ctx context.Context, o options) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", o.addr)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, acceptAll{headers: o.headers})
	return s.Serve(l)
}

type acceptAll struct {
	authv3.UnimplementedAuthorizationServer
	headers []string
}

func (a acceptAll) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	options := make([]*corev3.HeaderValueOption, 0, len(a.headers))
	for _, line := range a.headers {
		name, value, _ := strings.Cut(line, ": ")
		options = append(options, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: name, Value: value},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return &authv3.CheckResponse{
		Status:       &rpcstatus.Status{Code: int32(codes.OK)},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{Headers: options}},
	}, nil
}
