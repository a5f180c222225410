package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/latchkey-auth/latchkey/handlers"
	"github.com/latchkey-auth/latchkey/internal/claimhook"
)

// maxAdminConns is how many connections the admin listener holds.
const maxAdminConns = 128

// newServer returns a server that limits how long a client may take for anything. Go's own defaults are no limits.
func newServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ConnState:         noteBusy,
		// What clients do to their connections is not an error of the server.
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

func (r *Replica) newAPIServer(api http.Handler, webhook *claimhook.Webhook) *http.Server {
	s := newServer(r.closeWhenDraining(api), r.log)
	s.RegisterOnShutdown(r.feed.Close) // streams do not end by themselves
	if webhook != nil {
		s.RegisterOnShutdown(webhook.Close)
	}
	return s
}

func (r *Replica) newAdminServer(metrics *handlers.Metrics) *http.Server {
	s := newServer(handlers.NewAdmin(handlers.AdminOptions{Metrics: metrics, Ready: r.Ready, PProf: r.cfg.PProf}), r.log)
	if r.cfg.PProf {
		s.WriteTimeout = 2 * time.Minute // a profile is collected while its request waits
	}
	return s
}

// listen opens the listeners, each of which holds a limited number of connections.
func (r *Replica) listen(ctx context.Context, metrics *handlers.Metrics) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // such a socket takes no filter: see drainingListener
	open := func(setting, addr string, limit int, refusal string) (*connLimiter, error) {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", setting, err)
		}
		return newConnLimiter(acceptBeforeClose(l), limit, refusal, func() { metrics.Shed(handlers.ShedConnection) }), nil
	}
	var err error
	if r.apiListener, err = open("LATCHKEY_ADDR", r.cfg.Addr, r.cfg.MaxConnections, tooManyConns()); err != nil {
		return err
	}
	metrics.WatchConnections(r.apiListener.open.Load, r.apiListener.evicted.Load)
	if r.extAuthz != nil {
		if r.extAuthzListener, err = open("LATCHKEY_EXTAUTHZ_ADDR", r.cfg.ExtAuthzAddr, r.cfg.MaxConnections, ""); err != nil {
			return err
		}
		r.extAuthzListener.grpc = true
	}
	if r.cfg.AdminAddr != "" {
		r.adminListener, err = open("LATCHKEY_ADMIN_ADDR", r.cfg.AdminAddr, maxAdminConns, tooManyConns())
	}
	return err
}

func addrOf(l *connLimiter) string {
	if l == nil {
		return ""
	}
	return l.Addr().String()
}

// closeWhenDraining tells clients, while the replica drains, that each connection ends with the answer on it (RFC 9112
// section 9.6). A balancer that keeps connections open then gives them up before the listener closes, and sends no
// request into one that is just being closed.
func (r *Replica) closeWhenDraining(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if errors.Is(r.Ready(), errDraining) {
			w.Header().Set("Connection", "close")
		}
		api.ServeHTTP(w, q)
	})
}

// closeServers closes the servers and listeners, whichever there are.
func (r *Replica) closeServers() {
	for _, s := range []*http.Server{r.api, r.admin} {
		if s != nil {
			_ = s.Close()
		}
	}
	if r.extAuthz != nil {
		r.extAuthz.Close()
	}
	for _, l := range []*connLimiter{r.apiListener, r.extAuthzListener, r.adminListener} {
		if l != nil {
			_ = l.Close()
		}
	}
}
