// Package overload tests what a replica does when it is asked for more than it
// can do, by clients that mean well and by others, and that nothing is left of it
// afterwards: not a connection, not a goroutine, not a byte that grows.
//
// Its tests run the program itself on a real Redis. The load comes from the same
// machine, and so takes CPU from what it measures: what a replica says of itself,
// in its histograms, is shown beside what clients saw.
package overload
