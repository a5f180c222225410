package statuslist

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"io"
	"strconv"
	"strings"
	"testing"
)

// read is the status at an index of a list of so many bits a status, as a relying
// party reads it (section 8.3, steps 5 and 6): by arithmetic other than the writer's.
func read(t *testing.T, lst string, bits, idx int) int {
	t.Helper()
	all := inflate(t, lst)
	value := 0
	for i := range bits {
		bit := idx*bits + i
		value += int(all[bit>>3]>>(bit&7)&1) << i
	}
	return value
}

// Appendix C.1: the published list of 2^20 statuses, read and written.
func TestTheVectorOfTheDraft(t *testing.T) {
	const published = "eNrt3AENwCAMAEGogklACtKQPg9LugC9k_ACvreiogEAAKkeCQAAAAAAAAAAAAAAAAAAAIBylgQAAAAAAAAAAAAAAAAAAAAA" +
		"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAXG9IAAAAAAAAAPwsJAAAAAAAAAAAAAAAvhsSAAAAAAAAAAAA7KpLAAAAAAAAAAAA" +
		"AAAAAAAAAJsLCQAAAAAAAAAAADjelAAAAAAAAAAAKjDMAQAAAACAZC8L2AEb"
	set := []int{0, 1993, 25460, 159495, 495669, 554353, 645645, 723232, 854545, 934534, 1000345}
	bits := make([]byte, 1<<20/8)
	for _, idx := range set {
		if read(t, published, 1, idx) != 1 {
			t.Errorf("the reader does not see %d", idx)
		}
		block, at := Locate(uint64(idx))
		var l List
		l.Revoke(at)
		for i, b := range l.bits {
			bits[int(block)*Size/8+i] |= b
		}
	}
	ours, err := encode(bits)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := inflate(t, ours), inflate(t, published); !bytes.Equal(got, want) {
		t.Error("the bytes are not those that the draft publishes")
	}
}

func inflate(t *testing.T, lst string) []byte {
	t.Helper()
	compressed, err := base64.RawURLEncoding.Strict().DecodeString(lst)
	if err != nil {
		t.Fatal(err)
	}
	r, err := zlib.NewReader(bytes.NewReader(compressed))
	if err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Section 4.1: sixteen statuses, 0xB9 0xA3.
func TestTheExampleOfTheDraft(t *testing.T) {
	var l List
	for idx, status := range []int{1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 1} {
		if status == 1 {
			l.Revoke(idx)
		}
	}
	if l.bits[0] != 0xb9 || l.bits[1] != 0xa3 {
		t.Errorf("% x", l.bits[:2])
	}
	if got := inflate(t, "eNrbuRgAAhcBXQ"); !bytes.Equal(got, l.bits[:2]) {
		t.Errorf("the published bytes are % x", got)
	}
}

func TestAListOfNothingIsSmall(t *testing.T) {
	var l List
	lst, err := l.Encode()
	if err != nil || len(lst) > 64 {
		t.Errorf("%d characters, %v", len(lst), err)
	}
	if got := inflate(t, lst); len(got) != Size/8 || len(bytes.Trim(got, "\x00")) != 0 {
		t.Errorf("%d bytes", len(got))
	}
	l.Revoke(Size - 1)
	if lst, err = l.Encode(); err != nil || read(t, lst, 1, Size-1) != 1 || read(t, lst, 1, Size-2) != 0 {
		t.Errorf("the last status: %v", err)
	}
}

// A list takes from a range of places what is in its block, and does not walk the rest.
func TestRevokePlaces(t *testing.T) {
	const many = 1 << 60
	for name, c := range map[string]struct {
		block, first, count uint64
		from, to            int // what is INVALID then
	}{
		"within":                {2, 2*Size + 3, 4, 3, 7},
		"all of the block":      {2, 2 * Size, Size, 0, Size},
		"from the block before": {2, 2*Size - 5, 8, 0, 3},
		"into the next block":   {2, 3*Size - 2, 5, Size - 2, Size},
		"none":                  {2, 2*Size + 3, 0, 0, 0},
		"up to the block":       {2, 2*Size - 5, 5, 0, 0},
		"after the block":       {2, 3 * Size, 5, 0, 0},
		"far after":             {2, 3 * Size, many, 0, 0},
		"far before":            {1 << 35, 1, many / 2 / Size, 0, 0},
		"far around":            {2, 1, many, 0, Size},
		"beyond all numbers":    {2, 1<<64 - 3, many, 0, 0},
		"to beyond them all":    {2, 2*Size + 1, 1<<64 - 1, 1, Size},
	} {
		var got, want List
		got.RevokePlaces(c.block, c.first, c.count)
		for i := c.from; i < c.to; i++ {
			want.Revoke(i)
		}
		if got != want {
			t.Errorf("%s: it is another list", name)
		}
	}
}

func TestLocate(t *testing.T) {
	for n, want := range map[uint64]struct {
		block uint64
		idx   int
	}{1: {0, 1}, Size - 1: {0, Size - 1}, Size: {1, 0}, 5*Size + 7: {5, 7}} {
		if block, idx := Locate(n); block != want.block || idx != want.idx || Place(block, idx) != n {
			t.Errorf("%d is at %d of block %d", n, idx, block)
		}
	}
}

func TestParseIDTakesOnlyTheCanonicalForm(t *testing.T) {
	for _, good := range []string{"0.a.0", "255.oESHSqtnhZI.68719476735", "7.-_.12"} {
		if id, err := ParseID(good); err != nil || id.String() != good {
			t.Errorf("%q was read as %v, %v", good, id, err)
		}
	}
	for _, bad := range []string{
		"", ".", "..", "0.a", "0.a.", "0..0", ".a.0", "0.a.0.0", "00.a.0", "0.a.00", "+0.a.0", "-1.a.0", "256.a.0", "0.a.-1", "0.a.+1",
		"0.a b.0", "0.ä.0", "0.a%.0", "0.a/.0", "0.a.0x1", "0.a.1e3", "0.a.1_0", " 0.a.0", "0.a.0\n", "0.a.68719476736", "0.a.18446744073709551616",
		"0." + strings.Repeat("a", maxHistory+1) + ".0",
	} {
		if id, err := ParseID(bad); err == nil {
			t.Errorf("%q was read as %v", bad, id)
		}
	}
}

func FuzzParseID(f *testing.F) {
	for _, seed := range []string{"0.oESHSqtnhZI.0", "255.a.68719476735", "00.a.0", "..", "1.a.18446744073709551615"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		id, err := ParseID(text)
		if err != nil {
			return
		}
		if id.String() != text {
			t.Errorf("%q and %q are one list", text, id)
		}
		if block, idx := Locate(Place(id.Block, Size-1)); block != id.Block || idx != Size-1 {
			t.Errorf("%q: its last place is in block %d", text, block)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	for _, revoked := range []int{0, 100, 1_000, 10_000, Size / 2} {
		b.Run(strconv.Itoa(revoked), func(b *testing.B) {
			var l List
			// A sequence without a pattern that a compressor could use.
			for i, x := 0, uint32(1); i < revoked; i++ {
				x = x*1664525 + 1013904223
				l.Revoke(int(x >> 15))
			}
			var lst string
			for b.Loop() {
				lst, _ = l.Encode()
			}
			b.ReportAllocs()
			b.ReportMetric(float64(len(lst)), "characters")
		})
	}
}
