package handlers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/dpop"
)

// proofError says that a DPoP proof was refused.
type proofError struct {
	cause error // of package dpop
	// shown says that it came with an access token (RFC 9449 section 7.1), and not with
	// a request for one (section 5).
	shown bool
}

func (e *proofError) Error() string { return e.cause.Error() }

func (e *proofError) Unwrap() error { return e.cause }

// problem is what the client is told. The causes are fixed texts.
func (e *proofError) problem() problem {
	p := problem{status: http.StatusBadRequest, code: "invalid_dpop_proof", detail: "DPoP proof refused", description: e.Error()}
	if errors.Is(e, dpop.ErrNonce) {
		p.code = "use_dpop_nonce"
	}
	if e.shown {
		p.status = http.StatusUnauthorized
		p.challenge = fmt.Sprintf("error=%q, error_description=%q", p.code, p.description)
	}
	return p
}

// errForwarded says that a proxy asks about a request with a proof, and it is not known
// what request that is.
var errForwarded = fmt.Errorf("%w: no trusted proxy says which request it is for", dpop.ErrProof)

// asked is the request that a proof must have been made for.
type asked struct{ method, url string }

// itself is a request to the API. The URL is the one that the issuer has told
// everybody, and not what Host says, which is the client's.
func (a *api) itself(r *http.Request) asked {
	return asked{r.Method, strings.TrimSuffix(a.Settings.Issuer, "/") + r.URL.EscapedPath()}
}

// forwarded is the request that a proxy asks verify about. Only a trusted proxy is
// believed: another may pass on headers that the client wrote. Error: errForwarded.
func (a *api) forwarded(c *gin.Context) (asked, error) {
	r, h := c.Request, c.Request.Header
	peer, err := netip.ParseAddr(c.RemoteIP())
	if err != nil || !slices.ContainsFunc(a.Settings.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(peer.Unmap()) }) {
		return asked{}, errForwarded
	}
	one := func(name string) string {
		if v := h[name]; len(v) == 1 {
			return v[0]
		}
		return ""
	}
	proto, host, uri, method := one("X-Forwarded-Proto"), one("X-Forwarded-Host"), one("X-Forwarded-Uri"), one("X-Forwarded-Method")
	if path, under := strings.CutPrefix(r.URL.EscapedPath(), verifyPath+"/"); under {
		host, uri, method = r.Host, "/"+path, r.Method // Envoy asks in the form of the request
	}
	// A list is what a chain of proxies leaves: which of them is right is not known.
	if method == "" || host == "" || !strings.HasPrefix(uri, "/") || (proto != "http" && proto != "https") || strings.ContainsAny(host, ", /") {
		return asked{}, errForwarded
	}
	return asked{method, proto + "://" + host + uri}, nil
}

// checkProof checks the proof of a request, if it has one, against the request and
// the access token that it shows, "" if it asks for one. The nonce to use next goes
// into answer. Errors: a [proofError].
func (a *api) checkProof(answer, request http.Header, q asked, token string) (*dpop.Proof, error) {
	shown := token != ""
	text, err := dpop.Find(request)
	if errors.Is(err, dpop.ErrMissing) && !shown {
		return nil, nil
	}
	if err != nil {
		return nil, &proofError{err, shown}
	}
	now := a.Store.Now()
	if a.Settings.Nonces != nil {
		answer[dpop.NonceHeader] = []string{a.Settings.Nonces.Current(now)}
	}
	p, err := dpop.Parse(text)
	if err == nil {
		err = p.Check(dpop.Request{Method: q.method, URL: q.url, Now: now, Token: token, Nonces: a.Settings.Nonces})
	}
	if err != nil {
		return nil, &proofError{err, shown}
	}
	return p, nil
}

// useProof uses a proof up, on all replicas: one round trip. It comes when all else was
// checked, so that strangers fill no memory, and before anything is done. No proof is
// no matter. Errors: a [proofError]; [edge.ErrUnavailable].
func (a *api) useProof(ctx context.Context, p *dpop.Proof, shown bool) error {
	if p == nil {
		return nil
	}
	id, until := p.Use()
	first, err := a.Store.FirstUse(ctx, id, until)
	if err == nil && !first {
		err = &proofError{dpop.ErrReplayed, shown}
	}
	return err
}

// offeredProof is the proof that comes with a request for tokens; nil if none does.
func (a *api) offeredProof(c *gin.Context) (*dpop.Proof, error) {
	p, err := a.checkProof(c.Writer.Header(), c.Request.Header, a.itself(c.Request), "")
	a.noteProof(c, err)
	return p, err
}

// spend is useProof for a request for tokens.
func (a *api) spend(c *gin.Context, p *dpop.Proof) error {
	err := a.useProof(c.Request.Context(), p, false)
	a.noteProof(c, err)
	return err
}

// admitBound accepts a token that is shown as Authorization: DPoP. Errors: a
// [proofError] and those of [edge.Verifier.VerifyBound].
func (a *api) admitBound(ctx context.Context, answer, request http.Header, q asked, token string) (edge.Claims, error) {
	p, err := a.checkProof(answer, request, q, token)
	if err != nil {
		return edge.Claims{}, err
	}
	claims, err := a.Verifier.VerifyBound(ctx, token, p.JKT())
	if err == nil {
		err = a.useProof(ctx, p, true)
	}
	return claims, err
}

// noteProof makes an event of a proof that was refused.
func (a *api) noteProof(c *gin.Context, err error) {
	if reason := proofRefusal(err); reason != "" {
		a.note(c, EventProofRefused, slog.String("reason", reason))
	}
}

// proofRefusal is the reason of the event that a refused proof is: "" for another error,
// and for a proof that lacks nothing but the nonce.
func proofRefusal(err error) string {
	switch {
	case errors.Is(err, dpop.ErrReplayed):
		return "replayed"
	case errors.Is(err, dpop.ErrProof):
		return "invalid"
	}
	return ""
}
