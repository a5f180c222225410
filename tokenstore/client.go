package tokenstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	// ErrNoClient says that no client of that id is registered.
	ErrNoClient = errors.New("no such client")
	// ErrClientExists says that the client id is taken.
	ErrClientExists = errors.New("the client id is taken")
	// ErrClientSecret says that the secret shown is not the client's.
	ErrClientSecret = errors.New("another client secret")
)

// ClientPrefix begins the id of every registered client, and so the subject of the
// tokens that it gets for itself. No user's subject may begin so: an API could take
// the one for the other (RFC 9068 section 5).
const ClientPrefix = "lkc_"

// IsClient reports whether a subject or a client id is that of a registered client.
func IsClient(id string) bool { return strings.HasPrefix(id, ClientPrefix) }

// Client is a program that is registered to ask for tokens, or about them.
type Client struct {
	ID         string // begins with [ClientPrefix]
	Grants     string // allowed, space separated: client_credentials, refresh_token
	Scopes     string // allowed, space separated
	Audiences  string // aud of its tokens, space separated; "" is the service's own
	Claims     string // JSON object of the operator's own, or empty
	Introspect bool   // may ask about tokens
	Created    time.Time
}

// Size returns how much of a token the client takes, in bytes, besides its scopes: each
// audience takes two bytes more than it has.
func (c Client) Size() int {
	return len(c.ID) + len(c.Audiences) + 2*len(strings.Fields(c.Audiences)) + len(c.Claims)
}

// ClientGrant is a client that has shown its secret, and what an access token carries
// that is issued to it for itself on this answer.
type ClientGrant struct {
	Client
	Grant
}

func (s *core) clientKey(id string) string {
	return s.prefix[s.UserID(id)[0]] + "client:" + id
}

// Create registers a client whose secret has this SHA-256. Errors:
// [ErrClientExists], [ErrUnavailable].
func (s *Clients) Create(ctx context.Context, c Client, secret [32]byte) error {
	r, err := s.run(ctx, s.scripts.clientCreate, []string{s.clientKey(c.ID)},
		secret[:], c.Grants, c.Scopes, c.Audiences, c.Claims, flag(c.Introspect))
	if err != nil {
		return err
	}
	s.observeTime(r.time(1))
	if r.code() == 1 {
		return r.verdict(fmt.Errorf("%w: %q", ErrClientExists, c.ID))
	}
	return r.oneOf(0)
}

// RotateSecret gives a client a new secret. The one before is accepted for
// keep. Errors: [ErrNoClient], [ErrUnavailable].
func (s *Clients) RotateSecret(ctx context.Context, id string, secret [32]byte, keep time.Duration) error {
	r, err := s.run(ctx, s.scripts.clientRotate, []string{s.clientKey(id)}, secret[:], milliseconds(keep))
	if err != nil {
		return err
	}
	s.observeTime(r.time(1))
	if r.code() == 1 {
		return r.verdict(ErrNoClient)
	}
	return r.oneOf(0)
}

// Delete removes a client, if there is one. Its tokens are not ended by it:
// see [Sessions.RevokeUser] and [Clients.Sessions]. Errors: [ErrUnavailable].
func (s *Clients) Delete(ctx context.Context, id string) error {
	r, err := s.run(ctx, s.scripts.clientDelete, []string{s.clientKey(id)})
	if err != nil {
		return err
	}
	s.observeTime(r.time(0))
	return r.err()
}

// Authenticate checks a client's secret by its SHA-256, and reads what the
// client may do. The epochs of the grant are not set. Errors: [ErrNoClient],
// [ErrClientSecret], [ErrUnavailable].
func (s *Clients) Authenticate(ctx context.Context, id string, secret [32]byte) (ClientGrant, error) {
	return s.checkClient(ctx, id, secret, false)
}

// IssueToken is [Clients.Authenticate] for a client that gets an access token
// for itself, with what that carries.
func (s *Clients) IssueToken(ctx context.Context, id string, secret [32]byte) (ClientGrant, error) {
	return s.checkClient(ctx, id, secret, true)
}

func (s *core) checkClient(ctx context.Context, id string, secret [32]byte, issue bool) (ClientGrant, error) {
	if !IsClient(id) {
		return ClientGrant{}, ErrNoClient
	}
	epoch, err := s.freshEpoch()
	if err != nil {
		return ClientGrant{}, err
	}
	uid := s.UserID(id)
	keys := []string{s.clientKey(id), s.epochKey(uid), s.headKey(uid[0]), s.logKey(uid[0])}
	if issue && s.statusLists {
		keys = append(keys, s.livingKey(uid))
	}
	r, err := s.run(ctx, s.scripts.clientCheck, keys,
		epoch, secret[:], milliseconds(s.life.Access), milliseconds(skewPad), flag(issue))
	if err != nil {
		return ClientGrant{}, err
	}
	now := r.time(1)
	s.observeTime(now)
	switch r.code() {
	case 0:
	case 1:
		return ClientGrant{}, r.verdict(ErrNoClient)
	case 2:
		return ClientGrant{}, r.verdict(ErrClientSecret)
	default:
		return ClientGrant{}, r.unknown()
	}
	g := ClientGrant{
		Client: Client{
			ID: id, Grants: r.string(2), Scopes: r.string(3), Audiences: r.string(4), Claims: r.string(5), Introspect: r.string(6) == "1",
		},
		Grant: Grant{Now: now, Subject: id, ClientID: id},
	}
	if issue {
		g.UserEpoch, g.LogEpoch, g.Place = r.count(7), r.string(8), s.place(r, 9, 8)
	}
	if err := r.err(); err != nil {
		return ClientGrant{}, err
	}
	return g, nil
}

// Get reads one client. Errors: [ErrNoClient], [ErrUnavailable].
func (s *Clients) Get(ctx context.Context, id string) (Client, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	start := time.Now()
	fields := []string{"hash", "grants", "scopes", "aud", "claims", "intro", "cre"}
	values, err := s.rdb.HMGet(ctx, s.clientKey(id), fields...).Result()
	err = unavailable("client", err)
	s.observe("client", time.Since(start), err)
	if err != nil {
		return Client{}, err
	}
	r := newHash("client", values, len(fields))
	if r.optional(0) == "" && r.err() == nil {
		return Client{}, ErrNoClient
	}
	c := Client{
		ID: id, Grants: r.string(1), Scopes: r.string(2), Audiences: r.string(3), Claims: r.string(4),
		Introspect: r.string(5) == "1", Created: r.time(6),
	}
	if err := r.err(); err != nil {
		return Client{}, err
	}
	return c, nil
}

// IDs returns the id of every client, sorted. It walks all keys: for an
// operator's command, not for a request. Errors: [ErrUnavailable].
func (s *Clients) IDs(ctx context.Context) ([]string, error) {
	return s.names(ctx, "client")
}

// Sessions calls fn with every session of users that was issued to a client,
// each at least once, one call after the other. It walks all sessions: for an
// operator's command, not for a request. Errors: [ErrUnavailable], and those of fn.
func (s *Clients) Sessions(ctx context.Context, id string, fn func(SessionEnd) error) error {
	return s.walk(ctx, "rt", func(ctx context.Context, node *redis.Client, names []string) error {
		pipe := node.Pipeline()
		found := make(map[ID]*redis.SliceCmd, len(names))
		for _, name := range names {
			if sid, err := ParseID(name); err == nil && s.together(sid) {
				found[sid] = pipe.HMGet(ctx, s.rtKey(sid), "client", "sub")
			}
		}
		if len(found) == 0 {
			return nil
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return unavailable("walk", err)
		}
		for sid, cmd := range found {
			r := newHash("walk", cmd.Val(), 2)
			client, sub := r.optional(0), r.optional(1)
			if err := r.err(); err != nil {
				return err
			}
			if client == id && sub != "" { // else it is another's, or has just ended
				if err := fn(SessionEnd{SID: sid, UID: s.UserID(sub)}); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
