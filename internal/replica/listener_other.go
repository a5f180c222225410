//go:build !linux

package replica

import "net"

// acceptBeforeClose works on Linux only. Elsewhere, a listener that closes loses connections that are complete but not
// accepted.
func acceptBeforeClose(l net.Listener) net.Listener { return l }
