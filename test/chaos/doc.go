// Package chaos runs the program as it is deployed, several replicas on a Redis of
// whatever topology, has clients log in, refresh, verify and log out, makes faults
// meanwhile, and judges what was answered.
//
// It has two drivers. TestLogouts asks for as many logouts and checks as the machine
// can do, while Redis and replicas are paused and killed; `make test` runs it for a few
// faults, `make logouts` for minutes. TestChaos, of `make chaos`, has users with
// browsers, every topology and every kind of fault; docs/chaos.md says what it does. A
// run is named by its seed: what faults are made and in which order. How they fall
// together with what the clients do is up to the machine.
//
// What was asked and answered when is a [History]. It is judged by porcupine against a
// model of one session, and once more by plain counting. [Link] is a TCP proxy that
// makes faults of the network; it is how a partition between two processes of one
// machine looks to them.
package chaos
