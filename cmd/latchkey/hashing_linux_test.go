package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/latchkey-auth/latchkey/internal/redistest"
	"github.com/latchkey-auth/latchkey/internal/stacktest"
)

// helpers are the process ids of what a replica has started.
func (p *process) helpers() []int {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.cmd.Process.Pid))
	var list []int
	for _, name := range threads {
		b, _ := os.ReadFile(name) // the thread may just have ended
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				list = append(list, pid)
			}
		}
	}
	return list
}

// helped waits until the replica's helper hashes, another than one that was, and returns
// its process id. It is given the priority of others, where that is allowed: on a busy
// machine it would rightly not be asked.
func (p *process) helped(not int) int {
	p.t.Helper()
	var pid int
	stacktest.Eventually(p.t, "a helper hashes", func() bool {
		list := p.helpers()
		if len(list) != 1 || list[0] == not {
			return false
		}
		pid = list[0]
		for id := range policies(p.t, pid) {
			_ = unix.SchedSetAttr(id, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0)
		}
		before, _ := p.hashes()
		ask(p.t, "POST", p.api+"/auth/token", login(), "", "") // a busy machine may answer 503
		after, _ := p.hashes()
		return after > before
	})
	return pid
}

// policies are those by which the threads of a process are scheduled.
func policies(t *testing.T, pid int) map[int]uint32 {
	t.Helper()
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid)) // it may just have ended, as each thread may
	list := map[int]uint32{}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err != nil {
			t.Fatal(err)
		}
		if attr, err := unix.SchedGetAttr(id, 0); err == nil {
			list[id] = attr.Policy
		}
	}
	return list
}

// hashes tells how many passwords were hashed by a helper and by the replica.
func (p *process) hashes() (helped, own int) {
	p.t.Helper()
	for line := range strings.Lines(metrics(p.t, p)) {
		_, _ = fmt.Sscanf(line, `latchkey_password_hashes_total{by="helper"} %d`, &helped)
		_, _ = fmt.Sscanf(line, `latchkey_password_hashes_total{by="replica"} %d`, &own)
	}
	return helped, own
}

// alive reports whether a process runs: one that nobody has reaped yet does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(rest, "Z")
}

// hasHelper reports whether a replica is to have a helper. Under a quota of CPU it must have
// none, which is checked here.
func (p *process) hasHelper() bool {
	p.t.Helper()
	threads := 0
	for line := range strings.Lines(metrics(p.t, p)) {
		_, _ = fmt.Sscanf(line, "go_sched_gomaxprocs_threads %d", &threads)
	}
	if threads >= runtime.NumCPU() {
		return true
	}
	want(p.t, "login", ask(p.t, "POST", p.api+"/auth/token", login(), "", ""), 200)
	if helped, own := p.hashes(); threads == 0 || helped != 0 || own == 0 || len(p.helpers()) != 0 {
		p.t.Errorf("with %d threads for %d CPUs a helper hashed %d passwords, the replica %d; helpers: %v", threads, runtime.NumCPU(), helped, own, p.helpers())
	}
	return false
}

func TestPasswordsAreHashedByAHelper(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	p := launch(t, bin, server.URL())
	account(t, server.URL())
	if !p.hasHelper() {
		return
	}
	stacktest.Eventually(t, "every thread of a helper yields", func() bool {
		list := p.helpers()
		if len(list) != 1 {
			return false
		}
		all := slices.Collect(maps.Values(policies(t, list[0])))
		return len(all) > 2 && !slices.ContainsFunc(all, func(policy uint32) bool { return policy != unix.SCHED_IDLE })
	})
	pid := p.helped(0)

	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	if list := strings.FieldsFunc(string(environ), func(r rune) bool { return r == 0 }); len(list) != 2 || !strings.HasPrefix(list[0], "GOMAXPROCS=") || !strings.HasPrefix(list[1], "GOMEMLIMIT=") {
		t.Errorf("its environment is %q", list)
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		t.Fatal(err)
	}
	if list := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00"); !slices.Equal(list[1:], []string{helperName}) {
		t.Errorf("its arguments are %q", list)
	}

	// Nobody is kept waiting by a helper that stands still,
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	_, before := p.hashes()
	for range 3 {
		want(t, "login, the helper stopped", ask(t, "POST", p.api+"/auth/token", login(), "", ""), 200)
	}
	if _, own := p.hashes(); own != before+3 {
		t.Errorf("the replica hashed %d of 3 passwords", own-before)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if again := p.helped(0); again != pid {
		t.Errorf("the helper is another: %d, before %d", again, pid)
	}
	// nor by one that was killed; and there will be another.
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	next := p.helped(pid)
	if log := p.logged(); !strings.Contains(log, "no process hashes passwords") || !strings.Contains(log, "signal: killed") {
		t.Error("the log does not tell that the helper was killed")
	}

	// It survives signals that are meant for the replica, and ends with it in order
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGTERM} {
		if err := syscall.Kill(next, sig); err != nil {
			t.Fatal(err)
		}
	}
	if still := p.helped(0); still != next {
		t.Errorf("a signal ended helper %d", next)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-p.done; err != nil {
		t.Errorf("exit: %v", err)
	}
	if alive(next) {
		t.Errorf("helper %d outlives its replica", next)
	}
}

// A replica that is killed takes its helper along.
func TestTheHelperEndsWithItsReplica(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	p := launch(t, bin, server.URL())
	account(t, server.URL())
	if !p.hasHelper() {
		return
	}
	pid := p.helped(0)
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for range p.done { // until it is reaped
	}
	stacktest.Eventually(t, "the helper ends", func() bool { return !alive(pid) })
}

func TestNoHelper(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	account(t, server.URL())
	for _, setting := range []string{"LATCHKEY_PASSWORD_PROCESS=false", "GOMAXPROCS=" + strconv.Itoa(runtime.NumCPU())} {
		p := launch(t, bin, server.URL(), setting)
		for range 3 {
			want(t, "login", ask(t, "POST", p.api+"/auth/token", login(), "", ""), 200)
		}
		if helped, own := p.hashes(); helped != 0 || own < 3 || len(p.helpers()) != 0 {
			t.Errorf("%s: %d passwords were hashed by a helper, %d by the replica; helpers: %v", setting, helped, own, p.helpers())
		}
	}
}

// Of GOMEMLIMIT a part is the helper's, while there is one.
func TestTheHelperSharesTheMemoryLimit(t *testing.T) {
	t.Parallel()
	bin, server := program(t), redistest.Start(t)
	account(t, server.URL())
	for limit, share := range map[int]int{512 << 20: 3*2*19456<<10 + 24<<20, 100 << 20: 50 << 20} {
		p := launch(t, bin, server.URL(), fmt.Sprintf("GOMEMLIMIT=%d", limit), "LATCHKEY_PASSWORD_WORKERS=2")
		if !p.hasHelper() {
			return
		}
		pid := p.helped(0)
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(environ), fmt.Sprintf("GOMEMLIMIT=%d\x00", share)) {
			t.Errorf("of %d the helper has not %d: %q", limit, share, environ)
		}
		if line := fmt.Sprintf("go_gc_gomemlimit_bytes %g\n", float64(limit-share)); !strings.Contains(metrics(t, p), line) {
			t.Errorf("of %d the replica has not %d", limit, limit-share)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		stacktest.Eventually(t, "without a helper all of it is the replica's", func() bool {
			return strings.Contains(metrics(t, p), fmt.Sprintf("go_gc_gomemlimit_bytes %g\n", float64(limit)))
		})
	}
}
