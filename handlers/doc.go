// Package handlers is the HTTP API: one file for each endpoint, one table of
// routes ([New]) and one table that turns errors into responses (errors.go).
//
// A handler binds, checks, makes one call to the store or the password hasher,
// signs and responds. It never reads in order to write back later, and it never
// takes an outage for an absence: what Redis cannot tell is a 503 that clears no
// cookie and revokes nothing.
package handlers
