package config

//go:generate go test -count=1 -run ^TestGeneratedFiles$ . -update

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"time"
)

// Row is one setting as documented.
type Row struct {
	Name    string
	Default string // "" when there is none
	Type    string // what to write, such as "duration" or "true or false"
	Secret  bool   // also read from the file named by Name + "_FILE", and never shown
	Doc     string
}

// Value is one setting as it is in force.
type Value struct {
	Name    string
	Value   string // redacted if it is a secret
	Default bool   // whether it is the default
}

// Document describes every setting, in the order in which they are declared.
func Document() []Row {
	var rows []Row
	for _, s := range settings() {
		rows = append(rows, Row{Name: s.name, Default: s.def, Type: s.form(), Secret: s.secret, Doc: s.doc})
	}
	return rows
}

// Effective lists every setting with the value in force, secrets redacted.
func (c *Config) Effective() []Value {
	var rows []Value
	v, defaults := reflect.ValueOf(c).Elem(), reflect.ValueOf(parse(new(collector), nil)).Elem()
	for _, s := range settings() {
		is, def := v.FieldByIndex(s.index), defaults.FieldByIndex(s.index)
		isDefault := reflect.DeepEqual(is.Interface(), def.Interface()) || s.name == "LATCHKEY_AUDIENCE" && c.Audience == c.Issuer
		rows = append(rows, Value{Name: s.name, Value: show(is), Default: isDefault})
	}
	return rows
}

// Markdown is the table of settings in docs/settings.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString("| Setting | Default | Meaning |\n| --- | --- | --- |\n")
	cell := strings.NewReplacer("|", `\|`, "<", "&lt;")
	for _, r := range Document() {
		def := "`" + r.Default + "`"
		if r.Default == "" {
			def = ""
		}
		name := "`" + r.Name + "`"
		if r.Secret {
			name += " (or `_FILE`)"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, def, cell.Replace(r.Doc+boundsNote(r)))
	}
	return b.String()
}

// EnvFile is the example environment file, for `docker run --env-file` and
// systemd's EnvironmentFile alike: comments have lines of their own, and values
// no quotes.
func EnvFile() string {
	var b strings.Builder
	b.WriteString("# Settings of Latchkey. Generated from the config package by `make generate`.\n" +
		"# A line that is commented out shows the default. An unknown LATCHKEY_ name refuses to start.\n")
	for _, r := range Document() {
		b.WriteString("\n")
		for _, line := range wrap(r.Doc+boundsNote(r), 98) {
			b.WriteString("# " + line + "\n")
		}
		if r.Secret {
			b.WriteString("# Or name a file that holds it: " + r.Name + fileSuffix + "=/run/secrets/" + strings.ToLower(r.Name) + "\n")
		}
		if r.Name == "LATCHKEY_SECRET" {
			b.WriteString(r.Name + "=" + ExampleSecret + "\n")
			continue
		}
		b.WriteString("#" + r.Name + "=" + r.Default + "\n")
	}
	return b.String()
}

// boundsNote is the sentence on what is allowed, for settings whose bounds are in their tags.
func boundsNote(r Row) string {
	for _, s := range settings() {
		switch n := len(s.oneof); {
		case s.name != r.Name:
		case n > 0:
			return " Allowed: " + s.form() + "."
		case s.max != "":
			return " From " + s.min + " to " + s.max + "."
		}
	}
	return ""
}

func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	return append(lines, line)
}

// setting is the document of one field of Config, read from its tags.
type setting struct {
	index     []int
	field     string
	typ       reflect.Type
	name, def string
	doc, kind string
	min, max  string
	unit      string
	oneof     []string
	secret    bool
}

func settings() []setting {
	var out []setting
	for f := range reflect.TypeFor[Config]().Fields() {
		if !f.IsExported() {
			continue
		}
		s := setting{
			index: f.Index, field: f.Name, typ: f.Type,
			name: f.Tag.Get("env"), def: f.Tag.Get("envDefault"), doc: f.Tag.Get("doc"), kind: f.Tag.Get("kind"),
			min: f.Tag.Get("min"), max: f.Tag.Get("max"), unit: f.Tag.Get("unit"), secret: f.Tag.Get("secret") == "yes",
		}
		if o := f.Tag.Get("oneof"); o != "" {
			s.oneof = strings.Fields(o)
		}
		out = append(out, s)
	}
	return out
}

func settingOf(field string) setting {
	for _, s := range settings() {
		if s.field == field {
			return s
		}
	}
	return setting{name: field}
}

// form says what to write, and continues "write ...".
func (s setting) form() string {
	switch s.typ {
	case reflect.TypeFor[bool]():
		return "true or false"
	case reflect.TypeFor[Rate]():
		return fmt.Sprintf("a number and a period such as %s: 1 to %d in %s to %s", s.def, maxBurst, formatDuration(minPeriod), formatDuration(maxPeriod))
	case reflect.TypeFor[Outage]():
		return "deny, or serve-stale: and a duration from 1s to 1h"
	case reflect.TypeFor[time.Duration]():
		seconds := ""
		if s.unit == "s" {
			seconds = ", in whole seconds"
		}
		return fmt.Sprintf("a duration such as %s, from %s to %s%s", s.def, s.min, s.max, seconds)
	case reflect.TypeFor[float64]():
		return "a number from " + s.min + " to " + s.max
	case reflect.TypeFor[int](), reflect.TypeFor[uint32](), reflect.TypeFor[uint8]():
		return "a whole number from " + s.min + " to " + s.max
	}
	if n := len(s.oneof); n > 0 {
		return strings.Join(s.oneof[:n-1], ", ") + " or " + s.oneof[n-1]
	}
	return s.kind
}

// show renders a value in the form in which it is set; secrets redact themselves.
func show(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return formatDuration(x)
	case []string:
		return strings.Join(x, ",")
	case []netip.Prefix:
		parts := make([]string, len(x))
		for i, p := range x {
			parts[i] = p.String()
		}
		return strings.Join(parts, ",")
	default:
		return fmt.Sprint(x)
	}
}
