// Command app stands for any application behind nginx: it knows nothing of Latchkey, and
// reads from a header who the user is. It must be reachable through nginx only.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:3000", "where to listen")
	flag.Parse()
	server := &http.Server{Addr: *addr, Handler: http.HandlerFunc(answer), ReadHeaderTimeout: 5 * time.Second}
	slog.Info("listening", "url", "http://"+*addr)
	if err := server.ListenAndServe(); err != nil {
		slog.Error("cannot serve", "error", err)
		os.Exit(1)
	}
}

func answer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = fmt.Fprintf(w, "hello, %s\n", r.Header.Get("X-Auth-Subject"))
}
