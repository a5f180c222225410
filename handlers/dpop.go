package handlers

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/dpop"
	"github.com/latchkey-auth/latchkey/internal/session"
)

// errForwarded says that a proxy asks about a request with a proof, and it is not known
// what request that is.
var errForwarded = fmt.Errorf("%w: no trusted proxy says which request it is for", dpop.ErrProof)

// proof is the DPoP proof that came with a request to the API. The URL that it must have been
// made for is the one that the issuer has told everybody, and not what Host says, which is
// the client's.
func (a *api) proof(c *gin.Context) session.Proof {
	r := c.Request
	return a.proofFor(c.Writer.Header(), r.Header, r.Method, strings.TrimSuffix(a.Settings.Issuer, "/")+r.URL.EscapedPath())
}

// proofFor is the DPoP proof in request, and the method and URL that it must have been made
// for. If there is a proof, the nonce for the next one goes into answer.
func (a *api) proofFor(answer, request http.Header, method, url string) session.Proof {
	p := session.Proof{Values: request[dpop.Header], Method: method, URL: url}
	if len(p.Values) == 1 && a.Settings.Nonces != nil {
		answer[dpop.NonceHeader] = []string{a.Settings.Nonces.Current(a.Store.Now())}
	}
	return p
}

// forwarded is the method and the URL of the request that a proxy asks verify about. Only a
// trusted proxy is believed: another may pass on headers that the client wrote. Error:
// errForwarded.
func (a *api) forwarded(c *gin.Context) (method, address string, err error) {
	r, h := c.Request, c.Request.Header
	peer, err := netip.ParseAddr(c.RemoteIP())
	if err != nil || !slices.ContainsFunc(a.Settings.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(peer.Unmap()) }) {
		return "", "", errForwarded
	}
	one := func(name string) string {
		if v := h[name]; len(v) == 1 {
			return v[0]
		}
		return ""
	}
	proto, host, uri := one("X-Forwarded-Proto"), one("X-Forwarded-Host"), one("X-Forwarded-Uri")
	method = one("X-Forwarded-Method")
	if path, under := strings.CutPrefix(r.URL.EscapedPath(), verifyPath+"/"); under {
		host, uri, method = r.Host, "/"+path, r.Method // Envoy asks in the form of the request
	}
	// A list is what a chain of proxies leaves: which of them is right is not known.
	if method == "" || host == "" || !strings.HasPrefix(uri, "/") || (proto != "http" && proto != "https") || strings.ContainsAny(host, ", /") {
		return "", "", errForwarded
	}
	return method, proto + "://" + host + uri, nil
}
