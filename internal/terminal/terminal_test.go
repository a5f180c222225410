package terminal

import (
	"testing"
	"time"
)

func TestFiguresAreShort(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0", 850 * time.Microsecond: "850µs", 1234 * time.Microsecond: "1.2ms", 85 * time.Millisecond: "85ms",
		1234 * time.Millisecond: "1.2s", 1234 * time.Second: "1234s",
	} {
		if got := Duration(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
	for v, want := range map[float64]string{0: "0", 3: "3", 0.01: "<0.1", 0.34: "0.3", 12.4: "12", 1234: "1.2k", 34_567: "34.6k", 123_456: "123k", 1_234_567: "1.2M"} {
		if got := Number(v); got != want {
			t.Errorf("%v: got %s, want %s", v, got, want)
		}
	}
}
