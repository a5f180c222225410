package config

import (
	"fmt"
	"slices"
	"strings"
)

// Fault is one thing wrong with the configuration. It never holds a secret's value.
type Fault struct {
	Setting string // the variable's name
	Problem string // what is wrong with it
	Remedy  string // what to do next
}

func (f Fault) String() string { return f.Setting + ": " + f.Problem + "; " + f.Remedy }

// Faults is everything wrong with the configuration, as one error: its text is a
// heading and then one line for each fault.
type Faults []Fault

// Error lists the faults, one a line.
func (fs Faults) Error() string {
	var b strings.Builder
	if len(fs) == 1 {
		b.WriteString("1 setting is wrong:")
	} else {
		fmt.Fprintf(&b, "%d settings are wrong:", len(fs))
	}
	for _, f := range fs {
		b.WriteString("\n  " + f.String())
	}
	return b.String()
}

// collector gathers faults, the first of each setting only: a value that could
// not be read has nothing further to say.
type collector struct{ faults Faults }

func (c *collector) add(setting, problem, remedy string) {
	if !c.has(setting) {
		c.faults = append(c.faults, Fault{setting, problem, remedy})
	}
}

func (c *collector) has(setting string) bool {
	return slices.ContainsFunc(c.faults, func(f Fault) bool { return f.Setting == setting })
}

// err returns the faults in the order of the settings, unknown names last, or nil.
func (c *collector) err() error {
	if len(c.faults) == 0 {
		return nil
	}
	order := make(map[string]int)
	for i, s := range settings() {
		order[s.name] = i - len(settings())
		order[s.name+fileSuffix] = i - len(settings())
	}
	slices.SortStableFunc(c.faults, func(a, b Fault) int {
		if d := order[a.Setting] - order[b.Setting]; d != 0 {
			return d
		}
		return strings.Compare(a.Setting, b.Setting)
	})
	return c.faults
}

// quote shows a value on one line and of bounded length, unless it may hold the
// credentials of a URL.
func quote(v string) string {
	const most = 80
	if strings.Contains(v, "@") {
		return "the value"
	}
	if len(v) > most {
		return fmt.Sprintf("%.*q...", most, v)
	}
	return fmt.Sprintf("%q", v)
}
