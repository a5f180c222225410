//go:build unix

package stacktest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Backend is what a load balancer needs to know of a replica: host:port each.
type Backend struct{ Addr, Admin string }

// Backends are a fleet's.
func (f *Fleet) Backends() []Backend {
	var all []Backend
	for _, r := range f.Replicas {
		all = append(all, Backend{r.Addr, r.Admin})
	}
	return all
}

// Nginx starts nginx with the configuration file of deploy/loadbalancers before
// three backends, and returns its address.
func Nginx(t testing.TB, file string, backends []Backend) (front string) {
	t.Helper()
	return nginx(t, file, backends, ";")
}

// NginxTLS is Nginx with TLS and HTTP/2, by that certificate and key.
func NginxTLS(t testing.TB, file string, backends []Backend, certFile, keyFile string) (front string) {
	t.Helper()
	return nginx(t, file, backends, " ssl http2; ssl_certificate "+certFile+"; ssl_certificate_key "+keyFile+";")
}

// nginx starts nginx; listen is the rest of its directive of that name.
func nginx(t testing.TB, file string, backends []Backend, listen string) (front string) {
	t.Helper()
	bin, dir := Installed(t, "nginx", "nginx-light"), t.TempDir()
	front = net.JoinHostPort("127.0.0.1", FreePort(t))
	pairs := []string{"listen 8080;", "listen " + front + listen}
	for i, b := range backends {
		pairs = append(pairs, fmt.Sprintf("latchkey-%d:8080", i+1), b.Addr)
	}
	// Where Debian's package would have it write.
	places := "http {\n\taccess_log off;\n"
	for _, name := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		places += "\t" + name + "_temp_path " + filepath.Join(dir, name) + ";\n"
	}
	conf := Configured(t, dir, file, append(pairs, "http {\n", places)...)
	Launch(t, nil, bin, "-p", dir, "-e", "stderr", "-c", conf, "-g", "daemon off; master_process off; pid "+filepath.Join(dir, "nginx.pid")+";")
	await(t, front)
	return front
}

// HAProxy starts HAProxy in the same way.
func HAProxy(t testing.TB, file string, backends []Backend) (front string) {
	t.Helper()
	bin := Installed(t, "haproxy", "haproxy")
	front = net.JoinHostPort("127.0.0.1", FreePort(t))
	pairs := []string{"bind :8080", "bind " + front}
	for i, b := range backends {
		_, admin, err := net.SplitHostPort(b.Admin)
		if err != nil {
			t.Fatal(err)
		}
		pairs = append(pairs, fmt.Sprintf("latchkey-%d:8080 port 9090", i+1), b.Addr+" port "+admin)
	}
	conf := Configured(t, t.TempDir(), file, pairs...)
	Launch(t, nil, bin, "-db", "-f", conf)
	await(t, front)
	return front
}

// await waits until something listens at an address.
func await(t testing.TB, addr string) {
	t.Helper()
	Eventually(t, addr+" listens", func() bool {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// Configured writes a file into dir with some of its text replaced, all of which
// must be there, and returns its path.
func Configured(t testing.TB, dir, file string, pairs ...string) string {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for pair := range slices.Chunk(pairs, 2) {
		if !strings.Contains(text, pair[0]) {
			t.Fatalf("%s does not hold %q", file, pair[0])
		}
		text = strings.ReplaceAll(text, pair[0], pair[1])
	}
	path := filepath.Join(dir, filepath.Base(file))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
