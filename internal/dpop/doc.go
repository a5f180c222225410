// Package dpop checks DPoP proofs (RFC 9449): that whoever sends a request holds
// the private key to which a token is bound, or is about to be.
//
// [Parse] reads a proof and checks all that it says of itself; [Proof.Check]
// compares it with the request that it came with. What only a memory can tell, that a
// proof was not used before, is left to the caller: see [Proof.Use].
package dpop
