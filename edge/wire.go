package edge

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/latchkey-auth/latchkey/tokenstore"
)

// The stream of GET /revocations, in Server-Sent Events (WHATWG HTML section 9.2).
// Each event has one line of JSON. In order:
//
//	hello    {"shards":16,"keep_ms":910000}         once
//	shard    {"shard":3,"epoch":"...","dead":[]}    each shard once, before its entries
//	reset    {"shard":3,"epoch":"..."}              instead of shard: Last-Event-ID is not in
//	                                                its history, all that it has follows
//	entries  {"shard":3,"entries":[{"k":"sid","i":"...","u":1700000910000},
//	                                                {"k":"user","i":"...","u":1700000910000,"e":4,"x":"..."}]}
//	mark     {"at_ms":120,"now_ms":1700000000000}   with an id, to resume from
//
// A mark says that all was sent that Redis had at_ms after the stream began, by
// the server's clock; it comes after every batch of entries and as a heartbeat.
const (
	eventHello   = "hello"
	eventShard   = "shard"
	eventReset   = "reset"
	eventEntries = "entries"
	eventMark    = "mark"
)

type wireHello struct {
	Shards int   `json:"shards"`
	KeepMS int64 `json:"keep_ms"` // for how long an entry is needed
}

type wireShard struct {
	Shard int    `json:"shard"`
	Epoch string `json:"epoch"`
	// Dead are the signing keys that were revoked: their entries may have left the log.
	Dead []string `json:"dead,omitempty"`
}

type wireEntries struct {
	Shard   int         `json:"shard"`
	Entries []wireEntry `json:"entries"`
}

type wireEntry struct {
	Kind   tokenstore.Kind `json:"k"`
	ID     string          `json:"i"`
	Until  int64           `json:"u"` // Redis TIME, ms, at which the last token that it names has expired
	Epoch  uint64          `json:"e,omitempty"`
	Except string          `json:"x,omitempty"`
}

type wireMark struct {
	AtMS  int64 `json:"at_ms"`
	NowMS int64 `json:"now_ms"` // Redis TIME
}

// entriesInEvent bounds the length of an event's line: an entry takes 140 bytes
// at most.
const entriesInEvent = 1000

// errWire says that a stream holds what this version cannot read. What cannot be
// read might revoke something.
var errWire = errors.New("the stream of revocations cannot be understood")

// appendEvent appends one event. The id is left out if empty.
func appendEvent(b []byte, name, id string, data any) []byte {
	text, err := json.Marshal(data)
	if err != nil {
		panic(fmt.Sprintf("edge: event %s: %v", name, err)) // strings and numbers
	}
	if id != "" {
		b = append(append(append(b, "id: "...), id...), '\n')
	}
	b = append(append(append(b, "event: "...), name...), "\ndata: "...)
	return append(append(b, text...), "\n\n"...)
}

// appendEntries appends entries of one shard, in as many events as it takes.
func appendEntries(b []byte, shard int, entries []tokenstore.Entry) []byte {
	for len(entries) > 0 {
		n := min(len(entries), entriesInEvent)
		w := wireEntries{Shard: shard, Entries: make([]wireEntry, n)}
		for i, e := range entries[:n] {
			w.Entries[i] = wireEntry{Kind: e.Kind, ID: e.ID.String(), Until: e.Until.UnixMilli(), Epoch: e.Epoch}
			if e.Except != (tokenstore.ID{}) {
				w.Entries[i].Except = e.Except.String()
			}
		}
		b = appendEvent(b, eventEntries, "", w)
		entries = entries[n:]
	}
	return b
}

// entry reads an entry of a shard.
func (w wireEntry) entry(shard int) (tokenstore.Entry, error) {
	id, err := tokenstore.ParseID(w.ID)
	if err != nil || id.Shard() != shard {
		return tokenstore.Entry{}, fmt.Errorf("%w: an entry's id", errWire)
	}
	if w.Until <= 0 {
		return tokenstore.Entry{}, fmt.Errorf("%w: an entry without an end", errWire)
	}
	e := tokenstore.Entry{Kind: w.Kind, ID: id, Until: time.UnixMilli(w.Until), Epoch: w.Epoch}
	switch w.Kind {
	case tokenstore.KindSession, tokenstore.KindKey:
	case tokenstore.KindUser:
		if w.Except == "" {
			break
		}
		if e.Except, err = tokenstore.ParseID(w.Except); err != nil {
			return tokenstore.Entry{}, fmt.Errorf("%w: an excepted session", errWire)
		}
	default:
		return tokenstore.Entry{}, fmt.Errorf("%w: an entry's kind", errWire)
	}
	return e, nil
}

const (
	// chainSize is that of a chain, and of the epoch that it starts from.
	chainSize   = 8
	marksFormat = 1
)

// formatMarks writes the marks of all shards as an event id: for each the seq and
// the chain. A chain covers its history from the epoch on, so that the epoch needs
// no words: 16 shards take some 230 characters. The text is "" if a mark has a
// form that no script writes.
func formatMarks(marks []tokenstore.Mark) string {
	b := []byte{marksFormat}
	for _, m := range marks {
		chain, err := hex.DecodeString(m.Chain)
		if m.Seq == 0 {
			chain, err = base64.RawURLEncoding.DecodeString(m.Chain)
		}
		if err != nil || len(chain) != chainSize {
			return ""
		}
		b = append(binary.AppendUvarint(b, m.Seq), chain...)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// parseMarks reads what formatMarks wrote for so many shards; nil if it is
// anything else. The marks have no epoch.
func parseMarks(id string, shards int) []tokenstore.Mark {
	b, err := base64.RawURLEncoding.Strict().DecodeString(id)
	if err != nil || len(b) == 0 || b[0] != marksFormat {
		return nil
	}
	b = b[1:]
	marks := make([]tokenstore.Mark, shards)
	for i := range marks {
		seq, n := binary.Uvarint(b)
		if n <= 0 || len(b) < n+chainSize || seq > tokenstore.NoEntries {
			return nil
		}
		chain := hex.EncodeToString(b[n : n+chainSize])
		if seq == 0 {
			chain = base64.RawURLEncoding.EncodeToString(b[n : n+chainSize])
		}
		marks[i] = tokenstore.Mark{Seq: seq, Chain: chain}
		b = b[n+chainSize:]
	}
	if len(b) > 0 {
		return nil
	}
	return marks
}

// event is one event of a stream.
type event struct{ name, data, id string }

// maxEvent bounds an event's data and each line, in bytes.
const maxEvent = 1 << 20

// readEvents calls take for each event until the stream ends or take returns an
// error. alive is called at every line. Lines end in LF, CRLF or CR; fields that
// it does not know are passed over.
func readEvents(r io.Reader, alive func(), take func(event) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxEvent)
	lines.Split(splitLine)
	var e event
	var data strings.Builder
	for lines.Scan() {
		alive()
		line := lines.Text()
		if line == "" {
			if e.data = strings.TrimSuffix(data.String(), "\n"); data.Len() > 0 {
				if err := take(e); err != nil {
					return err
				}
			}
			e.name, e.data = "", ""
			data.Reset()
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			e.name = value
		case "data":
			if data.Len()+len(value) >= maxEvent {
				return fmt.Errorf("%w: an event of more than 1 MiB", errWire)
			}
			data.WriteString(value)
			data.WriteByte('\n')
		case "id":
			if !strings.Contains(value, "\x00") {
				e.id = value
			}
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.EOF
}

// splitLine is a bufio.SplitFunc. An unfinished last line is dropped, as its
// event would be.
func splitLine(data []byte, atEOF bool) (advance int, token []byte, err error) {
	i := bytes.IndexAny(data, "\r\n")
	switch {
	case i < 0 && atEOF:
		return len(data), nil, nil
	case i < 0:
		return 0, nil, nil
	case data[i] == '\n':
		return i + 1, data[:i], nil
	case i+1 < len(data) && data[i+1] == '\n':
		return i + 2, data[:i], nil
	case i+1 == len(data) && !atEOF:
		return 0, nil, nil // a LF may follow
	}
	return i + 1, data[:i], nil
}
