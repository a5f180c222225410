package tokenstore

import (
	"fmt"
	"strconv"
)

// parseStreams reads the reply to an XREAD (RESP 2 or 3), whose streams are known by name.
func parseStreams(reply []byte, shards map[string]int) (map[int][]Entry, error) {
	r := resp{rest: string(reply)} // entries share the text, so that none of them is copied
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
			r.array(2)
			id := r.text()
			r.array(2)
			name, value := r.text(), r.text()
			e, ok := parseEntry(id, value)
			if r.err == nil && (!ok || name != entryField) {
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

// text reads a string.
func (r *resp) text() string {
	kind, length := r.line()
	n, err := strconv.Atoi(length)
	if r.err == nil && (kind != '$' || err != nil || n < 0 || n+2 > len(r.rest) || r.rest[n:n+2] != "\r\n") {
		r.fail()
	}
	if r.err != nil {
		return ""
	}
	text := r.rest[:n]
	r.rest = r.rest[n+2:]
	return text
}
