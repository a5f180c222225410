package main

import (
	"context"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/latchkey-auth/latchkey/internal/credential"
)

// Where passwords are hashed. A hash does not yield its CPU, and takes it for longer than
// all that a check of a token does: what is beside it must not wait.

// helperName is the command by which a replica starts its helper.
const helperName = "hash-helper"

func newHashHelper() *cobra.Command {
	return &cobra.Command{
		Use:    helperName,
		Short:  "Hash passwords for the replica that started this",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			signal.Ignore(os.Interrupt, syscall.SIGTERM) // it ends with its replica's pipe, not before
			if err := yieldCPU(); err != nil {
				return err
			}
			return credential.Help(cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}

// hashApart has the passwords of a replica hashed beside what else it does: in a helper,
// or else, where the CPUs are all its own, by a thread of Go's more. Nothing changes where
// Go has fewer threads than there are CPUs, which is under a quota: the kernel would
// stop all of the process when it is used up. GOMAXPROCS has the last word. The function
// that it returns ends the helper.
func hashApart(ctx context.Context, r *replica) (end func()) {
	cpus := runtime.NumCPU()
	if os.Getenv("GOMAXPROCS") != "" || runtime.GOMAXPROCS(0) != cpus {
		return func() {}
	}
	hashes := r.passwords.Workers()
	s := split{
		cpus: cpus, hashes: hashes, threads: min(hashes*int(r.cfg.PasswordParallelism), cpus),
		limit: debug.SetMemoryLimit(-1),
	}
	s.share = s.limit // none
	if s.limit != math.MaxInt64 {
		const program = 24 << 20
		s.share = min(3*int64(hashes)*int64(r.cfg.PasswordMemory)<<10+program, s.limit/2) // hashes leave their memory as garbage
	}
	if !r.cfg.PasswordProcess || !helperWorks {
		s.together()
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // requests under way outlive ctx
	var ended sync.WaitGroup
	ended.Go(func() {
		for wait := time.Second; ; wait = min(2*wait, time.Minute) {
			began := time.Now()
			err := runHelper(ctx, r.helper, s)
			if ctx.Err() != nil {
				return
			}
			s.together()
			r.log.LogAttrs(ctx, slog.LevelWarn, "no process hashes passwords: they are hashed among everything else",
				slog.String("cause", err.Error()), slog.String("see", "docs/overload.md#logins-and-everything-else"))
			if time.Since(began) > time.Minute {
				wait = time.Second
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
	})
	return func() {
		cancel()
		ended.Wait()
	}
}

// split is how CPUs and memory are divided between a replica and its helper.
type split struct {
	cpus    int
	hashes  int   // computed at once
	threads int   // of the helper that hash
	limit   int64 // GOMEMLIMIT, in bytes; math.MaxInt64 for none
	share   int64 // of it the helper's
}

// apart leaves the helper its share.
func (s split) apart() {
	runtime.GOMAXPROCS(s.cpus)
	if s.limit != math.MaxInt64 {
		debug.SetMemoryLimit(s.limit - s.share)
	}
}

// together has the replica do without one.
func (s split) together() {
	runtime.GOMAXPROCS(s.cpus + min(s.hashes, s.cpus))
	debug.SetMemoryLimit(s.limit)
}
