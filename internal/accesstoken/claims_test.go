package accesstoken

import (
	"encoding/json"
	"strings"
	"testing"
)

// wireClaims is how encoding/json writes the claims of a token.
type wireClaims struct {
	Issuer       string        `json:"iss"`
	Subject      string        `json:"sub"`
	Audience     any           `json:"aud"`
	ExpiresAt    int64         `json:"exp"`
	NotBefore    int64         `json:"nbf,omitempty"`
	IssuedAt     int64         `json:"iat"`
	AuthTime     int64         `json:"auth_time,omitempty"`
	ID           string        `json:"jti"`
	SessionID    string        `json:"sid"`
	ClientID     string        `json:"client_id"`
	Scope        string        `json:"scope,omitempty"`
	UserEpoch    uint64        `json:"ue"`
	LogEpoch     string        `json:"le,omitempty"`
	Confirmation *confirmation `json:"cnf,omitempty"`
	Status       *status       `json:"status,omitempty"`
}

type confirmation struct {
	JKT string `json:"jkt"`
}

type status struct {
	List statusReference `json:"status_list"`
}

type statusReference struct {
	Index uint64 `json:"idx"`
	URI   string `json:"uri"`
}

func wired(t *testing.T, c Claims) string {
	t.Helper()
	w := wireClaims{
		Issuer: c.Issuer, Subject: c.Subject, Audience: c.Audience, ExpiresAt: c.ExpiresAt, NotBefore: c.NotBefore,
		IssuedAt: c.IssuedAt, AuthTime: c.AuthTime, ID: c.ID, SessionID: c.SessionID, ClientID: c.ClientID,
		Scope: c.Scope, UserEpoch: c.UserEpoch, LogEpoch: c.LogEpoch,
	}
	if len(c.Audience) == 1 {
		w.Audience = c.Audience[0]
	}
	if c.JKT != "" {
		w.Confirmation = &confirmation{c.JKT}
	}
	if c.StatusURI != "" {
		w.Status = &status{statusReference{c.StatusIndex, c.StatusURI}}
	}
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(w); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func TestClaimsAreEncodedAsByEncodingJSON(t *testing.T) {
	full := Claims{
		Issuer: "https://auth.example.com", Subject: "alice", Audience: []string{"api"}, ID: "jti", SessionID: "sid", ClientID: "web",
		Scope: "read write", UserEpoch: 7, LogEpoch: "le", IssuedAt: 1, ExpiresAt: maxDate, AuthTime: 3, NotBefore: 4,
		JKT: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I", StatusURI: "https://auth.example.com/status-lists/1", StatusIndex: maxCount,
	}
	texts := []string{"", "x", `"\`, "<a href=&>", "tab\tnewline\nnul\x00del\x7f", "é ü 漢字 🔑", "\u2028\u2029"}
	for _, text := range texts {
		c := full
		c.Issuer, c.Subject, c.ID, c.SessionID, c.ClientID, c.Scope, c.LogEpoch, c.StatusURI = text, text, text, text, text, text, text, text
		for _, c.Audience = range [][]string{{text}, {text, "b"}, {"a", text, "c"}} {
			if got, want := string(c.appendJSON(nil)), wired(t, c); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		}
	}
	for _, change := range []func(*Claims){
		func(c *Claims) { c.NotBefore = 0 },
		func(c *Claims) { c.AuthTime = 0 },
		func(c *Claims) { c.UserEpoch = 0 },
		func(c *Claims) { c.JKT = "" },
		func(c *Claims) { c.StatusURI, c.StatusIndex = "", 0 },
		func(c *Claims) { c.StatusIndex = 0 },
	} {
		c := full
		change(&c)
		if got, want := string(c.appendJSON(nil)), wired(t, c); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
