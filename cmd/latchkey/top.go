package main

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

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// topOptions are the flags of `latchkey top`.
type topOptions struct {
	addrs    []string
	interval time.Duration
	once     bool
	out      io.Writer
}

const topPort = "9090" // of an admin listener, unless an address says another

func newTop() *cobra.Command {
	var o topOptions
	cmd := &cobra.Command{
		Use:   "top [ADDRESS...]",
		Short: "Watch the replicas of a running deployment in the terminal",
		Long: `Show what the replicas of a deployment are doing, from the metrics of their admin
listeners: requests and how long they take, how long revocations take to arrive, the
leases under which tokens are checked in memory, refreshes, the password queue.

An address is host or host:port; without a port it is 9090, and without an address
127.0.0.1. A name stands for all of its addresses, looked up anew each time: the
headless Service of the admin listeners shows every replica there is.

Rates and percentiles are of the last interval. Without a terminal, or with --once,
plain text is printed; --once ends with status 1 if a replica did not answer.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.addrs, o.out = args, cmd.OutOrStdout()
			if len(args) == 0 {
				o.addrs = []string{"127.0.0.1"}
			}
			if o.interval < 100*time.Millisecond || o.interval > time.Minute {
				return fmt.Errorf("--interval %s: from 100ms to 1m", o.interval)
			}
			return runTop(cmd.Context(), o)
		},
	}
	cmd.Flags().DurationVar(&o.interval, "interval", 2*time.Second, "how often to look, 100ms to 1m")
	cmd.Flags().BoolVar(&o.once, "once", false, "look for one interval, print, and end")
	return cmd
}

// runTop is the command.
func runTop(ctx context.Context, o topOptions) error {
	f, _ := o.out.(*os.File)
	live := !o.once && f != nil && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
	v := topView{colour: isTerminal(o.out)}
	if live {
		fmt.Fprint(f, "\x1b[?1049h\x1b[?25l") // another screen, without a cursor
		defer fmt.Fprint(f, "\x1b[?25h\x1b[?1049l")
	}
	s := newScraper()
	defer s.client.CloseIdleConnections()
	before := map[string]sample{}
	tick := time.NewTicker(o.interval)
	defer tick.Stop()
	for first := true; ; first = false {
		now, err := s.all(ctx, o.addrs)
		if ctx.Err() != nil {
			return nil
		}
		if first && err == nil && !slices.ContainsFunc(now, func(n sample) bool { return n.err == nil }) {
			err = fmt.Errorf("no replica answers: %w; name the admin listeners, as in: latchkey top replica-1:9090 replica-2:9090", now[0].err)
		}
		if err != nil && (first || o.once) {
			return err
		}
		switch {
		case first && live:
			fmt.Fprintf(f, "\x1b[H\x1b[2Jlatchkey top: looking for %s…", o.interval)
		case first:
		case live:
			width, height, err := term.GetSize(int(f.Fd()))
			if err != nil {
				width, height = 80, 24
			}
			fmt.Fprint(f, "\x1b[H"+fitted(v.frame(before, now), width, height)+"\x1b[J")
		default:
			fmt.Fprintln(o.out, strings.Join(v.frame(before, now), "\n"))
		}
		if o.once && !first {
			if i := slices.IndexFunc(now, func(n sample) bool { return n.err != nil }); i >= 0 {
				return &exitError{} // it has been shown
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
			host, port = strings.Trim(a, "[]"), topPort
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
