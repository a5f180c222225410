//go:build unix

package docs_test

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

// The table in CONTRIBUTING has a line for each target that `make help` lists, and no other.
func TestEveryTargetIsInContributing(t *testing.T) {
	names := func(path, pattern string) []string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
			all = append(all, m[1])
		}
		slices.Sort(all)
		return all
	}
	targets, rows := names("../Makefile", `(?m)^([a-z-]+):.*## `), names("../CONTRIBUTING.md", "(?m)^\\| `make ([a-z-]+)` \\|")
	if len(targets) < 20 {
		t.Fatalf("only %d targets: %q", len(targets), targets)
	}
	for _, name := range targets {
		if !slices.Contains(rows, name) {
			t.Errorf("make %s has no line in CONTRIBUTING.md", name)
		}
	}
	for _, name := range rows {
		if !slices.Contains(targets, name) {
			t.Errorf("CONTRIBUTING.md has make %s, which make help does not list", name)
		}
	}
}
