package refreshtoken

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// TestTokenIsRedacted prints a token in every way at hand. All its secret bytes
// are 'Z' (0x5a, decimal 90), so that no output may hold a run of them.
func TestTokenIsRedacted(t *testing.T) {
	tok := example()
	copy(tok.Secret[:], bytes.Repeat([]byte("Z"), 32))
	out := make(map[string]string)
	for _, verb := range "vsdqxXobBcUeEfFgGt" {
		for _, flag := range []string{"", "+", "#", " ", "0", "-"} {
			format := "%" + flag + string(verb)
			out[format] = fmt.Sprintf(format, tok)
			out[format+" pointer"] = fmt.Sprintf(format, &tok)
			out[format+" slice"] = fmt.Sprintf(format, []Token{tok})
			out[format+" field"] = fmt.Sprintf(format, struct{ T Token }{tok})
		}
	}
	out["error"] = fmt.Errorf("refused %v", tok).Error()
	for name, v := range map[string]any{"value": tok, "pointer": &tok, "field": struct{ T Token }{tok}, "key": map[Token]int{tok: 1}} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out["json "+name] = string(b)

		var text, js bytes.Buffer
		slog.New(slog.NewTextHandler(&text, nil)).Info("m", "t", v)
		slog.New(slog.NewJSONHandler(&js, nil)).Info("m", "t", v)
		out["slog text "+name], out["slog json "+name] = text.String(), js.String()
	}
	out["log value"] = tok.LogValue().String()
	b, err := xml.Marshal(tok)
	if err != nil {
		t.Fatal(err)
	}
	out["xml"] = string(b)

	for how, got := range out {
		for _, leak := range []string{"ZZ", "5a5a", "5A5A", "90 90", "90,90", "0x5a, 0x5a", "Wlpa", hex.EncodeToString(tok.SID[:4])} {
			if strings.Contains(got, leak) {
				t.Errorf("%s shows the token: %s", how, got)
			}
		}
		if !strings.Contains(got, "redacted") {
			t.Errorf("%s = %q, want the redacted form", how, got)
		}
	}
}
