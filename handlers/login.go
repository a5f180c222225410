package handlers

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/dpop"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// loginRequest is a checked POST /auth/token.
type loginRequest struct {
	username, password, scope string
	device                    string // device_token
	inBody                    bool   // refresh_delivery=body
	// shown is the registered client that logs the user in; zero if none does.
	shown shownClient
	// earlier are the refresh tokens whose cookies came along, one for each session.
	earlier []refreshtoken.Token
}

// login is POST /auth/token: two round trips, one to read the account and charge the
// throttle, one to make the session. A registered client that logs a user in costs
// two more, a DPoP proof one, and each session whose cookie comes along one.
func (a *api) login(c *gin.Context) error {
	req, err := readLogin(c)
	if err != nil {
		return err
	}
	if req.earlier = a.families(a.endingCookies(c.Request)); len(req.earlier) > maxShown {
		return a.tooManyShown(c)
	}
	if err := a.canSign(); err != nil {
		return err
	}
	proof, err := a.offeredProof(c)
	if err != nil {
		return err
	}
	client, err := a.loginClient(c, req.shown)
	if err != nil {
		return err
	}
	attempt := a.attempt(c, req.username, req.device)
	attempt.Client = client.ID
	account, err := a.checkPassword(c, attempt, req.password)
	if err != nil {
		return err
	}
	token, m, err := a.admit(c, req, account, client, proof)
	if err != nil {
		// The password was right. What else went wrong is no guess.
		a.refund(c, account.Charge)
		return err
	}
	// The session is there, whatever becomes of the answer.
	a.note(c, EventLogin, slog.String("sub", m.grant.Subject), slog.String("sid", m.sid.String()))
	answer, err := a.completeLogin(c, req, token, m)
	if err != nil {
		// The client gets no tokens, so nobody will ever use the new session.
		a.abandon(c, m)
		return err
	}
	if req.inBody && len(a.refreshCookies(c.Request)) > 0 {
		a.clearRefreshCookie(c) // the sessions of those have ended
		a.clearAccessCookie(c)
	}
	if attempt.Device == "" {
		answer.DeviceToken = a.rememberDevice(c, req)
	}
	answer.send(c)
	return nil
}

// completeLogin does what is left to do once the session is open, and returns the answer.
// Each step can fail, and the one that cannot be undone comes last: the end of the sessions
// whose cookies came along. Errors: those of loginClient, answer and endEarlier.
func (a *api) completeLogin(c *gin.Context, req loginRequest, token refreshtoken.Token, m minted) (tokenResponse, error) {
	// Whoever deletes a client ends the sessions that are there then; one that was
	// opened later must not be answered.
	if _, err := a.loginClient(c, req.shown); err != nil {
		return tokenResponse{}, err
	}
	answer, err := a.answer(m)
	if err != nil {
		return tokenResponse{}, err
	}
	if err := a.endEarlier(c, req.earlier); err != nil {
		return tokenResponse{}, err
	}
	return a.handOut(c, answer, m, token, req.inBody), nil
}

// admit opens the session of a user whose password was right. Errors: those of
// loginScope, spend and openSession; errCredentials.
func (a *api) admit(c *gin.Context, req loginRequest, account tokenstore.Lookup, client tokenstore.Client, proof *dpop.Proof) (refreshtoken.Token, minted, error) {
	scope, err := loginScope(req.scope, account.Account, client)
	if err != nil {
		return refreshtoken.Token{}, minted{}, err
	}
	if err := a.spend(c, proof); err != nil {
		return refreshtoken.Token{}, minted{}, err
	}
	token, m, err := a.openSession(c, account, client, scope, proof.JKT(), req.earlier)
	if errors.Is(err, tokenstore.ErrSuperseded) {
		// The password that was right a moment ago has just been changed.
		err = errCredentials
	}
	return token, m, err
}

// refund takes back what an attempt was charged that was no wrong guess. If it cannot,
// the charge is regained with time.
func (a *api) refund(c *gin.Context, charge tokenstore.Charge) {
	// The client may be gone: that is no wrong guess either.
	ctx := context.WithoutCancel(c.Request.Context())
	if err := a.Store.Refund(ctx, charge); err != nil {
		a.logger(c).LogAttrs(ctx, slog.LevelWarn, "an attempt at a password was not refunded to the login limits", slog.String("cause", err.Error()))
	}
}

// loginClient authenticates the registered client that logs a user in. Errors: those
// of authenticate; a [requestError].
func (a *api) loginClient(c *gin.Context, shown shownClient) (tokenstore.Client, error) {
	if shown == (shownClient{}) {
		return tokenstore.Client{}, nil
	}
	client, err := a.authenticate(c, shown, a.Store.AuthenticateClient)
	if err == nil {
		err = allow(client.Client, grantRefreshToken)
	}
	return client.Client, err
}

// loginScope is what of the requested scope both the account and the client are
// allowed.
func loginScope(requested string, account tokenstore.Account, client tokenstore.Client) (string, error) {
	allowed := account.Scopes
	if client.ID != "" {
		may := strings.Fields(client.Scopes)
		allowed = strings.Join(slices.DeleteFunc(strings.Fields(allowed), func(s string) bool { return !slices.Contains(may, s) }), " ")
	}
	return grantedScope(requested, allowed)
}

func readLogin(c *gin.Context) (loginRequest, error) {
	p, err := bind(c)
	if err != nil {
		return loginRequest{}, err
	}
	r := loginRequest{username: p["username"], password: p["password"], scope: p["scope"], device: p["device_token"]}
	if g := p["grant_type"]; g != "" && g != "password" {
		return r, &requestError{code: "unsupported_grant_type", description: "grant_type is password, or absent"}
	}
	switch p["refresh_delivery"] {
	case "", "cookie":
	case "body":
		r.inBody = true
	default:
		return r, badRequest("refresh_delivery is cookie or body")
	}
	// Clients of other services send a client_id here that means nothing; only that
	// of a registered client does.
	if shown, err := p.shownClient(c.Request); tokenstore.IsClient(shown.id) {
		if err != nil {
			return r, err
		}
		if p["refresh_delivery"] == "cookie" {
			return r, badRequest("A registered client gets the refresh token in the body")
		}
		r.shown, r.inBody = shown, true
	}
	if r.username == "" || r.password == "" {
		return r, badRequest("username and password are required")
	}
	if err := credential.ValidateUsername(r.username); err != nil {
		return r, badRequest("%v", err)
	}
	if err := credential.ValidatePassword(r.password); err != nil {
		return r, badRequest("%v", err)
	}
	return r, nil
}

// attempt describes a try at an account's password to the throttle. device is the
// parameter device_token.
func (a *api) attempt(c *gin.Context, username, device string) tokenstore.Attempt {
	return tokenstore.Attempt{
		Username: username,
		Address:  network(c.ClientIP()),
		Device:   a.knownDevice(c.Request, username, device),
		Limits:   a.Settings.Limits,
	}
}

// network is what counts as one address: an IPv4 address, or the /64 that one
// IPv6 customer has all of.
func network(address string) netip.Addr {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return netip.Addr{}
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is4() {
		return ip
	}
	p, err := ip.Prefix(64)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr()
}

// checkPassword returns the account if the login limits allow the attempt and the password
// is right. The attempt is still charged then: the caller refunds it, by Login or by
// refund. A wrong password and a disabled account stay charged; if the password could not
// be checked, checkPassword has refunded it. An unknown user costs the same work. Errors:
// errCredentials, a [throttledError], [credential.ErrBusy], [tokenstore.ErrUnavailable].
func (a *api) checkPassword(c *gin.Context, attempt tokenstore.Attempt, password string) (tokenstore.Lookup, error) {
	ctx := c.Request.Context()
	found, err := a.lookUp(c, attempt)
	if err != nil {
		return found, err
	}
	var result credential.Result
	if found.Found {
		result, err = a.Passwords.Verify(ctx, found.Account.Hash, password)
	} else {
		err = a.Passwords.VerifyNobody(ctx, found.Cost, password)
	}
	if err != nil {
		a.refund(c, found.Charge) // nothing was tried
		return found, err
	}
	if !result.Match || found.Account.Disabled {
		a.noteLoginFailed(c, found)
		return found, errCredentials
	}
	if result.Upgrade {
		a.upgradeHash(c, found.Account, password)
	}
	return found, nil
}

// lookUp reads the account and charges the attempt. Errors: a [throttledError],
// [tokenstore.ErrUnavailable].
func (a *api) lookUp(c *gin.Context, attempt tokenstore.Attempt) (tokenstore.Lookup, error) {
	found, err := a.Store.Lookup(c.Request.Context(), attempt)
	if err == nil && found.Wait > 0 {
		a.note(c, EventLoginThrottled)
		err = &throttledError{wait: found.Wait}
	}
	return found, err
}

// noteLoginFailed names the subject of an account that exists. What was typed
// for one that does not may be a password.
func (a *api) noteLoginFailed(c *gin.Context, found tokenstore.Lookup) {
	reason := "unknown_user"
	var attrs []slog.Attr
	if found.Found {
		reason = "password"
		if found.Account.Disabled {
			reason = "disabled"
		}
		attrs = append(attrs, slog.String("sub", found.Account.Subject))
	}
	a.note(c, EventLoginFailed, append(attrs, slog.String("reason", reason))...)
}

// upgradeHash replaces a hash that is weaker than today's, now that the password
// is at hand. If it cannot, the next login will.
func (a *api) upgradeHash(c *gin.Context, account tokenstore.Account, password string) {
	ctx := c.Request.Context()
	hash, err := a.Passwords.Hash(ctx, password)
	if err == nil {
		_, err = a.Store.SetPassword(ctx, account.Username, account.Hash, hash)
	}
	if err != nil {
		a.logger(c).LogAttrs(ctx, slog.LevelWarn, "password hash not upgraded",
			slog.String("sub", account.Subject), slog.String("cause", err.Error()))
	}
}

// openSession makes a session, bound to the key with the thumbprint jkt or to none, and
// its first refresh token, and returns what its access token is made of. The caller ends
// the earlier sessions afterwards.
func (a *api) openSession(c *gin.Context, found tokenstore.Lookup, client tokenstore.Client, scope, jkt string, earlier []refreshtoken.Token) (refreshtoken.Token, minted, error) {
	account, uid := found.Account, a.Store.UserID(found.Account.Subject)
	sid, err := a.Store.NewID(uid)
	if err != nil {
		return refreshtoken.Token{}, minted{}, err
	}
	token, err := a.Refresh.First(sid, uid, a.Rand)
	if err != nil {
		return token, minted{}, err
	}
	m := minted{sid: sid, uid: uid, client: client, grant: tokenstore.Grant{
		Subject: account.Subject, Username: account.Username, Claims: account.Claims,
		Scope: scope, ClientID: cmp.Or(client.ID, a.Settings.ClientID), JKT: jkt,
	}}
	if m.asked, err = a.askClaims(c, hookLogin, m); err != nil {
		return token, m, err
	}
	if err := a.fits(m); err != nil {
		return token, m, err
	}
	leaving := make([]tokenstore.ID, 0, len(earlier))
	for _, e := range earlier {
		leaving = append(leaving, e.SID)
	}
	// A client that goes away does not interrupt this: else nobody would know of the session.
	m.grant, err = a.Store.Login(context.WithoutCancel(c.Request.Context()), tokenstore.NewSession{
		SID: sid, UID: uid, Hash: token.Hash(),
		Subject: account.Subject, Username: account.Username, Scope: scope, Claims: account.Claims, ClientID: m.grant.ClientID,
		Device: device(c.Request.UserAgent()), Address: c.ClientIP(), ReadAt: found.ReadAt, JKT: jkt, Leaving: leaving, Charge: found.Charge,
	})
	if errors.Is(err, tokenstore.ErrUnavailable) {
		// The session may be there.
		a.note(c, EventLogin, slog.String("sub", account.Subject), slog.String("sid", sid.String()), slog.Bool("confirmed", false))
	}
	for _, ended := range m.grant.Ended {
		a.note(c, EventSessionEnded, slog.String("sub", account.Subject), slog.String("sid", ended.String()), slog.String("reason", "limit"), slog.Bool("confirmed", false))
	}
	return token, m, err
}

// endEarlier ends the sessions whose refresh cookies come with a login, as a logout does.
// A cookie whose path and domain are unknown cannot be deleted reliably. If its session
// lived on, the browser could later refresh as the user of that session.
//
// The caller does this after it has opened the new session and before it hands out the
// tokens: if the new session cannot be opened, the old ones live on; if the old ones cannot
// be ended, the login fails, the cookies stay, and the login can be sent again.
func (a *api) endEarlier(c *gin.Context, earlier []refreshtoken.Token) error {
	for _, token := range earlier {
		end := tokenstore.SessionEnd{SID: token.SID, UID: token.UID}
		if err := a.endOne(c, EventLogout, end); err != nil {
			return err
		}
	}
	return nil
}

// abandon ends a new session whose tokens nobody was given. If it cannot, the session
// stays in the user's list until it expires. Nobody waits until every replica knows.
func (a *api) abandon(c *gin.Context, m minted) {
	_, err := a.Store.Revoke(context.WithoutCancel(c.Request.Context()), tokenstore.SessionEnd{SID: m.sid, UID: m.uid})
	if err == nil || errors.Is(err, tokenstore.ErrUnavailable) {
		a.note(c, EventLogout, slog.String("sid", m.sid.String()), slog.Bool("confirmed", false))
	}
}

// rememberDevice makes whoever has logged in a known device: a browser by a cookie, others
// by the token that it returns for the answer. It is a courtesy: without it the login is
// none the worse.
func (a *api) rememberDevice(c *gin.Context, req loginRequest) string {
	token, err := a.newDevice(req.username)
	if err != nil {
		a.logger(c).LogAttrs(c.Request.Context(), slog.LevelWarn, "device not remembered", slog.String("cause", err.Error()))
		return ""
	}
	if req.inBody {
		return token
	}
	a.setDeviceCookie(c, token)
	return ""
}
