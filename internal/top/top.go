// Package top shows what the replicas of a deployment are doing, from the metrics of their admin listeners.
package top

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/latchkey-auth/latchkey/internal/terminal"
)

// ErrDown says that a replica did not answer. It has been shown.
var ErrDown = errors.New("a replica does not answer")

// Options of Run.
type Options struct {
	Addrs    []string // host or host:port of admin listeners; a host name stands for all its addresses
	Interval time.Duration
	Once     bool // show one interval and end, with ErrDown if a replica did not answer
	Out      io.Writer
}

const adminPort = "9090" // of an admin listener, unless an address says another

// Run shows the replicas until ctx ends, or once with o.Once. It is an error if no replica answers at first.
func Run(ctx context.Context, o Options) error {
	f, _ := o.Out.(*os.File)
	live := !o.Once && f != nil && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
	v := view{colour: terminal.HasColour(o.Out)}
	if live {
		fmt.Fprint(f, "\x1b[?1049h\x1b[?25l") // another screen, without a cursor
		defer fmt.Fprint(f, "\x1b[?25h\x1b[?1049l")
	}
	s := newScraper()
	defer s.client.CloseIdleConnections()
	before := map[string]sample{}
	tick := time.NewTicker(o.Interval)
	defer tick.Stop()
	for first := true; ; first = false {
		now, err := s.all(ctx, o.Addrs)
		if ctx.Err() != nil {
			return nil
		}
		if first && err == nil && !slices.ContainsFunc(now, func(n sample) bool { return n.err == nil }) {
			err = fmt.Errorf("no replica answers: %w; name the admin listeners, as in: latchkey top replica-1:9090 replica-2:9090", now[0].err)
		}
		if err != nil && (first || o.Once) {
			return err
		}
		switch {
		case first && live:
			fmt.Fprintf(f, "\x1b[H\x1b[2Jlatchkey top: looking for %s…", o.Interval)
		case first:
		case live:
			width, height, err := term.GetSize(int(f.Fd()))
			if err != nil {
				width, height = 80, 24
			}
			fmt.Fprint(f, "\x1b[H"+fitted(v.frame(before, now), width, height)+"\x1b[J")
		default:
			fmt.Fprintln(o.Out, strings.Join(v.frame(before, now), "\n"))
		}
		if o.Once && !first {
			if i := slices.IndexFunc(now, func(n sample) bool { return n.err != nil }); i >= 0 {
				return ErrDown
			}
			return nil
		}
		for _, n := range now {
			if n.err == nil {
				before[n.addr] = n
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// resolve turns what was asked for into one host:port for each replica, sorted.
func resolve(ctx context.Context, addrs []string) ([]string, error) {
	var list []string
	for _, a := range addrs {
		host, port, err := net.SplitHostPort(a)
		if err != nil {
			host, port = strings.Trim(a, "[]"), adminPort
		}
		if strings.Contains(a, "/") || host == "" {
			return nil, fmt.Errorf("%q is not an address; write host or host:port", a)
		}
		if net.ParseIP(host) != nil {
			list = append(list, net.JoinHostPort(host, port))
			continue
		}
		ips, err := net.DefaultResolver.LookupIPAddr(ctx, host)
		if dns := new(net.DNSError); errors.As(err, &dns) {
			return nil, fmt.Errorf("%s: %s", host, dns.Err)
		} else if err != nil {
			return nil, err
		}
		four := slices.ContainsFunc(ips, func(ip net.IPAddr) bool { return ip.IP.To4() != nil })
		for _, ip := range ips {
			if four && ip.IP.To4() == nil {
				continue // the same replicas by their other addresses
			}
			list = append(list, net.JoinHostPort(ip.String(), port))
		}
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}
