package session

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/latchkey-auth/latchkey/internal/refreshtoken"
)

// Whatever is shown as a refresh token or as the token of a known device, it is not believed.
func FuzzShownTokens(f *testing.F) {
	for _, text := range []string{"", "lkr1_x", "AAAA", strings.Repeat("A", 43), "lkr1_" + strings.Repeat("A", 112), "\x00\xff"} {
		f.Add(text)
	}
	codec, err := refreshtoken.New([]byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		f.Fatal(err)
	}
	s := &Service{Options: Options{RefreshTokens: codec, DeviceKeys: [][]byte{[]byte("key")}}}
	f.Fuzz(func(t *testing.T, text string) {
		if id := s.knownDevice("alice", []string{text}); id != "" {
			t.Fatalf("the device %q is known", id)
		}
		if list := s.families([]string{text, text}); len(list) > 0 {
			t.Fatalf("%d families", len(list))
		}
	})
}

// Whatever a client calls itself, its description is short and printable.
func FuzzDevice(f *testing.F) {
	for _, s := range []string{
		"", "curl/8.5.0", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0", "Mozilla/",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
		"Mozilla/5.0 (", "Mozilla/5.0 )(;;/", "\x00\xff\u202e", strings.Repeat("ä", 100), "Mozilla/5.0 " + strings.Repeat("(", 1000),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, userAgent string) {
		text := device(userAgent)
		if len(text) > maxDevice || !utf8.ValidString(text) || strings.ContainsAny(text, "\x00\r\n\u202e") {
			t.Fatalf("%q became %q", userAgent, text)
		}
	})
}

// A long header is cut in one step, not character by character.
func TestDeviceOfALongHeader(t *testing.T) {
	long := strings.Repeat("ä", 8<<10)
	if n := testing.AllocsPerRun(1, func() { device(long) }); n > 100 {
		t.Errorf("%v allocations", n)
	}
}

// The longest header that the server lets through is described in no time: each
// login would pay for it.
func BenchmarkDeviceOfALongHeader(b *testing.B) {
	long := strings.Repeat("ä", 8<<10)
	b.ReportAllocs()
	for b.Loop() {
		device(long)
	}
}
