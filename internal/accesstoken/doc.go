// Package accesstoken signs and verifies access tokens: JWTs of the profile of
// RFC 9068, header type at+jwt, with the hardening of RFC 8725.
//
// Most callers need a [Ring] with an active [Key], one [Signer] and one
// [Verifier] over it. [Sealer] encrypts a key so that it can be kept in a store
// that all replicas share.
//
// The verifier is strict, and none of it can be switched off:
//
//   - a token is at most [MaxLength] bytes, checked before anything is parsed;
//   - the key found under kid fixes the algorithm, the token merely has to agree;
//     kid is nothing but a map key, and jku, jwk, x5u and x5c are never looked at;
//   - any crit header is refused, for no extension is implemented;
//   - base64url and JSON have one spelling: no padding, no stray trailing bits, no
//     line breaks, no duplicate member names, no data after the object;
//   - iss, sub, aud, exp, iat, jti, client_id and sid are required;
//   - member names are compared exactly (encoding/json would take ISS for iss).
//
// The package never asks a store whether a token was revoked, and never reads a
// clock: the caller passes the time.
//
// An ES256 signature can be altered without the key into another valid one for
// the same content. A token is therefore identified by its jti, never by its text.
package accesstoken
