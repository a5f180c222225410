// Command go-api is an API whose requests need an access token of Latchkey's. It checks
// them in its own process, without a round trip: it follows the log of revocations in
// Latchkey's Redis, so a confirmed logout holds here too.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/latchkey-auth/latchkey/edge"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()

	addr := flag.String("addr", "127.0.0.1:3000", "where to listen")
	latchkey := flag.String("latchkey", "http://localhost:8080", "where Latchkey is")
	issuer := flag.String("issuer", "", "Latchkey's LATCHKEY_ISSUER; empty: the value of -latchkey")
	audience := flag.String("audience", "", "Latchkey's LATCHKEY_AUDIENCE; empty: the issuer")
	redis := flag.String("redis", "redis://localhost:6379", "Latchkey's Redis")
	flag.Parse()
	if *issuer == "" {
		*issuer = *latchkey
	}
	if *audience == "" {
		*audience = *issuer
	}

	// The store that Latchkey keeps its revocations in, and the keys that it signs with.
	revocations, done, err := edge.Dial(ctx, edge.RedisOptions{URL: *redis})
	if err != nil {
		return fmt.Errorf("cannot open Latchkey's Redis: %w", err)
	}
	defer func() { _ = done() }()
	keys, err := edge.KeysFromURL(*latchkey+"/.well-known/jwks.json", edge.KeysOptions{})
	if err != nil {
		return err
	}
	follower := edge.NewFollower(edge.FollowerOptions{Revocations: revocations})
	verifier, err := edge.New(edge.Options{
		Revocations: revocations, Keys: keys, Follower: follower, Issuer: *issuer, Audience: *audience,
	})
	if err != nil {
		return err
	}

	// Both run until ctx ends. Waiting for them lets the follower give up its lease, so that
	// no logout waits for a process that has gone.
	var background sync.WaitGroup
	background.Go(func() { keys.Run(ctx) })
	background.Go(func() { follower.Run(ctx) })
	defer background.Wait()

	authenticated := edge.Middleware(verifier)
	mayRead := edge.Middleware(verifier, edge.RequireScope("reports:read"))
	mux := http.NewServeMux()
	mux.Handle("GET /", authenticated(http.HandlerFunc(greet)))
	mux.Handle("GET /reports", mayRead(http.HandlerFunc(reports)))

	server := &http.Server{Addr: *addr, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(shutdown)
	}()
	slog.Info("listening", "url", "http://"+*addr)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func greet(w http.ResponseWriter, r *http.Request) {
	claims, _ := edge.ClaimsFrom(r.Context())
	_, _ = fmt.Fprintf(w, "hello, %s\n", claims.Subject)
}

func reports(w http.ResponseWriter, r *http.Request) {
	claims, _ := edge.ClaimsFrom(r.Context())
	_, _ = fmt.Fprintf(w, "the reports of %s\n", claims.Subject)
}
