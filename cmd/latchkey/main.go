// Latchkey is the token service and its operator's tools, one program.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// version is stamped by the build: -ldflags "-X main.version=v1.2.3".
var version string

func main() {
	// The first signal ends what is under way in order; a second one ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop()
	}()
	err := newRoot().ExecuteContext(ctx)
	stop()
	if err != nil {
		var quiet *exitError
		if !errors.As(err, &quiet) {
			fmt.Fprintln(os.Stderr, "latchkey:", err)
		}
		os.Exit(1)
	}
}

// exitError ends the program with status 1 after the failure has been shown.
type exitError struct{}

func (*exitError) Error() string { return "failed" }

// shown returns an exitError in place of err if err is one that has been shown already.
func shown(err, already error) error {
	if errors.Is(err, already) {
		return &exitError{}
	}
	return err
}
