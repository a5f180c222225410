package tokenstore

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const (
	someID    = "AAAAAAAAAAAAAAAAAAAAAA"
	someChain = "0123456789abcdef"
)

// bulk writes strings and arrays as Redis does.
func bulk(v any) string {
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("$%d\r\n%s\r\n", len(v), v)
	case []any:
		text := fmt.Sprintf("*%d\r\n", len(v))
		for _, e := range v {
			text += bulk(e)
		}
		return text
	}
	panic(v)
}

func TestAReplyOfTheLogIsRead(t *testing.T) {
	first := []any{"7-0", []any{"v", someChain + "|sid|" + someID + "|2000|1500"}}
	second := []any{"8-0", []any{"v", someChain + "|user|" + someID + "|2000|1500|3|" + someID}}
	third := []any{"9-0", []any{"v", someChain + "|key|" + someID + "|2000|1500"}}
	want := map[int][]Entry{
		3: {
			{Seq: 7, Kind: KindSession, Chain: someChain, Until: time.UnixMilli(2000), At: time.UnixMilli(500)},
			{Seq: 8, Kind: KindUser, Chain: someChain, Until: time.UnixMilli(2000), At: time.UnixMilli(500), Epoch: 3},
		},
		5: {{Seq: 9, Kind: KindKey, Chain: someChain, Until: time.UnixMilli(2000), At: time.UnixMilli(500)}},
	}
	shards := map[string]int{"three": 3, "five": 5}
	three, five := []any{first, second}, []any{third}
	resp2 := bulk([]any{[]any{"three", three}, []any{"five", five}})
	resp3 := "%2\r\n" + bulk("three") + bulk(three) + bulk("five") + bulk(five)
	for name, reply := range map[string]string{"RESP 2": resp2, "RESP 3": resp3} {
		got, err := parseStreams(reply, shards)
		if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Entry{})); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
		// Cut anywhere, or with a byte too many, it is a fault and no panic.
		for i := range len(reply) {
			if _, err := parseStreams(reply[:i], shards); err == nil {
				t.Errorf("%s: the first %d bytes are read as a whole reply", name, i)
			}
		}
		if _, err := parseStreams(reply+"x", shards); err == nil {
			t.Errorf("%s: a byte too many", name)
		}
	}
	for _, nothing := range []string{"*-1\r\n", "_\r\n", "*0\r\n"} {
		if got, err := parseStreams(nothing, shards); err != nil || len(got) != 0 {
			t.Errorf("%q: %v, %v", nothing, got, err)
		}
	}
}

func TestAReplyThatIsNoLogIsRefused(t *testing.T) {
	shards := map[string]int{"three": 3}
	entry := func(value string) string {
		return bulk([]any{[]any{"three", []any{[]any{"7-0", []any{"v", value}}}}})
	}
	good := someChain + "|sid|" + someID + "|2000|1500"
	if _, err := parseStreams(entry(good), shards); err != nil {
		t.Fatal(err)
	}
	for name, reply := range map[string]string{
		"an error":             "-MOVED 7 127.0.0.1:1\r\n",
		"a number":             ":1\r\n",
		"a simple string":      "+OK\r\n",
		"a negative length":    "*-7\r\n",
		"a huge length":        "*1\r\n*2\r\n$5\r\nthree\r\n*999999999999\r\n",
		"a string too long":    "*1\r\n*2\r\n$99\r\nthree\r\n",
		"another stream":       strings.Replace(entry(good), "three", "thref", 1),
		"another field":        strings.Replace(entry(good), "v\r\n", "w\r\n", 1),
		"another id":           strings.Replace(entry(good), "7-0", "7-1", 1),
		"an id without number": strings.Replace(entry(good), "7-0", "x-0", 1),
		"another kind":         strings.Replace(entry(good), "|sid|", "|jti|", 1),
		"a short chain":        entry(good[1:]),
		"no line":              entry(someChain),
		"a short line":         entry(someChain + "|sid|" + someID + "|2000"),
		"a line too long":      entry(good + "|1"),
		"a user without epoch": entry(someChain + "|user|" + someID + "|2000|1500"),
		"a user without field": entry(someChain + "|user|" + someID + "|2000|1500|1"),
		"an excepted what":     entry(someChain + "|user|" + someID + "|2000|1500|1|x"),
		"no id":                entry(someChain + "|sid|x|2000|1500"),
		"no time":              entry(someChain + "|sid|" + someID + "||1500"),
	} {
		if got, err := parseStreams(reply, shards); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzParseStreams(f *testing.F) {
	f.Add("*1\r\n*2\r\n$5\r\nthree\r\n*1\r\n*2\r\n$3\r\n7-0\r\n*2\r\n$1\r\nv\r\n$3\r\nabc\r\n")
	f.Add("%1\r\n$5\r\nthree\r\n*0\r\n")
	f.Fuzz(func(_ *testing.T, reply string) { _, _ = parseStreams(reply, map[string]int{"three": 3}) })
}
