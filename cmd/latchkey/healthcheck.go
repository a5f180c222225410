package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/internal/terminal"
)

const (
	adminAddr    = "LATCHKEY_ADMIN_ADDR"
	probeTimeout = 2 * time.Second
)

func newHealthcheck() *cobra.Command {
	var ready bool
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask the replica on this machine whether it lives",
		Long: `Ask the replica on this machine whether it lives: exit 0 if /healthz on its admin
listener answers 200 within 2 seconds, else 1. With --ready it asks /readyz: whether
the replica should get requests, which it should not while Redis is down.

Of the environment it reads LATCHKEY_ADMIN_ADDR alone.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := "/healthz"
			if ready {
				path = "/readyz"
			}
			target, err := probeURL(os.Getenv(adminAddr), path)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), probeTimeout)
			defer cancel()
			answer, err := probe(ctx, target)
			if err != nil {
				return err
			}
			return say(cmd, "%s: %s", target, terminal.Printable(answer))
		},
	}
	cmd.Flags().BoolVar(&ready, "ready", false, "ask whether the replica is ready, instead of whether it lives")
	return cmd
}

// probeURL is where a replica that listens on addr answers this machine. An
// empty addr is the default.
func probeURL(addr, path string) (string, error) {
	if addr == "" {
		for _, row := range config.Document() {
			if row.Name == adminAddr {
				addr = row.Default
			}
		}
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port == "" {
		return "", errors.New(adminAddr + " is not an address; write host:port or :port, as for serve")
	}
	if port == "0" {
		return "", errors.New(adminAddr + " has port 0, which is any free one; give it a fixed port")
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "", err == nil && ip.IsUnspecified() && ip.Unmap().Is4():
		host = "127.0.0.1"
	case err == nil && ip.IsUnspecified():
		host = "::1"
	}
	u := url.URL{Scheme: "http", Host: net.JoinHostPort(host, port), Path: path}
	return u.String(), nil
}

// probe returns the first line of a 200 answer.
func probe(ctx context.Context, target string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return "", fmt.Errorf("%s cannot be asked; check %s", terminal.Printable(target), adminAddr)
	}
	client := http.Client{
		// No proxy: the replica is on this machine. No redirects: it makes none.
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		if e := new(url.Error); errors.As(err, &e) {
			err = e.Err
		}
		return "", fmt.Errorf("%s does not answer: %w; is latchkey serve running, with the same %s?", target, err, adminAddr)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // what came tells as much as there is to tell
	line, _, _ := bytes.Cut(body, []byte("\n"))
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s answers %d: %s", target, resp.StatusCode, terminal.Printable(string(line)))
	}
	return string(line), nil
}
