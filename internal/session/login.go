package session

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/latchkey-auth/latchkey/internal/credential"
	"github.com/latchkey-auth/latchkey/internal/dpop"
	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// LoginRequest asks for a session with a password.
type LoginRequest struct {
	Username, Password string
	Scope              string   // "" for all that the account may have
	Devices            []string // tokens of known devices that came along
	// Client is the registered client that logs the user in; zero if none does.
	Client Credentials
	// Earlier are refresh tokens of ours that came along in cookies. Their sessions end.
	Earlier   []string
	Proof     Proof
	UserAgent string
}

// Login opens a session: two round trips, one to read the account and charge the throttle,
// one to make the session. A registered client that logs a user in costs two more, a DPoP
// proof one, and each earlier session one. The username and the password must be valid
// ([credential.ValidateUsername], [credential.ValidatePassword]). Errors: ErrCredentials; a
// [ThrottledError]; ErrTooMany; ErrClient; a [RequestError]; a [ProofError];
// [accesstoken.ErrNoKey]; [credential.ErrBusy]; [claimhook.ErrFailed];
// [tokenstore.ErrUnavailable].
func (s *Service) Login(ctx context.Context, from Origin, r LoginRequest) (Tokens, error) {
	earlier := s.families(r.Earlier)
	if len(earlier) > MaxShown {
		return Tokens{}, ErrTooMany
	}
	if err := s.canSign(); err != nil {
		return Tokens{}, err
	}
	proof, err := s.offeredProof(ctx, from, r.Proof)
	if err != nil {
		return Tokens{}, err
	}
	client, err := s.loginClient(ctx, from, r.Client)
	if err != nil {
		return Tokens{}, err
	}
	attempt := s.attempt(from, r.Username, r.Devices)
	attempt.Client = client.ID
	account, err := s.checkPassword(ctx, from, attempt, r.Password)
	if err != nil {
		return Tokens{}, err
	}
	token, d, err := s.open(ctx, from, r, account, client, proof, earlier)
	if err != nil {
		// The password was right. What else went wrong is no guess.
		s.refund(ctx, from, account.Charge)
		return Tokens{}, err
	}
	// The session is there, whatever becomes of the answer.
	s.Record(ctx, from, EventLogin, slog.String("sub", d.grant.Subject), slog.String("sid", d.sid.String()))
	tokens, err := s.completeLogin(ctx, from, r.Client, token, d, earlier)
	if err != nil {
		// The client gets no tokens, so nobody will ever use the new session.
		s.abandon(ctx, from, d)
		return Tokens{}, err
	}
	if attempt.Device == "" {
		tokens.Device = s.newDevice(ctx, from, r.Username)
	}
	return tokens, nil
}

// completeLogin does what is left to do once the session is open, and returns the answer.
// Each step can fail, and the one that cannot be undone comes last: the end of the earlier
// sessions. Errors: those of loginClient, issue and endEarlier.
func (s *Service) completeLogin(ctx context.Context, from Origin, client Credentials, token refreshtoken.Token, d draft, earlier []refreshtoken.Token) (Tokens, error) {
	// Whoever deletes a client ends the sessions that are there then; one that was
	// opened later must not be answered.
	if _, err := s.loginClient(ctx, from, client); err != nil {
		return Tokens{}, err
	}
	tokens, err := s.issue(d)
	if err != nil {
		return Tokens{}, err
	}
	if err := s.endEarlier(ctx, from, earlier); err != nil {
		return Tokens{}, err
	}
	return tokens.with(s.RefreshTokens.Encode(token), d.grant), nil
}

// open opens the session of a user whose password was right. Errors: those of loginScope,
// spendProof and openSession; ErrCredentials.
func (s *Service) open(ctx context.Context, from Origin, r LoginRequest, account tokenstore.Lookup, client tokenstore.Client, proof *dpop.Proof, earlier []refreshtoken.Token) (refreshtoken.Token, draft, error) {
	scope, err := loginScope(r.Scope, account.Account, client)
	if err != nil {
		return refreshtoken.Token{}, draft{}, err
	}
	if err := s.spendProof(ctx, from, proof); err != nil {
		return refreshtoken.Token{}, draft{}, err
	}
	token, d, err := s.openSession(ctx, from, account, newSession{client: client, scope: scope, jkt: proof.JKT(), device: device(r.UserAgent)}, earlier)
	if errors.Is(err, tokenstore.ErrSuperseded) {
		// The password that was right a moment ago has just been changed.
		err = ErrCredentials
	}
	return token, d, err
}

// refund takes back what an attempt was charged that was no wrong guess. If it cannot,
// the charge is regained with time.
func (s *Service) refund(ctx context.Context, from Origin, charge tokenstore.Charge) {
	// The client may be gone: that is no wrong guess either.
	ctx = context.WithoutCancel(ctx)
	if err := s.Store.Attempts.Refund(ctx, charge); err != nil {
		s.warn(ctx, from, "an attempt at a password was not refunded to the login limits", slog.String("cause", err.Error()))
	}
}

// loginClient authenticates the registered client that logs a user in, if one does. Errors:
// those of authenticate; a [RequestError].
func (s *Service) loginClient(ctx context.Context, from Origin, c Credentials) (tokenstore.Client, error) {
	if c == (Credentials{}) {
		return tokenstore.Client{}, nil
	}
	client, err := s.authenticate(ctx, from, c, s.Store.Clients.Authenticate)
	if err == nil {
		err = allow(client.Client, GrantRefreshToken)
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

// attempt describes a try at an account's password to the throttle. devices are the tokens
// of known devices that came along.
func (s *Service) attempt(from Origin, username string, devices []string) tokenstore.Attempt {
	return tokenstore.Attempt{
		Username: username,
		Address:  network(from.Address),
		Device:   s.knownDevice(username, devices),
		Limits:   s.Limits,
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
// ErrCredentials, a [ThrottledError], [credential.ErrBusy], [tokenstore.ErrUnavailable].
func (s *Service) checkPassword(ctx context.Context, from Origin, attempt tokenstore.Attempt, password string) (tokenstore.Lookup, error) {
	found, err := s.lookUp(ctx, from, attempt)
	if err != nil {
		return found, err
	}
	var result credential.Result
	if found.Found {
		result, err = s.Passwords.Verify(ctx, found.Account.Hash, password)
	} else {
		err = s.Passwords.VerifyNobody(ctx, found.Cost, password)
	}
	if err != nil {
		s.refund(ctx, from, found.Charge) // nothing was tried
		return found, err
	}
	if !result.Match || found.Account.Disabled {
		s.noteLoginFailed(ctx, from, found)
		return found, ErrCredentials
	}
	if result.Upgrade {
		s.upgradeHash(ctx, from, found.Account, password)
	}
	return found, nil
}

// lookUp reads the account and charges the attempt. Errors: a [ThrottledError],
// [tokenstore.ErrUnavailable].
func (s *Service) lookUp(ctx context.Context, from Origin, attempt tokenstore.Attempt) (tokenstore.Lookup, error) {
	found, err := s.Store.Attempts.Lookup(ctx, attempt)
	if err == nil && found.Wait > 0 {
		s.Record(ctx, from, EventLoginThrottled)
		err = &ThrottledError{Wait: found.Wait}
	}
	return found, err
}

// noteLoginFailed names the subject of an account that exists. What was typed
// for one that does not may be a password.
func (s *Service) noteLoginFailed(ctx context.Context, from Origin, found tokenstore.Lookup) {
	reason := "unknown_user"
	var attrs []slog.Attr
	if found.Found {
		reason = "password"
		if found.Account.Disabled {
			reason = "disabled"
		}
		attrs = append(attrs, slog.String("sub", found.Account.Subject))
	}
	s.Record(ctx, from, EventLoginFailed, append(attrs, slog.String("reason", reason))...)
}

// upgradeHash replaces a hash that is weaker than today's, now that the password
// is at hand. If it cannot, the next login will.
func (s *Service) upgradeHash(ctx context.Context, from Origin, account tokenstore.Account, password string) {
	hash, err := s.Passwords.Hash(ctx, password)
	if err == nil {
		_, err = s.Store.Accounts.SetPassword(ctx, account.Username, account.Hash, hash)
	}
	if err != nil {
		s.warn(ctx, from, "password hash not upgraded",
			slog.String("sub", account.Subject), slog.String("cause", err.Error()))
	}
}

// newSession is what a login says of its session, besides the account.
type newSession struct {
	client tokenstore.Client
	scope  string
	jkt    string // thumbprint of the key that it is bound to; "" for none
	device string
}

// openSession makes a session and its first refresh token, and returns what its access
// token is made of. The caller ends the earlier sessions afterwards.
func (s *Service) openSession(ctx context.Context, from Origin, found tokenstore.Lookup, n newSession, earlier []refreshtoken.Token) (refreshtoken.Token, draft, error) {
	account, uid := found.Account, s.Store.UserID(found.Account.Subject)
	sid, err := s.Store.Sessions.NewID(uid)
	if err != nil {
		return refreshtoken.Token{}, draft{}, err
	}
	token, err := s.RefreshTokens.First(sid, uid, s.Rand)
	if err != nil {
		return token, draft{}, err
	}
	d := draft{sid: sid, uid: uid, client: n.client, grant: tokenstore.Grant{
		Subject: account.Subject, Username: account.Username, Claims: account.Claims,
		Scope: n.scope, ClientID: cmp.Or(n.client.ID, s.ClientID), JKT: n.jkt,
	}}
	if d.asked, err = s.askClaims(ctx, from, hookLogin, d); err != nil {
		return token, d, err
	}
	if err := s.fits(d); err != nil {
		return token, d, err
	}
	leaving := make([]tokenstore.ID, 0, len(earlier))
	for _, e := range earlier {
		leaving = append(leaving, e.SID)
	}
	// A client that goes away does not interrupt this: else nobody would know of the session.
	d.grant, err = s.Store.Sessions.Login(context.WithoutCancel(ctx), tokenstore.NewSession{
		SID: sid, UID: uid, Hash: token.Hash(),
		Subject: account.Subject, Username: account.Username, Scope: n.scope, Claims: account.Claims, ClientID: d.grant.ClientID,
		Device: n.device, Address: from.Address, ReadAt: found.ReadAt, JKT: n.jkt, Leaving: leaving, Charge: found.Charge,
	})
	if errors.Is(err, tokenstore.ErrUnavailable) {
		// The session may be there.
		s.Record(ctx, from, EventLogin, slog.String("sub", account.Subject), slog.String("sid", sid.String()), slog.Bool("confirmed", false))
	}
	for _, ended := range d.grant.Ended {
		s.Record(ctx, from, EventSessionEnded, slog.String("sub", account.Subject), slog.String("sid", ended.String()), slog.String("reason", "limit"), slog.Bool("confirmed", false))
	}
	return token, d, err
}

// endEarlier ends the sessions whose refresh cookies come with a login, as a logout does.
// A cookie whose path and domain are unknown cannot be deleted reliably. If its session
// lived on, the browser could later refresh as the user of that session.
//
// The caller does this after it has opened the new session and before it hands out the
// tokens: if the new session cannot be opened, the old ones live on; if the old ones cannot
// be ended, the login fails, the cookies stay, and the login can be sent again.
func (s *Service) endEarlier(ctx context.Context, from Origin, earlier []refreshtoken.Token) error {
	for _, token := range earlier {
		end := tokenstore.SessionEnd{SID: token.SID, UID: token.UID}
		if err := s.endOne(ctx, from, EventLogout, end); err != nil {
			return err
		}
	}
	return nil
}

// abandon ends a new session whose tokens nobody was given. If it cannot, the session
// stays in the user's list until it expires. Nobody waits until every replica knows.
func (s *Service) abandon(ctx context.Context, from Origin, d draft) {
	_, err := s.Store.Sessions.Revoke(context.WithoutCancel(ctx), tokenstore.SessionEnd{SID: d.sid, UID: d.uid})
	if err == nil || errors.Is(err, tokenstore.ErrUnavailable) {
		s.Record(ctx, from, EventLogout, slog.String("sid", d.sid.String()), slog.Bool("confirmed", false))
	}
}
