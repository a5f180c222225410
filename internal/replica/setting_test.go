package replica

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/latchkey-auth/latchkey/config"
	"github.com/latchkey-auth/latchkey/internal/session"
	"github.com/latchkey-auth/latchkey/tokenstore"
)

// Packages below this one name no setting, and this one has a setting for each option that they name.
func TestOptionsAndSettings(t *testing.T) {
	t.Parallel()
	option := regexp.MustCompile(`Option\w+ +Option = "(.+)"`)
	settings := config.EnvFile()
	known := map[string]string{}
	for o, names := range settingOf {
		known[fmt.Sprint(o)] = names
		for name := range strings.FieldsFuncSeq(names, func(r rune) bool { return !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", r) }) {
			if !strings.Contains(settings, name) {
				t.Errorf("%v: there is no setting %s", o, name)
			}
		}
	}
	for _, dir := range []string{"../../tokenstore", "../../edge", "../session"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", dir, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(file, "_test.go") && strings.Contains(string(text), "LATCHKEY_") {
				t.Errorf("%s names a setting", file)
			}
			for _, m := range option.FindAllStringSubmatch(string(text), -1) {
				if known[m[1]] == "" {
					t.Errorf("%s: the option %s has no setting", file, m[1])
				}
				delete(known, m[1])
			}
		}
	}
	if len(known) != 0 {
		t.Errorf("options that there are not: %v", known)
	}
}

func TestErrorsNameTheSetting(t *testing.T) {
	t.Parallel()
	cause := errors.New("cause")
	for err, want := range map[error]string{
		cause: "cause",
		&tokenstore.OptionError{Option: tokenstore.OptionShards, Err: cause}:                    "cause (setting: LATCHKEY_SHARDS)",
		&session.OptionError{Option: session.OptionScopeClaims, Err: cause}:                     "cause (setting: LATCHKEY_SCOPE_CLAIMS)",
		fmt.Errorf("at: %w", &tokenstore.OptionError{Option: tokenstore.OptionURL, Err: cause}): "at: cause (setting: LATCHKEY_REDIS_URL)",
	} {
		if got := NameSetting(err); got.Error() != want || !errors.Is(got, cause) {
			t.Errorf("got %v, want %s", got, want)
		}
	}
}
