// Package claimhook asks a service of the operator's for claims to put into an
// access token that is about to be issued.
//
// Whoever needs it makes a [Webhook] and calls Claims. The request is signed, so
// that the service can tell it from anybody else's; the answer is believed because
// it comes from the URL in the settings, over TLS. Nothing is kept between calls,
// and nothing is tried again: the caller's own client does that.
//
// It never follows a redirect, never reads more than [MaxAnswer] bytes, and never
// puts an answer into an error.
package claimhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// ErrFailed says that the service gave no usable answer: it is down, slow,
// redirects, or says what is not an answer.
var ErrFailed = errors.New("the claims webhook failed")

const (
	// MaxAnswer is the longest answer that is read, in bytes.
	MaxAnswer = 8 << 10
	// connections is how many there may be to the service at once.
	connections = 64
)

// The headers of a request. The signature is "v1=" and, in hexadecimal,
// HMAC-SHA256(key, timestamp "." body).
const (
	HeaderTimestamp = "Latchkey-Timestamp" // Unix seconds
	HeaderSignature = "Latchkey-Signature"
)

// Request is what the service is told of the token to be issued.
type Request struct {
	Event    string `json:"event"` // login, refresh, client_credentials
	Subject  string `json:"sub"`
	Username string `json:"username,omitempty"`
	ClientID string `json:"client_id"`
	Scope    string `json:"scope,omitempty"` // granted, space separated
}

// Options are what a Webhook is made of, all required but Now.
type Options struct {
	URL     string
	Key     []byte        // of the signature
	Timeout time.Duration // of one call, connecting included
	Now     func() time.Time
}

// Webhook is the operator's service. It is safe for concurrent use.
type Webhook struct {
	o      Options
	client *http.Client
}

// New returns a Webhook. It does not call the service.
func New(o Options) *Webhook {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Webhook{o: o, client: &http.Client{
		Timeout: o.Timeout,
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: o.Timeout}).DialContext,
			TLSHandshakeTimeout: o.Timeout,
			MaxConnsPerHost:     connections,
			MaxIdleConnsPerHost: connections,
			IdleConnTimeout:     time.Minute,
			ForceAttemptHTTP2:   true,
		},
		// The signed request is for the URL in the settings and for nobody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close ends idle connections.
func (w *Webhook) Close() { w.client.CloseIdleConnections() }

// Claims asks the service, and returns the members of "claims" in its answer: nil
// if it has none, or answers 204. Errors: [ErrFailed].
func (w *Webhook) Claims(ctx context.Context, r Request) (map[string]json.RawMessage, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFailed, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.o.URL, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFailed, withoutURL(err))
	}
	timestamp := strconv.FormatInt(w.o.Now().Unix(), 10)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set(HeaderTimestamp, timestamp)
	req.Header.Set(HeaderSignature, Sign(w.o.Key, timestamp, body))
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFailed, withoutURL(err))
	}
	defer func() { _ = resp.Body.Close() }()
	return read(resp)
}

// withoutURL is the cause of an error of package http, which would name the URL: it may
// hold a secret, and the error is logged.
func withoutURL(err error) error {
	var named *url.Error
	if errors.As(err, &named) {
		return named.Err
	}
	return err
}

// Sign returns the signature of a request: what its receiver computes too, and
// compares in constant time. It should refuse a timestamp that is minutes old.
func Sign(key []byte, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(timestamp))
	mac.Write([]byte{'.'})
	mac.Write(body)
	return "v1=" + hex.EncodeToString(mac.Sum(nil))
}

func read(resp *http.Response) (map[string]json.RawMessage, error) {
	if resp.StatusCode == http.StatusNoContent {
		return nil, nil
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: status %d", ErrFailed, resp.StatusCode)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFailed, err)
	}
	if len(text) > MaxAnswer {
		return nil, fmt.Errorf("%w: the answer is longer than %d bytes", ErrFailed, MaxAnswer)
	}
	var answer struct {
		Claims map[string]json.RawMessage `json:"claims"`
	}
	if json.Unmarshal(text, &answer) != nil {
		return nil, fmt.Errorf("%w: the answer is not an object with an object claims", ErrFailed)
	}
	return answer.Claims, nil
}
