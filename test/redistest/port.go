//go:build unix

package redistest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strconv"
	"syscall"
)

// Ports lie below every system's range for outgoing connections (Linux: 32768 and up). A port from that range, which
// is what listening on port 0 gives, could be handed to some client between picking and binding, or while the server
// is killed and about to be restarted; and a client that dials it meanwhile can end up connected to itself.
const (
	firstPort = 16000
	lastPort  = 31999
)

// freePort returns a port of 127.0.0.1 that nothing was bound to just now. It may be taken before the caller binds it.
func freePort() (int, error) {
	var lc net.ListenConfig
	for range 100 {
		n, err := rand.Int(rand.Reader, big.NewInt(lastPort-firstPort+1))
		if err != nil {
			return 0, err
		}
		port := firstPort + int(n.Int64())
		l, err := lc.Listen(context.Background(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			return 0, err
		}
		return port, l.Close()
	}
	return 0, fmt.Errorf("no free port found between %d and %d", firstPort, lastPort)
}
