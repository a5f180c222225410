package config_test

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/latchkey-auth/latchkey/config"
)

var update = flag.Bool("update", false, "rewrite the generated files (`make generate`)")

func asFaults(err error, f *config.Faults) bool { return errors.As(err, f) }

const (
	begin = "<!-- config:begin -->"
	end   = "<!-- config:end -->"
)

// The table in docs/settings.md, the example environment file and the chart's schema say what the
// code does.
func TestGeneratedFiles(t *testing.T) {
	for _, tt := range []struct {
		path string
		want func(t *testing.T, old string) string
	}{
		{"../docs/settings.md", page},
		{"../deploy/latchkey.env.example", func(*testing.T, string) string { return config.EnvFile() }},
		{"../deploy/helm/latchkey/values.schema.json", schema},
	} {
		t.Run(tt.path, func(t *testing.T) {
			old, err := os.ReadFile(tt.path)
			if err != nil && !*update {
				t.Fatalf("%v: run `make generate`", err)
			}
			want := tt.want(t, string(old))
			if *update {
				if err := os.WriteFile(tt.path, []byte(want), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, string(old)); diff != "" {
				t.Errorf("run `make generate` and commit %s (-generated +committed):\n%s", tt.path, diff)
			}
		})
	}
}

// page puts the table between its markers.
func page(t *testing.T, old string) string {
	t.Helper()
	head, rest, ok := strings.Cut(old, begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("docs/settings.md lacks the lines %s and %s, between which the table of settings goes", begin, end)
	}
	return head + begin + "\n" + config.Markdown() + end + tail
}

// schema puts the names of the settings that the chart's values may have into their enum. Secrets
// are not among them, but the files that hold them are. The chart sets the rest itself.
func schema(t *testing.T, old string) string {
	t.Helper()
	byChart := []string{"LATCHKEY_ADDR", "LATCHKEY_ADMIN_ADDR", "LATCHKEY_EXTAUTHZ_ADDR", "LATCHKEY_SECRET_FILE", "LATCHKEY_REDIS_URL_FILE"}
	var names []string
	for _, r := range config.Document() {
		name := r.Name
		if r.Secret {
			name += "_FILE"
		}
		if !slices.Contains(byChart, name) {
			names = append(names, `        "`+name+`"`)
		}
	}
	head, rest, ok := strings.Cut(old, "that are.\",\n      \"enum\": [")
	_, tail, ok2 := strings.Cut(rest, "]")
	if !ok || !ok2 {
		t.Fatal("the definition of a setting, whose enum goes into the chart's schema, is not where it was")
	}
	return head + "that are.\",\n      \"enum\": [\n" + strings.Join(names, ",\n") + "\n      ]" + tail
}

// The example file, with a secret in it, is an environment that loads; and every
// default it shows is the default in force.
func TestTheExampleFileLoads(t *testing.T) {
	for name, uncomment := range map[string]string{"as it is": "#", "with every default spelt out": ""} {
		t.Run(name, func(t *testing.T) {
			var env []string
			for line := range strings.Lines(config.EnvFile()) {
				line = strings.TrimSuffix(line, "\n")
				if uncomment == "" {
					line = strings.TrimPrefix(line, "#")
				}
				if strings.HasPrefix(line, config.Prefix) {
					env = append(env, line)
				}
			}
			if _, err := config.Load(env); err == nil {
				t.Error("the example file loads with its placeholder for a secret")
			}
			cfg, err := config.Load(append(env, "LATCHKEY_SECRET="+goodSecret))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(load(t), cfg, cmpopts.EquateComparable(netip.Prefix{}), cmpopts.IgnoreUnexported(config.Config{})); diff != "" {
				t.Errorf("the example differs from the defaults (-defaults +example):\n%s", diff)
			}
		})
	}
}
