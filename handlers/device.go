package handlers

import (
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
