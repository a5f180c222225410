package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// measured is what one server did under load in one round.
type measured struct {
	requests, seconds float64
	p50, p99          float64 // milliseconds
	server, redis     float64 // CPU seconds of their processes
	others            float64 // CPU seconds of the other replicas together
}

func (m measured) rate() float64 { return m.requests / m.seconds }

// pids are the processes whose CPU is counted.
type pids struct {
	server        int
	redis, others []int
}

// cpu is the user and system seconds that a process has used, all its threads together.
func cpu(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // the first is field 3 of proc_pid_stat(5)
	user, err := strconv.ParseFloat(fields[14-3], 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseFloat(fields[15-3], 64)
	const ticks = 100 // a second, on every Linux that Go runs on
	return (user + system) / ticks, err
}

// used is the CPU that those processes have used.
func (p pids) used() (m measured, err error) {
	add := func(to *float64, list ...int) error {
		for _, pid := range list {
			one, err := cpu(pid)
			if err != nil {
				return err
			}
			*to += one
		}
		return nil
	}
	return m, errors.Join(add(&m.server, p.server), add(&m.redis, p.redis...), add(&m.others, p.others...))
}

// during runs a load and adds to its result the CPU that was used meanwhile.
func (p pids) during(run func() (measured, error)) (measured, error) {
	before, err := p.used()
	if err != nil {
		return measured{}, err
	}
	m, err := run()
	if err != nil {
		return measured{}, err
	}
	after, err := p.used()
	m.server, m.redis, m.others = after.server-before.server, after.redis-before.redis, after.others-before.others
	return m, err
}

// redisPID is the process id of a Redis server.
func redisPID(t testing.TB, s *redistest.Server) int {
	t.Helper()
	text, err := s.Client().Info(t.Context(), "server").Result()
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`process_id:(\d+)`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("INFO has no process_id:\n%s", text)
	}
	pid, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// load is how many clients there are, and in how many threads.
type load struct{ threads, connections int }

func (l load) String() string { return fmt.Sprintf("wrk -t%d -c%d", l.threads, l.connections) }

// wrk loads a URL for a second, which is the least it can. It sends the token, or with a script each line of tokens.
type wrk struct {
	bin    string
	script string // "" for none
	tokens string
	token  string
}

const tokensInTurn = `
local requests, threads, at = {}, 0, 0
function setup(thread)
  thread:set("first", threads * 2500)
  threads = threads + 1
end
function init(args)
  for token in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("GET", nil, {["Authorization"] = "Bearer " .. token})
  end
  at = first
end
function request()
  at = at % #requests + 1
  return requests[at]
end
`

func (w wrk) run(ctx context.Context, url string, l load) (measured, error) {
	args := []string{"-t" + strconv.Itoa(l.threads), "-c" + strconv.Itoa(l.connections), "-d1s", "--latency", url}
	if w.script != "" {
		args = append(args, "-s", w.script, "--", w.tokens)
	} else {
		args = append(args, "-H", "Authorization: Bearer "+w.token)
	}
	out, err := exec.CommandContext(ctx, w.bin, args...).CombinedOutput()
	if err != nil {
		return measured{}, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	return readWrk(string(out))
}

// readWrk reads what wrk prints.
func readWrk(out string) (measured, error) {
	if strings.Contains(out, "Non-2xx") || strings.Contains(out, "Socket errors") || strings.Contains(out, "unable to") {
		return measured{}, fmt.Errorf("requests failed:\n%s", out)
	}
	number := func(pattern string) (float64, error) {
		m := regexp.MustCompile(pattern).FindStringSubmatch(out)
		if m == nil {
			return 0, fmt.Errorf("wrk prints nothing like %s:\n%s", pattern, out)
		}
		n, err := strconv.ParseFloat(m[1], 64)
		if err == nil && len(m) > 2 {
			n *= map[string]float64{"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}[m[2]]
		}
		return n, err
	}
	var m measured
	var err error
	var rate float64
	for pattern, to := range map[string]*float64{
		`(\d+) requests in`: &m.requests, `Requests/sec:\s+([\d.]+)`: &rate,
		`\s50%\s+([\d.]+)(us|ms|s|m)\n`: &m.p50, `\s99%\s+([\d.]+)(us|ms|s|m)\n`: &m.p99,
	} {
		if *to, err = number(pattern); err != nil {
			return m, err
		}
	}
	if m.requests == 0 || rate == 0 {
		return m, fmt.Errorf("no request was answered:\n%s", out)
	}
	m.seconds = m.requests / rate
	return m, nil
}

// secret is the root secret of the replicas and of the sessions that the client makes.
const secret = "the root secret of the benchmarks that has 32 bytes and more"

// Whose logins are measured.
const username, password = "alice", "correct horse"

// floorsCommand is the command of this folder.
type floorsCommand struct{ bin string }

// build builds it.
func build(t testing.TB) floorsCommand {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "floors")
	stacktest.Go(t, []string{"CGO_ENABLED=0"}, "build", "-tags", "nomsgpack,grpcnotrace", "-trimpath", "-ldflags", "-s -w", "-o", bin, ".")
	return floorsCommand{bin}
}

// serve starts a floor, and returns its address and process id once it answers.
func (f floorsCommand) serve(t testing.TB, kind string, args ...string) (addr string, pid int) {
	t.Helper()
	addr = "127.0.0.1:" + stacktest.FreePort(t)
	p := stacktest.Launch(t, []string{"HOME=" + t.TempDir()}, f.bin, append([]string{"serve", kind, "-addr", addr}, args...)...)
	stacktest.Eventually(t, kind+" listens", func() bool {
		select {
		case <-p.Done():
			t.Fatalf("floors serve %s has ended:\n%s", kind, p.Output())
		default:
		}
		return listens(t, addr)
	})
	return addr, p.PID()
}

// load runs a client, and counts the CPU of p while it loads.
func (f floorsCommand) load(ctx context.Context, p pids, l load, kind string, args ...string) (measured, error) {
	cmd := exec.CommandContext(ctx, f.bin, append([]string{"load", kind, "-connections", strconv.Itoa(l.connections)}, args...)...)
	cmd.Env = []string{"LATCHKEY_SECRET=" + secret, "LOGIN_USERNAME=" + username, "LOGIN_PASSWORD=" + password, "GOMAXPROCS=" + strconv.Itoa(l.threads)}
	cmd.WaitDelay = 5 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	begin, err := cmd.StdinPipe()
	if err != nil {
		return measured{}, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return measured{}, err
	}
	if err := cmd.Start(); err != nil {
		return measured{}, err
	}
	lines := bufio.NewReader(out)
	m, err := measured{}, error(nil)
	if line, _ := lines.ReadString('\n'); line == "ready\n" {
		m, err = p.during(func() (m measured, err error) {
			if _, err := begin.Write([]byte("\n")); err != nil {
				return m, err
			}
			var r struct{ Requests, Seconds, P50, P99 float64 }
			if err := json.NewDecoder(lines).Decode(&r); err != nil {
				return m, err
			}
			return measured{requests: r.Requests, seconds: r.Seconds, p50: r.P50, p99: r.P99}, nil
		})
	}
	if ended := cmd.Wait(); ended != nil {
		return m, fmt.Errorf("floors load %s: %w\n%s", kind, ended, &stderr)
	}
	if err == nil && m.requests == 0 {
		err = fmt.Errorf("floors load %s: no request was answered", kind)
	}
	return m, err
}

// writeTokens writes access tokens of as many sessions of a replica into a file, and returns its path.
func (f floorsCommand) writeTokens(t testing.TB, addr, redisURL string, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens")
	stacktest.Run(t, []string{"LATCHKEY_SECRET=" + secret}, "", f.bin,
		"load", "tokens", "-addr", addr, "-redis", redisURL, "-sessions", strconv.Itoa(n), "-tokens", path)
	return path
}
