package edge_test

import (
	"context"
	"fmt"
	"net/http"
	"os"

	"github.com/latchkey-auth/latchkey/edge"
)

// An API in Latchkey's network follows the log in Redis: its checks cost no round
// trip, and a confirmed logout holds here too.
func Example() {
	ctx := context.Background()
	const latchkey = "https://auth.example.com"

	revocations, done, err := edge.Dial(ctx, edge.RedisOptions{URL: os.Getenv("LATCHKEY_REDIS_URL")})
	if err != nil {
		fmt.Println("Redis:", err)
		return
	}
	defer func() { _ = done() }()
	keys, err := edge.KeysFromURL(latchkey+"/.well-known/jwks.json", edge.KeysOptions{})
	if err != nil {
		panic(err)
	}
	follower := edge.NewFollower(edge.FollowerOptions{Revocations: revocations})
	verifier, err := edge.New(edge.Options{
		Revocations: revocations, Keys: keys, Follower: follower, Issuer: latchkey, Audience: "https://api.example.com",
	})
	if err != nil {
		panic(err)
	}
	go keys.Run(ctx)
	go follower.Run(ctx)

	readsOrders := edge.Middleware(verifier, edge.RequireScope("orders:read"))
	http.Handle("GET /orders", readsOrders(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, _ := edge.ClaimsFrom(r.Context())
		_, _ = fmt.Fprintln(w, "orders of", claims.Subject)
	})))
}

// An API elsewhere follows by HTTP: a logout is known within Bound, or nothing is
// accepted.
func Example_remote() {
	ctx := context.Background()
	const latchkey = "https://auth.example.com"

	keys, err := edge.KeysFromURL(latchkey+"/.well-known/jwks.json", edge.KeysOptions{})
	if err != nil {
		panic(err)
	}
	remote, err := edge.NewRemoteFollower(edge.RemoteOptions{
		URL: latchkey + "/revocations", Token: os.Getenv("LATCHKEY_REVOCATIONS_TOKEN"),
	})
	if err != nil {
		panic(err)
	}
	verifier, err := edge.New(edge.Options{
		Keys: keys, Remote: remote, Issuer: latchkey, Audience: "https://api.example.com",
	})
	if err != nil {
		panic(err)
	}
	go keys.Run(ctx)
	go remote.Run(ctx)

	http.Handle("GET /invoices", edge.Middleware(verifier)(http.NotFoundHandler()))
}
