package handlers

import (
	"strings"
	"unicode"

	"github.com/mileusna/useragent"
)

// maxDevice is the longest device description, in bytes: what Redis still keeps
// in its compact encoding (hash-max-listpack-value).
const maxDevice = 64

// device describes a user agent to its user: "Firefox 128 on Linux" for a
// browser, the product and version for any other client.
func device(userAgent string) string {
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
	for len(text) > maxDevice {
		cut := []rune(text)
		text = string(cut[:len(cut)-1])
	}
	return text
}
