package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/latchkey-auth/latchkey/internal/accesstoken"
)

const (
	defaultKeysRefresh = 5 * time.Minute
	defaultKeysTimeout = 3 * time.Second
	// keysRetry is how soon a refresh that failed is tried again.
	keysRetry = 10 * time.Second
	// maxKeySet is the largest key set that is read, in bytes: a key takes some
	// hundred.
	maxKeySet = 256 << 10
)

// Keys are the public keys under which access tokens verify. They can sign
// nothing.
type Keys struct {
	ring   *accesstoken.Ring
	source string // "" if the keys were given
	client *http.Client
	o      KeysOptions

	mu     sync.Mutex // held while the set is fetched
	tried  time.Time  // when that last ended
	failed error      // and why in vain, if it was
}

// KeysOptions say how a key set is fetched. The zero value is a good choice.
type KeysOptions struct {
	// Client makes the requests; nil means one of its own. Redirects are not followed.
	Client *http.Client
	// Refresh is how often Run fetches the set; 0 means 5 minutes. That a key was
	// revoked, a Follower or a RemoteFollower learns sooner, from the log.
	Refresh time.Duration
	// Timeout bounds one fetch; 0 means 3 seconds.
	Timeout time.Duration
	// Failed, if set, is told why a fetch did not succeed. It must not block.
	Failed func(error)
}

// KeysFromURL returns the keys of a JWK Set (RFC 7517): those of Latchkey are at
// /.well-known/jwks.json of the issuer. Nothing is fetched yet: Run does that, and
// a token that names a key which is not there, at most once a second whatever
// tokens are shown.
//
// Keys that are gone from the set are removed, and their tokens are dead with
// them. While the URL does not answer, or answers what is not a set with a usable
// key, the keys are kept as they are.
func KeysFromURL(address string, o KeysOptions) (*Keys, error) {
	if err := webAddress(address); err != nil {
		return nil, fmt.Errorf("the key set: %w", err)
	}
	if o.Refresh <= 0 {
		o.Refresh = defaultKeysRefresh
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultKeysTimeout
	}
	return &Keys{ring: accesstoken.NewRing(), source: address, client: straight(o.Client), o: o}, nil
}

// KeysFromSet returns the keys of the text of a JWK Set. They stay as they are.
// A set without a usable key is an error.
func KeysFromSet(text []byte) (*Keys, error) {
	keys, err := accesstoken.ParseSet(text)
	if err != nil {
		return nil, err
	}
	k := &Keys{ring: accesstoken.NewRing()}
	k.take(keys)
	return k, nil
}

// Run keeps the keys up to date until ctx ends. Without it, a key that was
// withdrawn keeps verifying.
func (k *Keys) Run(ctx context.Context) {
	if k.source == "" {
		return
	}
	for ctx.Err() == nil {
		wait := k.o.Refresh
		if err := k.fetch(ctx); err != nil {
			wait = min(wait, keysRetry)
		}
		// A fleet that was started together does not ask together for ever.
		pause(ctx, wait-rand.N(wait/10+1)) //nolint:gosec // nothing is at stake
	}
}

// IDs returns the ids of the keys, sorted.
func (k *Keys) IDs() []string { return k.ring.IDs() }

// fetch brings the ring up to date, or tells why it could not, at most once in
// refetchEvery: who comes sooner is told what came of the last fetch.
func (k *Keys) fetch(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.source == "" || (!k.tried.IsZero() && time.Since(k.tried) < refetchEvery) {
		return k.failed
	}
	// What one caller fetches serves all: that he goes away is no reason to stop.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.o.Timeout)
	defer cancel()
	keys, err := k.get(ctx)
	if err == nil {
		k.take(keys)
	} else {
		err = fmt.Errorf("%w: the key set at %s: %w", ErrUnavailable, k.source, err)
		if k.o.Failed != nil {
			k.o.Failed(err)
		}
	}
	k.tried, k.failed = time.Now(), err
	return err
}

func (k *Keys) get(ctx context.Context) ([]*accesstoken.Key, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.source, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	// A cache on the way may hold the set of before the key that is looked for.
	req.Header.Set("Cache-Control", "no-cache")
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxKeySet+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxKeySet {
		return nil, errors.New("larger than 256 KiB")
	}
	return accesstoken.ParseSet(text)
}

// take makes the ring hold these keys and no others.
func (k *Keys) take(keys []*accesstoken.Key) {
	wanted := make(map[string]bool, len(keys))
	for _, key := range keys {
		wanted[key.ID()] = true
		k.ring.Add(key)
	}
	for _, kid := range k.ring.IDs() {
		if !wanted[kid] {
			k.ring.Remove(kid)
		}
	}
}

// webAddress reports what is wrong with an address that is to be asked by HTTP.
// The error does not repeat it: it may hold a password.
func webAddress(address string) error {
	u, err := url.Parse(address)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil {
		return errors.New("the address must be https://host/path, or http:// in a network that you trust, without user and password")
	}
	return nil
}

// straight returns a client that goes where it is sent and nowhere else.
func straight(c *http.Client) *http.Client {
	own := http.Client{}
	if c != nil {
		own = *c
	}
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &own
}
