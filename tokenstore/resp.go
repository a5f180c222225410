package tokenstore

import (
	"fmt"
	"strconv"
	"strings"
)

// parseStreams reads the reply to an XREAD (RESP 2 or 3), whose streams are known by name. The
// entries share the text of the reply, so that none of them is copied.
func parseStreams(reply string, shards map[string]int) (map[int][]Entry, error) {
	r := resp{rest: reply}
	n, pairs := r.streams()
	news := make(map[int][]Entry, max(0, n))
	for range n {
		if pairs {
			r.array(2)
		}
		shard, known := shards[r.text()]
		entries := r.array(-1)
		if r.err == nil && (!known || entries < 0) {
			r.fail()
		}
		list := make([]Entry, 0, max(0, min(entries, len(r.rest))))
		for i := 0; i < entries && r.err == nil; i++ {
			r.skip("*2\r\n")
			id := r.text()
			r.skip(entryHeader)
			e, ok := parseEntry(id, r.text())
			if r.err == nil && !ok {
				r.err = errLog
			}
			list = append(list, e)
		}
		if r.err != nil {
			return nil, r.err
		}
		news[shard] = list
	}
	if r.err == nil && r.rest != "" {
		r.fail()
	}
	return news, r.err
}

// entryHeader begins what an entry holds: one field, called [entryField].
const entryHeader = "*2\r\n$1\r\n" + entryField + "\r\n"

// resp reads a reply as Redis sent it. The first fault stays in err, and what is read after
// it is empty.
type resp struct {
	rest string
	err  error
}

func (r *resp) fail() {
	if r.err == nil {
		r.err = errReply
	}
}

// line returns the type of the next element, and what its first line says.
func (r *resp) line() (kind byte, text string) {
	if r.err != nil {
		return 0, ""
	}
	end := indexCRLF(r.rest)
	if end < 1 {
		r.fail()
		return 0, ""
	}
	kind, text, r.rest = r.rest[0], r.rest[1:end], r.rest[end+2:]
	if kind == '-' {
		r.err = fmt.Errorf("redis: %s", text)
		return 0, ""
	}
	return kind, text
}

func indexCRLF(s string) int {
	for i := 0; i+1 < len(s); i++ {
		if s[i] == '\r' && s[i+1] == '\n' {
			return i
		}
	}
	return -1
}

// streams reads how many streams follow, and whether each comes as a pair: in RESP 2. There
// may be none.
func (r *resp) streams() (n int, pairs bool) {
	kind, text := r.line()
	if kind == '_' || (kind == '*' && text == "-1") {
		return 0, false
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || (kind != '*' && kind != '%') {
		r.fail()
		return 0, false
	}
	return n, kind == '*'
}

// array reads the beginning of an array, of want elements unless that is negative, and
// returns how many there are.
func (r *resp) array(want int) int {
	kind, text := r.line()
	n, err := strconv.Atoi(text)
	if r.err == nil && (kind != '*' || err != nil || n < 0 || (want >= 0 && n != want)) {
		r.fail()
	}
	if r.err != nil {
		return 0
	}
	return n
}

// skip reads past text that must be there.
func (r *resp) skip(text string) {
	if rest, ok := strings.CutPrefix(r.rest, text); ok && r.err == nil {
		r.rest = rest
		return
	}
	r.fail()
}

// text reads a string.
func (r *resp) text() string {
	if r.err != nil || r.rest == "" || r.rest[0] != '$' {
		r.fail()
		return ""
	}
	n, rest, ok := digits(r.rest[1:])
	// The first comparison keeps the sum from overflowing.
	if !ok || n > uint64(len(rest)) || n+4 > uint64(len(rest)) || rest[:2] != "\r\n" || rest[n+2:n+4] != "\r\n" {
		r.fail()
		return ""
	}
	r.rest = rest[n+4:]
	return rest[2 : n+2]
}

// digits reads a decimal number of at most 18 digits from the beginning of s.
func digits(s string) (n uint64, rest string, ok bool) {
	i := 0
	for ; i < len(s) && s[i]-'0' <= 9; i++ {
		n = n*10 + uint64(s[i]-'0')
	}
	return n, s[i:], i > 0 && i <= 18
}
