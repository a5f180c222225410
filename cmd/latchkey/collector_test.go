package main

import (
	"strings"
	"testing"

	"github.com/latchkey-auth/latchkey/test/redistest"
)

func TestServeTunesTheCollectorUnlessGOGCIsSet(t *testing.T) {
	t.Parallel()
	bin := program(t)
	server := redistest.Start(t)
	for _, test := range []struct {
		settings []string
		line     string
	}{
		{nil, "go_gc_gogc_percent 400\n"},
		{[]string{"GOMEMLIMIT=300MiB"}, "go_gc_gogc_percent 400\n"},
		{[]string{"GOGC=77"}, "go_gc_gogc_percent 77\n"},
		{[]string{"GOGC=77", "GOMEMLIMIT=300MiB"}, "go_gc_gogc_percent 77\n"},
	} {
		p := launch(t, bin, server.URL(), test.settings...)
		if text := metrics(t, p); !strings.Contains(text, test.line) {
			t.Errorf("with %v: no line %q", test.settings, test.line)
		}
	}
}
