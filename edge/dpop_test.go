package edge

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/internal/dpop"
	"github.com/latchkey-auth/latchkey/internal/dpop/dpoptest"
)

// bind signs the token of a session again, bound to a key.
func (n *node) bind(s session, jkt string) string {
	n.t.Helper()
	c, err := n.verifier.tokens.Authentic(s.token)
	if err != nil {
		n.t.Fatal(err)
	}
	c.JKT = jkt
	token, err := n.signer.Sign(c)
	if err != nil {
		n.t.Fatal(err)
	}
	return token
}

// RFC 9449 section 7.2: a bound token is never taken for a bearer token, be it
// remembered or not, and a bearer token never for a bound one.
func TestABoundTokenIsNoBearerToken(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	n := newNode(t, server.URL(), ring, nodeOptions{strict: true})
	k, other := dpoptest.NewKey(t, "ES256"), dpoptest.NewKey(t, "ES256")
	plain := n.login("alice")
	bound := n.bind(plain, k.JKT)
	for range 2 {
		if _, err := n.verifier.Verify(t.Context(), bound); !errors.Is(err, ErrInvalid) {
			t.Errorf("as a bearer token: %v", err)
		}
		c, err := n.verifier.VerifyBound(t.Context(), bound, k.JKT)
		if err != nil || c.JKT != k.JKT {
			t.Errorf("with its key: %+v, %v", c, err)
		}
		for name, jkt := range map[string]string{"another key": other.JKT, "no key": ""} {
			if _, err := n.verifier.VerifyBound(t.Context(), bound, jkt); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
			if _, err := n.verifier.VerifyBound(t.Context(), plain.token, jkt); !errors.Is(err, ErrInvalid) {
				t.Errorf("a bearer token with %s: %v", name, err)
			}
		}
		if err := n.verify(plain); err != nil {
			t.Errorf("a bearer token: %v", err)
		}
	}
	if err := n.logout(plain); err != nil {
		t.Fatal(err)
	}
	if _, err := n.verifier.VerifyBound(t.Context(), bound, k.JKT); !errors.Is(err, ErrRevoked) {
		t.Errorf("after the logout: %v", err)
	}
	judge, err := New(Options{Revocations: n.store.Revocations, Ring: ring, Issuer: issuer, AnyAudience: true})
	if err != nil {
		t.Fatal(err)
	}
	live := n.bind(n.login("bob"), k.JKT)
	if c, err := judge.Verify(t.Context(), live); err != nil || c.JKT != k.JKT {
		t.Errorf("who judges for others: %+v, %v", c, err)
	}
}

// RFC 9449 section 7.1, at somebody's API.
func TestMiddlewareDPoP(t *testing.T) {
	t.Parallel()
	server, ring := startRedis(t), newRing(t)
	n := newNode(t, server.URL(), ring, nodeOptions{strict: true})
	k := dpoptest.NewKey(t, "ES256")
	plain := n.login("alice")
	bound := n.bind(plain, k.JKT)
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := ClaimsFrom(r.Context()); !ok || c.Subject != "alice" {
			t.Errorf("claims: %+v", c)
		}
		w.WriteHeader(http.StatusTeapot)
	})
	const public = "https://api.example/v1"
	with := Middleware(n.verifier, DPoP(DPoPOptions{URL: public + "/"}))(next)
	without := Middleware(n.verifier)(next)
	broken := Middleware(n.verifier, DPoP(DPoPOptions{URL: public, Replay: func(context.Context, [sha256.Size]byte, time.Time) (bool, error) {
		return false, errors.New("it does not answer")
	}}))(next)
	shared := Middleware(n.verifier, DPoP(DPoPOptions{URL: public, Replay: n.store.Proofs.FirstUse}))(next)
	proof := func(changes ...dpoptest.Change) string { return k.Proof("GET", public+"/orders", bound, changes...) }
	used, usedShared := proof(), proof()
	const algs = `algs="ES256 ES384 ES512 EdDSA PS256 RS256"`
	for _, c := range []struct {
		name          string
		h             http.Handler
		authorization string
		proofs        []string
		status        int
		challenge     string
	}{
		{"good", with, "DPoP " + bound, []string{used}, http.StatusTeapot, ""},
		{"used before", with, "dpop " + bound, []string{used}, 401, `DPoP error="invalid_dpop_proof"`},
		{"good, shared memory", shared, "DPoP " + bound, []string{usedShared}, http.StatusTeapot, ""},
		{"used before, shared memory", shared, "DPoP " + bound, []string{usedShared}, 401, `DPoP error="invalid_dpop_proof"`},
		{"the memory is down", broken, "DPoP " + bound, []string{proof()}, 503, ""},
		{"a bearer token", with, "Bearer " + plain.token, nil, http.StatusTeapot, ""},
		{"as a bearer token", with, "Bearer " + bound, []string{proof()}, 401, `Bearer error="invalid_token"`},
		{"no proof", with, "DPoP " + bound, nil, 401, `DPoP error="invalid_dpop_proof"`},
		{"two proofs", with, "DPoP " + bound, []string{proof(), proof()}, 401, `DPoP error="invalid_dpop_proof"`},
		{"nonsense", with, "DPoP " + bound, []string{"x"}, 401, `DPoP error="invalid_dpop_proof"`},
		{"another method", with, "DPoP " + bound, []string{proof(dpoptest.With("htm", "PUT"))}, 401, `DPoP error="invalid_dpop_proof"`},
		{"by Host", with, "DPoP " + bound, []string{proof(dpoptest.With("htu", "https://evil.example/orders"))}, 401, `DPoP error="invalid_dpop_proof"`},
		{"another token's hash", with, "DPoP " + bound, []string{proof(dpoptest.With("ath", dpoptest.Hash(plain.token)))}, 401, `DPoP error="invalid_dpop_proof"`},
		{"no hash", with, "DPoP " + bound, []string{proof(dpoptest.With("ath", ""))}, 401, `DPoP error="invalid_dpop_proof"`},
		{"another key", with, "DPoP " + bound, []string{dpoptest.NewKey(t, "EdDSA").Proof("GET", public+"/orders", bound)}, 401, `DPoP error="invalid_token"`},
		{"a token that is not bound", with, "DPoP " + plain.token, []string{k.Proof("GET", public+"/orders", plain.token)}, 401, `DPoP error="invalid_token"`},
		{"where there is no DPoP", without, "DPoP " + bound, []string{proof()}, 401, "Bearer"},
		{"as a bearer token, where there is no DPoP", without, "Bearer " + bound, nil, 401, `Bearer error="invalid_token"`},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/orders?page=2", http.NoBody)
		r.Host = "evil.example"
		r.Header.Set("Authorization", c.authorization)
		r.Header[dpop.Header] = c.proofs
		w := httptest.NewRecorder()
		c.h.ServeHTTP(w, r)
		got := w.Header().Get("WWW-Authenticate")
		if w.Code != c.status || !strings.HasPrefix(got, c.challenge) || strings.HasPrefix(got, "DPoP") != strings.HasSuffix(got, algs) {
			t.Errorf("%s: %d %q", c.name, w.Code, got)
		}
	}
	w := httptest.NewRecorder()
	with.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/orders", http.NoBody))
	if got := w.Header().Values("WWW-Authenticate"); w.Code != 401 || len(got) != 2 || got[0] != "Bearer" || got[1] != "DPoP "+algs {
		t.Errorf("no token: %d %q", w.Code, got)
	}
}

func TestDPoPNeedsAURL(t *testing.T) {
	for _, text := range []string{"", "api.example", "/v1", "ftp://api.example", "https://api.example?x", "https://"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q is accepted", text)
				}
			}()
			DPoP(DPoPOptions{URL: text})
		}()
	}
}

// What was used is remembered until there is too much of it.
func TestUsedInMemory(t *testing.T) {
	u := newUsed(10)
	first := func(i int) bool {
		ok, err := u.first(t.Context(), sha256.Sum256([]byte{byte(i)}), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	for i := range 20 { // what two generations hold
		if !first(i) {
			t.Errorf("%d was used before", i)
		}
		if first(i) {
			t.Errorf("%d was not used before", i)
		}
	}
	if first(0) || first(19) {
		t.Error("forgotten too early")
	}
	for i := range 20 {
		first(100 + i)
	}
	if len(u.current)+len(u.previous) > 20 {
		t.Errorf("%d are remembered", len(u.current)+len(u.previous))
	}
	if !first(0) {
		t.Error("nothing is ever forgotten")
	}
	u.began = u.began.Add(-2 * dpop.Window)
	if first(119) {
		t.Error("forgotten when the generation turned")
	}
}
