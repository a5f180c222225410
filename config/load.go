package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

const (
	fileSuffix = "_FILE"
	// maxSecretFile bounds what is read from a secret's file: a wrong path must
	// not fill the memory.
	maxSecretFile = 64 << 10
)

// Load reads the settings from an environment in the form of [os.Environ]; of a
// name given twice the last counts, and an empty value counts as unset. It reads
// the file of each NAME_FILE, less one trailing newline, and nothing else.
//
// The error is a [Faults] with everything that is wrong, [Config.Validate]'s
// findings included; the Config is then nil.
func Load(environ []string) (*Config, error) {
	var c collector
	given := ownVariables(environ)
	known := make(map[string]string)
	var files []secretFile
	for _, s := range settings() {
		if v, ok := value(&c, s, given); ok {
			known[s.name] = v
		}
		if path := given[s.name+fileSuffix]; s.secret && path != "" {
			files = append(files, secretFile{s.name + fileSuffix, path})
		}
	}
	for name, v := range given {
		refuseUnknown(&c, name, v)
	}
	cfg := parse(&c, known)
	cfg.secretFiles = files
	cfg.validate(&c, false)
	if err := c.err(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// Dev returns the settings of `latchkey dev`: the defaults, listeners on the
// loopback interface only, cookies without TLS, log lines for people, the page at
// /docs, and [DevSecret]. [Config.ValidateDev] accepts them and [Config.Validate] does not.
func Dev() *Config {
	cfg := parse(new(collector), nil)
	cfg.Addr = "127.0.0.1:8080"
	cfg.AdminAddr = "127.0.0.1:9090"
	cfg.Secret = DevSecret
	cfg.CookieSecure = false
	cfg.LogFormat = "text"
	cfg.Docs = true
	return cfg
}

// ownVariables picks the variables that begin with Prefix, in whatever case, so
// that latchkey_addr is reported and not overlooked.
func ownVariables(environ []string) map[string]string {
	own := make(map[string]string)
	for _, kv := range environ {
		name, v, ok := strings.Cut(kv, "=")
		if ok && len(name) >= len(Prefix) && strings.EqualFold(name[:len(Prefix)], Prefix) {
			own[name] = v
		}
	}
	return own
}

// value returns what a setting was given, in its variable or, for a secret, in a file.
func value(c *collector, s setting, given map[string]string) (string, bool) {
	v := given[s.name]
	path := given[s.name+fileSuffix]
	if !s.secret || path == "" {
		return v, v != ""
	}
	if v != "" {
		c.add(s.name, "given twice, here and by "+s.name+fileSuffix, "unset one of the two")
		return "", false
	}
	v, err := readSecret(path)
	if err != nil {
		// Not the path: it may be the secret itself, put into the wrong variable.
		c.add(s.name, s.name+fileSuffix+" names a file that "+err.Error(),
			"give the path of a file that holds the value and that this user may read")
		return "", false
	}
	return v, true
}

// readSecret reads a file, less one trailing newline. Its errors continue "a file that ...".
func readSecret(path string) (string, error) {
	f, err := os.Open(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return "", unreadable(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return "", unreadable(err)
	}
	v := string(b)
	if rest, ok := strings.CutSuffix(v, "\n"); ok {
		v = strings.TrimSuffix(rest, "\r")
	}
	switch {
	case v == "":
		return "", errors.New("is empty")
	case len(b) > maxSecretFile:
		return "", fmt.Errorf("is larger than %d KiB", maxSecretFile>>10)
	}
	return v, nil
}

func unreadable(err error) error {
	if pe := new(fs.PathError); errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Errorf("cannot be read (%w)", err)
}

// serviceLink matches the variables that Kubernetes puts into every pod for each
// Service of its namespace. A Service named latchkey or latchkey-redis makes some
// that begin like ours.
var serviceLink = regexp.MustCompile(`^LATCHKEY(?:_[A-Z0-9_]+?)??_(SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)$`)

// isServiceLink tells LATCHKEY_PORT=tcp://10.0.0.7:8080, a service link, from
// LATCHKEY_PORT=8080, somebody's mistake.
func isServiceLink(name, v string) bool {
	m := serviceLink.FindStringSubmatch(name)
	if m == nil {
		return false
	}
	return m[1] != "PORT" || strings.Contains(v, "://")
}

// refuseUnknown reports a name that is no setting, with the nearest that is one.
func refuseUnknown(c *collector, name, v string) {
	var names []string
	for _, s := range settings() {
		if name == s.name || s.secret && name == s.name+fileSuffix {
			return
		}
		if name == s.name+fileSuffix {
			c.add(name, "only a secret can be read from a file", "set "+s.name)
			return
		}
		names = append(names, s.name)
		if s.secret {
			names = append(names, s.name+fileSuffix)
		}
	}
	if isServiceLink(name, v) {
		return
	}
	shown := name
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) || len(name) > 80 {
		shown = quote(name)
	}
	if n := nearest(strings.ToUpper(name), names); n != "" {
		c.add(shown, "no such setting", "did you mean "+n+"?")
		return
	}
	c.add(shown, "no such setting", "unset it, or look its name up in docs/settings.md")
}

// nearest returns the known name with the fewest edits from name, or "" when
// none resembles it: more than half of what follows the prefix would change.
func nearest(name string, known []string) string {
	best, fewest := "", len(name)
	for _, k := range known {
		if d := distance(name, k); d < fewest {
			best, fewest = k, d
		}
	}
	if fewest > max(2, (len(name)-len(Prefix))/2) {
		return ""
	}
	return best
}

// distance is Levenshtein's, with names cut at 64 bytes: longer ones are no typo.
func distance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// parse fills a Config from values and defaults, and notes what cannot be read.
func parse(c *collector, values map[string]string) *Config {
	if values == nil {
		values = make(map[string]string) // nil would make the library read the process's environment
	}
	cfg := new(Config)
	err := env.ParseWithOptions(cfg, env.Options{Environment: values, FuncMap: parsers()})
	var all env.AggregateError
	if errors.As(err, &all) {
		for _, e := range all.Errors {
			noteParseError(c, e, values)
		}
	}
	if cfg.Audience == "" {
		cfg.Audience = cfg.Issuer
	}
	return cfg
}

func noteParseError(c *collector, err error, values map[string]string) {
	var pe env.ParseError
	if !errors.As(err, &pe) {
		c.add(Prefix, "the settings cannot be read", "report this: "+err.Error())
		return
	}
	s := settingOf(pe.Name)
	if f := new(listError); errors.As(pe.Err, &f) {
		c.add(s.name, f.problem, f.remedy)
		return
	}
	c.add(s.name, quote(values[s.name])+" is not allowed", "write "+s.form())
}

// parsers reads the types for which the library is too lenient or knows no form.
func parsers() map[reflect.Type]env.ParserFunc {
	return map[reflect.Type]env.ParserFunc{
		// strconv.ParseBool takes "t" and "1"; a setting that turns a protection off should be spelt out.
		reflect.TypeFor[bool](): func(s string) (any, error) {
			switch s {
			case "true":
				return true, nil
			case "false":
				return false, nil
			}
			return nil, strconv.ErrSyntax
		},
		reflect.TypeFor[time.Duration]():  func(s string) (any, error) { return time.ParseDuration(s) },
		reflect.TypeFor[Rate]():           func(s string) (any, error) { return ParseRate(s) },
		reflect.TypeFor[Outage]():         func(s string) (any, error) { return ParseOutage(s) },
		reflect.TypeFor[[]string]():       func(s string) (any, error) { return list(s), nil },
		reflect.TypeFor[[]netip.Prefix](): func(s string) (any, error) { return parseNetworks(list(s)) },
	}
}

// list splits at commas and trims the white space around each element.
func list(s string) []string {
	parts := strings.Split(s, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}

// listError is what is wrong with one element of a list.
type listError struct{ problem, remedy string }

func (e *listError) Error() string { return e.problem + "; " + e.remedy }

func parseNetworks(parts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range parts {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(s); err == nil && a.Zone() == "" {
				p, err = a.Prefix(a.BitLen())
			}
		}
		if err != nil || !p.IsValid() {
			return nil, &listError{quote(s) + " is neither an address nor a network", "write 10.0.0.7 or 10.0.0.0/8, separated by commas"}
		}
		out = append(out, p)
	}
	return out, nil
}
