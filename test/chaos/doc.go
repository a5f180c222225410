// Package chaos runs the program as it is deployed, several replicas on a Redis of
// whatever topology, has clients log in, refresh, verify and log out, makes faults
// meanwhile, and judges what was answered.
//
// `make chaos` runs its driver, docs/chaos.md says what it does. A run is named by
// its seed: what faults are made and in which order. How they fall together with
// what the clients do is up to the machine.
//
// [Link] is a TCP proxy that makes faults of the network; it is how a partition
// between two processes of one machine looks to them.
package chaos
