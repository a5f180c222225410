//go:build image

// Package image_test builds the container image from the Dockerfile and runs it as
// deploy/kubernetes does: without privileges, on a root file system that cannot be
// written. `make image-test` runs it; it needs root, buildah, podman, runc and redis-server.
//
// Where no registry can be reached, a stand-in takes the place of the Dockerfile's first
// base: this machine's shell, Go tree and certificates. The image itself is built on
// `scratch`, so that what is in it is the same, but for the patch release of Go and the
// date of the certificates.
package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/redistest"
)

const (
	base    = "docker.io/library/golang:1.26-bookworm" // of the Dockerfile
	built   = "localhost/latchkey:test"
	version = "1.2.3-test"
	most    = 30 << 20 // bytes
	secret  = "Zk3v0q8TjR1mYcW7uHs5nBxE2pLdA9fG"
)

// engine runs buildah and podman on a storage of the test's own.
type engine struct {
	storage []string
}

func newEngine(t *testing.T) *engine {
	t.Helper()
	for _, program := range []string{"buildah", "podman", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%s is missing; run `make image-test` as root, or install buildah, podman and runc", program)
		}
	}
	if os.Getuid() != 0 {
		t.Fatal("the test makes a root file system, and needs to be root")
	}
	// Not t.TempDir: its name is too long for the sockets below it.
	dir, err := os.MkdirTemp("", "image")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{storage: []string{"--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "vfs"}}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return e
}

func (e *engine) try(t *testing.T, limit time.Duration, program string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit) // cleanups use it too
	defer cancel()
	global := e.storage
	if program == "podman" {
		global = append(slices.Clone(global), "--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none")
	}
	cmd := exec.CommandContext(ctx, program, append(slices.Clone(global), args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &stdout, &stderr, time.Second
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", program, strings.Join(args, " "), err, &stdout, &stderr)
	}
	return strings.TrimSpace(stdout.String()), nil
}

func (e *engine) run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := e.try(t, 5*time.Minute, program, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// standIn makes an image under the name of the Dockerfile's base.
func (e *engine) standIn(t *testing.T) {
	t.Helper()
	root := t.TempDir()
	place := func(from, to string) {
		t.Helper()
		content, err := os.ReadFile(from)
		if err == nil {
			err = os.MkdirAll(filepath.Join(root, filepath.Dir(to)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(root, to), content, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	place("/bin/sh", "/bin/sh")
	libraries, err := exec.CommandContext(t.Context(), "ldd", "/bin/sh").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range regexp.MustCompile(`/\S+`).FindAllString(string(libraries), -1) {
		place(path, path)
	}
	place("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/certs/ca-certificates.crt")
	if err := os.Mkdir(filepath.Join(root, "tmp"), 0o777); err != nil {
		t.Fatal(err)
	}
	c := e.run(t, "buildah", "from", "scratch")
	e.run(t, "buildah", "copy", c, root, "/")
	e.run(t, "buildah", "config", "--env", "PATH=/usr/local/go/bin:/bin", "--env", "GOPATH=/go", "--env", "GOTOOLCHAIN=local",
		// Modules come from this machine's cache; go.sum says whether they are the right ones.
		"--env", "GOCACHE=/cache", "--env", "GOPROXY=file:///modules", "--env", "GOSUMDB=off", "--env", "GOFLAGS=-modcacherw", c)
	e.run(t, "buildah", "commit", "--rm", c, base)
}

// build builds the Dockerfile, on the real base if that can be had.
func (e *engine) build(t *testing.T) {
	t.Helper()
	args := []string{"build", "--format", "docker", "--isolation", "chroot", "--pull-never", "--build-arg", "VERSION=" + version, "--tag", built}
	if _, err := e.try(t, 3*time.Minute, "buildah", "pull", base); err != nil {
		t.Logf("not done here: %s could not be pulled (%v); this machine's Go stands in for it", base, lastLine(err))
		e.standIn(t)
		args = append(args,
			"--volume", goEnv(t, "GOROOT")+":/usr/local/go:ro",
			"--volume", filepath.Join(goEnv(t, "GOMODCACHE"), "cache", "download")+":/modules:ro",
			"--volume", goEnv(t, "GOCACHE")+":/cache")
		// All modules that go.mod names are downloaded by the Dockerfile, those of tests too.
		if out, err := exec.CommandContext(t.Context(), "go", "-C", "../..", "mod", "download").CombinedOutput(); err != nil {
			t.Fatalf("go mod download: %v\n%s", err, out)
		}
	}
	e.run(t, "buildah", append(args, "../..")...)
}

func lastLine(err error) string {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	return lines[len(lines)-1]
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func TestImage(t *testing.T) {
	e := newEngine(t)
	began := time.Now()
	e.build(t)
	t.Logf("built in %s", time.Since(began).Round(time.Second))

	t.Run("what it is", func(t *testing.T) {
		var images []struct {
			Size   int64 `json:"Size"`
			Config struct {
				User       string            `json:"User"`
				Entrypoint []string          `json:"Entrypoint"`
				Labels     map[string]string `json:"Labels"`
			} `json:"Config"`
		}
		if err := json.Unmarshal([]byte(e.run(t, "podman", "inspect", "--type", "image", built)), &images); err != nil {
			t.Fatal(err)
		}
		i := images[0]
		t.Logf("size: %.1f MB", float64(i.Size)/1e6)
		if i.Size <= 1<<20 || i.Size >= most {
			t.Errorf("%d bytes, want less than %d", i.Size, most)
		}
		if i.Config.User != "65532:65532" || !slices.Equal(i.Config.Entrypoint, []string{"/latchkey"}) || i.Config.Labels["org.opencontainers.image.version"] != version {
			t.Errorf("config %+v", i.Config)
		}
		// Nothing in it but the program and the certificates.
		root := e.run(t, "buildah", "mount", e.run(t, "buildah", "from", built))
		var files []string
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				files = append(files, strings.TrimPrefix(path, root))
			}
			return err
		})
		if want := []string{"/etc/ssl/certs/ca-certificates.crt", "/latchkey"}; err != nil || !slices.Equal(files, want) {
			t.Errorf("files %q (%v), want %q", files, err, want)
		}
	})

	t.Run("runs confined", func(t *testing.T) {
		redis := redistest.Start(t)
		api, admin := freePort(t), freePort(t)
		c := e.run(t, "podman", append(confined(),
			"--detach", "--health-interval", "disable",
			"--env", "LATCHKEY_SECRET="+secret, "--env", "LATCHKEY_REDIS_URL="+redis.URL(),
			"--env", "LATCHKEY_ADDR=127.0.0.1:"+api, "--env", "LATCHKEY_ADMIN_ADDR=127.0.0.1:"+admin, built)...)
		t.Cleanup(func() {
			if t.Failed() {
				logs, err := e.try(t, time.Minute, "podman", "logs", c)
				t.Log(logs, err)
			}
			if _, err := e.try(t, time.Minute, "podman", "rm", "--force", "--time", "1", c); err != nil {
				t.Error(err)
			}
		})
		await(t, "http://127.0.0.1:"+admin+"/readyz")
		if got := e.run(t, "podman", "healthcheck", "run", c); strings.Contains(got, "unhealthy") {
			t.Errorf("healthcheck: %s", got)
		}
		if got := e.run(t, "podman", "exec", c, "/latchkey", "healthcheck", "--ready"); !strings.Contains(got, "/readyz") {
			t.Errorf("healthcheck --ready: %s", got)
		}
		if got := e.run(t, "podman", "exec", c, "/latchkey", "version"); !strings.Contains(got, version) {
			t.Errorf("version: %s", got)
		}
		if _, err := e.try(t, time.Minute, "podman", "exec", c, "/bin/sh", "-c", "true"); err == nil {
			t.Error("there is a shell")
		}
		confinement(t, e.run(t, "podman", "inspect", "--format", "{{.State.Pid}}", c))

		redis.Kill(t) // an outage is no reason for a restart
		if _, err := e.try(t, time.Minute, "podman", "healthcheck", "run", c); err != nil {
			t.Errorf("unhealthy while Redis is down: %v", err)
		}
		if _, err := e.try(t, time.Minute, "podman", "stop", "--time", "30", c); err != nil {
			t.Error(err)
		}
		if got := e.run(t, "podman", "inspect", "--format", "{{.State.ExitCode}}", c); got != "0" {
			t.Errorf("exit code %s on SIGTERM", got)
		}
	})

	t.Run("is unhealthy when nobody serves", func(t *testing.T) {
		_, err := e.try(t, time.Minute, "podman", append(confined(), "--rm", "--no-healthcheck",
			"--env", "LATCHKEY_ADMIN_ADDR=127.0.0.1:"+freePort(t), built, "healthcheck")...)
		if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("healthcheck of nothing: %v", err)
		}
	})

	t.Run("refuses to start without a secret", func(t *testing.T) {
		_, err := e.try(t, time.Minute, "podman", append(confined(), "--rm", "--no-healthcheck", built)...)
		if err == nil || !strings.Contains(err.Error(), "LATCHKEY_SECRET") {
			t.Errorf("started without a secret: %v", err)
		}
	})
}

// confined are the flags that take from a container what the manifests take from the pod. The
// network is this machine's: no bridge is needed, and Redis is on its loopback.
func confined() []string {
	return []string{
		"run", "--network", "host", "--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges",
		"--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096", "--pull", "never",
	}
}

// confinement asks the kernel what a process may do.
func confinement(t *testing.T, pid string) {
	t.Helper()
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`Uid:\s+65532\s+65532\s+65532\s+65532`, `Gid:\s+65532`, `CapEff:\s+0+$`, `CapPrm:\s+0+$`, `CapBnd:\s+0+$`, `NoNewPrivs:\s+1`} {
		if !regexp.MustCompile(`(?m)^` + want).Match(status) {
			t.Errorf("no %s in\n%s", want, status)
		}
	}
	mounts, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^\d+ \d+ \S+ \S+ / ro[, ]`).Match(mounts) {
		t.Errorf("the root can be written:\n%s", mounts)
	}
}

// await returns when a URL answers 200.
func await(t *testing.T, url string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: %v", url, err)
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}
