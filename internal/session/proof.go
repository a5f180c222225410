package session

import (
	"context"
	"log/slog"

	"github.com/latchkey-auth/latchkey/edge"
	"github.com/latchkey-auth/latchkey/internal/dpop"
)

// Proof is the DPoP proof of a request, as it was sent (RFC 9449 section 4), and the request
// that it must have been made for.
type Proof struct {
	Values      []string // of the header DPoP; none if there is no proof
	Method, URL string
}

// checkProof checks a proof against its request, and against the access token that the
// request shows: "" if it asks for one. Without a token, no proof is no error. Errors: a
// [ProofError].
func (s *Service) checkProof(p Proof, token string) (*dpop.Proof, error) {
	withToken := token != ""
	switch {
	case len(p.Values) == 0 && !withToken:
		return nil, nil
	case len(p.Values) == 0:
		return nil, &ProofError{dpop.ErrMissing, withToken}
	case len(p.Values) > 1:
		return nil, &ProofError{dpop.ErrTwice, withToken}
	}
	parsed, err := dpop.Parse(p.Values[0])
	if err == nil {
		err = parsed.Check(dpop.Request{Method: p.Method, URL: p.URL, Now: s.Store.Now(), Token: token, Nonces: s.Nonces})
	}
	if err != nil {
		return nil, &ProofError{err, withToken}
	}
	return parsed, nil
}

// consumeProof records that a proof was used, on all replicas, so that it cannot be replayed
// (RFC 9449 section 11.1): one round trip. It is called when all else was checked, so that
// strangers fill no memory, and before anything is done. A nil proof is ignored. Errors: a
// [ProofError]; [edge.ErrUnavailable].
func (s *Service) consumeProof(ctx context.Context, p *dpop.Proof, withToken bool) error {
	if p == nil {
		return nil
	}
	id, until := p.Use()
	first, err := s.Store.Proofs.FirstUse(ctx, id, until)
	if err == nil && !first {
		err = &ProofError{dpop.ErrReplayed, withToken}
	}
	return err
}

// offeredProof checks the proof that comes with a request for tokens; nil if none does.
func (s *Service) offeredProof(ctx context.Context, from Origin, p Proof) (*dpop.Proof, error) {
	parsed, err := s.checkProof(p, "")
	s.RecordProof(ctx, from, err)
	return parsed, err
}

// spendProof is consumeProof for a request for tokens.
func (s *Service) spendProof(ctx context.Context, from Origin, p *dpop.Proof) error {
	err := s.consumeProof(ctx, p, false)
	s.RecordProof(ctx, from, err)
	return err
}

// AdmitBound accepts a token that is shown as Authorization: DPoP, with its proof. A refused
// proof is an event. Errors: a [ProofError] and those of [edge.Verifier.VerifyBound].
func (s *Service) AdmitBound(ctx context.Context, from Origin, token string, p Proof) (edge.Claims, error) {
	claims, err := s.admitBound(ctx, token, p)
	s.RecordProof(ctx, from, err)
	return claims, err
}

func (s *Service) admitBound(ctx context.Context, token string, p Proof) (edge.Claims, error) {
	parsed, err := s.checkProof(p, token)
	if err != nil {
		return edge.Claims{}, err
	}
	claims, err := s.Verifier.VerifyBound(ctx, token, parsed.JKT())
	if err == nil {
		err = s.consumeProof(ctx, parsed, true)
	}
	return claims, err
}

// RecordProof records the event that a refused proof is. Other errors are ignored.
func (s *Service) RecordProof(ctx context.Context, from Origin, err error) {
	if reason := proofReason(err); reason != "" {
		s.Record(ctx, from, EventProofRefused, slog.String("reason", reason))
	}
}
