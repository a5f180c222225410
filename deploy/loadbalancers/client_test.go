//go:build unix

package loadbalancers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// client is a user of the service, at a replica or a balancer.
type client struct{ *http.Client }

// newClient keeps connections, and makes them from the loopback address given, ""
// for any.
func newClient(t *testing.T, from string) client {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	if from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	transport := &http.Transport{DialContext: dialer.DialContext, MaxIdleConnsPerHost: 100}
	t.Cleanup(transport.CloseIdleConnections)
	return client{&http.Client{Transport: transport, Timeout: 20 * time.Second}}
}

// answer is a response, read.
type answer struct {
	status int
	header http.Header
	Access string `json:"access_token"`
	Next   string `json:"refresh_token"`
	Error  string `json:"error"`

	Sessions []struct {
		Address string `json:"address"`
		Current bool   `json:"current"`
	} `json:"sessions"`
}

// unexpected is an answer that a request should not have had.
type unexpected struct {
	what string
	answer
}

func (u *unexpected) Error() string {
	return fmt.Sprintf("%s: %d %s, Retry-After %q", u.what, u.status, u.answer.Error, u.header.Get("Retry-After"))
}

// ask sends a request and wants an answer of that status. headers are names and values.
func (c client) ask(ctx context.Context, want int, method, target string, form url.Values, headers ...string) (answer, error) {
	q, err := http.NewRequestWithContext(ctx, method, target, strings.NewReader(form.Encode()))
	if err != nil {
		return answer{}, err
	}
	q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i+1 < len(headers); i += 2 {
		q.Header.Add(headers[i], headers[i+1])
	}
	resp, err := c.Do(q)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	a := answer{status: resp.StatusCode, header: resp.Header}
	if resp.StatusCode != http.StatusNoContent {
		if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
			return a, fmt.Errorf("%s %s: %d, not JSON: %w", method, target, a.status, err)
		}
	}
	if a.status != want {
		return a, &unexpected{method + " " + target, a}
	}
	return a, nil
}

func (c client) login(ctx context.Context, base, username string, headers ...string) (answer, error) {
	form := url.Values{"username": {username}, "password": {password}, "refresh_delivery": {"body"}}
	return c.ask(ctx, http.StatusOK, "POST", base+"/auth/token", form, headers...)
}

func (c client) refresh(ctx context.Context, base, token string) (answer, error) {
	return c.ask(ctx, http.StatusOK, "POST", base+"/auth/refresh", url.Values{"refresh_token": {token}})
}

func (c client) logout(ctx context.Context, base, access string) error {
	_, err := c.ask(ctx, http.StatusOK, "POST", base+"/auth/logout", nil, "Authorization", "Bearer "+access)
	return err
}

func (c client) verify(ctx context.Context, want int, base, access string) error {
	_, err := c.ask(ctx, want, "GET", base+"/auth/verify", nil, "Authorization", "Bearer "+access)
	return err
}

// retryable tells whether a client is told that it may send the request again.
func retryable(err error) bool {
	var u *unexpected
	return errors.As(err, &u) && u.status == http.StatusServiceUnavailable && u.header.Get("Retry-After") != "" && u.answer.Error == "temporarily_unavailable"
}
