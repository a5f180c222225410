package edge

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/latchkey-auth/latchkey/internal/dpop"
)

// ErrProof says that a DPoP proof is missing, or is not one of this request, of this
// token and of this moment, or was used before.
var ErrProof = dpop.ErrProof

// DPoPOptions say how a [Middleware] checks DPoP proofs (RFC 9449).
type DPoPOptions struct {
	// URL is where clients reach this API: scheme, host, and the path that a proxy in
	// front takes away, if any. A proof must be for it and the request's path. What Host
	// says does not count: it is the client's.
	URL string
	// Replay reports whether a proof is used for the first time; it is to remember its
	// id until a time at most two minutes ahead. It is called for requests alone whose
	// token and proof are good. An error is answered 503.
	//
	// Nil remembers in this process, for as long as a proof counts: no proof is accepted
	// twice by one Middleware, as long as no more than 131,072 come within two minutes.
	// Beyond that, and on other instances of the API, one that was used can be used again
	// within a minute of its making, for the same method and URL. Where that matters, give
	// the FirstUse method of the store that [Dial] returns, which all instances share:
	// one round trip to Redis for each request with a proof.
	Replay func(ctx context.Context, id [sha256.Size]byte, until time.Time) (first bool, err error)
}

// DPoP lets a [Middleware] also accept tokens that are bound to a key, shown as
// Authorization: DPoP with a proof. It panics if the URL is no http(s) URL.
func DPoP(o DPoPOptions) MiddlewareOption {
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.RawQuery != "" || u.Fragment != "" {
		panic(fmt.Sprintf("edge: %q is not the URL of an API", o.URL))
	}
	o.URL = strings.TrimSuffix(o.URL, "/")
	if o.Replay == nil {
		o.Replay = newUsed(maxUsed).first
	}
	return func(g *guard) { g.dpop = &o }
}

// admit accepts a token that is bound to the key of the request's proof.
func (o *DPoPOptions) admit(r *http.Request, v *Verifier, token string) (Claims, error) {
	text, err := dpop.Find(r.Header)
	if err != nil {
		return Claims{}, err
	}
	p, err := dpop.Parse(text)
	if err == nil {
		err = p.Check(dpop.Request{Method: r.Method, URL: o.URL + r.URL.EscapedPath(), Now: v.now(), Token: token})
	}
	if err != nil {
		return Claims{}, err
	}
	claims, err := v.VerifyBound(r.Context(), token, p.JKT())
	if err != nil {
		return Claims{}, err
	}
	id, until := p.Use()
	first, err := o.Replay(r.Context(), id, until)
	switch {
	case err != nil:
		return Claims{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	case !first:
		return Claims{}, dpop.ErrReplayed
	}
	return claims, nil
}

// maxUsed is how many uses each of two generations holds, 32 bytes each and as much
// again for the map.
const maxUsed = 1 << 17

// used remembers what counts once, in two generations of which the older is dropped
// whole: once all of it is needed no more, or when the newer is full.
type used struct {
	mu                sync.Mutex
	current, previous map[[sha256.Size]byte]struct{}
	began             time.Time // of the current generation
	limit             int
}

func newUsed(limit int) *used {
	return &used{current: map[[sha256.Size]byte]struct{}{}, limit: limit}
}

// first is DPoPOptions.Replay. No proof counts for longer than two windows.
func (u *used) first(_ context.Context, id [sha256.Size]byte, _ time.Time) (bool, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, before := u.previous[id]
	if _, now := u.current[id]; now || before {
		return false, nil
	}
	if now := time.Now(); now.Sub(u.began) >= 2*dpop.Window || len(u.current) >= u.limit {
		u.previous, u.current, u.began = u.current, map[[sha256.Size]byte]struct{}{}, now
	}
	u.current[id] = struct{}{}
	return true, nil
}
