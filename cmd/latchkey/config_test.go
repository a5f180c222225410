package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/latchkey-auth/latchkey/config"
)

// setSettings gives the commands an environment: the secrets hold the canary.
func setSettings(t *testing.T) {
	t.Helper()
	t.Setenv("LATCHKEY_SECRET", canary+canary)
	t.Setenv("LATCHKEY_REDIS_URL", "redis://someone:"+strings.ReplaceAll(canary, " ", "%20")+"@redis.example:6380/2")
	t.Setenv("LATCHKEY_ISSUER", "http://login.example")
	t.Setenv("LATCHKEY_ACCESS_TTL", "5m")
}

func TestConfig(t *testing.T) {
	setSettings(t)
	o := command(t, strings.NewReader(""), "config")
	if o.err != nil {
		t.Fatal(o.err)
	}
	for _, line := range []string{
		"LATCHKEY_ADDR=:8080  (default)\n",
		"LATCHKEY_REDIS_URL=redis://[redacted]@redis.example:6380/2\n",
		"LATCHKEY_SECRET=[redacted]\n",
		"LATCHKEY_ISSUER=http://login.example\n",
		"LATCHKEY_ACCESS_TTL=5m\n",
		"LATCHKEY_COOKIE_DOMAIN=  (default)\n",
	} {
		if !strings.Contains("\n"+o.stdout, "\n"+line) {
			t.Errorf("no line %q in:\n%s", line, o.stdout)
		}
	}
	if got, want := strings.Count(o.stdout, "\n"), len(config.Document()); got != want {
		t.Errorf("%d lines for %d settings", got, want)
	}
	if want := "warning: LATCHKEY_ISSUER is not https"; !strings.HasPrefix(o.stderr, want) {
		t.Errorf("standard error holds %q, want %q", o.stderr, want)
	}
}

func TestConfigJSON(t *testing.T) {
	setSettings(t)
	o := command(t, strings.NewReader(""), "config", "--json")
	var shown struct {
		Settings []config.Value
		Warnings []string
	}
	if err := json.Unmarshal([]byte(o.stdout), &shown); err != nil || o.err != nil {
		t.Fatal(err, o.err)
	}
	if len(shown.Settings) != len(config.Document()) || len(shown.Warnings) != 1 || o.stderr != "" {
		t.Errorf("%d settings and the warnings %q, %q", len(shown.Settings), shown.Warnings, o.stderr)
	}
	for _, s := range shown.Settings {
		switch s.Name {
		case "LATCHKEY_SECRET":
			if s.Value != "[redacted]" || s.Default {
				t.Errorf("%+v", s)
			}
		case "LATCHKEY_ADDR":
			if s.Value != ":8080" || !s.Default {
				t.Errorf("%+v", s)
			}
		}
	}
}

func TestConfigPrintsEveryFault(t *testing.T) {
	setSettings(t)
	t.Setenv("LATCHKEY_SECRET", "short")
	t.Setenv("LATCHKEY_SHARDS", "0")
	t.Setenv("LATCHKEY_ACCES_TTL", "5m")
	for _, args := range [][]string{{"config"}, {"config", "--json"}} {
		o := fails(t, "", args, "3 settings are wrong:", "\n  LATCHKEY_SECRET: 5 bytes", "\n  LATCHKEY_SHARDS: ", "did you mean LATCHKEY_ACCESS_TTL?")
		if o.stdout != "" {
			t.Errorf("%q also prints %q", args, o.stdout)
		}
	}
}

func TestConfigEnv(t *testing.T) {
	t.Setenv("LATCHKEY_SHARDS", "0") // the example does not need good settings
	o := command(t, strings.NewReader(""), "config", "--env")
	if o.err != nil || o.stdout != config.EnvFile() {
		t.Errorf("%v, printed:\n%s", o.err, o.stdout)
	}
	if !regexp.MustCompile(`(?m)^LATCHKEY_SECRET=`).MatchString(o.stdout) {
		t.Error("the example has no secret to fill in")
	}
	fails(t, "", []string{"config", "--env", "--json"}, "none of the others can be")
	fails(t, "", []string{"config", "now"}, "unknown command")
}
