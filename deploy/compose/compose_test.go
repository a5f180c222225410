//go:build unix

// Package compose_test reads compose.yaml with Docker Compose's own parser, and
// starts by hand what it would start: the script that makes the secrets, Redis and
// the replicas, each with the command and the settings that are in the file.
package compose_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// project is what the parser makes of the file.
type project struct {
	Services map[string]service
	Networks map[string]struct {
		Internal bool
		IPAM     struct{ Config []struct{ Subnet string } }
	}
}

type service struct {
	Image           string
	Build           *struct{ Context string }
	User            string
	GroupAdd        []string `json:"group_add"`
	Entrypoint      []string
	Command         []string
	Environment     map[string]string
	ReadOnly        bool     `json:"read_only"`
	CapDrop         []string `json:"cap_drop"`
	SecurityOpt     []string `json:"security_opt"`
	StopGracePeriod string   `json:"stop_grace_period"`
	Ports           []struct {
		HostIP string `json:"host_ip"`
		Target int
	}
	Volumes []struct {
		Type, Source, Target string
		ReadOnly             bool `json:"read_only"`
	}
	Networks map[string]*struct {
		IPv4    string `json:"ipv4_address"`
		Aliases []string
	}
	DependsOn map[string]struct{ Condition string } `json:"depends_on"`
}

func load(t *testing.T) project {
	t.Helper()
	file, err := filepath.Abs("compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var p project
	text := stacktest.Go(t, []string{"GOWORK=off", "CGO_ENABLED=0"}, "-C", "../../tools/compose", "run", ".", file)
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCompose(t *testing.T) {
	t.Parallel()
	p := load(t)
	t.Run("services", func(t *testing.T) { checkServices(t, p) })
	t.Run("mounts", func(t *testing.T) { checkMounts(t, p) })
	t.Run("replicas", func(t *testing.T) { checkReplicas(t, p) })
	t.Run("by hand", func(t *testing.T) { startByHand(t, p) })
}

// pinned is an image of one release: major, minor and patch.
var pinned = regexp.MustCompile(`^[a-z/]+:v?\d+\.\d+\.\d+(-[a-z]+)?$`)

// secret is what a variable that holds one is called.
var secret = regexp.MustCompile(`SECRET|PASSWORD|TOKEN|REDIS_URL`)

func checkServices(t *testing.T, p project) {
	for name, s := range p.Services {
		if s.Build == nil && !pinned.MatchString(s.Image) {
			t.Errorf("%s: %s is not pinned", name, s.Image)
		}
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s is not contained: %v %v %v", name, s.ReadOnly, s.CapDrop, s.SecurityOpt)
		}
		for variable, value := range s.Environment {
			named := strings.HasSuffix(variable, "_FILE") && strings.HasPrefix(value, "/secrets/")
			if secret.MatchString(variable) && !named {
				t.Errorf("%s: %s holds a secret", name, variable)
			}
		}
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %d is open to others, without TLS", name, port.Target)
			}
		}
		for _, v := range s.Volumes {
			if v.Type != "bind" {
				continue
			}
			if !v.ReadOnly {
				t.Errorf("%s can write to %s", name, v.Source)
			}
		}
		// The secrets are for the group of the container that makes them, which the image of
		// the replicas runs as.
		_, group, _ := strings.Cut(p.Services["secrets"].User, ":")
		for _, v := range s.Volumes {
			if v.Target == "/secrets" && s.Build == nil && name != "secrets" && !slices.Contains(s.GroupAdd, group) {
				t.Errorf("%s cannot read the secrets: it is not in the group %s", name, group)
			}
		}
		for other := range s.DependsOn {
			if _, ok := p.Services[other]; !ok {
				t.Errorf("%s waits for %s", name, other)
			}
		}
	}
	if !p.Networks["back"].Internal || len(p.Services["redis"].Networks) != 1 {
		t.Error("Redis can be reached from elsewhere")
	}
}

// checkMounts: Docker makes an empty folder of a path that does not exist.
func checkMounts(t *testing.T, p project) {
	for name, s := range p.Services {
		for _, v := range s.Volumes {
			if v.Type != "bind" {
				continue
			}
			if _, err := os.Stat(v.Source); err != nil {
				t.Errorf("%s mounts what is not there: %v", name, err)
			}
		}
	}
}

func replicas(p project) []string {
	var names []string
	for name := range p.Services {
		if strings.HasPrefix(name, "latchkey-") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func checkReplicas(t *testing.T, p project) {
	names := replicas(p)
	if len(names) != 3 {
		t.Fatalf("replicas: %v", names)
	}
	config, err := os.ReadFile("../loadbalancers/haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		s := p.Services[name]
		if !strings.Contains(string(config), " "+name+":8080 ") {
			t.Errorf("HAProxy does not know %s", name)
		}
		if front := s.Networks["front"]; front == nil || !slices.Contains(front.Aliases, "latchkey") {
			t.Errorf("Prometheus does not find %s", name)
		}
		if got, want := s.Environment["LATCHKEY_TRUSTED_PROXIES"], p.Services["balancer"].Networks["front"].IPv4; got != want {
			t.Errorf("%s trusts %s; the balancer is %s", name, got, want)
		}
		delay, err := time.ParseDuration(s.Environment["LATCHKEY_SHUTDOWN_DELAY"])
		grace, err2 := time.ParseDuration(s.StopGracePeriod)
		if err != nil || err2 != nil || delay < 3*time.Second || grace < delay+20*time.Second { // 20 s: LATCHKEY_SHUTDOWN_TIMEOUT
			t.Errorf("%s drains for %v of %v (%v, %v)", name, delay, grace, err, err2)
		}
	}
	_, subnet, err := net.ParseCIDR(p.Networks["front"].IPAM.Config[0].Subnet)
	if err != nil || !subnet.Contains(net.ParseIP(p.Services["balancer"].Networks["front"].IPv4)) {
		t.Errorf("the balancer is not in its network: %v", err)
	}
}

// startByHand starts the secrets' script, Redis and the replicas as the file says.
func startByHand(t *testing.T, p project) {
	secrets, data := t.TempDir(), t.TempDir()
	port := stacktest.FreePort(t)
	here := strings.NewReplacer("/secrets.sh", mustAbs(t, "secrets.sh"), "/secrets", secrets, "redis:6379", "127.0.0.1:"+port,
		"/etc/redis/latchkey.conf", mustAbs(t, "../redis.conf"), "0.0.0.0", "127.0.0.1", "/data", data).Replace
	args := func(words []string) []string {
		var all []string
		for _, w := range words {
			all = append(all, here(w))
		}
		return all
	}

	s := p.Services["secrets"]
	line := append(args(s.Entrypoint), args(s.Command)...)
	environment := []string{"PATH=" + os.Getenv("PATH")}
	stacktest.Run(t, environment, "", line[0], line[1:]...)
	first := contents(t, secrets)
	stacktest.Run(t, environment, "", line[0], line[1:]...)
	if again := contents(t, secrets); again != first {
		t.Error("a second start makes other secrets")
	}

	line = args(p.Services["redis"].Command)
	stacktest.Launch(t, nil, stacktest.Installed(t, line[0], "redis-server"), append(line[1:], "--port", port)...)
	stacktest.Eventually(t, "Redis listens", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})

	// The settings go to the program itself, which refuses those it does not know.
	var settings []string
	for name, value := range p.Services[replicas(p)[0]].Environment {
		settings = append(settings, name+"="+here(value))
	}
	fleet := stacktest.NewFleetOf(t, stacktest.Build(t, "../.."), 3, settings...)
	fleet.Command(t, "correct horse\n", "user", "add", "alice")
	var tokens struct {
		Access string `json:"access_token"`
		Next   string `json:"refresh_token"`
	}
	ask := func(replica int, path string, form url.Values, status int) {
		t.Helper()
		q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+fleet.Replicas[replica].Addr+path, strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if tokens.Access != "" {
			q.Header.Set("Authorization", "Bearer "+tokens.Access)
		}
		a, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(q)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		if a.StatusCode != status {
			t.Errorf("%s: %d, want %d", path, a.StatusCode, status)
		}
		if a.StatusCode == http.StatusOK {
			if err := json.NewDecoder(a.Body).Decode(&tokens); err != nil {
				t.Error(err)
			}
		}
	}
	ask(0, "/auth/token", url.Values{"username": {"alice"}, "password": {"correct horse"}, "refresh_delivery": {"body"}}, http.StatusOK)
	ask(1, "/auth/refresh", url.Values{"refresh_token": {tokens.Next}}, http.StatusOK)
	ask(2, "/auth/verify", nil, http.StatusNoContent)
	ask(2, "/auth/logout-all", nil, http.StatusOK)
	for i := range 3 {
		ask(i, "/auth/verify", nil, http.StatusUnauthorized)
	}
	fleet.Command(t, "", "session", "list", "alice")
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

// contents are the secrets, which must differ from each other.
func contents(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 5 {
		t.Fatalf("%v: %v", files, err)
	}
	all := ""
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o440 {
			t.Errorf("%s can be read by others: %v (%v)", f, info.Mode(), err)
		}
		if len(raw) < 32 || strings.Contains(all, string(raw)) {
			t.Errorf("%s: %d bytes", f, len(raw))
		}
		all += fmt.Sprintf("%s=%s\n", filepath.Base(f), raw)
	}
	return all
}
