// Package clients holds no code: its tests run OAuth libraries that others wrote,
// unchanged, against the program. It is a module of its own, so that they are no
// dependencies of the product.
package clients
