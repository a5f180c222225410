//go:build unix

package stacktest

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
)

// built is where the program is, once this process has seen to it.
var built struct {
	sync.Mutex
	bin string
}

// Build builds the program as the image has it, and returns where it is. root is the
// repository's, seen from the test.
//
// All tests share one file below root, bin/test/latchkey, which only the first of
// them has to link: the go command leaves one alone that is up to date. They take
// turns, since it replaces the file in place.
func Build(t testing.TB, root string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("left out by -short: it needs the built program; make test runs it")
	}
	built.Lock()
	defer built.Unlock()
	if built.bin != "" {
		return built.bin
	}
	dir, err := filepath.Abs(filepath.Join(root, "bin", "test"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	turn, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = turn.Close() }() // which gives up the lock
	if err := syscall.Flock(int(turn.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	built.bin = filepath.Join(dir, "latchkey")
	build(t, root, built.bin)
	return built.bin
}

// BuildOtherwise is [Build] with these flags of go build, for one test alone.
func BuildOtherwise(t testing.TB, root string, flags ...string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "latchkey")
	build(t, root, bin, flags...)
	return bin
}

func build(t testing.TB, root, bin string, flags ...string) {
	t.Helper()
	Go(t, []string{"CGO_ENABLED=0"}, slices.Concat(
		[]string{"build", "-C", root, "-tags", "nomsgpack,grpcnotrace", "-trimpath", "-ldflags", "-s -w", "-o", bin}, flags, []string{"./cmd/latchkey"})...)
}
