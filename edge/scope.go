package edge

import (
	"slices"
	"strings"
)

// HasScope reports whether all the scopes named were granted (RFC 6749 section
// 3.3: names are compared exactly).
func (c Claims) HasScope(names ...string) bool {
	for _, name := range names {
		if !granted(c.Scope, name) {
			return false
		}
	}
	return true
}

func granted(scope, name string) bool {
	for have := range strings.SplitSeq(scope, " ") {
		if have == name && name != "" {
			return true
		}
	}
	return false
}

// scopeName reports whether a name is a scope-token of RFC 6749 section 3.3.
func scopeName(name string) bool {
	return name != "" && !slices.ContainsFunc([]byte(name), func(b byte) bool {
		return b <= ' ' || b >= 0x7f || b == '"' || b == '\\'
	})
}
