package handlers

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestTokenResponsesAreEncodedAsByEncodingJSON(t *testing.T) {
	for _, r := range []tokenResponse{
		{},
		{AccessToken: "a.b-c_d", TokenType: "bearer", ExpiresIn: 900},
		{AccessToken: "a", TokenType: "DPoP", ExpiresIn: -1, RefreshToken: "r", Scope: "read write", DeviceToken: "d"},
		{AccessToken: "a", Scope: "é \" \\ \n \u2028 <&>"},
	} {
		var want strings.Builder
		e := json.NewEncoder(&want)
		e.SetEscapeHTML(false)
		if err := e.Encode(r); err != nil {
			t.Fatal(err)
		}
		if got := string(r.appendJSON(nil)) + "\n"; got != want.String() {
			t.Errorf("got  %swant %s", got, want.String())
		}
	}
}
