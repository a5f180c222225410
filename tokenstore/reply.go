package tokenstore

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

// reply is a script's answer, read element by element: integers, and strings where the
// script's header says so. Numbers that came out of a hash arrive as strings.
//
// It remembers the first element that is missing or cannot be read, and [reply.err] turns
// that into an [ErrUnavailable]. What the methods return after a fault means nothing, so
// every operation returns what err, verdict, oneOf or unknown says.
type reply struct {
	operation string
	values    []any
	fault     *error // shared with the lists in it
}

func newReply(operation string, values []any) *reply {
	return &reply{operation: operation, values: values, fault: new(error)}
}

// errReply says that an answer does not have the shape that its script's header promises.
var errReply = errors.New("the reply cannot be read")

// newHash is what HMGET answers for a number of fields: nil for each that is not there.
func newHash(operation string, values []any, fields int) *reply {
	r := newReply(operation, values)
	if len(values) != fields {
		r.failed(min(len(values), fields), "one of as many as were asked for")
	}
	return r
}

func (r *reply) failed(i int, wanted string) {
	if *r.fault == nil {
		*r.fault = fmt.Errorf("%w: element %d is not %s", errReply, i, wanted)
	}
}

// err returns an [ErrUnavailable] if something that was read so far was missing or unreadable.
func (r *reply) err() error { return r.verdict(nil) }

// verdict returns what the caller makes of the code, unless something that was read so far
// was missing or unreadable: then it is an [ErrUnavailable].
func (r *reply) verdict(err error) error {
	if *r.fault != nil {
		return unavailable(r.operation, *r.fault)
	}
	return err
}

// unknown is the error for a code that the caller does not know.
func (r *reply) unknown() error {
	r.failed(0, "a known code")
	return r.err()
}

// oneOf returns nil if the code is one of those given, and nothing else was unreadable.
func (r *reply) oneOf(codes ...int64) error {
	got := r.code()
	for _, c := range codes {
		if got == c {
			return r.err()
		}
	}
	return r.unknown()
}

func (r *reply) at(i int) any {
	if i >= len(r.values) {
		return nil
	}
	return r.values[i]
}

// code reads element 0. It returns -1 where that is no code at all.
func (r *reply) code() int64 {
	if n, ok := r.at(0).(int64); ok {
		return n
	}
	r.failed(0, "a code")
	return -1
}

// count reads an integer from 0 up.
func (r *reply) count(i int) uint64 {
	var n int64
	switch v := r.at(i).(type) {
	case int64:
		n = v
	case string:
		var err error
		if n, err = strconv.ParseInt(v, 10, 64); err != nil {
			n = -1
		}
	default:
		n = -1
	}
	if n < 0 {
		r.failed(i, "a count")
		return 0
	}
	return uint64(n)
}

func (r *reply) milliseconds(i int) time.Duration {
	return time.Duration(r.count(i)) * time.Millisecond //nolint:gosec // was an int64
}

// time reads a moment after 1970 in ms.
func (r *reply) time(i int) time.Time {
	if ms := r.count(i); ms > 0 {
		return time.UnixMilli(int64(ms)) //nolint:gosec // was an int64
	}
	r.failed(i, "a time")
	return time.Time{}
}

func (r *reply) string(i int) string {
	v, ok := r.at(i).(string)
	if !ok {
		r.failed(i, "a string")
	}
	return v
}

// optional reads a field that a hash may not have.
func (r *reply) optional(i int) string {
	if r.at(i) == nil {
		return ""
	}
	return r.string(i)
}

// list reads a list of any elements. What is wrong with them is wrong with r.
func (r *reply) list(i int) *reply {
	v, ok := r.at(i).([]any)
	if !ok {
		r.failed(i, "a list")
	}
	return &reply{operation: r.operation, values: v, fault: r.fault}
}

// pairs reads a list of names and values, in turn, as HGETALL returns it.
func (r *reply) pairs(i int) [][2]string {
	list := r.list(i)
	if len(list.values)%2 != 0 {
		r.failed(i, "a list of pairs")
		return nil
	}
	pairs := make([][2]string, len(list.values)/2)
	for j := range pairs {
		pairs[j] = [2]string{list.string(2 * j), list.string(2*j + 1)}
	}
	return pairs
}
