// Package tokenstore is all that touches Redis: sessions and their refresh
// keys, the denylist and its log, user epochs, accounts, clients, the throttle and the
// sealed signing keys. It holds no state of its own, decides nothing in Go that
// a script could decide, and never sees a usable token.
//
// # What every operation promises
//
// Each decision is one Lua script on keys of one slot, and so atomic on standalone
// Redis, Sentinel and Cluster alike. Most operations are one script in one round trip.
// Lookup, Login, DenyKey and Renew send several scripts, each atomic by itself; lists and
// AnyAlive read without a script and decide nothing. Time inside a script is Redis TIME.
// Every key expires, but for accounts, the counts of what their password hashes cost,
// clients, signing keys, the list of those that were revoked, and the record of K.
//
// An operation that returns [ErrUnavailable] may or may not have happened: the
// reply is unknown, nothing may be concluded from it, and it is safe to ask
// again. One exception: an error of Rotate that is also [ErrReuse] or [ErrRollback] says
// that the session was ended. Absence is never reported as unavailability, nor the reverse.
// A reply that lacks an element, or has one of the wrong type or an unknown code, is
// unknown too.
//
// go-redis sends a script again when the answer is late, and the first copy may reach
// Redis after the second was answered. So every script that writes carries a deadline in
// Redis time, until which its caller waits at most: after it, a copy changes nothing.
// Before it, a copy changes nothing that others have changed since, by what the script
// does (a session's generation, a log entry that is there) or, for accounts, clients and
// RevokeUser, by a key that keeps the answer until the deadline. The exceptions: a copy
// of IssueToClient takes a second place in a status list, and one of Renew puts a follower
// back that was struck or has left.
//
//   - Lookup reads an account and charges one attempt at its password to the login
//     limits. If a limit is reached it charges nothing and returns how long to wait.
//     For a name without an account it returns what a wrong password is to cost.
//     Refund takes the charge back; repeated, it does nothing. Login takes it back too,
//     and succeeds even if that part fails.
//   - Login makes one session. Called again with the same ids and secret it returns that
//     session and changes nothing. If the user then has more sessions than
//     [Options.SessionsPerUser], it ends up to four of them in a second round trip. It
//     fails with [ErrSuperseded] if the user's credentials were changed after the caller
//     read them, or if a copy of this login arrives after its session has ended or was
//     refreshed.
//   - Rotate replaces the current refresh token by its successor, at most once in
//     [Lifetimes.Grace]. Within the grace after a rotation the new token and its parent
//     both yield the new token, and nothing changes. Any other token of the session, or
//     one with a wrong secret, ends the session.
//   - Revoke deletes the refresh key, denies the session's access tokens until
//     the last of them has expired, and appends one log entry. Called again it
//     appends nothing and returns the mark of the log's last entry.
//   - RevokeUser ends all sessions of a user by raising the user's epoch: one write,
//     however many sessions there are. With status lists it also marks one place for
//     each session that got an access token within the last access lifetime. One session
//     may be excepted. A second round trip has Redis drop the refresh keys of up to 1,000
//     of the sessions a minute later.
//   - DenyKey denies every token that a signing key has signed, for ever, on every
//     shard. The signing keys themselves change by SyncSigningKeys, OfferSigningKey
//     and RevokeSigningKey. A key is published before it signs, and verifies until the
//     last of its tokens has expired. Its public half then stays for as long as sessions
//     live ([KeyRing.Retired]), unless the key was revoked.
//   - AuthenticateClient checks a client's secret and writes nothing. IssueToClient
//     also reads, of the same moment, what an access token of that client carries: a
//     token that was issued on an old secret dies with the epoch that goes up after
//     the secret was replaced.
//   - FirstUse tells whether something that counts once, a DPoP proof, is used for the
//     first time, and remembers it until a given time.
//   - With [Options.StatusLists] whatever issues also names a [Place] in a status list, which
//     no other session of the history has; and whatever ends tokens, with or without it,
//     shows their places as revoked in StatusView until the last of them has expired.
//   - Verify tells whether an access token may still be accepted. A token that
//     was issued before this Redis lost its data is dead.
//
// # Shards
//
// K shards spread the keys over a Cluster. A user's shard is a hash of the
// subject; the user's session and token ids carry it as their first byte. K is
// recorded by the first replica that ever starts; [Open] refuses another.
package tokenstore
