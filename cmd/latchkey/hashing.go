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
// or else, where the CPUs are all its own, by a thread of Go's more. Nothing changes under
// a quota of CPU, for which Go has fewer threads than there are CPUs: the kernel would
// stop all of the process when it is used up. GOMAXPROCS has the last word. The function
// that it returns ends the helper.
func hashApart(ctx context.Context, r *replica) (end func()) {
	cpus := runtime.NumCPU()
	if os.Getenv("GOMAXPROCS") != "" || runtime.GOMAXPROCS(0) != cpus {
		return func() {}
	}
	hashes := r.passwords.Workers()
	threads := min(hashes*int(r.cfg.PasswordParallelism), cpus) + 1 // one collects garbage
	moreThreads := sync.OnceFunc(func() { runtime.GOMAXPROCS(cpus + min(hashes, cpus)) })
	if !r.cfg.PasswordProcess || !helperWorks {
		moreThreads()
		return func() {}
	}
	memory := shareMemory(int64(hashes) * int64(r.cfg.PasswordMemory) << 10)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // requests under way outlive ctx
	var ended sync.WaitGroup
	ended.Go(func() {
		for wait := time.Second; ; wait = min(2*wait, time.Minute) {
			began := time.Now()
			err := runHelper(ctx, r.helper, threads, memory)
			if ctx.Err() != nil {
				return
			}
			r.log.LogAttrs(ctx, slog.LevelWarn, "no process hashes passwords: they are hashed among everything else",
				slog.String("cause", err.Error()), slog.String("see", "docs/overload.md#logins-and-everything-else"))
			if time.Since(began) > time.Minute {
				wait = time.Second
			} else {
				moreThreads() // perhaps it never works here
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

// shareMemory sets apart of GOMEMLIMIT what a helper needs that hashes in so much memory
// at once, and returns it, in bytes; 0 if there is no limit.
func shareMemory(hashes int64) int64 {
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		return 0
	}
	const program = 24 << 20
	share := min(3*hashes+program, limit/2) // hashes leave their memory as garbage
	debug.SetMemoryLimit(limit - share)
	return share
}
