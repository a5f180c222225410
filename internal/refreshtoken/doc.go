// Package refreshtoken defines the refresh token: its text, its authentication
// code and the derivation of each successor from its parent.
//
// A token reads
//
//	lkr1_ base64url( sid 16 | uid 16 | gen 4, big-endian | secret 32 | mac 16 )
//
// and is always [Length] characters long. Most callers need four calls: [New]
// once, [Codec.First] at login, [Codec.Parse] for what a client presents, and
// [Codec.Next] for the token that replaces it.
//
// The authentication code lets a replica refuse a made-up token without asking
// the store, so that somebody who merely learns a session's id cannot provoke
// the reuse alarm that ends it. The successor is derived, not drawn: every
// replica that is shown the same parent computes the same child, so concurrent
// refreshes of one token converge without the store ever holding a usable token.
// The store keeps [Token.Hash] alone. Neither a copy of the store nor the root
// secret by itself can produce a token; a derivation needs the parent's secret.
//
// # Rotating the root secret
//
// The first secret given to New makes the tokens of new sessions; every secret
// given to it is accepted. A session stays with the secret it began under: Next
// derives with, and Encode authenticates by, the secret that verified the parent.
// Were the successor moved to the newest secret instead, two replicas in the
// middle of a roll-out could derive different grandchildren of one token, and
// the slower one would look like theft. To change the secret, therefore, give
// it to every replica in second place, then move it to first place, and drop the
// old one when the last session begun under it has ended.
//
// The package never does I/O, never reads a clock and does not judge whether a
// token is current: that is for the store.
package refreshtoken
