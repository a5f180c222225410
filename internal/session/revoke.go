package session

import (
	"context"
	"errors"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Revoke ends what a refresh or an access token stands for, as a logout does (RFC 7009). Of
// a user's session both kinds end all of it (section 2.1); a token that a client got for
// itself ends alone. A client ends only what was issued to it.
//
// It returns nil if no replica accepts the token any more, nor the session that it names, or
// if it never was a token (section 2.2). A token that cannot be checked is invalid_grant
// while the session that it names may be alive. Errors: ErrClient, ErrForeign, a
// [RequestError]; [tokenstore.ErrUnavailable].
func (s *Service) Revoke(ctx context.Context, from Origin, c Credentials, token string) error {
	client, err := s.client(ctx, from, c, s.Store.Clients.Authenticate)
	if err != nil {
		return err
	}
	if token == "" {
		return BadRequest("token is required")
	}
	shown, err := s.endOfShown(ctx, token, client.ID)
	if err != nil {
		return err
	}
	for _, end := range shown.ends {
		if err := s.endOne(ctx, from, EventTokenRevoked, end); errors.Is(err, tokenstore.ErrForeign) {
			return ErrForeign
		} else if err != nil {
			return err
		}
	}
	why, err := s.notEnded(ctx, shown)
	if err == nil && why != nil {
		err = errUncheckedGrant
	}
	return err
}

// endOfShown names the session that a token of either kind belongs to: none for what is
// no token of ours. An access token says whom it was issued to; of a refresh
// token the store knows. Errors: ErrForeign, [edge.ErrUnavailable].
func (s *Service) endOfShown(ctx context.Context, shown, client string) (*shownSessions, error) {
	sessions := &shownSessions{}
	if token, err := s.RefreshTokens.Parse(shown); err == nil {
		sessions.end(tokenstore.SessionEnd{SID: token.SID, UID: token.UID, IssuedTo: &client})
		return sessions, nil
	}
	if left, ok := s.uncheckedRefresh(shown); ok {
		sessions.left = append(sessions.left, left)
		return sessions, nil
	}
	claims, err := s.Issued.Authentic(ctx, shown)
	if errors.Is(err, edge.ErrInvalid) {
		if left, ok := s.uncheckedAccess(shown, err); ok {
			sessions.left = append(sessions.left, left)
		}
		return sessions, nil
	}
	if err != nil {
		return nil, err
	}
	own := claims.ClientID == client || client == "" && !tokenstore.IsClient(claims.ClientID)
	if !own {
		return nil, ErrForeign
	}
	sessions.end(s.endOf(claims))
	return sessions, nil
}

// errUncheckedGrant is ErrUnchecked for clients.
var errUncheckedGrant = &RequestError{
	Code:        "invalid_grant",
	Description: "The token cannot be checked any more, so its session may live on; send its refresh token or a fresh access token",
}
