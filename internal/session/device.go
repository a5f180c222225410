package session

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"log/slog"
	"strings"
	"unicode"

	"github.com/mileusna/useragent"
)

// maxDevice is the longest device description, in bytes: what Redis still keeps
// in its compact encoding (hash-max-listpack-value).
const maxDevice = 64

// maxUserAgent is how much of a User-Agent header is read, in bytes. Parsing
// takes time, and the header may be as long as a client likes.
const maxUserAgent = 512

// device describes a user agent to its user: "Firefox 128 on Linux" for a
// browser, the product and version for any other client.
func device(userAgent string) string {
	userAgent = userAgent[:min(len(userAgent), maxUserAgent)]
	text := userAgent
	if ua := useragent.Parse(userAgent); strings.HasPrefix(userAgent, "Mozilla/") && ua.Name != "" {
		major, _, _ := strings.Cut(ua.Version, ".")
		text = strings.TrimSpace(ua.Name + " " + major)
		if ua.OS != "" {
			text += " on " + ua.OS
		}
	}
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, text)
	// A character cut in two is dropped.
	return strings.ToValidUTF8(text[:min(len(text), maxDevice)], "")
}

// A known device is a browser or another program in which the user has logged in before.
// It has a budget of failed logins of its own, so that strangers who use up the account's
// budget do not keep its owner out. Its token proves nothing else:
// base64url( id 16 B | HMAC(key, id | username)[:16] ).
const deviceIDSize = 16

// knownDevice returns the id of the device that one of the tokens names, or "" if none is of
// a device that knows this username.
func (s *Service) knownDevice(username string, tokens []string) string {
	for _, token := range tokens {
		raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
		if err == nil && len(raw) == 2*deviceIDSize && s.madeDevice(raw, username) {
			return base64.RawURLEncoding.EncodeToString(raw[:deviceIDSize])
		}
	}
	return ""
}

// newDevice makes the token of a new device of a user. A login does without it if it cannot
// be made.
func (s *Service) newDevice(ctx context.Context, from Origin, username string) string {
	id := make([]byte, deviceIDSize)
	if _, err := io.ReadFull(s.Rand, id); err != nil {
		s.warn(ctx, from, "device not remembered", slog.String("cause", err.Error()))
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(append(id, deviceMAC(s.DeviceKeys[0], id, username)...))
}

// madeDevice reports whether a device's token was made here for a user.
func (s *Service) madeDevice(raw []byte, username string) bool {
	for _, key := range s.DeviceKeys {
		if hmac.Equal(raw[deviceIDSize:], deviceMAC(key, raw[:deviceIDSize], username)) {
			return true
		}
	}
	return false
}

func deviceMAC(key, id []byte, username string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(id)
	mac.Write([]byte(username))
	return mac.Sum(nil)[:deviceIDSize]
}
