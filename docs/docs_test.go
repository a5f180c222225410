//go:build unix

// Package docs_test holds the pages to what they say: links lead somewhere, names
// exist, and commands are run.
package docs_test

import (
	"fmt"
	"html"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/latchkey-auth/latchkey/test/stacktest"
)

// page is one Markdown file.
type page struct {
	path   string // from the repository's root
	text   string
	blocks []block
}

// block is a fenced block of code, and what a comment right before it says of it.
type block struct {
	language, text string
	directive      string // such as "not run"
	argument       string // what follows its colon
	line           int
}

// pages are all that a reader may be given.
func pages(t testing.TB) []page {
	t.Helper()
	var list []page
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "bin" || d.Name() == "node_modules" || d.Name() == "testdata" || d.Name() == ".git") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		rel, err := filepath.Rel("..", path)
		list = append(list, page{path: filepath.ToSlash(rel), text: readPage(t, path)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range list {
		list[i].blocks = blocks(list[i].text)
	}
	if len(list) < 15 {
		t.Fatalf("%d pages: where are the others?", len(list))
	}
	return list
}

var (
	fence     = regexp.MustCompile("^( *)```([a-z]*)$")
	directive = regexp.MustCompile(`^ *<!-- ([a-z][a-z ]*)(?:: (.*))? -->$`)
)

func blocks(text string) []block {
	var list []block
	var open *block
	indent, before := "", ""
	for i, line := range strings.Split(text, "\n") {
		m := fence.FindStringSubmatch(line)
		switch {
		case open != nil && m != nil:
			list = append(list, *open)
			open, before = nil, ""
		case open != nil:
			open.text += strings.TrimPrefix(line, indent) + "\n"
		case m != nil:
			indent = m[1]
			open = &block{language: m[2], line: i + 1}
			if d := directive.FindStringSubmatch(before); d != nil {
				open.directive, open.argument = d[1], d[2]
			}
		case strings.TrimSpace(line) != "":
			before = line
		}
	}
	return list
}

// prose is a page without its blocks of code.
func prose(text string) string {
	var b strings.Builder
	inside := false
	for line := range strings.Lines(text) {
		if fence.MatchString(strings.TrimRight(line, "\n")) {
			inside = !inside
			continue
		}
		if !inside {
			b.WriteString(line)
		}
	}
	return b.String()
}

// code is what a page sets as code: its blocks, and what stands between backquotes.
func code(p page) []string {
	var list []string
	for _, b := range p.blocks {
		list = append(list, b.text)
	}
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(prose(p.text), -1) {
		list = append(list, m[1])
	}
	return list
}

// Every relative link leads to a file, and its anchor to a heading.
func TestLinks(t *testing.T) {
	t.Parallel()
	all := pages(t)
	anchors := map[string][]string{}
	for _, p := range all {
		anchors[p.path] = headings(p.text)
	}
	for _, p := range all {
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(prose(p.text), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			file := p.path
			if target != "" {
				file = filepath.ToSlash(filepath.Join(filepath.Dir(p.path), target))
			}
			if _, err := os.Stat(filepath.Join("..", file)); err != nil {
				t.Errorf("%s: %s leads nowhere", p.path, m[1])
				continue
			}
			if anchor != "" && !slices.Contains(anchors[file], anchor) {
				t.Errorf("%s: %s has no such heading", p.path, m[1])
			}
		}
	}
}

// headings are a page's anchors, as GitHub makes them.
func headings(text string) []string {
	var list []string
	seen := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^#+ +(.*)$`).FindAllStringSubmatch(prose(text), -1) {
		slug := regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`).ReplaceAllString(strings.ToLower(m[1]), "$1")
		slug = strings.ReplaceAll(regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(slug, ""), " ", "-")
		if n := seen[slug]; n > 0 {
			list = append(list, fmt.Sprintf("%s-%d", slug, n))
		} else {
			list = append(list, slug)
		}
		seen[slug]++
	}
	return list
}

// Every setting that a page names exists. The table of settings.md is made from the settings
// themselves.
func TestSettingsNamed(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(LATCHKEY_[A-Z0-9_]+)`( \\(or `_FILE`\\))?").FindAllStringSubmatch(section(t, readPage(t, "settings.md"), "config"), -1) {
		known[m[1]] = true
		if m[2] != "" {
			known[m[1]+"_FILE"] = true
		}
	}
	if len(known) < 40 {
		t.Fatalf("the table of settings has %d settings", len(known))
	}
	for _, p := range pages(t) {
		for _, name := range regexp.MustCompile(`LATCHKEY_[A-Z0-9_]*\*?`).FindAllString(p.text, -1) {
			prefix, family := strings.CutSuffix(name, "*")
			if name == "LATCHKEY_" || known[name] || family && slices.ContainsFunc(slices.Collect(maps.Keys(known)), func(k string) bool { return strings.HasPrefix(k, prefix) }) {
				continue
			}
			t.Errorf("%s: there is no setting %s", p.path, name)
		}
	}
}

// Every make target that a page names exists.
func TestTargetsNamed(t *testing.T) {
	t.Parallel()
	makefile := readPage(t, "../Makefile")
	for _, p := range pages(t) {
		for _, c := range code(p) {
			for _, m := range regexp.MustCompile(`(?m)(?:^|[;&|] *|\$ )make ([a-z][a-z-]*)`).FindAllStringSubmatch(c, -1) {
				if !regexp.MustCompile(`(?m)^` + m[1] + `:`).MatchString(makefile) {
					t.Errorf("%s: there is no target %s", p.path, m[1])
				}
			}
		}
	}
}

// Every make target that `make help` lists is in CONTRIBUTING's table.
func TestTargetsListed(t *testing.T) {
	t.Parallel()
	_, targets, _ := strings.Cut(readPage(t, "../CONTRIBUTING.md"), "\n## Targets\n")
	var listed int
	for _, m := range regexp.MustCompile(`(?m)^([a-z-]+):.*## `).FindAllStringSubmatch(readPage(t, "../Makefile"), -1) {
		listed++
		if m[1] != "help" && !strings.Contains(targets, "`make "+m[1]+"`") {
			t.Errorf("CONTRIBUTING.md: make %s is not in the table", m[1])
		}
	}
	if listed < 30 {
		t.Errorf("make help lists %d targets", listed)
	}
}

// CONTRIBUTING's layout has every folder of the repository, and those of internal one by one.
func TestLayoutNamesFolders(t *testing.T) {
	t.Parallel()
	_, layout, _ := strings.Cut(readPage(t, "../CONTRIBUTING.md"), "\n## Layout\n")
	layout, _, _ = strings.Cut(layout, "\n## ")
	for _, within := range []string{"", "internal/"} {
		entries, err := os.ReadDir("../" + within)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			name := e.Name()
			if !e.IsDir() || name == "bin" || name == "internal" || strings.HasPrefix(name, ".") && name != ".ci" {
				continue
			}
			if !strings.Contains(layout, "\n"+within+name+"/") {
				t.Errorf("CONTRIBUTING.md: %s%s is not in the layout", within, name)
			}
		}
	}
}

// Every test that a page names exists: promises are said to rest on them.
func TestTestsNamed(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, "_test.go") {
			for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz)\w+)\(`).FindAllStringSubmatch(readPage(t, path), -1) {
				known[m[1]] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages(t) {
		for _, name := range regexp.MustCompile(`\b(?:Test|Benchmark|Fuzz)[A-Z]\w+`).FindAllString(p.text, -1) {
			if !known[name] && name != "TestRun" { // an object of the k6 operator's
				t.Errorf("%s: there is no test %s", p.path, name)
			}
		}
	}
}

// latchkey is where the program is.
func latchkey(t testing.TB) string {
	t.Helper()
	return stacktest.Build(t, "..")
}

// help is what the program says of a command.
type help struct {
	subcommands, flags []string
}

func helpOf(t *testing.T, command ...string) help {
	t.Helper()
	text := stacktest.Run(t, nil, "", latchkey(t), append(command, "--help")...)
	var h help
	_, list, ok := strings.Cut(text, "Available Commands:\n")
	if ok {
		list, _, _ = strings.Cut(list, "\n\n")
		for _, m := range regexp.MustCompile(`(?m)^  ([a-z-]+)`).FindAllStringSubmatch(list, -1) {
			h.subcommands = append(h.subcommands, m[1])
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^ +(?:-[a-z], )?(--[a-z-]+)`).FindAllStringSubmatch(text, -1) {
		h.flags = append(h.flags, m[1])
	}
	return h
}

// Every command line of the program that a page shows is one: its commands and
// flags are those of the real program.
func TestCommandLines(t *testing.T) {
	t.Parallel()
	var checked int
	known := map[string]help{}
	of := func(command []string) help {
		key := strings.Join(command, " ")
		if _, ok := known[key]; !ok {
			known[key] = helpOf(t, command...)
		}
		return known[key]
	}
	line := regexp.MustCompile(`(?m)(?:^|[|;&] *|\$ |-- |exec )(?:go run \./cmd/latchkey|/?latchkey)((?: [^|;&#\n]+)?)`)
	for _, p := range pages(t) {
		for _, c := range code(p) {
			for _, m := range line.FindAllStringSubmatch(c, -1) {
				words := strings.Fields(m[1])
				var command []string
				for len(words) > 0 && slices.Contains(of(command).subcommands, words[0]) {
					command, words = append(command, words[0]), words[1:]
				}
				h := of(command)
				if len(words) > 0 && len(h.subcommands) > 0 && len(command) > 0 {
					t.Errorf("%s: %q: %v has no command %s", p.path, m[0], command, words[0])
				}
				if len(command) == 0 && len(words) > 0 && !strings.HasPrefix(words[0], "-") && words[0] != "help" && regexp.MustCompile(`^[a-z]+$`).MatchString(words[0]) {
					t.Errorf("%s: %q is no command", p.path, m[0])
				}
				for _, word := range words {
					flag, _, _ := strings.Cut(word, "=")
					if strings.HasPrefix(flag, "--") && flag != "--" && !slices.Contains(h.flags, flag) {
						t.Errorf("%s: %q: no flag %s", p.path, m[0], flag)
					}
				}
				checked++
			}
		}
	}
	if checked < 30 {
		t.Errorf("only %d command lines were found", checked)
	}
}

// Every decision has a status with a date, says its context, the decision and the
// consequences, and is in the index once.
func TestDecisions(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("decisions/*.md")
	if err != nil {
		t.Fatal(err)
	}
	index := readPage(t, "decisions/README.md")
	status := regexp.MustCompile(`\A# [^\n]+\n\nStatus: (?:accepted|proposed|(?:superseded by|merged into) \[[^]]+\]\([a-z0-9-]+\.md\)), 20\d\d-\d\d-\d\d[.,]`)
	for _, file := range files {
		name := filepath.Base(file)
		if name == "README.md" {
			continue
		}
		text := readPage(t, file)
		if !status.MatchString(text) {
			t.Errorf("docs/%s does not begin with a title and a line such as \"Status: accepted, 2026-12-01.\"", file)
		}
		for _, part := range []string{"Context", "Decision", "Consequences"} {
			if strings.Count(text, "\n## "+part+"\n") != 1 {
				t.Errorf("docs/%s has no section %q", file, part)
			}
		}
		if n := strings.Count(index, "]("+name+")"); n != 1 {
			t.Errorf("docs/decisions/README.md has docs/%s %d times, not once: add a line to its index", file, n)
		}
	}
	if len(files) < 80 {
		t.Errorf("%d decisions: where are the others?", len(files))
	}
}

// README is read in five minutes.
func TestReadmeIsShort(t *testing.T) {
	t.Parallel()
	const most = 1200
	if n := len(strings.Fields(readPage(t, "../README.md"))); n > most {
		t.Errorf("README.md has %d words; at most %d, so that it is read: move something into docs", n, most)
	}
}

// The picture of the tour in README shows the steps that the tour has.
func TestPictureOfTheTour(t *testing.T) {
	t.Parallel()
	picture := html.UnescapeString(readPage(t, "tour.svg"))
	tour := stacktest.Run(t, nil, "", latchkey(t), "dev", "--exit", "--addr", "127.0.0.1:0")
	steps := regexp.MustCompile(`(?m)^\d+  \S.*$|^   ✓ [^0-9_…\n]+$`).FindAllString(tour, -1)
	if len(steps) < 12 {
		t.Fatalf("the tour has %d lines to look for:\n%s", len(steps), tour)
	}
	for _, step := range steps {
		if !strings.Contains(picture, step) {
			t.Errorf("docs/tour.svg lacks %q: run make tour-svg", step)
		}
	}
}

// section is what stands between two comments of a page.
func section(t testing.TB, page, name string) string {
	t.Helper()
	_, after, ok := strings.Cut(page, "<!-- "+name+":begin -->\n")
	text, _, ended := strings.Cut(after, "<!-- "+name+":end -->")
	if !ok || !ended {
		t.Fatalf("no section %s", name)
	}
	return text
}

func readPage(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Lines of prose end at 100 columns, so that a page is read in any window and a change of
// one is read in a diff. Tables and blocks of code cannot be broken.
func TestLinesAreShort(t *testing.T) {
	t.Parallel()
	const most = 100
	for _, p := range pages(t) {
		for line := range strings.Lines(prose(p.text)) {
			line = strings.TrimRight(line, "\n")
			if n := utf8.RuneCountInString(line); n > most && !strings.HasPrefix(strings.TrimSpace(line), "|") && strings.Contains(strings.TrimSpace(line), " ") {
				t.Errorf("%s: a line of %d characters, at most %d: %s", p.path, n, most, line)
			}
		}
	}
}

// A page is read in five minutes. The settings are looked up and the changelog grows.
func TestPagesAreShort(t *testing.T) {
	t.Parallel()
	const most = 250
	for _, p := range pages(t) {
		if n := strings.Count(p.text, "\n"); n > most && p.path != "docs/settings.md" && p.path != "CHANGELOG.md" {
			t.Errorf("%s has %d lines, at most %d: split it", p.path, n, most)
		}
	}
}

// The index of docs has every page of the folder.
func TestIndexIsWhole(t *testing.T) {
	t.Parallel()
	index := readPage(t, "README.md")
	files, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if file != "README.md" && !strings.Contains(index, "]("+file+")") {
			t.Errorf("docs/README.md does not have %s", file)
		}
	}
}

// The first sentence of each page of the folder says what the reader gets.
func TestPagesBeginWithTheirUse(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		_, text, _ := strings.Cut(readPage(t, file), "\n\n")
		if !strings.HasPrefix(text, "This page ") {
			first, _, _ := strings.Cut(text, "\n")
			t.Errorf("docs/%s begins %q; begin with \"This page\" and what the reader gets", file, first)
		}
	}
}
